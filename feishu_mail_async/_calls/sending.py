"""The sending of one draft: requests, jobs, turns, attempts and their end.

The theory of operation, with the states of a job, is in `_calls/__init__`.

`Sender` is one client's side of one endpoint: it reads records, fetches tokens and starts jobs. A `Job` is one
call on its way, usually the sending of a draft. It waits without a task of its own, so that many can wait; its
first turn starts the task that makes the attempts. Its listeners want the outcome: the same draft submitted twice
is one job with two listeners, and a job that has lost its last listener ends as soon as it may.
"""

import asyncio
import contextvars
import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from feishu_mail_async._api.protocol import (
    CallEnd,
    Judgement,
    Reply,
    judge,
    lost,
    never_left,
)
from feishu_mail_async._auth.tokens import Tokens
from feishu_mail_async._causes import without_traceback
from feishu_mail_async._scheduling.lanes import Stream, Turn, Waiter, mailbox_key
from feishu_mail_async._scheduling.record import UNREAD, DraftKey, Record
from feishu_mail_async._scheduling.scheduler import Scheduler
from feishu_mail_async._scheduling.store import of
from feishu_mail_async._scheduling.sweeps import Sweep, each
from feishu_mail_async._secrecy import forget_frames, note_frames
from feishu_mail_async._tasks import being_cancelled, check_stack, start_task
from feishu_mail_async._text import sentence
from feishu_mail_async._transport import Failure, Transport
from feishu_mail_async.codes import ResumeWhen, Verdict
from feishu_mail_async.errors import (
    BadReply,
    ClientClosed,
    FeishuMailError,
    LedgerError,
    LoginRequired,
    Misconfigured,
    NotSent,
    OutcomeUnknown,
    RecordRefused,
)
from feishu_mail_async.events import (
    AttemptEnded,
    AttemptStarted,
    DraftDone,
    DraftQueued,
    Event,
    RetryPlanned,
    TurnGranted,
)
from feishu_mail_async.model import Draft, Priority, RetryPolicy, SendResult

from .retry import Again, PolicyDelays, Tries, retrying

__all__ = ["Call", "Job", "Listener", "Sender", "early"]

_CLOSED: Final = "the client was closed before the draft was sent"
_SESSION_CLOSED: Final = "session: it was closed; give the client an open one"
_BROKEN_OFF: Final = Failure(CallEnd.LOST, "the call was broken off")
"""The end of a call whose task was cancelled before an answer was there: it may have arrived."""
T = TypeVar("T")

_numbers: Final = itertools.count(1)  # of jobs, as `DraftEvent.job` has them: one count for the whole process
_SAFE: Final = "Sending it again is safe: a mail that went out is not sent twice."


class Call(NamedTuple):
    """The request of one call to the server.

    Attributes:
        method: the HTTP method.
        path: the path and query, encoded.
        key: the identity of the call among those of the app; a call of the same key joins the one under way.
        user: the user, resolved; None: the only one.
        draft: the draft it sends; None for a call that changes nothing at the server.
        held: what `Tokens.hold` gave: the user's token is known for as long as there is this call.
    """

    method: str
    path: str
    key: DraftKey
    user: str | None
    draft: Draft | None = None
    held: object = None


class Listener(Protocol):
    """A party that wants the outcome of a job."""

    @property
    def draft(self) -> Draft | None:
        """The draft as this listener submitted it; None for a call that sends none."""

    @property
    def wants_calls(self) -> bool:
        """True if further calls are to be made for it; a job stops if none of its listeners wants any."""

    def ended(self, job: "Job") -> None:
        """Handle the end of the job. It must be quick and must not raise."""


class _Caller:
    """A listener for a coroutine that waits in `Sender.request`."""

    def __init__(self, draft: Draft | None, record: Record | None) -> None:
        self.draft = draft
        self.job: Job | None = None
        self.record = record
        self.gone = "its caller gave it up"
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def wants_calls(self) -> bool:
        # `done` is cancelled when the deadline passes or the caller's task is cancelled. The caller itself leaves
        # the job only in the loop's next pass; a turn that is granted in between must not become a call.
        return not self.done.cancelled()

    def ended(self, _: "Job") -> None:
        if not self.done.done():
            self.done.set_result(None)


