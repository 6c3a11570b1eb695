"""The store of one endpoint of an app on a database.

Theory of operation. A turn is taken in one transaction, and the end of its call is written in another:

    take     permit, the locks of user and mailbox, the intent to send --> the call
    settle   the permit comes back, the locks open, others wait or are suspended, the draft's outcome

Each names its turn, so a commit whose answer was lost is safe: `settle` is idempotent, and what such a `take` may
hold is freed by the next transaction. What a turn holds is a *lease*: a process that dies leaves its permit and
locks behind, and they lapse when its call cannot arrive any more.

    turn     -- take --> live -- settle --> ended: its permit counts for one window more
                          |  -- give_back --> orphan -- the next transaction --> freed
                          |  -- its process dies --> lapsed at `lapses`, counted as a call that ended then
             -- take, the commit's answer is lost --> orphan, and a new turn is tried

- The database's row of the app is locked in each transaction, so processes decide one after another. A process's
  own transactions go one at a time as it is (`_one_at_a_time`): they would only contend for that row.
- Between transactions this process works with `state`, a copy (`_adopt`) that may be out of date. So the copy only
  says when a try is worthwhile; the choice is made in the transaction, from the rows.
- Rows are in the ledger's time, `state` is in the loop's: `shift` is what is added to the former.
- A value that the database refuses (a draft's id, say) must not fail the others: `_apart` finds it by halving.
- If the ledger cannot be written at the end of a call, its outcome is true all the same: it is reported, logged as
  not on record, and the lease keeps permit and locks until it lapses.
"""

import asyncio
import dataclasses
import itertools
import logging
import math
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from feishu_mail_async._api.endpoints import Endpoint
from feishu_mail_async._api.protocol import Judgement
from feishu_mail_async._scheduling.budget import Budget
from feishu_mail_async._scheduling.lanes import Turn, Waiter
from feishu_mail_async._scheduling.record import DraftKey, DraftState, Record
from feishu_mail_async._scheduling.state import Delays, EndpointState, Permit, Settled
from feishu_mail_async._scheduling.store import SLACK, Offer, Shut
from feishu_mail_async._scheduling.suspensions import APP, EVERYWHERE, SuspensionKey, Suspensions, subjects
from feishu_mail_async._tasks import look_at, start_task
from feishu_mail_async.codes import ResumeWhen
from feishu_mail_async.errors import FeishuMailError, LedgerError, RecordRefused
from feishu_mail_async.model import OutcomeStatus, Priority, RateLimit

from . import schema
from .database import Database
from .pruning import prune
from .rows import LockRow, PermitRow, limit_of, look_again, state_of, suspensions_of
from .transaction import Transaction, budget_row

__all__ = ["SqlStore"]

T = TypeVar("T")

_Found = Mapping[DraftKey, Record | RecordRefused]

_log: Final = logging.getLogger("feishu_mail_async.ledger")

_RECALLED: Final = 1000
"""Drafts that are looked up in one transaction; the last request that is added may exceed it."""
_NOTED: Final = 200
"""Outcomes that are written in one transaction."""
_TIDY_FIRST: Final = 10.0
"""Seconds until a process first drops rows that are not needed any more: most processes end before."""
_TIDY_NEXT: Final = 1.0
"""Seconds until it does so again if there were many."""
_TIDY_EVERY: Final = 60.0
"""Seconds until it does so again if there were few."""


