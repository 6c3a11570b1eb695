"""A run over many drafts: it reads ahead, lets the scheduler choose, and yields each outcome once it is known.

    input --read_ahead--> looked up --> token ready --> job in the scheduler --> outcomes --> the consumer
              ^             (ledger)      (by user)            ^                     |
              |                                                |                     |
              `-- stops at read_ahead entries and outcomes     `-- held at a backlog of 100 outcomes

Fairness among users holds for the drafts that have been read. A consumer that falls behind has the run's stream
held in the scheduler, so that no new calls are made for it; and reading stops when `read_ahead` drafts have been
read whose outcomes have not been fetched. So memory stays bounded at both ends.

Each draft read is an `_Entry` in `_entries` until it has its outcome. Every way out of the pipeline passes through
`_fail` (it never was a job) or `_finished` (its job has ended), which remove the entry and add the outcome: so
every draft read ends in exactly one. (A draft of an unknown user never is an entry: `_admit` adds its outcome.)
Only `leave` drops outcomes, because no consumer is left to fetch them.

Steps over many entries run as sweeps of the scheduler, a few in each pass of the loop: ending a run of a hundred
thousand drafts must not block it.
"""

import asyncio
import itertools
from collections import deque
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
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

from feishu_mail_async._forks import NOT_THIS_CLIENT, Origin
from feishu_mail_async._scheduling.record import UNREAD, Record
from feishu_mail_async._scheduling.sweeps import Sweep, drain, each
from feishu_mail_async._secrecy import forget_frames
from feishu_mail_async._tasks import start_task
from feishu_mail_async.errors import (
    ClientClosed,
    FeishuMailError,
    NotSent,
    RecordRefused,
    UnknownUser,
)
from feishu_mail_async.model import Draft, Priority
from feishu_mail_async.outcomes import Outcome, Summary

from .sending import Call, Job, Sender, early

__all__ = ["BulkRun", "DraftSource"]

DraftSource = Iterable[str | Draft] | AsyncIterable[str | Draft]
"""The input of `send_drafts`."""

_BACKLOG: Final = 100
"""Outcomes that may wait for the consumer before no new calls are made."""

_LOOKED_UP: Final = 200
"""Drafts per query of the ledger."""