class Sender:
    """The calls of one client to one endpoint: its jobs, and the parts they need.

    Args:
        scheduler: grants the turns; shared with the other clients of the app.
        transport: makes the calls.
        tokens: the source of tokens.
        policy: the retry policy.
    """

    def __init__(self, scheduler: Scheduler, transport: Transport, tokens: Tokens, policy: RetryPolicy) -> None:
        self.scheduler = scheduler
        self.endpoint = scheduler.endpoint
        self.transport = transport
        self.tokens = tokens
        self.policy = policy
        self.delays = PolicyDelays(policy)
        self.time = asyncio.get_running_loop().time
        self.closing = False
        self._ending: Sweep | None = None
        self.jobs: dict[DraftKey, Job] = {}
        # Held here because asyncio holds tasks weakly, and the callers of a call in flight may all be gone.
        self.tasks: set[asyncio.Task[None]] = set()

    async def send(self, draft: Draft, user: str | None, priority: Priority, deadline: float | None) -> SendResult:
        """Send one draft and wait for its outcome.

        Args:
            draft: the draft.
            user: its user, resolved.
            priority: the order among waiting sends.
            deadline: seconds for all of it; None: no limit.
        """
        job = await self.request(self.sending(draft, user), priority, deadline)
        return job.sent(draft)

    async def request(self, call: Call, priority: Priority, deadline: float | None = None) -> "Job":
        """Make a call and wait for its job to end; the parameters are those of `send`."""
        check_stack()  # a RecursionError further on could fall between a turn and its end
        caller = _Caller(call.draft, self.unread(call))
        try:
            if deadline is None:
                await self._fulfil(call, priority, caller)
            else:
                await self._fulfil_within(deadline, call, priority, caller)
        except NotSent as error:
            if caller.job is not None:
                raise
            told = early(error, call.draft, caller.record)
            self.ended_early(call.draft, call.key.user, told)
            raise told from told.__cause__
        except asyncio.CancelledError:
            if caller.job is None:
                gone = early(NotSent("cancelled before it could wait for its turn"), call.draft, caller.record)
                self.ended_early(call.draft, call.key.user, gone)
            raise
        finally:
            if caller.job is not None:
                caller.job.leave(caller, caller.gone)
        assert caller.job is not None
        return caller.job

    async def _fulfil(self, call: Call, priority: Priority, caller: _Caller) -> None:
        """Pass one call through record, token and job; return when the job has ended."""
        if caller.record is UNREAD:
            record = (await self.records([call])).get(call.key)
            if isinstance(record, RecordRefused):
                caller.record = None  # nor can an earlier call have had one, so nothing is in doubt
                raise copy.copy(record) from record.__cause__
            caller.record = record
            if record is not None and record.state.settled:
                caller.job = self.recorded(call, record, caller)
                return
        await self.prepare(call)
        caller.job = self.start(call, priority, caller, record=caller.record)
        await caller.done

    async def _fulfil_within(self, deadline: float, call: Call, priority: Priority, caller: _Caller) -> None:
        try:
            async with asyncio.timeout(deadline):
                await self._fulfil(call, priority, caller)
        except TimeoutError:
            # The job may have ended in the same pass of the loop as the deadline; then its outcome counts.
            waits = not caller.done.done() or caller.done.cancelled()
            if waits and (caller.job is None or caller.job.success is None):
                why = self.scheduler.obstacle(call.key.user)
                caller.gone = (
                    f"the deadline of {deadline:g} s passed{f': {why}' if why else ' before its turn came'}"
                )
                raise _late(caller, deadline) from None

    def ended_early(self, draft: Draft | None, user: str, error: FeishuMailError) -> None:
        """Publish the outcome of a draft that ended before it could wait for a turn.

        Args:
            draft: the draft; nothing is published of a call that sends none.
            user: its user's key.
            error: the reason.
        """
        events = self.scheduler.events
        if draft is not None and events.has_listeners:
            about = next(_numbers), self.scheduler.endpoint.name, user, draft
            events.publish(
                DraftDone(
                    self.time(),
                    *about,
                    status=error.status,
                    attempts=0,
                    waited=0.0,
                    lasted=0.0,
                    joined=False,
                    result=None,
                    error=without_traceback(error),
                )
            )

    def sending(self, draft: Draft, user: str | None) -> Call:
        """Return the call that sends a draft for a resolved user."""
        endpoint, key = self.endpoint, self._key(user, draft.mailbox, draft.draft_id)
        path = endpoint.url(mailbox=draft.mailbox, draft_id=draft.draft_id)
        return Call(endpoint.method, path, key, user, draft, self.tokens.hold(user))

    def asking(
        self, user: str | None, query: Mapping[str, str] | None = None, *, mailbox: str, **segments: str
    ) -> Call:
        """Return a call that changes nothing at the server, for a resolved user."""
        path = self.endpoint.url(query, mailbox=mailbox, **segments)
        key = self._key(user, mailbox, path)
        return Call(self.endpoint.method, path, key, user, held=self.tokens.hold(user))

    def _key(self, user: str | None, mailbox: str, name: str) -> DraftKey:
        key = self.tokens.key(user)
        return DraftKey(key, mailbox_key(key, mailbox), name)

    def unread(self, call: Call) -> Record | None:
        """Return the record to assume for a call before its own is read; None where there are no records."""
        return UNREAD if self.scheduler.store.shared and call.draft is not None else None

    async def records(self, calls: Sequence[Call]) -> Mapping[DraftKey, Record | RecordRefused]:
        """Return the ledger's records of the drafts that these calls send, or the reason why one has none.

        Raises:
            LedgerError: it cannot be read.
        """
        keys = [call.key for call in calls if call.draft is not None]
        try:
            return await of(self.scheduler.store.records(keys))
        except LedgerError as error:
            raise copy.copy(error) from error.__cause__  # other callers may share the query and its error

    def recorded(self, call: Call, record: Record, listener: Listener) -> "Job":
        """Return the job of a call that is not needed, because the draft is on record as sent."""
        job = Job(self, call, listener)
        job.recorded(record)
        return job

    async def prepare(self, call: Call) -> None:
        """Wait until a token of the call's user is at hand, before a turn is requested.

        Raises:
            NotSent: there is none. Each call gets an error of its own, though all may wait for one token.
        """
        try:
            if self.scheduler.refused_fingerprint(call.key.user) is not None:
                self.tokens.outdate(call.user)  # the cached one may be the refused one
            if self.tokens.at_hand(call.user):
                self.tokens.current(call.user)
            else:
                await self.tokens.ready(call.user)
            self.resume_for(call)
        except NotSent as error:
            failed = type(error)(str(error), draft=call.draft)
            failed.__cause__ = error.__cause__
        else:
            return
        # Raised here and not in the `except` block: there it would carry the first error as its context.
        raise forget_frames(failed)

    def resume_for(self, call: Call) -> None:
        """Resume the call's user if it was suspended because of another token than there is now."""
        refused = self.scheduler.refused_fingerprint(call.key.user)
        if refused is not None and refused != self.tokens.fingerprint(self.tokens.current(call.user)):
            self.scheduler.token_changed(call.key.user)

    def start(
        self,
        call: Call,
        priority: Priority,
        listener: Listener,
        stream: Stream | None = None,
        record: Record | None = None,
    ) -> "Job":
        """Queue a call for its turn, or join the job of the same call.

        Args:
            call: the call.
            priority: the order among waiting sends.
            listener: notified of its end.
            stream: the run it belongs to.
            record: the ledger's record of its draft.

        Raises:
            ClientClosed: the client, or the caller's own session, is closed.
        """
        if self.closing or self.transport.closed:
            raise ClientClosed(_CLOSED if self.closing else _SESSION_CLOSED, draft=call.draft)
        job = self.jobs.get(call.key)
        if job is not None and not job.condemned():
            job.join(listener, priority, stream)
            return job
        outage = math.inf if self.policy.outage is None else self.policy.outage
        job = Job(self, call, listener)
        if record is not None and record.maybe_sent:
            job.put_in_doubt()
        waiter = Waiter(
            call.key.user,
            call.key.mailbox,
            priority,
            job,
            outage=outage,
            stream=stream,
            draft_id=None if call.draft is None else call.draft.draft_id,
            timeout=self.transport.attempt_timeout,
        )
        try:
            job.begin(waiter)
        except BaseException:
            job.leave(listener, "it could not begin")
            raise
        return job

    def end_waiting(self, error: Misconfigured) -> None:
        """End all waiting calls: what kept one from the API would keep each of them from it."""
        self.scheduler.sweep(each(self.jobs.values(), lambda job: job.give_up(error)))

    def close(self) -> None:
        """Begin to end all waiting calls. Calls in flight go on."""
        if self._ending is None:
            self._ending = self.scheduler.sweep(self._closing())

    async def wait_closed(self, timeout: float | None) -> None:  # noqa: ASYNC109 - that of the client's `close`
        """Let calls in flight finish, for `timeout` seconds at most; then cancel them."""
        if self._ending is not None:
            await self._ending.ended()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=timeout)
        await self.scheduler.sweep(each(self.tasks, asyncio.Task.cancel)).ended()
        if self.tasks:
            await asyncio.wait(self.tasks)

    def _closing(self) -> Iterator[None]:
        # Set within the sweep and not before it: sweeps run one after another, and jobs that an earlier one is
        # ending (an outage, a suspension) must keep their own reason and not end as "client closed".
        self.closing = True
        yield from each(self.jobs.values(), Job.stop)


