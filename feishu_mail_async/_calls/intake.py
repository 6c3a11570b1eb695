"""The intake of calls to one endpoint: from a wish to a job, the same way for a single caller and for a run.

    admit --> record known? --no--> looked up in the ledger, many in one query, the most urgent first
                   | yes
                   v
              on record as sent? --yes--> done, without a call
                   | no
                   v
              to be sent later? --yes--> its draft is read first (`preparing`)
                   | no
                   v
              token at hand? --no--> fetched, once for all who wait for it; the other users go on meanwhile
                   | yes
                   v
              start a job, or join the one of the same call

An entry waits here without a task of its own, so that many can wait. Whatever happens it is told once: `failed`
before it had a job, or `ended` with it.
"""

import asyncio
import copy
import itertools
import math
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import Context
from typing import Any, Final

from feishu_mail_async._auth.tokens import Account, Tokens, fingerprint
from feishu_mail_async._scheduling.record import UNREAD, DraftKey, Record
from feishu_mail_async._scheduling.scheduler import Scheduler
from feishu_mail_async._scheduling.store import of
from feishu_mail_async._scheduling.sweeps import SLICE, Sweep, each
from feishu_mail_async._secrecy import forget_frames
from feishu_mail_async._tasks import start_task
from feishu_mail_async._transport import Transport
from feishu_mail_async.errors import ClientClosed, FeishuMailError, LedgerError, NotSent, RecordRefused
from feishu_mail_async.model import Draft, Priority, RetryPolicy

from .call import Call
from .endings import SESSION_CLOSED, client_closed, early
from .entry import Entry
from .job import Job
from .reporting import About, done_early, numbers
from .retry import PolicyDelays

__all__ = ["Intake", "check_stack"]

_LOOKED_UP: Final = 200
"""Drafts per query of the ledger."""

_ROOM: Final = 64
"""Stack frames that must be free: more than any step of this package takes, logging included."""


