"""A run over many drafts: it reads ahead, lets the scheduler choose, and hands out each outcome once it is known.

    input --read_ahead--> jobs waiting in the scheduler --> outcomes --> the consumer

Fairness among users holds for the drafts that have been read. A consumer that falls behind shuts the run's gate
in the scheduler, so that no new calls are made for it; and reading stops when `read_ahead` drafts have been read
whose outcomes have not been fetched. So memory stays bounded at both ends.
"""

import asyncio
import itertools
from collections import Counter, deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Sized,
)
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Final, Self

from feishu_mail_async._forks import NOT_THIS_CLIENT, Origin
from feishu_mail_async._scheduling.record import UNREAD, Record
from feishu_mail_async._scheduling.sweeps import Sweep, drain, each
from feishu_mail_async._secrecy import forget_frames
from feishu_mail_async._tasks import start_task
from feishu_mail_async.errors import (
    ApiError,
    ClientClosed,
    FeishuMailError,
    NotSent,
    RecordRefused,
    UnknownUser,
    root_cause,
)
from feishu_mail_async.model import Draft, OutcomeStatus, Priority, SendResult

from .sending import Call, Job, Sender, early

__all__ = ["BulkRun", "DraftSource", "Outcome", "Summary"]

DraftSource = Iterable[str | Draft] | AsyncIterable[str | Draft]
"""What `send_drafts` takes."""

_BACKLOG: Final = 100
"""Outcomes that may wait for the consumer before no new calls are made."""

_LOOKED_UP: Final = 200
"""Drafts that are looked up in the ledger in one go."""

_BREATH: Final = 50
"""Items handled in one go before others in the loop have their chance."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one draft of a run: either `result` or `error` is set.

    Attributes:
        draft: the draft as it was given.
        status: sent, already_sent; failed (certainly not sent, and why is its own); unknown (it may have
            been sent); skipped (not sent, for a reason that is not its own).
        result: set if it was sent.
        error: set if it was not, or may not have been.
    """

    draft: Draft
    status: OutcomeStatus
    result: SendResult | None
    error: FeishuMailError | None


@dataclass(slots=True)
class Summary:
    """What has become of the drafts of a run so far.

    Attributes:
        statuses: outcomes by status.
        codes: outcomes that an answer of the API decided, by its code.
        errors: outcomes that ended in an error, by the class of the one that decided it: of an unknown
            outcome the last, of a skipped draft what suspended its subject.
        calls: calls made for the drafts that have an outcome.
    """

    statuses: Counter[OutcomeStatus] = field(default_factory=Counter)
    codes: Counter[int] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    calls: int = 0

    @property
    def total(self) -> int:
        """Outcomes in all."""
        return self.statuses.total()

    def count(self, outcome: Outcome, calls: int) -> None:
        """Add one outcome, for which that many calls were made."""
        self.statuses[outcome.status] += 1
        self.calls += calls
        if outcome.error is None:
            return
        told = root_cause(outcome.error)
        self.errors[type(told).__name__] += 1
        if isinstance(told, ApiError):
            self.codes[told.code] += 1


class _Entry:
    """One input of a run: a listener of its draft's job."""

    __slots__ = ("call", "draft", "duplicate", "record", "run")

    def __init__(self, run: "BulkRun", draft: Draft, call: Call, record: Record | None) -> None:
        self.run = run
        self.draft = draft
        self.call = call
        self.duplicate = False
        self.record = record

    @property
    def wants_calls(self) -> bool:
        return not self.run._stopping  # noqa: SLF001 - two halves of one thing

    def ended(self, job: Job) -> None:
        self.run._finished(self, job)  # noqa: SLF001