_BREATH: Final = 50
"""Items handled in one step before the event loop runs its other tasks."""


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

    Every draft read ends in exactly one outcome. Duplicates in the input are sent once; the others end as
    `already_sent`, without a call while the first is under way, or with the first one's error.

    Use it as an async context manager: leaving it makes no new calls and waits for those in flight. After a plain
    `async for … break` the client's `close` does that.

    Made by `FeishuMailClient.send_drafts`, which describes the parameters.
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
        self._unreadable = False  # the ledger has been given up: entries that it was to look up end at once
        self._tasks: set[asyncio.Task[None]] = set()
        self._outcomes: deque[Outcome] = deque()
        self._fetched = 0
        self._failure: BaseException | None = None
        self._reading = False  # the reader's task has taken its first step; before that it is not cancelled
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
        """The number of drafts that have been read and have no outcome yet."""
        return len(self._entries)

    def stop(self) -> None:
        """Make no new calls: those in flight are finished, and the rest is skipped.

        If the input has a length, its unread rest is skipped too; any other input is not read further. Skipped
        drafts are still looked up in the ledger, where they may be on record as sent.
        """
        if self._stopping:
            return
        self._stopping = True
        if self._reader is not None and self._reading:
            self._reader.cancel()
        self._sweep(self._stop_waiting(drain(self._preparing.values())))
        self._changed()

    def _stop_waiting(self, preparing: Iterator[deque[_Entry]]) -> Iterator[None]:
        """End the entries without a job, then have the jobs reconsider; one step for each."""
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
        # With outcomes at hand nothing below suspends, and a fast consumer would block the loop.
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
        """End the run: give up all that waits, wait for the calls in flight, and drop the outcomes left.

        Cancelling it does not undo it: the run ends in the background.
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
        """Give up the waiting entries and drop the outcomes; `calls` gets the calls that only this run wants."""
        for entry in drain(self._entries):
            if entry in self._entries:  # it may have ended since the sweep began
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
        """End an entry without an outcome; its job goes on if it has other listeners or is in flight."""
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
        """Wait, after `stop`, until every draft has its outcome.

        Args:
            timeout: seconds after which the ledger is given up; None: no limit.
        """
        for task in self._tasks:
            task.cancel()
        await _end_of(self._reader, timeout)
        await _end_of(self._lookup, timeout)
        self._unreadable = True
        if self._lookup is not None:
            self._lookup.cancel()
        for last in (self._reader, self._lookup, *self._tasks):
            await _end_of(last, None)
        await self._sweep(iter(())).ended()  # sweeps run in order: this one ends after those that end entries

    # -- reading ---------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Start the reader, once."""
        if self._reader is None and not self._left:
            self._reader = start_task(self._read(), "feishu-mail-read")
            self._reader.add_done_callback(lambda _: self._changed())

    def _ended(self) -> bool:
        return self._left or (self._reader is not None and self._reader.done() and not self._entries)

    async def _read(self) -> None:
        """Read the input; keep its exception until all drafts read before it have their outcome."""
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
        except BaseException as error:  # noqa: BLE001 - of the caller's own input: the run raises it to the caller
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
        # A plain iterator survives the cancellation of this task, which an async one need not. So after a `stop`
        # the rest of an input with a length can still be read, to skip it and look it up.
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
        """Start one input, then wait until there is room for the next."""
        try:
            draft, user = self._resolve(item)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"drafts: item {number}: {error}") from None
        except UnknownUser as error:
            if error.draft is None:  # for the type checker: `_resolve` sets it
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
        """Start one draft: first its record is read, then its token made ready, then its job started."""
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
        """Look up the drafts read so far; while a query of the ledger runs, the next ones gather."""
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
            # All drafts read so far share the error: one time-out for a ledger that is away, and not one each.
            broken_off = error
            self._unreadable = self._stopping
        finally:
            self._lookup = None
            failed, self._looking_up = self._looking_up, deque()
            self._sweep(each(failed, lambda entry: self._fail(entry, *_another(broken_off))))

    def _looked_up(self, entry: _Entry, known: Record | RecordRefused | None) -> None:
        """Continue with an entry whose record has been read."""
        if isinstance(known, RecordRefused):
            entry.record = None  # nor can an earlier call have had one, so nothing is in doubt
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
        """Start the job, or wait for the user's token first: that must not hold up the other users."""
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
        """Fetch a user's token, then start the jobs that wait for it."""
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
                    await asyncio.sleep(0)  # entries that arrive meanwhile queue in `waiting`, in their order
        except asyncio.CancelledError:
            self._sweep(each(waiting, lambda entry: self._fail(entry, _broken_off())))
            raise
        finally:
            del self._preparing[user]

    def _offer(self, entry: _Entry) -> None:
        """Start the job of an entry, or join the one under way."""
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
            if self._stopping:  # a subscriber may have stopped the run while the job began
                job.reconsider()
            self._changed()

    def _fail(self, entry: _Entry, error: FeishuMailError, cause: BaseException | None = None) -> None:
        """End an entry that never was a job."""
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
        """End an entry whose job has ended."""
        self._jobs.pop(job, None)
        del self._entries[entry]
        if job.error is not None:
            # Not raised here: the traceback would hold this frame, which holds the error.
            error = job.error_for(entry.draft)
            outcome = Outcome(entry.draft, error.status, None, error)
        else:
            result = job.sent(entry.draft)
            # The server would have answered a second call with "already sent".
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
        """Let reading, calls and the consumer go on, or hold them, according to the present counts."""
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
    """Return a copy of an error for one of many that share it, and its cause."""
    return type(error)(str(error)), error.__cause__
