"""One draft's way: turn -> attempt -> verdict -> outcome.

A `Job` is one draft on its way. It waits without a task of its own, so that many can wait; its first turn
starts the task that makes the attempts. Whoever wants its outcome is one of its listeners: the same draft asked
for twice is one job with two listeners, and a job that has lost its last listener ends as soon as it may.
"""

import asyncio
import contextvars
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from .codes import Until, Verdict
from .errors import ClientClosed, FeishuMailError, NotSent, OutcomeUnknown
from .model import Draft, Priority, RetryPolicy, SendResult
from .protocol import CallEnd, Judgement, Reply, judge, lost, never_left, send_path
from .retry import Again, PolicyDelays, Tries, retrying
from .scheduler import Ask, Scheduler, Turn, mailbox_key
from .tokens import Tokens
from .transport import Failure, Transport

__all__ = ["Job", "Sender"]

Listener = Callable[["Job"], None]
_JobKey = tuple[str, str, str]

_CLOSED: Final = "the client was closed before the draft was sent"
_SESSION_CLOSED: Final = "session: it was closed; give the client an open one"
_SAFE: Final = "Sending it again is safe: a mail that went out is not sent twice."


class Sender:
    """The sends of one client: its jobs, and what they need.

    Args:
        scheduler: gives the turns; shared with the other clients of the app.
        transport: makes the calls.
        tokens: where the tokens come from.
        policy: when to try again.
    """

    def __init__(self, scheduler: Scheduler, transport: Transport, tokens: Tokens, policy: RetryPolicy) -> None:
        self.scheduler = scheduler
        self.transport = transport
        self.tokens = tokens
        self.policy = policy
        self.delays = PolicyDelays(policy)
        self.closing = False
        self.jobs: dict[_JobKey, Job] = {}
        # Jobs in flight whose callers have all gone are in no one's hands but ours.
        self.tasks: set[asyncio.Task[None]] = set()

    async def send(self, draft: Draft, priority: Priority, deadline: float | None) -> SendResult:
        """Send one draft, and wait for what becomes of it.

        Args:
            draft: the draft, with its user resolved.
            priority: who goes first.
            deadline: seconds for all of it; None: as long as it takes.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        job: Job | None = None

        def listener(_: "Job") -> None:
            if not done.done():
                done.set_result(None)

        try:
            async with asyncio.timeout(deadline):
                await self.prepare(draft.user)
                job = self.start(draft, priority, listener)
                await done
        except TimeoutError:
            if not done.done():
                raise _late(draft, job, deadline) from None
        finally:
            if job is not None:
                job.leave(listener)
        assert job is not None
        return job.outcome_for(draft)

    async def prepare(self, user: str | None) -> None:
        """Have a token ready for this user, before a turn is asked for."""
        await self.tokens.ready(user)
        key = self.tokens.key(user)
        refused = self.scheduler.refused_mark(key)
        if refused is not None and self.tokens.mark(await self.tokens.ready(user, anew=True)) != refused:
            self.scheduler.reopen(f"user:{key}")

    def start(self, draft: Draft, priority: Priority, listener: Listener) -> "Job":
        """Let a draft wait for its turn, or join the job of the same draft. The listener is called once.

        Raises:
            ClientClosed: the client, or the caller's own session, is closed.
        """
        if self.closing or self.transport.closed:
            raise ClientClosed(_CLOSED if self.closing else _SESSION_CLOSED, draft=draft)
        user = self.tokens.key(draft.user)
        mailbox = mailbox_key(user, draft.mailbox)
        key = user, mailbox, draft.draft_id
        job = self.jobs.get(key)
        if job is not None:
            job.join(listener, priority)
            return job
        job = self.jobs[key] = Job(self, key, draft, priority)
        job.join(listener, priority)
        job.begin()
        return job

    async def close(self, timeout: float | None) -> None:  # noqa: ASYNC109 - part of the promised signature
        """End what waits, and let calls in flight finish, for `timeout` seconds at most (None: till they end)."""
        self.closing = True
        for job in list(self.jobs.values()):
            job.stop()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=timeout)
        for task in self.tasks:
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks)
        await self.tokens.close()


class Job:
    """One draft on its way.

    Attributes:
        draft: the draft as it was given first.
        result: set when it was sent.
        error: set when it was not, or may not have been.
    """

    __slots__ = (
        "_ask",
        "_context",
        "_granted",
        "_in_flight",
        "_key",
        "_listeners",
        "_sender",
        "_task",
        "_tries",
        "draft",
        "error",
        "result",
    )

    def __init__(self, sender: Sender, key: _JobKey, draft: Draft, priority: Priority) -> None:
        outage = sender.policy.outage
        self._sender = sender
        self._key = key
        self._ask = Ask(key[0], key[1], priority, self, math.inf if outage is None else outage)
        self._context = contextvars.copy_context()
        self._granted: asyncio.Future[Turn] | None = None
        self._in_flight = False
        self._listeners: list[Listener] = []
        self._task: asyncio.Task[None] | None = None
        self._tries = Tries()
        self.draft = draft
        self.error: FeishuMailError | None = None
        self.result: SendResult | None = None

    # -- whoever wants the outcome ---------------------------------------------------------------------

    def join(self, listener: Listener, priority: Priority) -> None:
        """Add a listener; a more urgent one makes the draft more urgent."""
        self._listeners.append(listener)
        self._sender.scheduler.promote(self._ask, priority)

    def leave(self, listener: Listener) -> None:
        """Take a listener away. Without any, a draft that waits is given up, and a call in flight is the last."""
        if listener in self._listeners:
            self._listeners.remove(listener)
            if not self._listeners:
                self.stop()

    def stop(self) -> None:
        """Make no further call; one in flight is finished."""
        if self._in_flight:
            return
        if self._task is not None:
            self._task.cancel()
            self._forget()
        else:
            self._sender.scheduler.cancel(self._ask)
            self._end(self._stopped())

    def outcome_for(self, draft: Draft) -> SendResult:
        """The result, or the error raised, for one who asked for `draft` (its tag may differ)."""
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result if draft is self.draft else replace(self.result, draft=draft)

    @property
    def calls(self) -> int:
        """Calls made so far."""
        return self._tries.calls

    @property
    def uncertain(self) -> bool:
        """Whether a call may have sent the mail without our knowing."""
        return self._in_flight or not self._tries.conclusive

    # -- the scheduler's side --------------------------------------------------------------------------

    def begin(self) -> None:
        """Ask for the first turn."""
        self._sender.scheduler.submit(self._ask)

    def granted(self, turn: Turn) -> None:
        """Make the call of this turn; the first one starts the job's task."""
        if self._granted is not None:
            self._granted.set_result(turn)
            return
        loop = asyncio.get_running_loop()
        self._in_flight = True
        self._task = loop.create_task(self._run(turn), name="feishu-mail-send", context=self._context)
        self._sender.tasks.add(self._task)
        self._task.add_done_callback(self._sender.tasks.discard)

    def refused(self, error: FeishuMailError) -> None:
        """There will be no turn."""
        if self._granted is not None:
            self._granted.set_exception(error)
        else:
            self._end(self._final(error))

    async def _next_turn(self) -> Turn:
        granted: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()
        self._granted = granted
        scheduler = self._sender.scheduler
        scheduler.submit(self._ask)
        try:
            return await granted
        except asyncio.CancelledError:
            scheduler.cancel(self._ask)
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                scheduler.give_back(granted.result())
            raise
        finally:
            self._granted = None

    # -- the attempts ----------------------------------------------------------------------------------

    async def _run(self, turn: Turn) -> None:
        try:
            self.result = await self._attempts(turn)
            self._end(None)
        except FeishuMailError as error:
            self._end(self._final(error))
        except asyncio.CancelledError:
            self._end(self._stopped())
        except Exception as error:
            # A mistake of ours must not leave the caller waiting, nor claim that nothing was sent.
            unknown = OutcomeUnknown(f"an internal error: {type(error).__name__}", draft=self.draft)
            unknown.__cause__ = error
            self._end(unknown)
            raise

    async def _attempts(self, turn: Turn) -> SendResult:
        try:
            return await self._attempt(turn)
        except Again as again:
            first: Again | None = again

        async def attempt() -> SendResult:
            nonlocal first
            if first is not None:
                # Most drafts are sent at the first attempt: only one that failed is worth the loop's cost.
                failed, first = first, None
                raise failed
            return await self._attempt(await self._next_turn())

        try:
            return await retrying(self._sender.policy, self._tries)(attempt)
        except Again as again:
            raise _error(again.judgement) from None

    async def _attempt(self, turn: Turn) -> SendResult:
        """Make the one call of a turn.

        Raises:
            Again: it may be worth repeating.
            FeishuMailError: it is not.
        """
        sender = self._sender
        self._in_flight = False
        try:
            if not self._listeners or sender.closing:
                raise self._stopped()
            if sender.transport.closed:
                raise ClientClosed(_SESSION_CLOSED)
            token = sender.tokens.current(self.draft.user)
        except FeishuMailError:
            sender.scheduler.give_back(turn)
            raise
        judgement = lost("the call was broken off")
        self._in_flight = True
        try:
            judgement = _judge(await sender.transport.exchange("POST", send_path(self.draft), token))
        finally:
            # Also when this task is cancelled: the call may be on its way.
            self._in_flight = False
            self._tries.count(judgement)
            renewing = judgement.until is Until.TOKEN
            sender.scheduler.settle(turn, judgement, sender.delays, renewing=renewing)
        if judgement.verdict in {Verdict.SENT, Verdict.ALREADY_SENT}:
            return SendResult(
                self.draft,
                judgement.message_id,
                judgement.thread_id,
                judgement.verdict is Verdict.ALREADY_SENT,
                self._tries.calls,
                judgement.log_id,
            )
        if renewing:
            again = await self._renew(token, judgement)
        else:
            again = judgement.verdict is Verdict.RETRY and not self._outage_over(judgement)
        if not again:
            raise _error(judgement)
        if not self._listeners or sender.closing:
            raise self._stopped()
        raise Again(judgement)

    def _outage_over(self, judgement: Judgement) -> bool:
        outage = self._sender.policy.outage
        unreachable = judgement.end is CallEnd.NEVER_LEFT
        return unreachable and outage is not None and self._sender.scheduler.unreachable_for() >= outage

    async def _renew(self, refused: str, judgement: Judgement) -> bool:
        """Have the user's refused token replaced; the user's other drafts are held meanwhile.

        A second refusal, or none but the same token, closes the user until the token changes.
        """
        sender, user = self._sender, self.draft.user
        closed_by = None
        try:
            if self._tries.renewed or await sender.tokens.renew(user, refused) is None:
                closed_by = judgement.error
        except NotSent as error:
            closed_by = judgement.error
            if closed_by is not None:
                closed_by.__cause__ = error
        finally:
            self._tries.renewed = True
            sender.scheduler.renewed(self._key[0], closed_by, sender.tokens.mark(refused))
        return closed_by is None

    # -- the end ---------------------------------------------------------------------------------------

    def _end(self, error: FeishuMailError | None) -> None:
        self.error = error
        self._forget()
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener(self)

    def _forget(self) -> None:
        if self._sender.jobs.get(self._key) is self:
            del self._sender.jobs[self._key]

    def _stopped(self) -> FeishuMailError:
        if self._sender.closing:
            return self._final(ClientClosed(_CLOSED))
        return self._final(NotSent("it was given up before it was sent"))

    def _final(self, error: FeishuMailError) -> FeishuMailError:
        """What to tell the caller: an error is only the last word if no attempt may have sent the mail."""
        error.draft, error.attempts = self.draft, self._tries.calls
        if self._tries.conclusive or isinstance(error, OutcomeUnknown):
            return error
        unknown = OutcomeUnknown(
            f"it may have been sent: an attempt had no clear answer, and then: {error} {_SAFE}",
            draft=self.draft,
            log_id=error.log_id,
            attempts=self._tries.calls,
        )
        unknown.__cause__ = error
        return unknown


def _error(judgement: Judgement) -> FeishuMailError:
    assert judgement.error is not None  # only a success has none
    return judgement.error


def _judge(answer: Reply | Failure) -> Judgement:
    if isinstance(answer, Reply):
        return judge(answer)
    return lost(answer.reason) if answer.end is CallEnd.LOST else never_left(answer.reason)


def _late(draft: Draft, job: Job | None, deadline: float | None) -> FeishuMailError:
    attempts = 0 if job is None else job.calls
    if job is not None and job.uncertain:
        return OutcomeUnknown(
            f"it may have been sent: the deadline of {deadline:g} s passed before a clear answer came. {_SAFE}",
            draft=draft,
            attempts=attempts,
        )
    return NotSent(
        f"not sent: the deadline of {deadline:g} s passed before its turn came",
        draft=draft,
        attempts=attempts,
    )