def check_stack() -> None:
    """Raise RecursionError now, while no state has changed, if a caller's stack is too full for the next steps."""
    try:
        sys._getframe(sys.getrecursionlimit() // 4)  # noqa: SLF001 - the one way to ask without going there
    except ValueError:
        return  # the stack is not even that deep
    _descend(_ROOM)


def _descend(room: int) -> None:
    if room:
        _descend(room - 1)


class Intake:
    """The calls of one client to one endpoint; it is their `JobContext`, too.

    Args:
        scheduler: grants the turns; shared with the other clients of the app.
        transport: makes the calls.
        tokens: the users' tokens.
        policy: the retry policy.

    Attributes:
        closed: set once its client has begun to close, for those who wait for something else than a call.
        unread: the record to assume for a draft before its own is read; None where there are no records.
        prepare: prepares an entry that is to be scheduled, and hands it to `prepared`.
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
        self.closed = asyncio.Event()
        self.jobs: dict[DraftKey, Job] = {}
        self.tasks: set[asyncio.Future[Any]] = set()
        self.outage = math.inf if policy.outage is None else policy.outage
        self.unread = UNREAD if scheduler.store.shared else None
        self._unread: dict[Priority, deque[Entry]] = {priority: deque() for priority in Priority}
        self._lookup: asyncio.Task[None] | None = None
        self._unreadable = False  # the ledger has been given up: what is to be looked up ends at once
        self._fetching: dict[Account, deque[Entry]] = {}
        self._fetches: set[asyncio.Task[None]] = set()
        self._nobody = scheduler.stream()  # the lock of sweeps that end no waiters
        self._ending: Sweep | None = None
        self.prepare: Callable[[Entry], None] | None = None

    # -- from an entry to a job ------------------------------------------------------------------------

    def admit(self, entry: Entry) -> None:
        """Take an entry on its way to a job; it is told how that ends."""
        check_stack()  # a RecursionError further on could fall between a turn and its end
        if entry.record is not UNREAD:
            self._go_on(entry)
        elif self._unreadable:
            self._fail(entry, entry.given_up())
        else:
            self._unread[entry.priority].append(entry)
            if self._lookup is None:
                self._lookup = start_task(self._look_up(), "feishu-mail-look-up")

    async def _look_up(self) -> None:
        """Look up the entries that have come so far; while a query of the ledger runs, the next ones gather."""
        batch: deque[Entry] = deque()
        error: FeishuMailError | None = None
        try:
            while any(self._unread.values()):
                batch = self._next_batch()
                if batch:
                    records = await self.records([entry.call for entry in batch])
                    async for entry in _breathing(batch):
                        try:
                            self._looked_up(entry, records.get(entry.call.key))
                        except BaseException as failed:
                            self._break_off(entry, failed)
                            raise
                await asyncio.sleep(0)
        except FeishuMailError as failed:
            # All that wait share the error: one time-out for a ledger that is away, and not one each.
            error = failed
        finally:
            self._lookup = None
            if left := [*batch, *itertools.chain(*self._unread.values())]:
                self._unread = {priority: deque() for priority in Priority}
                self._fail_all(left, error or _broken_off())

    def _next_batch(self) -> deque[Entry]:
        """Take the next entries to look up, the most urgent first."""
        batch: deque[Entry] = deque()
        for waiting in self._unread.values():
            while waiting and len(batch) < _LOOKED_UP:
                batch.append(waiting.popleft())
        return batch

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

    def _looked_up(self, entry: Entry, known: Record | RecordRefused | None) -> None:
        if isinstance(known, RecordRefused):
            entry.record = None  # nor can an earlier call have had one, so nothing is in doubt
            self._fail(entry, *_another(known))
            return
        entry.record = known
        if not entry.wanted:
            return
        if known is not None and known.state.done:
            entry.job = Job(self, entry)
            entry.job.recorded(known)
        elif not entry.wants_calls:
            self._fail(entry, entry.given_up())
        else:
            self._go_on(entry)

    def _go_on(self, entry: Entry) -> None:
        """Go on with an entry whose record is known."""
        if entry.call.schedule is None or self.prepare is None:
            self._await_token(entry)
        else:
            self.prepare(entry)

    def prepared(self, entry: Entry) -> None:
        """Go on with an entry that was prepared; it may not be wanted any more."""
        if entry.wanted:
            try:
                self._await_token(entry)
            except BaseException as error:
                self._break_off(entry, error)
                raise

    def _await_token(self, entry: Entry) -> None:
        """Start the job, or wait for the user's token first: that must not hold up the other users."""
        account = entry.call.account
        refused = self._refused(account)
        if refused is not None and entry.stream is None:
            # The cached token may be the refused one. Not for a run, which would ask again for each of its drafts.
            self.tokens.outdate(account)
        if account in self._fetching:
            self._fetching[account].append(entry)
        elif account.fresh_until > self.time():
            self._offer(entry, refused)
        else:
            waiting = deque([entry])
            start_task(self._fetch(account, waiting), "feishu-mail-prepare", self._fetches)
            self._fetching[account] = waiting

    def _refused(self, account: Account) -> str | None:
        """Return the fingerprint of the token for which a user is suspended; None if it is not."""
        # The common case by a look, without a detour: nothing is suspended.
        suspended = self.scheduler.store.state.suspensions.entries
        return self.scheduler.refused_fingerprint(account.key) if suspended else None

    async def _fetch(self, account: Account, waiting: deque[Entry]) -> None:
        """Fetch a user's token, then start the jobs that wait for it."""
        error: FeishuMailError | None = None
        try:
            try:
                await self.tokens.ready(account)
            except FeishuMailError as failed:
                error = failed
            async for entry in _breathing(waiting):  # those that come meanwhile queue behind, in their order
                if not entry.wanted:
                    continue
                if not entry.wants_calls:
                    self._fail(entry, entry.given_up())
                elif error is None:
                    self._offer(entry, self._refused(account))
                else:
                    self._fail(entry, *_another(error))
        finally:
            del self._fetching[account]
            if waiting:
                self._fail_all(waiting, _broken_off())

    def _offer(self, entry: Entry, refused: str | None) -> None:
        """Start the job of an entry, or join the one under way.

        Args:
            entry: the entry.
            refused: the fingerprint of the token for which its user is suspended; None: it is not.
        """
        try:
            if refused is not None:
                self._resume_for(entry.call.account, refused)
            self._start(entry)
        except FeishuMailError as error:
            self._fail(entry, error)
        except BaseException as error:
            self._break_off(entry, error)
            raise

    def _resume_for(self, account: Account, refused: str) -> None:
        """Resume a user who was suspended because of another token than there is now."""
        if refused != fingerprint(self.tokens.current(account).value):
            self.scheduler.token_changed(account.key)

    def _start(self, entry: Entry) -> None:
        """Queue a call for its turn, or join the job of the same call.

        Raises:
            ClientClosed: the client, or the caller's own session, is closed.
        """
        if self.closing:
            raise client_closed(self.endpoint)
        if self.transport.closed:
            raise ClientClosed(SESSION_CLOSED)
        job = self.jobs.get(entry.call.key)
        if job is not None and not job.condemned():
            entry.job = job
            job.join(entry)
            return
        job = entry.job = Job(self, entry)
        if entry.record is not None and entry.record.maybe_sent:
            job.tries.conclusive = False
        try:
            job.begin()
        except BaseException:
            job.leave(entry, "it could not begin")
            raise

    # -- ends without a job ----------------------------------------------------------------------------

    def _fail(self, entry: Entry, error: FeishuMailError, cause: BaseException | None = None) -> None:
        """End an entry that never was a job."""
        if entry.wanted:
            if cause is not None:
                error.__cause__ = cause
            self.end_early(entry, error)

    def _break_off(self, entry: Entry, error: BaseException) -> None:
        """End an entry with what a step has raised: a mistake of this package."""
        self._fail(entry, NotSent(f"an internal error: {type(error).__name__}"), error)

    def _fail_all(self, entries: Iterable[Entry], error: FeishuMailError) -> None:
        def fail(entry: Entry) -> None:
            if self._unreadable:
                self._fail(entry, entry.given_up())
            else:
                self._fail(entry, *_another(error))

        self.scheduler.sweep(each(entries, fail), self._nobody)

    def end_early(self, entry: Entry, error: FeishuMailError) -> None:
        """End an entry without a job, and publish it."""
        told = early(forget_frames(error), entry.call, entry.record)
        entry.failed(told)  # first: a subscriber may stop its run, which ends what has no end yet
        self.tell_early(entry.call.draft, entry.call.key.user, told, entry.context)

    def tell_early(self, draft: Draft | None, user: str, error: FeishuMailError, context: Context) -> None:
        """Publish the outcome of a draft that ended before it could wait for a turn.

        Args:
            draft: the draft; nothing is published of a call that sends none.
            user: its user's key.
            error: the reason.
            context: the context of the submitting code.
        """
        events = self.scheduler.events
        if draft is not None and events.has_listeners:
            about = About(next(numbers), self.endpoint.name, user, draft)
            context.copy().run(events.publish, done_early(self.time(), about, error))

    # -- for jobs --------------------------------------------------------------------------------------

    def end_waiting(self, error: FeishuMailError) -> None:
        """End all waiting calls: what kept one from the API would keep each of them from it."""
        self.scheduler.sweep(each(self.jobs.values(), lambda job: job.give_up(error)))

    # -- closing ---------------------------------------------------------------------------------------

    def close(self) -> None:
        """Begin to end all waiting calls. Calls in flight go on."""
        self.closed.set()
        if self._ending is None:
            self._ending = self.scheduler.sweep(self._closing())

    def _closing(self) -> Iterator[None]:
        # Set within the sweep and not before it: sweeps run one after another, and jobs that an earlier one is
        # ending (an outage, a suspension) must keep their own reason and not end as "client closed".
        self.closing = True
        yield from each(self.jobs.values(), Job.stop)

    async def wait_closed(self, timeout: float | None) -> None:  # noqa: ASYNC109 - that of the client's `close`
        """Let calls in flight finish, for `timeout` seconds at most; then cancel them."""
        if self._ending is not None:
            await self._ending.ended()
        loop = asyncio.get_running_loop()
        until = None if timeout is None else loop.time() + timeout
        while self.tasks and (until is None or loop.time() < until):
            await asyncio.wait(self.tasks, timeout=None if until is None else until - loop.time())
        while self.tasks:
            await self.scheduler.sweep(each(self.tasks, lambda task: task.cancel())).ended()
            if self.tasks:  # all of them may have ended within the sweep
                await asyncio.wait(self.tasks)

    async def end_look_ups(self, timeout: float | None) -> None:  # noqa: ASYNC109 - that of the client's `close`
        """Let look-ups finish, for `timeout` seconds at most; then the ledger is given up."""
        if self._lookup is not None:
            await asyncio.wait([self._lookup], timeout=timeout)
        self._unreadable = True
        if self._lookup is not None:
            self._lookup.cancel()
            await asyncio.wait([self._lookup])

    async def end_fetches(self) -> None:
        """Wait for those who wait for a token; they end with the source."""
        if self._fetches:
            await asyncio.wait(self._fetches)


async def _breathing(entries: deque[Entry]) -> AsyncIterator[Entry]:
    """Take the entries out, one after another, and let other tasks of the loop run now and then."""
    for number in itertools.count(1):
        if not entries:
            return
        yield entries.popleft()
        if number % SLICE == 0:
            await asyncio.sleep(0)


def _broken_off() -> NotSent:
    return NotSent("tasks of the event loop were cancelled before its turn came")


def _another(error: FeishuMailError) -> tuple[FeishuMailError, BaseException | None]:
    """Return a copy of an error for one of many that share it, and its cause."""
    return copy.copy(error), error.__cause__