class BulkRun:
    """A run over many drafts: an async iterator of outcomes, each as soon as it is known.

    Every draft read ends in exactly one outcome. Of duplicates in the input the first is sent, and the others get
    what the server would say of them: `already_sent`, without a call while the first is under way (or the same
    error, if it failed).

    Use it as an async context manager: leaving it makes no new calls and waits for those in flight. After a plain
    `async for … break` the client's `close` does that.

    Made by `FeishuMailClient.send_drafts`, which says what the parameters are.
    """

    def __init__(
        self,
        sender: Sender,
        drafts: DraftSource,
        resolve: Callable[[str | Draft], tuple[Draft, str | None]],
        priority: Priority,
        read_ahead: int,
    ) -> None:
        self._sender = sender
        self._drafts = drafts
        self._resolve = resolve
        self._priority = priority
        self._read_ahead = read_ahead
        self._stream = sender.scheduler.stream()
        self._reader: asyncio.Task[None] | None = None
        self._entries: dict[_Entry, Job | None] = {}
        self._jobs: dict[Job, None] = {}
        self._looking_up: deque[_Entry] = deque()
        self._preparing: dict[str | None, deque[_Entry]] = {}
        self._lookup: asyncio.Task[None] | None = None
        self._unreadable = False  # nobody waits for the ledger any more
        self._tasks: set[asyncio.Task[None]] = set()
        self._outcomes: deque[Outcome] = deque()
        self._fetched = 0
        self._failure: BaseException | None = None
        self._reading = False  # the reader has begun; before that there is nothing to break off
        self._stopping = False
        self._left = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._summary = Summary()
        self._origin = Origin()
        self._origin.opened()

    # -- the consumer's side ---------------------------------------------------------------------------

    @property
    def summary(self) -> Summary:
        """Counts by status and code, of the outcomes known so far."""
        return self._summary

    @property
    def waiting(self) -> int:
        """Drafts that have been read and have no outcome yet."""
        return len(self._entries)

    def stop(self) -> None:
        """Make no new calls: those in flight are finished, and the rest is skipped.

        Of an input that has a length the unread rest is skipped too; any other is not read further. What is
        skipped is still looked up in the ledger, which may have it that it was sent.
        """
        if self._stopping:
            return
        self._stopping = True
        if self._reader is not None and self._reading:
            self._reader.cancel()
        self._sweep(self._stop_waiting(drain(self._preparing.values())))
        self._changed()

    def _stop_waiting(self, preparing: Iterator[deque[_Entry]]) -> Iterator[None]:
        for waiting in preparing:
            while waiting:
                self._fail(waiting.popleft(), self._given_up())
                yield
        yield from each(self._jobs, Job.reconsider)

    def _sweep(self, steps: Iterator[object]) -> Sweep:
        return self._sender.scheduler.sweep(steps, self._stream)

    def __aiter__(self) -> AsyncIterator[Outcome]:
        return self

    async def __anext__(self) -> Outcome:
        if self._origin.elsewhere:
            raise ClientClosed(NOT_THIS_CLIENT)
        self._begin()
        self._fetched += 1
        if self._fetched % _BREATH == 0:
            await asyncio.sleep(0)
        while not self._outcomes:
            if self._ended():
                if self._failure is not None and not self._left:
                    failure, self._failure = self._failure, None
                    raise failure
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        outcome = self._outcomes.popleft()
        self._changed()
        return outcome

    async def __aenter__(self) -> Self:
        self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.leave()

    async def leave(self) -> None:
        """End the run: what waits is given up, calls in flight are waited for, the outcomes left are dropped.

        Cancelling it does not break it off: it goes on by itself.
        """
        if self._origin.elsewhere:
            return
        self._left = self._stopping = True
        if self._reader is not None and self._reading:
            self._reader.cancel()
        calls: list[asyncio.Task[None]] = []
        await self._sweep(self._leave_waiting(calls)).ended()
        tasks = [task for task in (self._reader, self._lookup, *calls, *self._tasks) if task is not None]
        if tasks:
            await asyncio.wait(tasks)

    def _leave_waiting(self, calls: list[asyncio.Task[None]]) -> Iterator[None]:
        """Give up what waits, and let go of the outcomes; `calls` gets those under way that are ours alone."""
        for entry in drain(self._entries):
            if entry in self._entries:
                self._leave_to_others(entry, calls)
            yield
        while self._outcomes:
            self._outcomes.popleft()
            yield
        for task in self._tasks:
            task.cancel()
        if self._lookup is not None:
            self._lookup.cancel()
        self._changed()

    def _leave_to_others(self, entry: _Entry, calls: list[asyncio.Task[None]]) -> None:
        job = self._entries[entry]
        if job is None:
            self._fail(entry, self._given_up())
            return
        del self._entries[entry]
        self._jobs.pop(job, None)
        job.leave(entry)
        if job.task is not None and not job.listeners:
            calls.append(job.task)

    async def finish(self, timeout: float | None) -> None:  # noqa: ASYNC109 - that of the client's `close`
        """After `stop`, wait until every draft has its outcome; the ledger is given up after `timeout` seconds."""
        for task in self._tasks:
            task.cancel()
        await _end_of(self._reader, timeout)
        await _end_of(self._lookup, timeout)
        self._unreadable = True
        if self._lookup is not None:
            self._lookup.cancel()
        for last in (self._reader, self._lookup, *self._tasks):
            await _end_of(last, None)
        await self._sweep(iter(())).ended()  # behind those that tell what has ended

    # -- reading ---------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._reader is None and not self._left:
            self._reader = start_task(self._read(), "feishu-mail-read")
            self._reader.add_done_callback(lambda _: self._changed())

    def _ended(self) -> bool:
        return self._left or (self._reader is not None and self._reader.done() and not self._entries)

    async def _read(self) -> None:
        """Read the input; its exception is kept until everything read before it has its outcome."""
        self._reading = True
        try:
            iterator = aiter(self._drafts) if isinstance(self._drafts, AsyncIterable) else iter(self._drafts)
            try:
                await self._read_from(iterator)
            finally:
                if isinstance(iterator, AsyncGenerator):
                    await iterator.aclose()
                elif isinstance(iterator, Generator):
                    iterator.close()
        except asyncio.CancelledError as error:
            if not self._stopping:
                self._failure = RuntimeError("drafts: reading it was cancelled")
                self._failure.__cause__ = error
        except BaseException as error:  # noqa: BLE001 - it is the caller's own, and reaches the caller
            self._failure = error

    async def _read_from(self, iterator: AsyncIterator[str | Draft] | Iterator[str | Draft]) -> None:
        numbers = itertools.count(1)
        if isinstance(iterator, AsyncIterator):
            while not self._stopping:
                try:
                    item = await anext(iterator)
                except StopAsyncIteration:
                    return
                await self._admit(next(numbers), item)
            return
        try:
            await self._read_while(lambda: not self._stopping, iterator, numbers)
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        if self._stopping and not self._left and isinstance(self._drafts, Sized):
            await self._read_while(lambda: True, iterator, numbers)

    async def _read_while(
        self, wanted: Callable[[], bool], iterator: Iterator[str | Draft], numbers: Iterator[int]
    ) -> None:
        while wanted():
            try:
                item = next(iterator)
            except StopIteration:
                return
            await self._admit(next(numbers), item)

    async def _admit(self, number: int, item: str | Draft) -> None:
        """Let one input go on its way, then wait until there is room for the next."""
        try:
            draft, user = self._resolve(item)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"drafts: item {number}: {error}") from None
        except UnknownUser as error:
            if error.draft is None:
                raise
            self._sender.ended_early(error.draft, error.draft.user or "", error)
            self._add(Outcome(error.draft, error.status, None, error))
        else:
            self._start(draft, user)
        if number % _BREATH == 0:
            await asyncio.sleep(0)
        if not self._stopping:
            await self._room.wait()

    def _start(self, draft: Draft, user: str | None) -> None:
        """Let one draft go on its way, which begins with a look at what the ledger knows of it."""
        call = self._sender.sending(draft, user)
        entry = _Entry(self, draft, call, self._sender.unread(call))
        self._entries[entry] = None
        if entry.record is not UNREAD:
            self._await_token(entry)
        elif self._unreadable:
            self._fail(entry, self._given_up())
        else:
            self._looking_up.append(entry)
            if self._lookup is None:
                self._lookup = start_task(self._look_up(), "feishu-mail-look-up")

    async def _look_up(self) -> None:
        """Look up what has been read: while the ledger is asked for some, the next ones gather."""
        broken_off: FeishuMailError = _broken_off()
        try:
            while self._looking_up:
                batch = list(itertools.islice(self._looking_up, _LOOKED_UP))
                records = await self._sender.records([entry.call for entry in batch])
                for number, entry in enumerate(batch, 1):
                    self._looking_up.popleft()
                    self._looked_up(entry, records.get(entry.call.key))
                    if number % _BREATH == 0:
                        await asyncio.sleep(0)
                await asyncio.sleep(0)
        except FeishuMailError as error:
            # Whatever has been read so far shares it: a ledger that is away is not waited for again and again.
            broken_off = error
            self._unreadable = self._stopping
        finally:
            self._lookup = None
            failed, self._looking_up = self._looking_up, deque()
            self._sweep(each(failed, lambda entry: self._fail(entry, *_another(broken_off))))

    def _looked_up(self, entry: _Entry, known: Record | RecordRefused | None) -> None:
        if isinstance(known, RecordRefused):
            entry.record = None  # nor can an earlier call have one
            self._fail(entry, RecordRefused(str(known)), known.__cause__)
            return
        entry.record = known
        if entry not in self._entries:
            return  # its run was left
        if entry.record is not None and entry.record.state.settled:
            self._sender.recorded(entry.call, entry.record, entry)
        else:
            self._await_token(entry)

    def _await_token(self, entry: _Entry) -> None:
        """Let a draft wait for its turn, or for its user's token: that must not hold up the other users."""
        user = entry.call.user
        if self._stopping:
            self._fail(entry, self._given_up())
        elif user in self._preparing:
            self._preparing[user].append(entry)
        elif self._sender.tokens.at_hand(user):
            self._offer(entry)
        else:
            self._preparing[user] = deque([entry])
            start_task(self._prepare(user), "feishu-mail-prepare", self._tasks)

    async def _prepare(self, user: str | None) -> None:
        """Fetch a user's token, then let the drafts go that wait for it."""
        error: FeishuMailError | None = None
        waiting = self._preparing[user]
        try:
            try:
                await self._sender.tokens.ready(user)
            except FeishuMailError as failed:
                error = failed
            for number in itertools.count(1):
                if not waiting or self._stopping:
                    break
                entry = waiting.popleft()
                if error is None:
                    self._offer(entry)
                else:
                    self._fail(entry, *_another(error))
                if number % _BREATH == 0:
                    await asyncio.sleep(0)  # who comes meanwhile goes behind the others
        except asyncio.CancelledError:
            self._sweep(each(waiting, lambda entry: self._fail(entry, _broken_off())))
            raise
        finally:
            del self._preparing[user]

    def _offer(self, entry: _Entry) -> None:
        if entry not in self._entries:
            return  # stopped, or left, while it waited for its token
        try:
            self._sender.resume_for(entry.call)
            job = self._sender.start(entry.call, self._priority, entry, self._stream, entry.record)
        except FeishuMailError as error:
            self._fail(entry, error)
            return
        except BaseException as error:
            self._fail(entry, NotSent(f"an internal error: {type(error).__name__}"), error)
            raise
        if entry in self._entries:
            self._entries[entry] = job
            entry.duplicate = job in self._jobs
            self._jobs[job] = None
            if self._stopping:  # by a subscriber, while the job began
                job.reconsider()
            self._changed()

    def _fail(self, entry: _Entry, error: FeishuMailError, cause: BaseException | None = None) -> None:
        """A draft that never was a job has its outcome."""
        if cause is not None:
            error.__cause__ = cause
        forget_frames(error)
        error = early(error, entry.draft, entry.record)
        if self._entries.pop(entry, self) is not self:
            self._sender.ended_early(entry.draft, entry.call.key.user, error)
            self._add(Outcome(entry.draft, error.status, None, error))

    def _given_up(self) -> NotSent:
        return NotSent(f"{'its run was left' if self._left else 'the run was stopped'} before its turn came")

    # -- outcomes --------------------------------------------------------------------------------------

    def _finished(self, entry: _Entry, job: Job) -> None:
        self._jobs.pop(job, None)
        del self._entries[entry]
        try:
            result = job.sent(entry.draft)
        except FeishuMailError as error:
            outcome = Outcome(entry.draft, error.status, None, error)
        else:
            if entry.duplicate and not result.already_sent:
                result = replace(result, already_sent=True)
            outcome = Outcome(entry.draft, result.status, result, None)
        self._add(outcome, 0 if entry.duplicate else job.calls)

    def _add(self, outcome: Outcome, calls: int = 0) -> None:
        if self._left:
            return
        self._summary.count(outcome, calls)
        self._outcomes.append(outcome)
        self._changed()

    def _changed(self) -> None:
        """Let reading, calling and the consumer go on, or not, as things stand now."""
        if self._stopping or len(self._entries) + len(self._outcomes) < self._read_ahead:
            self._room.set()
        else:
            self._room.clear()
        behind = len(self._outcomes) >= _BACKLOG
        if behind and not self._stream.held:
            self._sender.scheduler.hold(self._stream)
        elif not behind and self._stream.held:
            self._sender.scheduler.unhold(self._stream)
        if self._outcomes or self._ended():
            self._news.set()


async def _end_of(task: asyncio.Task[None] | None, timeout: float | None) -> None:  # noqa: ASYNC109
    if task is not None:
        await asyncio.wait([task], timeout=timeout)


def _broken_off() -> NotSent:
    return NotSent("tasks of the event loop were cancelled before its turn came")


def _another(error: FeishuMailError) -> tuple[FeishuMailError, BaseException | None]:
    """An error of its own for one of many who share it, and its cause."""
    return type(error)(str(error)), error.__cause__
