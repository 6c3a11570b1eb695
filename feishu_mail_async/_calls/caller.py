"""A single caller that waits for its call."""

import asyncio
from contextvars import copy_context

from feishu_mail_async._scheduling.record import Record
from feishu_mail_async.errors import FeishuMailError, NotSent
from feishu_mail_async.model import Priority

from .call import Call
from .endings import client_closed, late
from .intake import Intake
from .job import Job
from .progress import Progress, State

__all__ = ["request"]


class _Caller:
    """The entry of a coroutine that waits in `request`."""

    stream = None

    def __init__(self, call: Call, priority: Priority, record: Record | None) -> None:
        self.call = call
        self.priority = priority
        self.record = record
        self.context = copy_context()
        self.job: Job | None = None
        self.error: FeishuMailError | None = None
        self.gone = "its caller gave it up"
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def wanted(self) -> bool:
        return not self.done.done()

    @property
    def wants_calls(self) -> bool:
        # `done` is cancelled when the deadline passes or the caller's task is cancelled. The caller itself leaves
        # the job only in the loop's next pass; a turn that is granted in between must not become a call.
        return not self.done.cancelled()

    def given_up(self) -> NotSent:
        return client_closed(self.call.endpoint)

    def ended(self, _: Progress) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def failed(self, error: FeishuMailError) -> None:
        self.error = error
        if not self.done.done():
            self.done.set_result(None)

    def result(self) -> Job:
        """Return the job, or raise the error, and let go of it: its traceback will hold this caller."""
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
        finally:
            del error
        assert self.job is not None
        return self.job


async def request(intake: Intake, call: Call, priority: Priority, deadline: float | None = None) -> Job:
    """Make a call and return its job, which has ended.

    Args:
        intake: takes it.
        call: the call.
        priority: the order among waiting calls.
        deadline: seconds for all of it; None: no limit.

    Raises:
        FeishuMailError: it ended before there was a job, or the deadline has passed.
    """
    caller = _Caller(call, priority, None if call.draft is None else intake.unread)
    try:
        if deadline is None:
            intake.admit(caller)
            await caller.done
        else:
            await _within(deadline, intake, caller)
    except asyncio.CancelledError:
        if caller.job is None and caller.error is None:
            intake.end_early(caller, NotSent("cancelled before it could wait for its turn"))
        raise
    except BaseException:
        caller.error = None  # its cause is what is raised here, and would hold this frame
        raise
    finally:
        caller.done.cancel()  # whatever was raised, nobody waits for it any more
        if caller.job is not None and caller.job.state is not State.DONE:
            caller.job.leave(caller, caller.gone)
    return caller.result()


async def _within(deadline: float, intake: Intake, caller: _Caller) -> None:
    try:
        async with asyncio.timeout(deadline):
            intake.admit(caller)
            await caller.done
    except TimeoutError:
        # An answer that came in the same pass of the loop as the deadline counts: the job ends in the next one.
        await asyncio.sleep(0)
        job, done = caller.job, caller.done
        if (done.done() and not done.cancelled()) or (job is not None and job.success is not None):
            return
        why = intake.scheduler.obstacle(caller.call.key.user)
        caller.gone = f"the deadline of {deadline:g} s passed{f': {why}' if why else ' before its turn came'}"
        if job is None:
            intake.end_early(caller, NotSent(caller.gone))
        else:
            attempts, in_doubt = job.tries.calls, job.in_doubt
            caller.error = late(deadline, caller.gone, caller.call, attempts, in_doubt=in_doubt)
