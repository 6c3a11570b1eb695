"""The drafts of a run that are on their way, and its outcomes that have not been fetched.

Each draft is an `Entry` until it has its outcome. The intake tells the entry once how it ends (`failed` or
`ended`), which turns it into an outcome. So every draft read ends in exactly one; only `leave` drops
outcomes, because no consumer is left to fetch them.

Steps over many entries run as sweeps of the scheduler, a few in each pass of the loop: ending a run of a hundred
thousand drafts must not block it. Meanwhile the run's stream has no turns.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextvars import Context, copy_context
from dataclasses import replace
from typing import Final

from feishu_mail_async._scheduling.record import UNREAD, Record
from feishu_mail_async._scheduling.sweeps import Sweep, drain, each
from feishu_mail_async._scheduling.waiters import Stream
from feishu_mail_async.errors import FeishuMailError, NotSent
from feishu_mail_async.model import Draft, Priority
from feishu_mail_async.outcomes import Outcome, Summary

from .call import Call
from .intake import Intake
from .job import Job  # noqa: TC001 - typing reads it at run time
from .progress import Progress, State

__all__ = ["Backlog"]

_BACKLOG: Final = 100
"""Outcomes that may wait for the consumer before no new calls are made."""


class Entry:
    """One draft of a run on its way; see `intake.Entry`."""

    __slots__ = ("backlog", "call", "draft", "job", "record")

    def __init__(self, backlog: "Backlog", call: Call, record: Record | None) -> None:
        assert call.draft is not None
        self.backlog = backlog
        self.draft = call.draft
        self.call = call
        self.record = record
        self.job: Job | None = None

    @property
    def priority(self) -> Priority:
        return self.backlog.priority

    @property
    def stream(self) -> Stream:
        return self.backlog.stream

    @property
    def context(self) -> Context:
        return self.backlog.context

    @property
    def wanted(self) -> bool:
        return self in self.backlog.entries

    @property
    def wants_calls(self) -> bool:
        return not self.backlog.stopping

    def given_up(self) -> NotSent:
        return self.backlog.given_up()

    def ended(self, job: Progress) -> None:
        self.backlog.ended(self, job)

    def failed(self, error: FeishuMailError) -> None:
        self.backlog.failed(self, error)


class Backlog:
    """The drafts and outcomes of one run.

    Args:
        intake: takes the drafts.
        priority: their order among waiting sends.
        read_ahead: the most drafts that are read and not yet fetched as outcomes.

    Attributes:
        priority: as above.
        stream: the lock that its waiters share.
        context: the context of the code that began the run: events are delivered in it.
        entries: the drafts without an outcome.
        outcomes: the outcomes that have not been fetched.
        summary: the counts of all outcomes so far.
        stopping: no new calls are to be made.
        left: its consumer has gone.
        room: set while another draft may be read.
        news: set when the consumer has something to look at.
    """

    def __init__(self, intake: Intake, priority: Priority, read_ahead: int) -> None:
        self._intake = intake
        self._read_ahead = read_ahead
        self._just_ended: Progress | None = None
        self._unreadable = False  # the ledger failed after the stop: what comes now is not looked up
        self.priority = priority
        self.stream = intake.scheduler.stream()
        self.context = copy_context()
        self.entries: dict[Entry, None] = {}
        self.outcomes: deque[Outcome] = deque()
        self.summary = Summary()
        self.stopping = False
        self.left = False
        self.room = asyncio.Event()
        self.room.set()
        self.news = asyncio.Event()

    # -- drafts ----------------------------------------------------------------------------------------

    def admit(self, call: Call) -> None:
        """Start a draft on its way."""
        entry = Entry(self, call, self._intake.unread)
        self.entries[entry] = None
        if self.stopping and (self._unreadable or entry.record is not UNREAD):
            self._intake.end_early(entry, self.given_up())
        else:
            try:
                self._intake.admit(entry)
            except BaseException:
                self.entries.pop(entry, None)  # else the run would wait for its outcome for ever
                raise

    def reject(self, draft: Draft, error: FeishuMailError) -> None:
        """Add the outcome of a draft that cannot be started."""
        self._intake.tell_early(draft, draft.user or "", error, self.context)
        self._add(Outcome(draft, error.status, None, error))

    def given_up(self) -> NotSent:
        """Return the error of a draft that ends because the run does."""
        return NotSent(f"{'its run was left' if self.left else 'the run was stopped'} before its turn came")

    def failed(self, entry: Entry, error: FeishuMailError) -> None:
        """End a draft that never had a job."""
        del self.entries[entry]
        if entry.record is UNREAD:
            self._unreadable = self.stopping
        self._add(Outcome(entry.draft, error.status, None, error))

    def ended(self, entry: Entry, job: Progress) -> None:
        """End a draft whose job has ended."""
        del self.entries[entry]
        # A job tells its listeners one after another: of several that belong to this run, all but the first one
        # are duplicates.
        duplicate, self._just_ended = job is self._just_ended, job
        if job.error is not None:
            # Not raised here: the traceback would hold this frame, which holds the error.
            error = job.error_for(entry.draft)
            outcome = Outcome(entry.draft, error.status, None, error)
        else:
            result = job.sent(entry.draft)
            # The server would have answered a second call with "already sent".
            if duplicate and not result.already_sent:
                result = replace(result, already_sent=True)
            outcome = Outcome(entry.draft, result.status, result, None)
        self._add(outcome, 0 if duplicate else job.tries.calls)

    def _add(self, outcome: Outcome, calls: int = 0) -> None:
        if self.left:
            return
        self.summary.count(outcome, calls)
        self.outcomes.append(outcome)
        self.news.set()
        self.changed()

    def changed(self) -> None:
        """Let reading and calls go on, or hold them, according to the present counts."""
        if self.stopping or len(self.entries) + len(self.outcomes) < self._read_ahead:
            self.room.set()
        else:
            self.room.clear()
        behind = len(self.outcomes) >= _BACKLOG
        if behind and not self.stream.held:
            self._intake.scheduler.hold(self.stream)
        elif not behind and self.stream.held:
            self._intake.scheduler.unhold(self.stream)

    # -- the end ---------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Make no new calls: drafts without a job end, and jobs end as soon as they may."""
        self.stopping = True
        self._sweep(each(self.entries, self._stop_one))
        self.changed()

    def _stop_one(self, entry: Entry) -> None:
        if entry not in self.entries:
            return
        if entry.job is not None:
            entry.job.reconsider()
        elif entry.record is not UNREAD:  # otherwise it may be on record as sent: it is looked up first
            self._intake.end_early(entry, self.given_up())

    async def leave(self) -> list[asyncio.Future[None]]:
        """Give up all drafts and drop the outcomes; return the ends of the calls that only this run wants."""
        self.left = self.stopping = True
        calls: list[asyncio.Future[None]] = []
        await self._sweep(self._leaving(calls)).ended()
        return calls

    def _leaving(self, calls: list[asyncio.Future[None]]) -> Iterator[None]:
        for entry in drain(self.entries):
            if entry in self.entries:  # it may have ended since the sweep began
                self._leave_one(entry, calls)
            yield
        while self.outcomes:
            self.outcomes.popleft()
            yield
        self.news.set()
        self.changed()

    def _leave_one(self, entry: Entry, calls: list[asyncio.Future[None]]) -> None:
        """End a draft without an outcome; its job goes on if it has other listeners or is in flight."""
        job = entry.job
        if job is None:
            self._intake.end_early(entry, self.given_up())
            return
        del self.entries[entry]
        job.leave(entry)
        if job.state is not State.DONE and not job.listeners:
            calls.append(job.end())

    async def swept(self) -> None:
        """Wait until the sweeps begun so far have ended: they run in order."""
        await self._sweep(iter(())).ended()

    def _sweep(self, steps: Iterator[object]) -> Sweep:
        return self._intake.scheduler.sweep(steps, self.stream)