class Job:
    """A call on its way; the states it passes through are drawn in `_calls/__init__`.

    Attributes:
        call: the call, as it was submitted first.
        listeners: notified once, when it has ended.
        task: makes the attempts; None before the first turn.
        success: set when it succeeded.
        error: set when it did not, or may not have.
    """

    __slots__ = (
        "_asked",
        "_began",
        "_context",
        "_events",
        "_granted",
        "_in_flight",
        "_number",
        "_reason",
        "_sender",
        "_stopping",
        "_tries",
        "_waited",
        "_waiter",
        "call",
        "error",
        "listeners",
        "success",
        "task",
    )

    def __init__(self, sender: Sender, call: Call, listener: Listener) -> None:
        self._sender = sender
        self._events = sender.scheduler.events
        # From the job's beginning to its end. The waiter holds the job, too: `_end` cuts the cycle.
        self._waiter: Waiter | None = None
        self._context = contextvars.copy_context()  # of the submitting code: events are delivered in it
        self._granted: asyncio.Future[Turn] | None = None
        self._in_flight = False
        self._stopping = False
        self._reason = "it was stopped"
        self._tries = Tries()
        self._number = next(_numbers)
        self._began = sender.time()
        self._asked: float | None = None  # since when it waits for a turn
        self._waited = 0.0
        self.call = call
        self.listeners: list[Listener] = [listener]
        self.task: asyncio.Task[None] | None = None
        self.success: Judgement | None = None
        self.error: FeishuMailError | None = None

    # -- the listeners' side ---------------------------------------------------------------------------

    def join(self, listener: Listener, priority: Priority, stream: Stream | None) -> None:
        """Add a listener; a more urgent one makes the call more urgent."""
        assert self._waiter is not None
        self._sender.scheduler.move(self._waiter, priority, stream)
        self.listeners.append(listener)
        self._stopping = False  # it may have lost its last listener while in flight, and is wanted again

    def leave(self, listener: Listener, reason: str = "its run was left") -> None:
        """Remove a listener, before the end or after it; `reason` says why, if it is the last one."""
        if listener in self.listeners:
            self.listeners.remove(listener)
            self._reason = reason
            self.reconsider()

    def reconsider(self) -> None:
        """Stop if no listener wants further calls: a waiting job is given up, and a call in flight is the last."""
        if not any(listener.wants_calls for listener in self.listeners):
            self.stop()

    def stop(self) -> None:
        """Make no further call; one in flight is finished, and settles the outcome if it can."""
        self._stopping = True
        if self._waiter is None or self._in_flight:
            return
        # Before the task is cancelled, which takes effect in the loop's next pass: a turn granted in between would
        # have no owner, and its permit would be lost.
        self._sender.scheduler.cancel(self._waiter)
        if self.task is not None:
            self.task.cancel()
            self._forget()  # at once: the same draft submitted now must start a job, and not join a dying one
        else:
            self._end(self._stopped())

    def give_up(self, error: FeishuMailError) -> None:
        """End with this error if it waits for a turn."""
        if self._waiter is not None:
            self._sender.scheduler.refuse(self._waiter, error)

    def condemned(self) -> bool:
        """Return whether an error was about to end the job and has ended it now: it cannot be joined any more."""
        return self._waiter is not None and self._sender.scheduler.refuse_condemned(self._waiter)

    def sent(self, draft: Draft) -> SendResult:
        """Return the result for a listener's own `draft` (its tag may differ), or raise the job's error."""
        if self.error is not None:
            raise self.error_for(draft)
        assert self.success is not None
        return SendResult(
            draft,
            self.success.text("message_id"),
            self.success.text("thread_id"),
            self.success.verdict is Verdict.ALREADY_SENT,
            self._tries.calls,
            self.success.log_id,
        )

    def error_for(self, draft: Draft | None) -> FeishuMailError:
        """Return the error, a copy for each listener, with the listener's draft and a traceback of its own.

        The job keeps its own, which is never raised: the frames of its traceback would hold the job, and both
        would stay until the garbage collector runs.
        """
        assert self.error is not None
        error = copy.copy(self.error).with_traceback(self.error.__traceback__)
        error.draft, error.__cause__ = draft, self.error.__cause__
        return error

    def value(self, read: Callable[[Mapping[str, Any]], T]) -> T:
        """Return what `read` makes of the answer's data, or raise the job's error."""
        if self.error is not None:
            raise self.error_for(None)
        assert self.success is not None
        try:
            return read(self.success.data)
        except (KeyError, TypeError, ValueError) as error:
            raise BadReply(
                f"{self._sender.endpoint.what} does not have the documented form ({error})",
                log_id=self.success.log_id,
            ) from None

    @property
    def calls(self) -> int:
        """The number of calls made so far."""
        return self._tries.calls

    @property
    def in_doubt(self) -> bool:
        """True if a call may have sent the mail, and no answer has settled it."""
        return self.call.draft is not None and (self._in_flight or not self._tries.conclusive)

    def put_in_doubt(self) -> None:
        """Note that an earlier process may have sent the mail."""
        self._tries.conclusive = False

    # -- the scheduler's side --------------------------------------------------------------------------

    def begin(self, waiter: Waiter) -> None:
        """Queue for the first turn."""
        self._waiter = waiter
        self._sender.jobs[self.call.key] = self
        if self.call.draft is not None and self._events.has_listeners:
            self._events.publish(DraftQueued(self._began, *self._about))
            self.reconsider()  # a subscriber may have stopped its run just now
        if self._stopping:
            return
        alone = self._sender.scheduler.idle
        self._submit()
        if alone and self._sender.jobs.get(self.call.key) is self:
            # Its turn most likely comes in the loop's next pass, and a task that begins in the same pass saves
            # another one. Not for all jobs: those that really wait do so without a task.
            self._granted = asyncio.get_running_loop().create_future()
            self._start(None)

    def _submit(self) -> None:
        """Submit the waiter; unless it is cancelled, `granted`, `refused` or `recorded` is called once."""
        assert self._waiter is not None
        self._asked = self._sender.time()
        self._sender.scheduler.submit(self._waiter)

    def granted(self, turn: Turn) -> None:
        """Make the call of this turn; the first one starts the job's task."""
        if turn.permit.in_doubt:
            self.put_in_doubt()
        if self._granted is not None and self._granted.done():
            # The task was cancelled in this very pass of the loop and will not look at the turn.
            self._sender.scheduler.give_back(turn)
            return
        waited = self._waited_enough()
        if self._granted is not None:
            self._granted.set_result(turn)
        else:
            self._start(turn)
        if self._events.has_listeners:
            attempt, probe, priority = self._tries.calls + 1, turn.permit.probe, turn.waiter.priority
            self._tell(TurnGranted(self._sender.time(), *self._about, attempt, waited, probe, priority))

    def _start(self, turn: Turn | None) -> None:
        """Start the job's task, with its turn or to wait for one."""
        self.task = start_task(self._run(turn), "feishu-mail-call", context=self._context)
        self._sender.tasks.add(self.task)

    def refused(self, error: FeishuMailError) -> None:
        """End without a turn: the subject is suspended, or the server or the ledger cannot be reached."""
        if self._granted is not None:
            if not self._granted.done():
                self._granted.set_exception(error)
        else:
            self._end(self._final(error))

    def recorded(self, record: Record) -> None:
        """End without a call: the draft is on record as sent."""
        data = {"message_id": record.message_id, "thread_id": record.thread_id}
        self.success = Judgement(Verdict.ALREADY_SENT, data=data, log_id=record.log_id)
        if self._granted is None:
            self._end(None)
        elif not self._granted.done():
            self._granted.set_exception(_Recorded())

    async def _next_turn(self) -> Turn:
        """Queue again, and wait for the turn."""
        self._granted = asyncio.get_running_loop().create_future()
        self._submit()
        return await self._turn()

    async def _turn(self) -> Turn:
        """Wait for the turn that has been requested; give it back if this task is cancelled."""
        granted, scheduler, waiter = self._granted, self._sender.scheduler, self._waiter
        assert granted is not None
        assert waiter is not None
        try:
            # An unwanted job does not wait for its turn; one that has its turn already is checked in `_attempt`.
            if not granted.done():
                self._check_wanted()
            return await granted
        except BaseException:
            scheduler.cancel(waiter)
            # Granted and cancelled in one pass of the loop: the turn is ours to give back.
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                scheduler.give_back(granted.result())
            raise
        finally:
            self._granted = None

    # -- the attempts ----------------------------------------------------------------------------------

    async def _run(self, turn: Turn | None) -> None:
        """Make the attempts, and end the job, whichever way they end."""
        try:
            self.success = await self._attempts(await self._turn() if turn is None else turn)
            self._end(None)
        except _Recorded:
            self._end(None)
        except FeishuMailError as error:
            self._end(self._final(error))
        except asyncio.CancelledError:
            self._end(self._stopped())
        except Exception as error:
            # A bug in this package must not leave the callers waiting, nor claim that nothing was sent.
            note_frames(error)
            unknown = OutcomeUnknown(f"an internal error: {type(error).__name__}", draft=self.call.draft)
            unknown.__cause__ = error
            self._end(unknown)
            raise
        finally:
            # Here and not in a done callback, which would cost another callback of the loop for every send.
            assert self.task is not None
            self._sender.tasks.discard(self.task)

    async def _attempts(self, turn: Turn) -> Judgement:
        """Make attempts until one settles the call, the first of them in this turn."""
        try:
            return await self._attempt(turn)
        except Again as again:
            first: Again | None = again

        async def attempt() -> Judgement:
            nonlocal first
            if first is not None:
                # Most calls succeed at the first attempt, and tenacity's loop costs more than the rest of a call.
                # So the first attempt is made outside of it, and its failure is replayed here as that of the
                # loop's first round.
                failed, first = first, None
                raise failed
            return await self._attempt(await self._next_turn())

        try:
            return await retrying(self._sender.policy, self._tries, self._planned)(attempt)
        except Again as again:
            raise _error(again.judgement) from None

    async def _attempt(self, turn: Turn) -> Judgement:
        """Make the one call of a turn.

        Raises:
            Again: it may be worth repeating.
            FeishuMailError: it is not.
        """
        sender = self._sender
        while turn.permit.good_until < math.inf and self._sender.time() > turn.permit.good_until:
            # The process stood still (a suspended laptop, SIGSTOP): the lease in the ledger may end before the
            # call does, and another process would make a call for the same user meanwhile.
            sender.scheduler.give_back(turn)
            turn = await self._next_turn()
        try:
            self._check_wanted()
            if sender.transport.closed:
                raise ClientClosed(_SESSION_CLOSED)
            token = sender.tokens.current(self.call.user)
        except FeishuMailError:
            sender.scheduler.give_back(turn)
            raise
        judgement = await self._call(turn, token)
        if judgement.sent:
            return judgement
        if judgement.until is ResumeWhen.TOKEN:
            again = await self._renew(token, judgement)
        else:
            again = judgement.verdict is Verdict.RETRY and not self._outage_over(judgement)
        if not again:
            error = _error(judgement)
            if isinstance(error, Misconfigured):
                sender.end_waiting(error)
            raise error
        self._check_wanted()
        raise Again(judgement)

    async def _call(self, turn: Turn, token: str) -> Judgement:
        """Make the call of a turn, and settle the turn."""
        sender = self._sender
        answer: Reply | Failure = _BROKEN_OFF
        self._in_flight = True
        number, began = self._tries.calls + 1, sender.time()
        if self._events.has_listeners:
            self._events.publish(AttemptStarted(began, *self._about, number, self.call.path))
        try:
            answer = await sender.transport.exchange(self.call.method, self.call.path, token)
        finally:
            # Also when this task is cancelled: the call may be on its way, and then counts as lost, not as never
            # made.
            judgement = self._judged(answer, token)
            self._tries.count(judgement)
            if self._events.has_listeners:
                self._events.publish(self._attempt_ended(judgement, number, began))
            renewing = judgement.until is ResumeWhen.TOKEN
            written = sender.scheduler.settle(turn, judgement, sender.delays, renewing=renewing)
            self._in_flight = written is not None
        if written is not None:
            # The outcome is reported once it is on record. Shielded, because the permit and the locks have to come
            # back even if this task is cancelled; when a client closes at once, the task does not wait for it.
            try:
                await asyncio.shield(written)
            except asyncio.CancelledError:
                if not judgement.sent and being_cancelled():
                    raise
            finally:
                self._in_flight = False
        return judgement

    def _judged(self, answer: Reply | Failure, token: str) -> Judgement:
        """Return the meaning of an answer, or of its absence."""
        if isinstance(answer, Reply):
            judgement = judge(answer, token, self._sender.transport.base_url)
        elif answer.end is CallEnd.NEVER_LEFT and self._sender.transport.closed:
            # Closed by the caller while the call was connecting: that is no outage, and must not pause the app.
            judgement = Judgement(Verdict.RETRY, answer.end, error=ClientClosed(_SESSION_CLOSED))
        elif answer.end is CallEnd.LOST:
            judgement = lost(answer.reason)
        else:
            judgement = never_left(answer.reason, lasting=answer.lasting)
        if self.call.draft is None and not judgement.conclusive:
            # A call that only reads can have changed nothing, even if its answer was lost.
            judgement = judgement._replace(conclusive=True)
        return judgement

    def _check_wanted(self) -> None:
        """Raise the error of a stopped job unless a listener wants further calls."""
        if not self._stopping and not self._sender.closing:
            for listener in self.listeners:
                if listener.wants_calls:
                    return
        raise self._stopped()

    def _outage_over(self, judgement: Judgement) -> bool:
        """Return whether the server was unreachable again, and for as long as the policy allows."""
        outage = self._sender.policy.outage
        unreachable = judgement.end is CallEnd.NEVER_LEFT
        return unreachable and outage is not None and self._sender.scheduler.unreachable_for() >= outage

    async def _renew(self, refused: str, judgement: Judgement) -> bool:
        """Replace the user's refused token, and return whether to try again; the user's other calls are held.

        A second refusal, or a source with no token but the refused one, suspends the user until the token changes.
        So does a source that keeps failing, though not at its first failure.
        """
        sender = self._sender
        suspended_by = None
        try:
            if self._tries.renewed or not await self._another_token(refused):
                suspended_by = judgement.error
        except LoginRequired as error:
            suspended_by = error
            raise
        except NotSent as error:
            suspended_by = _error(judgement)
            suspended_by.__cause__ = error
        finally:
            self._tries.renewed = True
            sender.scheduler.renewed(self.call.key.user, suspended_by, sender.tokens.fingerprint(refused))
        return suspended_by is None

    async def _another_token(self, refused: str) -> bool:
        """Return whether there is a token other than the refused one; retry a source that fails."""
        sender, failures = self._sender, 0
        while True:
            try:
                return await sender.tokens.renew(self.call.user, refused) is not None
            except NotSent as error:
                failures += 1
                # Neither passes by itself: retrying would only hold the user's other calls for longer.
                hopeless = isinstance(error, ClientClosed | LoginRequired)
                if failures >= sender.policy.attempts or hopeless:
                    raise
            await asyncio.sleep(sender.delays.backoff(failures))

    # -- events ----------------------------------------------------------------------------------------

    @property
    def _about(self) -> tuple[int, str, str, Draft | None]:
        """The fields that all events of this job have."""
        return self._number, self._sender.scheduler.endpoint.name, self.call.key.user, self.call.draft

    def _tell(self, event: Event) -> None:
        """Publish an event from outside the job's task, in the context of the code that submitted the draft.

        In a copy of that context, because a context cannot be entered twice.
        """
        self._context.copy().run(self._events.publish, event)

    def _waited_enough(self) -> float:
        """Note that the wait for a turn is over; return its length in seconds."""
        if self._asked is None:
            return 0.0
        waited, self._asked = self._sender.time() - self._asked, None
        self._waited += waited
        return waited

    def _attempt_ended(self, judgement: Judgement, number: int, began: float) -> AttemptEnded:
        now, error = self._sender.time(), judgement.error
        return AttemptEnded(
            now,
            *self._about,
            attempt=number,
            seconds=now - began,
            end=judgement.end,
            verdict=judgement.verdict,
            code=judgement.code,
            http_status=judgement.http_status,
            log_id=judgement.log_id,
            error=None if error is None else without_traceback(error),
        )

    def _planned(self, judgement: Judgement, delay: float) -> None:
        if self._events.has_listeners:
            error = without_traceback(_error(judgement))
            calls, subject = self._tries.calls, judgement.subject
            self._events.publish(RetryPlanned(self._sender.time(), *self._about, calls, delay, subject, error))

    def _tell_end(self) -> None:
        """Publish the outcome of the draft, once for each listener, or once if there is none."""
        now = self._sender.time()
        number, endpoint, user, own = self._about
        for place, draft in enumerate([one.draft for one in self.listeners] or [own]):
            if draft is None:
                continue  # a call that sends no draft has no DraftDone
            result, error = None, self.error
            if error is None:
                result = self.sent(draft)
                result = replace(result, already_sent=True) if place else result
                status = result.status
            else:
                status, error = error.status, without_traceback(error)
            self._tell(
                DraftDone(
                    now,
                    number,
                    endpoint,
                    user,
                    draft,
                    status=status,
                    attempts=0 if place else self._tries.calls,
                    waited=0.0 if place else self._waited,
                    lasted=now - self._began,
                    joined=place > 0,
                    result=result,
                    error=error,
                )
            )

    # -- the end ---------------------------------------------------------------------------------------

    def _end(self, error: FeishuMailError | None) -> None:
        """End the job, once: record the outcome, publish it and notify the listeners."""
        self._waiter = None
        self.error = None if error is None else forget_frames(error)
        self._waited_enough()
        if (
            error is not None
            and self.call.draft is not None
            and not isinstance(error, ClientClosed | RecordRefused)
        ):
            # A draft that ended because its client was closed is left as the record has it: nothing new is known.
            # A refused record cannot be written at all.
            self._sender.scheduler.store.note(self.call.key, error.status, error)
        self._forget()
        try:
            if self._events.has_listeners:
                self._tell_end()
        finally:  # even BaseExceptions of a subscriber must not leave the listeners waiting
            listeners, self.listeners = self.listeners, []
            for listener in listeners:
                listener.ended(self)

    def _forget(self) -> None:
        if self._sender.jobs.get(self.call.key) is self:
            del self._sender.jobs[self.call.key]

    def _stopped(self) -> FeishuMailError:
        """Return the error of a job that was stopped."""
        if self._sender.closing:
            return self._final(ClientClosed(_CLOSED))
        return self._final(NotSent(f"not sent: {self._reason}" if self._tries.conclusive else self._reason))

    def _final(self, error: FeishuMailError) -> FeishuMailError:
        """Return the error to report: an OutcomeUnknown in its place if an attempt may have sent the mail."""
        error.draft, error.attempts = self.call.draft, self._tries.calls
        if self._tries.conclusive or isinstance(error, OutcomeUnknown):
            return error
        return _unsettled(error, self.call.draft, self._tries.calls)