class SqlStore:
    """The store of one endpoint of an app on a database; see `SchedulerStore` for its methods.

    Args:
        database: the database.
        base_url: the API's host.
        app: the app's name.
        endpoint: the endpoint.
        limit: the limit to keep; it replaces the one that is in force, for all processes.
        holder: the name of this process, for people who read the tables.

    Attributes:
        state: the endpoint's state as the last transaction found it, in the loop's time.
    """

    shared = True
    most = 20

    def __init__(  # noqa: PLR0917 - one for each thing concerned
        self, database: Database, base_url: str, app: str, endpoint: Endpoint[Any], limit: RateLimit, holder: str
    ) -> None:
        self.state = EndpointState(endpoint, limit, Suspensions())
        self._database = database
        self._base_url = base_url
        self._app = app
        self._holder = holder
        self._new_limit: RateLimit | None = limit
        self._one_at_a_time = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._live: set[str] = set()  # turns whose calls this process makes now
        # Turns without a call that may be on record, because the answer to a commit was lost: the next transaction
        # frees their permits and locks before it looks at anything else.
        self._orphans: set[str] = set()
        self._resumed: dict[str, ResumeWhen | None] = {}
        # Ordered, because the first ones are taken out again and again: a dict would pass over the gaps each time.
        self._notes: OrderedDict[DraftKey, tuple[OutcomeStatus, FeishuMailError]] = OrderedDict()
        self._noting: asyncio.Task[None] | None = None
        self._tidy_at: float | None = None
        self._looking_up: tuple[list[DraftKey], asyncio.Task[_Found]] | None = None

    def join(self, loop: asyncio.AbstractEventLoop, changed: Callable[[], None]) -> float:  # noqa: ARG002
        return 0.0

    def look_again(self, now: float) -> float:  # noqa: ARG002
        return math.inf

    # -- turns -----------------------------------------------------------------------------------------

    def take(self, waiters: Sequence[Waiter], now: float) -> asyncio.Future[Offer]:  # noqa: ARG002
        return self._spawn(self._take(waiters))

    async def _take(self, waiters: Sequence[Waiter]) -> Offer:
        taken = Offer()

        async def take(some: Sequence[Waiter]) -> None:
            if taken.granted is None:
                found = await self._take_of(some)
                taken.granted = found.granted
                taken.recorded += found.recorded
                taken.shut += found.shut

        for waiter, error in await self._apart(waiters, take):
            taken.refused.append((waiter, _refused(waiter.draft_id, error)))
        return taken

    async def _take_of(self, waiters: Sequence[Waiter]) -> Offer:
        names = _subjects_of(waiters)
        turn = uuid.uuid4().hex

        async def take(transaction: Transaction) -> Offer:
            return await self._choose(transaction, waiters, turn)

        def failed() -> None:
            nonlocal turn
            self._orphans.add(turn)
            self._live.discard(turn)
            turn = uuid.uuid4().hex

        try:
            taken, now = await self._transact(take, names, failed)
        except LedgerError:
            failed()
            raise
        shift = _loop_time() - now
        taken.shut = [
            Shut(kind, key, until + shift, backoff_until + shift) for kind, key, until, backoff_until in taken.shut
        ]
        return taken

    async def _choose(self, transaction: Transaction, waiters: Sequence[Waiter], turn: str) -> Offer:
        state, now = transaction.state, transaction.now
        await transaction.load_permits()
        keys = [
            DraftKey(waiter.user, waiter.mailbox, waiter.draft_id)
            for waiter in waiters
            if waiter.draft_id is not None
        ]
        records = await transaction.drafts(keys)
        locks = await transaction.locks(
            pair for waiter in waiters for pair in transaction.lock_keys(waiter.user, waiter.mailbox)
        )
        taken = Offer()
        may_go = state.not_before(now) <= now
        reserved = state.budget.free(now) <= state.budget.limit.reserve
        for waiter in waiters:
            record = (
                None
                if waiter.draft_id is None
                else records.get(DraftKey(waiter.user, waiter.mailbox, waiter.draft_id))
            )
            if record is not None and record.state.settled:
                taken.recorded.append((waiter, record))
                continue
            if state.suspensions.find(state.keys_of(waiter.user, waiter.mailbox), now) is not None:
                continue
            user, mailbox = transaction.lock_keys(waiter.user, waiter.mailbox)
            pair = locks[user], locks[mailbox]
            shut = [
                Shut(kind, lock.key, until, lock.backoff_until)
                for kind, lock in zip(("user", "mailbox"), pair, strict=True)
                if (until := lock.free_at(now)) > now
            ]
            taken.shut += shut
            urgent = waiter.priority is Priority.INTERACTIVE
            if not shut and may_go and taken.granted is None and (urgent or not reserved):
                taken.granted = waiter, await self._grant(transaction, waiter, turn, pair, record)
        return taken

    async def _grant(
        self,
        transaction: Transaction,
        waiter: Waiter,
        turn: str,
        locks: tuple[LockRow, LockRow],
        record: Record | None,
    ) -> Permit:
        now = transaction.now
        lapses = now + waiter.timeout + transaction.state.budget.limit.grace + SLACK
        permit = transaction.state.dispatch(turn, now, lapses)
        row = {"turn": turn, "app_id": transaction.app_id, "endpoint": transaction.endpoint.name}
        row |= {"holder": self._holder, "taken": now, "lapses": lapses}
        await transaction.run(sa.insert(schema.permit), row)
        if transaction.permits is not None:
            transaction.permits.append(PermitRow(turn, now, lapses))
        self._live.add(turn)
        if transaction.endpoint.writes:
            for lock in locks:
                lock.turn, lock.taken, lock.lapses = turn, now, lapses
            await transaction.write_locks(locks)
        in_doubt = False
        if waiter.draft_id is not None:
            in_doubt = record is not None and record.maybe_sent
            await transaction.write_draft(
                DraftKey(waiter.user, waiter.mailbox, waiter.draft_id),
                {
                    "state": DraftState.IN_FLIGHT,
                    "in_doubt": in_doubt,
                    "turn": turn,
                    "calls": (0 if record is None else record.calls) + 1,
                },
            )
        began = transaction.began
        return permit._replace(at=began, in_doubt=in_doubt, good_until=began + SLACK)

    def settle(
        self,
        turn: Turn,
        judgement: Judgement,
        delays: Delays,
        now: float,
        *,
        renewing: bool,
    ) -> asyncio.Future[Settled]:
        return self._spawn(self._settle(turn, judgement, delays, now, renewing=renewing))

    async def _settle(
        self, turn: Turn, judgement: Judgement, delays: Delays, at: float, *, renewing: bool
    ) -> Settled:
        name = turn.permit.turn
        locks: tuple[LockRow, LockRow] | None = None
        recording = turn.waiter.draft_id is not None

        async def settle(transaction: Transaction) -> Settled:
            nonlocal locks
            # The wait for the database, which may be long, is not part of the call.
            ended = transaction.now - max(0.0, transaction.began - at)
            settled, locks = await self._end(transaction, turn, judgement, delays, ended, renewing=renewing)
            if recording:
                await transaction.write_outcome(turn, judgement, renewing=renewing)
            return settled

        names = subjects(turn.user.key, turn.mailbox.key)
        try:
            try:
                settled, now = await self._transact(settle, names)
            except RecordRefused as error:
                _log.error("%s; what became of draft %s is not on record", error, turn.waiter.draft_id)
                recording = False  # permit and locks have to come back all the same: others wait for them
                settled, now = await self._transact(settle, names)
        except LedgerError as error:
            # The call is over and its outcome is true all the same; the lease keeps permit and locks until it
            # lapses.
            _log.error("%s; what became of draft %s is not on record", error, turn.waiter.draft_id)
            return self.state.end(turn.permit, judgement, delays, at, turn.user, turn.mailbox, renewing=renewing)
        finally:
            self._live.discard(name)
        shift = _loop_time() - now
        assert locks is not None
        for gate, lock in zip((turn.user, turn.mailbox), locks, strict=True):
            gate.open_at, gate.backoff_until, gate.consecutive_refusals = (
                lock.open_at + shift,
                lock.backoff_until + shift,
                lock.consecutive_refusals,
            )
        self._tidy_soon()
        return settled

    async def _end(
        self,
        transaction: Transaction,
        turn: Turn,
        judgement: Judgement,
        delays: Delays,
        now: float,
        *,
        renewing: bool,
    ) -> tuple[Settled, tuple[LockRow, LockRow]]:
        name = turn.permit.turn
        user, mailbox = transaction.lock_keys(turn.user.key, turn.mailbox.key)
        found = await transaction.locks([user, mailbox])
        locks = found[user], found[mailbox]
        permits = await transaction.load_permits()
        row = next((one for one in permits if one.turn == name), None)
        if row is not None and row.ended is not None:
            return Settled(row.ended, None, None), locks  # the commit before succeeded, and its answer was lost
        permit = turn.permit._replace(at=now if row is None else row.taken)
        settled = transaction.state.settle(permit, judgement, delays, now, *locks, renewing=renewing)
        table = schema.permit
        if row is not None and settled.ended is None:
            permits.remove(row)
            await transaction.run(sa.delete(table).where(table.c.turn == name))
        elif row is not None:
            row.ended = settled.ended
            await transaction.run(sa.update(table).where(table.c.turn == name).values(ended=settled.ended))
        for lock in locks:
            if lock.turn == name:
                lock.turn = None
        await transaction.write_locks(locks)
        return settled, locks

    def give_back(self, permit: Permit) -> asyncio.Future[None]:
        return self._spawn(self._give_back(permit))

    async def _give_back(self, permit: Permit) -> None:
        self._orphans.add(permit.turn)
        self._live.discard(permit.turn)

        async def look(transaction: Transaction) -> None:
            await transaction.load_permits()  # so that `state` has the freed permit

        try:
            await self._transact(look, ())
        except LedgerError:  # it is freed by a later transaction, or lapses
            self.state.refund(permit)

    # -- suspensions, and the limit ------------------------------------------------------------------

    def suspend_user(
        self, user: str, error: FeishuMailError, fingerprint: str | None, now: float
    ) -> asyncio.Future[None]:
        return self._spawn(self._suspend_user(user, error, fingerprint, now))

    async def _suspend_user(self, user: str, error: FeishuMailError, fingerprint: str | None, at: float) -> None:
        key = SuspensionKey(f"user:{user}", EVERYWHERE)

        async def suspend(transaction: Transaction) -> None:
            suspensions = transaction.state.suspensions
            suspensions.suspend(key, error, ResumeWhen.TOKEN, transaction.now, fingerprint)

        try:
            await self._transact(suspend, (key.subject,))
        except LedgerError as failed:
            _log.error("%s; other processes do not hear that user %s is suspended", failed, user)
            self.state.suspensions.suspend(key, error, ResumeWhen.TOKEN, at, fingerprint)

    def suspended(self, user: str, mailbox: str, now: float) -> SuspensionKey | None:
        return self.state.suspensions.find(self.state.keys_of(user, mailbox), now)

    def resume(self, subject: str, when: ResumeWhen | None = None) -> None:
        self.state.suspensions.resume(subject, when)
        self._resumed[subject] = when if self._resumed.get(subject, when) is when else None
        self._spawn(self._write_soon())

    def set_limit(self, limit: RateLimit) -> None:
        self.state.budget.limit = limit
        self._new_limit = limit
        self._spawn(self._write_soon())

    async def _write_soon(self) -> None:
        try:
            await self._transact(_nothing, ())
        except LedgerError as error:
            _log.error("%s; other processes do not hear of the change", error)

    # -- drafts ----------------------------------------------------------------------------------------

    def records(self, keys: Sequence[DraftKey]) -> asyncio.Future[_Found]:
        """Look up records; requests that come before the transaction begins share it, and get the whole result."""
        gathering = self._looking_up
        if gathering is None or gathering[1].done() or len(gathering[0]) >= _RECALLED:
            wanted: list[DraftKey] = []
            gathering = self._looking_up = wanted, self._spawn(self._look_up(wanted))
        gathering[0].extend(keys)
        return gathering[1]

    async def _look_up(self, wanted: list[DraftKey]) -> _Found:
        known: dict[DraftKey, Record | RecordRefused] = {}

        async def look_up(keys: Sequence[DraftKey]) -> None:
            async def read(transaction: Transaction) -> Mapping[DraftKey, Record]:
                return await transaction.drafts(keys)

            records, _ = await self._transact(read, _subjects_of(keys))
            known.update(records)

        if self._noting is not None and not self._noting.done():  # outcomes from before have to be on record first
            await asyncio.wait([self._noting])
        async with self._one_at_a_time:
            if self._looking_up is not None and self._looking_up[0] is wanted:
                self._looking_up = None
        for key, error in await self._apart(wanted, look_up):
            known[key] = _refused(key.draft_id, error)
        self._tidy_soon()
        return known

    def note(self, key: DraftKey, status: OutcomeStatus, error: FeishuMailError) -> None:
        if self._noting is None or self._noting.done():
            self._noting = self._spawn(self._write_notes())
        self._notes[key] = status, error

    async def _write_notes(self) -> None:
        await asyncio.sleep(0)  # so that drafts that end together are written together
        while self._notes:
            some = dict(itertools.islice(self._notes.items(), _NOTED))
            try:
                for (key, _), refused in await self._apart(list(some.items()), self._write_noted):
                    _log.error("%s; what became of draft %s is not on record", refused, key.draft_id)
            except LedgerError as failed:
                _log.error("%s; %d outcomes are not on record", failed, len(self._notes))
                self._notes.clear()
            for key, note in some.items():
                if self._notes.get(key) is note:
                    del self._notes[key]
        self._tidy_soon()

    async def _write_noted(self, notes: Sequence[tuple[DraftKey, tuple[OutcomeStatus, FeishuMailError]]]) -> None:
        async def write(transaction: Transaction) -> None:
            await transaction.write_outcomes(dict(notes))

        await self._transact(write, ())

    # -- pruning ---------------------------------------------------------------------------------------

    def _tidy_soon(self) -> None:
        """Drop rows that are not needed any more, if it is time for that; it runs beside the calls."""
        now = _loop_time()
        if self._tidy_at is None:
            self._tidy_at = now + _TIDY_FIRST
        if now >= self._tidy_at:
            self._tidy_at = math.inf
            self._spawn(self._tidy())

    async def _tidy(self) -> None:
        async def tidy(transaction: Transaction) -> bool:
            drafts = self._database.prunable
            return await prune(transaction.connection, transaction.app_id, transaction.now, drafts=drafts)

        more = False
        try:
            more, _ = await self._transact(tidy, ())
        except LedgerError as error:
            _log.debug("%s; nothing is dropped from it", error)
        self._tidy_at = _loop_time() + (_TIDY_NEXT if more else _TIDY_EVERY)

    # -- transactions ----------------------------------------------------------------------------------

    async def _apart(
        self, items: Sequence[T], work: Callable[[Sequence[T]], Awaitable[None]]
    ) -> list[tuple[T, RecordRefused]]:
        """Do work for many items in one transaction; if the database refuses a value, in halves, down to one item.

        Args:
            items: the items.
            work: does the work for some of them, in their order.

        Returns:
            the items whose values are refused, with the errors; for all others the work is done.

        Raises:
            LedgerError: the work cannot be done for any of them.
        """
        try:
            await work(items)
        except RecordRefused as error:
            if len(items) == 1:
                await self._check()
                return [(items[0], error)]
        else:
            return []
        half = len(items) // 2
        return [*await self._apart(items[:half], work), *await self._apart(items[half:], work)]

    async def _check(self) -> None:
        """Raise LedgerError unless the database accepts a transaction that concerns no draft."""
        try:
            await self._transact(_nothing, ())
        except RecordRefused as error:
            raise LedgerError(str(error)) from error.__cause__

    async def _transact(
        self,
        work: Callable[[Transaction], Awaitable[T]],
        subjects: Iterable[str],
        failed: Callable[[], None] | None = None,
    ) -> tuple[T, float]:
        """Run work in a transaction of this app, and adopt the state that it has found.

        Orphaned turns, resumed subjects and a new limit, which have only been noted in this process so far, are
        written first.

        Args:
            work: the work.
            subjects: the subjects whose suspensions it needs.
            failed: see `Database.transact`.

        Returns:
            the work's result, and the ledger's time.
        """
        async with self._one_at_a_time:
            orphans, resumed, limit = set(self._orphans), dict(self._resumed), self._new_limit
            wanted = {*subjects, *resumed}

            async def transaction(connection: AsyncConnection) -> tuple[T, Transaction]:
                begun = await self._begin(connection, wanted, limit)
                for turn in orphans | self._orphans:
                    await begun.free(turn)
                for subject, when in resumed.items():
                    begun.state.suspensions.resume(subject, when)
                await begun.lapse()
                done = await work(begun)
                await begun.write_back()
                return done, begun

            done, begun = await self._database.transact(transaction, failed)
            self._orphans -= orphans
            for subject, when in resumed.items():
                if self._resumed.get(subject, ...) is when:
                    del self._resumed[subject]
            if self._new_limit is limit:
                self._new_limit = None
            self._adopt(begun, wanted)
            return done, begun.now

    async def _begin(
        self, connection: AsyncConnection, subjects: set[str], limit: RateLimit | None
    ) -> Transaction:
        database, endpoint, budget = self._database, self.state.endpoint, schema.budget
        app_id = await database.hold(connection, self._base_url, self._app)
        kept = limit or self.state.budget.limit
        row = await budget_row(connection, app_id, endpoint.name, kept)
        mine = budget.c.app_id == app_id, budget.c.endpoint == endpoint.name
        if limit is not None and limit != limit_of(row):
            changed = sa.update(budget).where(*mine).values(dataclasses.asdict(limit)).returning(budget)
            row = (await connection.execute(changed)).one()
        began = _loop_time()
        now = await database.now(connection)
        if await database.jumps.correct(connection, app_id, now):
            row = (await connection.execute(sa.select(budget).where(*mine))).one()
        state = state_of(endpoint, row, await suspensions_of(connection, app_id, subjects))
        return Transaction(database, connection, app_id, now=now, began=began, state=state)

    def _adopt(self, begun: Transaction, subjects: set[str]) -> None:
        """Make the state that a transaction has found this process's own, in the loop's time.

        The ends of its own calls in flight are reported to this process; those of other processes' calls are not.
        So the latter count as ending soon, and the dispatcher looks at the ledger again then (`look_again`).

        Args:
            begun: the transaction.
            subjects: the subjects whose suspensions it has read; what is known of others stays.
        """
        shift = _loop_time() - begun.now
        known, found = self.state, begun.state
        found.last = max(found.last + shift, known.last)
        found.smooth_until += shift
        if found.unreachable_since is not None:
            found.unreachable_since += shift
        pause = found.pause
        if pause is not None:
            pause.until += shift
            lapses = math.inf
            if pause.probe is not None and pause.probe not in self._live:
                lapses = look_again(found.last, pause.probe_lapses + shift, begun.now + shift)
            pause.probe_lapses = lapses
        entries = found.suspensions.entries
        for entry in entries.values():
            entry.ends += shift
        now = begun.now + shift
        before = known.suspensions.entries
        others = {
            key: entry
            for key, entry in before.items()
            if key.subject not in subjects and (entry.ends > now or key.subject == APP)
        }
        found.suspensions.entries = others | entries
        found.suspensions.changes = known.suspensions.changes + (found.suspensions.entries.keys() != before.keys())
        if begun.permits is not None:
            self._adopt_permits(begun.permits, found.budget, begun.now, shift)
        else:
            known.budget.limit = found.budget.limit
            found.budget = known.budget
        self.state = found

    def _adopt_permits(self, permits: list[PermitRow], budget: Budget, now: float, shift: float) -> None:
        window = budget.limit.per + budget.limit.margin
        own, ended = 0, []
        for row in permits:
            if row.ended is not None:
                ended.append(row.ended + shift)
            elif row.turn in self._live:
                own += 1
            else:
                ended.append(look_again(row.taken, row.lapses + window, now) - window + shift)
        budget.load(own, ended)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task that is not cancelled with its caller."""
        task = start_task(work, "feishu-mail-ledger", self._tasks)
        task.add_done_callback(look_at)
        return task

    async def written(self) -> None:
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def abandon(self) -> None:
        """Cancel the writes under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _nothing(_: Transaction) -> None:
    pass


def _refused(draft_id: str | None, error: RecordRefused) -> RecordRefused:
    """Return the error for a draft whose values the database refuses."""
    why = f"draft {draft_id}: not sent, because no record of it can be made: {error}"
    refused = RecordRefused(f"{why}; check its id, mailbox and user")
    refused.__cause__ = error.__cause__
    return refused


def _subjects_of(wanted: Iterable[Waiter | DraftKey]) -> set[str]:
    """Return the subjects of these calls or drafts; none of them may be suspended."""
    return {name for one in wanted for name in subjects(one.user, one.mailbox)}


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