class _Recorded(Exception):
    """The end of a wait for a turn, because the draft is on record as sent."""


def _error(judgement: Judgement) -> FeishuMailError:
    assert judgement.error is not None  # only a success has none
    return judgement.error


def early(error: FeishuMailError, draft: Draft | None, record: Record | None) -> FeishuMailError:
    """Return the error to report for a draft that ended before there was a job for it.

    Args:
        error: the error that ended it.
        draft: the draft; None for a call that sends none.
        record: its record. If that is in doubt, or not read yet, an earlier call may have sent the draft.
    """
    error.draft = draft
    return error if record is None or not record.maybe_sent else _unsettled(error, draft, 0)


def _unsettled(error: FeishuMailError, draft: Draft | None, attempts: int) -> OutcomeUnknown:
    """Return the error of a draft that ended after a call that may have sent it."""
    doubt = "it may have been sent: an attempt had no clear answer, and then"
    if not attempts:
        doubt = "an earlier call may have sent it, and this one made none"
    unknown = OutcomeUnknown(
        f"{doubt}: {sentence(str(error))} {_SAFE}",
        draft=draft,
        log_id=error.log_id,
        attempts=attempts,
    )
    unknown.__cause__ = error
    return unknown


def _late(caller: _Caller, deadline: float) -> FeishuMailError:
    """Return the error of a caller whose deadline has passed."""
    job = caller.job
    if job is None:
        return NotSent(caller.gone)
    if job.in_doubt:
        return OutcomeUnknown(
            f"it may have been sent: the deadline of {deadline:g} s passed before a clear answer came. {_SAFE}",
            draft=caller.draft,
            attempts=job.calls,
        )
    return NotSent(f"not sent: {caller.gone}", draft=caller.draft, attempts=job.calls)
