"""The book of one app on a database.

What a turn needs is taken in one transaction, and its call's end is written in another:

    take     permit, user's and mailbox's lock, the intent to send --> the call
    settle   the permit comes back, the locks open, what waits or is suspended, the draft's outcome

Each names its turn, so that doing it twice does it once: a commit whose answer was lost is safe. A process that
dies leaves a lease behind, which lapses when its call cannot arrive any more.
"""

import asyncio
import dataclasses
import itertools
import logging
import math
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from feishu_mail_async._api.protocol import CallEnd, Judgement
from feishu_mail_async._clock import wall_clock
from feishu_mail_async._scheduling.budget import Budget
from feishu_mail_async._scheduling.lanes import Turn, Waiter
from feishu_mail_async._scheduling.record import DraftKey, DraftState, Record
from feishu_mail_async._scheduling.state import (
    APP,
    AppState,
    Delays,
    Pause,
    Permit,
    Settled,
    SuspensionEntry,
    subjects,
)
from feishu_mail_async._scheduling.store import SLACK, Offer, Shut
from feishu_mail_async._tasks import look_at, start_task
from feishu_mail_async.codes import ResumeWhen, Verdict
from feishu_mail_async.errors import ApiError, FeishuMailError, LedgerError, RecordRefused, root_cause
from feishu_mail_async.model import OutcomeStatus, Priority, RateLimit

from . import reasons, schema
from .database import Database
from .lookup import rows_of
from .pruning import prune
from .texts import stored

__all__ = ["PermitRow", "SqlStore", "app_state_of", "limit_of", "permits_of"]

T = TypeVar("T")

_Notes = dict[DraftKey, tuple[OutcomeStatus, FeishuMailError]]
_Found = Mapping[DraftKey, Record | RecordRefused]

_log: Final = logging.getLogger("feishu_mail_async.ledger")

_LEAST_LOOK: Final = 0.05
_MOST_LOOK: Final = 1.0
_RECALLED: Final = 1000
"""Drafts that are looked up in one transaction, or a few more."""
_NOTED: Final = 200
"""Outcomes that are written in one transaction."""
_TIDY_FIRST: Final = 10.0
"""Seconds until a process looks for the first time what the ledger may forget: most live shorter."""
_TIDY_NEXT: Final = 1.0
"""Seconds until it looks again where it has found much."""
_TIDY_EVERY: Final = 60.0
"""Seconds until it looks again where it has not."""
_DRAFT_KEY: Final = ("app_id", "user_key", "mailbox_key", "draft_id")
_SETTLED: Final = tuple(state for state in DraftState if state.settled)
_LARGEST_CODE: Final = 2**31 - 1
_LIMIT: Final = tuple(one.name for one in dataclasses.fields(RateLimit))


def limit_of(row: sa.Row[Any]) -> RateLimit:
    """The limit in an app's row."""
    return RateLimit(**{name: getattr(row, name) for name in _LIMIT})


_STORED: Final = {ResumeWhen.HOUR: "HOUR", ResumeWhen.TOKEN: "TOKEN", ResumeWhen.RESUMED: "REOPEN"}
"""What ends a suspension, as schema 1 has it."""
_RESUMED_BY: Final = {text: when for when, text in _STORED.items()}


async def app_state_of(
    connection: AsyncConnection, row: sa.Row[Any], names: Iterable[str] | None = None
) -> AppState:
    """Read an app's state from its row, with the suspensions of these subjects, or all; permits are not in it."""
    app_state = AppState(limit_of(row))
    app_state.last = _or_never(row.last)
    app_state.pauses = row.pauses
    if row.pause_until is not None:
        lapses = math.inf if row.probe_lapses is None else row.probe_lapses
        app_state.pause = Pause(row.pause_until, row.pause_reason, row.probe, lapses)
    app_state.smooth_until = _or_never(row.smooth_until)
    app_state.unreachable_since, app_state.unreachable_times = row.unreachable_since, row.unreachable_times
    suspension = schema.suspension.c
    query = sa.select(schema.suspension).where(suspension.app_id == row.id)
    asked = {} if names is None else {stored(name): name for name in names}
    if names is not None:
        query = query.where(suspension.subject.in_(list(asked)))
    for found in await connection.execute(query):
        ends = math.inf if found.ends is None else found.ends
        subject = asked.get(found.subject, found.subject)
        app_state.suspended[subject] = SuspensionEntry(
            reasons.load(found.reason), _RESUMED_BY[found.until], ends, found.fingerprint
        )
    return app_state


@dataclass(slots=True)
class _LockRow:
    """A user's or a mailbox's lock, as its row says; `turn` holds it until `lapses`."""

    kind: str
    key: str
    turn: str | None = None
    taken: float = -math.inf
    lapses: float = -math.inf
    open_at: float = -math.inf
    backoff_until: float = -math.inf
    consecutive_refusals: int = 0

    def free_at(self, now: float) -> float:
        """When to look again; `now` or earlier if it is free."""
        if self.turn is not None and self.lapses > now:
            return max(_look_again(self.taken, self.lapses, now), self.open_at)
        return self.open_at

    def at_rest(self, now: float) -> bool:
        """Whether there is nothing to remember of it, so that it needs no row."""
        return self.turn is None and not self.consecutive_refusals and max(self.open_at, self.backoff_until) <= now


@dataclass(slots=True)
class PermitRow:
    """A call that the window holds, as its row says: until `ended`, or else `lapses`, and a window more."""

    turn: str
    taken: float
    lapses: float
    ended: float | None = None

    @property
    def end(self) -> float:
        """When the call ended, or will be taken to have ended."""
        return self.lapses if self.ended is None else self.ended


async def permits_of(connection: AsyncConnection, app_id: int) -> list[PermitRow]:
    """The calls of an app that are on record; the window may hold some of them no more."""
    permit = schema.permit.c
    columns = permit.turn, permit.taken, permit.lapses, permit.ended
    rows = await connection.execute(sa.select(*columns).where(permit.app_id == app_id))
    return [PermitRow(row.turn, row.taken, row.lapses, row.ended) for row in rows]


class _Transaction:
    """One transaction on an app, whose row it holds.

    Attributes:
        connection: the database's.
        app_id: the app's row.
        now: the ledger's time.
        app_state: how the app stands; what is changed in it is written back.
        permits: the calls that the window still holds, once they are loaded.
        began: the loop's time when the ledger's was read, or a little before.
    """

    def __init__(
        self, connection: AsyncConnection, row: sa.Row[Any], now: float, began: float, app_state: AppState
    ) -> None:
        self.connection = connection
        self.app_id: int = row.id
        self.now = now
        self.began = began
        self.app_state = app_state
        self.permits: list[PermitRow] | None = None
        self._before = _columns(app_state)
        self._suspended_before = dict(app_state.suspended)

    async def run(self, statement: sa.Executable, values: Any = None) -> sa.CursorResult[Any]:
        result: sa.CursorResult[Any] = await self.connection.execute(statement, values)
        return result

    async def load_permits(self) -> list[PermitRow]:
        """The calls that the window still holds; those that it does not are dropped."""
        limit = self.app_state.budget.limit
        found = await permits_of(self.connection, self.app_id)
        begins = self.now - limit.per - limit.margin
        self.permits = [row for row in found if row.end > begins]
        if len(self.permits) < len(found):
            gone = [row.turn for row in found if row.end <= begins]
            await self.run(sa.delete(schema.permit).where(schema.permit.c.turn.in_(gone)))
        self.app_state.budget.load(0, [row.end for row in self.permits])
        return self.permits

    async def locks(self, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], _LockRow]:
        """The locks of these kinds and keys."""
        wanted = {pair: _LockRow(*pair) for pair in pairs}
        asked = {(kind, stored(key)): (kind, key) for kind, key in wanted}
        for row in await rows_of(self.connection, schema.lock, self.app_id, asked):
            pair = asked[row.kind, row.key]
            wanted[pair] = _LockRow(
                *pair,
                row.turn,
                row.taken,
                row.lapses,
                _or_never(row.open_at),
                _or_never(row.backoff_until),
                row.consecutive_refusals,
            )
        return wanted

    async def drafts(self, keys: Sequence[DraftKey]) -> dict[DraftKey, Record]:
        """What is known of these drafts."""
        asked = {tuple(map(stored, key)): key for key in keys}
        return {
            asked[row.user_key, row.mailbox_key, row.draft_id]: Record(
                DraftState(row.state),
                row.message_id,
                row.thread_id,
                row.log_id,
                row.calls,
                row.in_doubt,
                row.error,
            )
            for row in await rows_of(self.connection, schema.draft, self.app_id, asked)
        }

    async def free(self, turn: str) -> None:
        """No call was made in this turn, as far as is known: it holds nothing any more."""
        await self.run(sa.delete(schema.permit).where(schema.permit.c.turn == turn))
        await self.run(sa.update(schema.lock).where(schema.lock.c.turn == turn).values(turn=None))
        draft = schema.draft
        await self.run(
            sa.update(draft)
            .where(draft.c.turn == turn, draft.c.state == DraftState.IN_FLIGHT)
            .values(state=DraftState.WAITING, turn=None, calls=draft.c.calls - 1)
        )
        self.app_state.give_back(turn)

    async def write_back(self) -> None:
        """Write what has changed in the standing."""
        after = _columns(self.app_state)
        changed = {name: value for name, value in after.items() if value != self._before[name]}
        if changed:
            await self.run(sa.update(schema.app).where(schema.app.c.id == self.app_id).values(changed))
        suspension = schema.suspension
        gone = [subject for subject in self._suspended_before if subject not in self.app_state.suspended]
        new = {
            subject: one
            for subject, one in self.app_state.suspended.items()
            if self._suspended_before.get(subject) is not one
        }
        if gone or new:
            await self.run(
                sa.delete(suspension).where(
                    suspension.c.app_id == self.app_id, suspension.c.subject.in_([*gone, *new])
                )
            )
        if new:
            rows = [
                {
                    "app_id": self.app_id,
                    "subject": subject,
                    "reason": reasons.dump(one.reason),
                    "until": _STORED[one.until],
                    "ends": None if one.ends == math.inf else one.ends,
                    "fingerprint": one.fingerprint,
                }
                for subject, one in new.items()
            ]
            await self.run(sa.insert(suspension), rows)


class SqlStore:
    """The book of one app on a database; see `SchedulerStore` for what its methods do.

    Args:
        ledger: the database.
        base_url: the API's host.
        app: the app's name.
        limit: the limit to keep; if another one is in force, this one takes its place, for all processes.
        holder: names this process, for people who look into the tables.
    """

    shared = True
    most = 20

    def __init__(self, database: Database, base_url: str, app: str, limit: RateLimit, holder: str) -> None:
        self.app_state = AppState(limit)
        self._database = database
        self._base_url = base_url
        self._app = app
        self._holder = holder
        self._new_limit: RateLimit | None = limit
        self._one_at_a_time = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._live: set[str] = set()
        # Turns of which it is not known whether they were taken: whatever they hold is freed first.
        self._orphans: set[str] = set()
        self._resumed: set[str] = set()
        self._notes: _Notes = OrderedDict()  # the first are taken out again and again
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

        async def take(transaction: _Transaction) -> Offer:
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

    async def _choose(self, transaction: _Transaction, waiters: Sequence[Waiter], turn: str) -> Offer:
        app_state, now = transaction.app_state, transaction.now
        await transaction.load_permits()
        keys = [
            DraftKey(waiter.user, waiter.mailbox, waiter.draft_id)
            for waiter in waiters
            if waiter.draft_id is not None
        ]
        records = await transaction.drafts(keys)
        locks = await transaction.locks(
            pair for waiter in waiters for pair in (("user", waiter.user), ("mailbox", waiter.mailbox))
        )
        taken = Offer()
        may_go = app_state.not_before(now) <= now
        reserved = app_state.budget.free(now) <= app_state.budget.limit.reserve
        for waiter in waiters:
            record = (
                None
                if waiter.draft_id is None
                else records.get(DraftKey(waiter.user, waiter.mailbox, waiter.draft_id))
            )
            if record is not None and record.state.settled:
                taken.recorded.append((waiter, record))
                continue
            if app_state.suspended_of(subjects(waiter.user, waiter.mailbox), now) is not None:
                continue
            pair = locks["user", waiter.user], locks["mailbox", waiter.mailbox]
            shut = [
                Shut(lock.kind, lock.key, until, lock.backoff_until)
                for lock in pair
                if (until := lock.free_at(now)) > now
            ]
            taken.shut += shut
            urgent = waiter.priority is Priority.INTERACTIVE
            if not shut and may_go and taken.granted is None and (urgent or not reserved):
                taken.granted = waiter, await self._grant(transaction, waiter, turn, pair, record)
        return taken

    async def _grant(
        self,
        transaction: _Transaction,
        waiter: Waiter,
        turn: str,
        locks: tuple[_LockRow, _LockRow],
        record: Record | None,
    ) -> Permit:
        now = transaction.now
        lapses = now + waiter.timeout + transaction.app_state.budget.limit.grace + SLACK
        permit = transaction.app_state.dispatch(turn, now, lapses)
        row = {"turn": turn, "app_id": transaction.app_id, "holder": self._holder, "taken": now, "lapses": lapses}
        await transaction.run(sa.insert(schema.permit), row)
        if transaction.permits is not None:
            transaction.permits.append(PermitRow(turn, now, lapses))
        self._live.add(turn)
        for lock in locks:
            lock.turn, lock.taken, lock.lapses = turn, now, lapses
        await self._write_locks(transaction, locks)
        in_doubt = False
        if waiter.draft_id is not None:
            in_doubt = record is not None and record.maybe_sent
            await self._write_draft(
                transaction,
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
        locks: tuple[_LockRow, _LockRow] | None = None
        recording = turn.waiter.draft_id is not None

        async def settle(transaction: _Transaction) -> Settled:
            nonlocal locks
            # The wait for the database, which may be long, is no part of the call.
            ended = transaction.now - max(0.0, transaction.began - at)
            settled, locks = await self._end(transaction, turn, judgement, delays, ended, renewing=renewing)
            if recording:
                await self._write_outcome(transaction, turn, judgement, renewing=renewing)
            return settled

        names = subjects(turn.user.key, turn.mailbox.key)
        try:
            try:
                settled, now = await self._transact(settle, names)
            except RecordRefused as error:
                _log.error("%s; what became of draft %s is not on record", error, turn.waiter.draft_id)
                recording = False  # what its call held comes back all the same: others wait for it
                settled, now = await self._transact(settle, names)
        except LedgerError as error:
            # The call is over and its outcome is true all the same; the lease keeps what it held until it lapses.
            _log.error("%s; what became of draft %s is not on record", error, turn.waiter.draft_id)
            return self.app_state.end(
                turn.permit, judgement, delays, at, turn.user, turn.mailbox, renewing=renewing
            )
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
        transaction: _Transaction,
        turn: Turn,
        judgement: Judgement,
        delays: Delays,
        now: float,
        *,
        renewing: bool,
    ) -> tuple[Settled, tuple[_LockRow, _LockRow]]:
        name = turn.permit.turn
        found = await transaction.locks([("user", turn.user.key), ("mailbox", turn.mailbox.key)])
        locks = found["user", turn.user.key], found["mailbox", turn.mailbox.key]
        permits = await transaction.load_permits()
        row = next((one for one in permits if one.turn == name), None)
        if row is not None and row.ended is not None:
            return Settled(row.ended, None, None), locks  # done before, by a commit whose answer was lost
        permit = turn.permit._replace(at=now if row is None else row.taken)
        settled = transaction.app_state.settle(permit, judgement, delays, now, *locks, renewing=renewing)
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
        await self._write_locks(transaction, locks)
        return settled, locks

    async def _write_outcome(
        self, transaction: _Transaction, turn: Turn, judgement: Judgement, *, renewing: bool
    ) -> None:
        """What a call has made of its draft."""
        draft = schema.draft
        in_doubt = not judgement.sent and (turn.permit.in_doubt or not judgement.conclusive)
        values: dict[str, Any] = {"turn": None, "in_doubt": in_doubt, "log_id": judgement.log_id}
        if judgement.sent:
            state = DraftState.SENT if judgement.verdict is Verdict.SENT else DraftState.ALREADY_SENT
            values |= {name: judgement.text(name) for name in ("message_id", "thread_id")}
            values |= {"code": None, "error": None}
        elif judgement.verdict is Verdict.FATAL and not renewing:
            state = DraftState.UNKNOWN if in_doubt else DraftState.FAILED
        else:
            state = DraftState.WAITING
        if judgement.error is not None:
            values |= _told(judgement.error)
        if judgement.end is CallEnd.NEVER_LEFT:
            values["calls"] = draft.c.calls - 1
        mine = draft.c.turn == turn.permit.turn
        await transaction.run(sa.update(draft).where(mine).values(state=state, changed=wall_clock(), **values))

    def give_back(self, permit: Permit) -> asyncio.Future[None]:
        return self._spawn(self._give_back(permit))

    async def _give_back(self, permit: Permit) -> None:
        self._orphans.add(permit.turn)
        self._live.discard(permit.turn)

        async def look(transaction: _Transaction) -> None:
            await transaction.load_permits()  # what is freed is one of them

        try:
            await self._transact(look, ())
        except LedgerError:  # it is freed later, or lapses
            self.app_state.refund(permit)

    # -- suspensions, and the limit ------------------------------------------------------------------

    def suspend_user(
        self, user: str, error: FeishuMailError, fingerprint: str | None, now: float
    ) -> asyncio.Future[None]:
        return self._spawn(self._suspend_user(user, error, fingerprint, now))

    async def _suspend_user(self, user: str, error: FeishuMailError, fingerprint: str | None, at: float) -> None:
        subject = f"user:{user}"

        async def close(transaction: _Transaction) -> None:
            transaction.app_state.suspend(subject, error, ResumeWhen.TOKEN, transaction.now, fingerprint)

        try:
            await self._transact(close, (subject,))
        except LedgerError as failed:
            _log.error("%s; other processes do not hear that user %s is suspended", failed, user)
            self.app_state.suspend(subject, error, ResumeWhen.TOKEN, at, fingerprint)

    def suspended(self, names: Sequence[str], now: float) -> str | None:
        return self.app_state.suspended_of(names, now)

    def resume(self, subject: str) -> None:
        self.app_state.resume(subject)
        self._resumed.add(subject)
        self._spawn(self._write_soon())

    def set_limit(self, limit: RateLimit) -> None:
        self.app_state.budget.limit = limit
        self._new_limit = limit
        self._spawn(self._write_soon())

    async def _write_soon(self) -> None:
        try:
            await self._transact(_nothing, ())
        except LedgerError as error:
            _log.error("%s; other processes do not hear of the change", error)

    # -- drafts ----------------------------------------------------------------------------------------

    def records(self, keys: Sequence[DraftKey]) -> asyncio.Future[_Found]:
        """All that is asked before the ledger has been looked at is looked up in one go."""
        gathering = self._looking_up
        if gathering is None or gathering[1].done() or len(gathering[0]) >= _RECALLED:
            wanted: list[DraftKey] = []
            gathering = self._looking_up = wanted, self._spawn(self._look_up(wanted))
        gathering[0].extend(keys)
        return gathering[1]

    async def _look_up(self, wanted: list[DraftKey]) -> _Found:
        known: dict[DraftKey, Record | RecordRefused] = {}

        async def look_up(keys: Sequence[DraftKey]) -> None:
            async def read(transaction: _Transaction) -> Mapping[DraftKey, Record]:
                return await transaction.drafts(keys)

            records, _ = await self._transact(read, _subjects_of(keys))
            known.update(records)

        if self._noting is not None and not self._noting.done():  # what has ended before is on record before
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
        await asyncio.sleep(0)  # those that end together are written together
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
        async def write(transaction: _Transaction) -> None:
            await self._write_outcomes(transaction, dict(notes))

        await self._transact(write, ())

    async def _write_outcomes(self, transaction: _Transaction, notes: _Notes) -> None:
        """Drafts that were not sent; what is on record as sent, or is being sent by another process, stays so."""
        rows = [
            {
                "app_id": transaction.app_id,
                "user_key": key.user,
                "mailbox_key": key.mailbox,
                "draft_id": key.draft_id,
                "state": status.value,
                "in_doubt": status is OutcomeStatus.UNKNOWN,
                "calls": error.attempts,
                "changed": wall_clock(),
                **_told(error),
            }
            for key, (status, error) in notes.items()
        ]
        draft = schema.draft.c
        statement = self._database.insert(schema.draft)
        new = {name: statement.excluded[name] for name in ("state", "changed", "error", "code")}
        new["in_doubt"] = sa.or_(draft.in_doubt, statement.excluded.in_doubt)
        # Not as a list: a statement for many rows cannot hold one.
        unsettled = sa.and_(*(draft.state != state.value for state in (*_SETTLED, DraftState.IN_FLIGHT)))
        await transaction.run(
            statement.on_conflict_do_update(index_elements=list(_DRAFT_KEY), set_=new, where=unsettled), rows
        )

    # -- what may go -----------------------------------------------------------------------------------

    def _tidy_soon(self) -> None:
        """Have what nobody needs any more dropped now and then, beside the calls that are being made."""
        now = _loop_time()
        if self._tidy_at is None:
            self._tidy_at = now + _TIDY_FIRST
        if now >= self._tidy_at:
            self._tidy_at = math.inf
            self._spawn(self._tidy())

    async def _tidy(self) -> None:
        async def tidy(transaction: _Transaction) -> bool:
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
        """Do something for many in one transaction; if the database refuses a value, in halves, down to one.

        Args:
            items: what it is done for.
            work: does it for some of them, in their order.

        Returns:
            those whose values are refused, and how; for all others it is done.

        Raises:
            LedgerError: it cannot be done for any of them.
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
        """Raise LedgerError unless the database takes a transaction that has nothing to do with any draft."""
        try:
            await self._transact(_nothing, ())
        except RecordRefused as error:
            raise LedgerError(str(error)) from error.__cause__

    async def _transact(
        self,
        work: Callable[[_Transaction], Awaitable[T]],
        names: Iterable[str],
        failed: Callable[[], None] | None = None,
    ) -> tuple[T, float]:
        """Do something in a transaction of this app; what is known of the app is then what it has found.

        Args:
            work: what to do.
            names: the scopes whose suspensions it needs.
            failed: see `Database.transact`.

        Returns:
            what the work returned, and the ledger's time.
        """
        async with self._one_at_a_time:
            orphans, resumed, limit = set(self._orphans), set(self._resumed), self._new_limit
            wanted = {*names, *resumed}

            async def transaction(connection: AsyncConnection) -> tuple[T, _Transaction]:
                begun = await self._begin(connection, wanted, limit)
                for turn in orphans | self._orphans:
                    await begun.free(turn)
                if resumed:
                    await begun.run(
                        sa.delete(schema.suspension).where(
                            schema.suspension.c.app_id == begun.app_id, schema.suspension.c.subject.in_(resumed)
                        )
                    )
                    for subject in resumed:
                        begun.app_state.resume(subject)
                begun.app_state.lapse(wanted, begun.now)
                done = await work(begun)
                await begun.write_back()
                return done, begun

            done, begun = await self._database.transact(transaction, failed)
            self._orphans -= orphans
            self._resumed -= resumed
            if self._new_limit is limit:
                self._new_limit = None
            self._adopt(begun, wanted)
            return done, begun.now

    async def _begin(self, connection: AsyncConnection, names: set[str], limit: RateLimit | None) -> _Transaction:
        app = schema.app
        row = await self._database.hold(
            connection, self._base_url, self._app, limit or self.app_state.budget.limit
        )
        if limit is not None and limit != limit_of(row):
            changed = sa.update(app).where(app.c.id == row.id).values(dataclasses.asdict(limit)).returning(app)
            row = (await connection.execute(changed)).one()
        began = _loop_time()
        now = await self._database.now(connection)
        if await self._database.jumps.correct(connection, row.id, now):
            row = (await connection.execute(sa.select(app).where(app.c.id == row.id))).one()
        return _Transaction(connection, row, now, began, await app_state_of(connection, row, names))

    def _adopt(self, begun: _Transaction, names: set[str]) -> None:
        """What this process knows is what the transaction has found, in the time of the loop's clock.

        Calls of other processes in flight are taken to end soon, so that it is looked again then; of one's own,
        their end is heard.
        """
        shift = _loop_time() - begun.now
        known, found = self.app_state, begun.app_state
        found.last = max(found.last + shift, known.last)
        found.smooth_until += shift
        if found.unreachable_since is not None:
            found.unreachable_since += shift
        pause = found.pause
        if pause is not None:
            pause.until += shift
            lapses = math.inf
            if pause.probe is not None and pause.probe not in self._live:
                lapses = _look_again(found.last, pause.probe_lapses + shift, begun.now + shift)
            pause.probe_lapses = lapses
        for suspension in found.suspended.values():
            suspension.ends += shift
        now = begun.now + shift
        others = {
            subject: one
            for subject, one in known.suspended.items()
            if subject not in names and (one.ends > now or subject == APP)
        }
        found.suspended = others | found.suspended
        found.suspension_changes = known.suspension_changes + (found.suspended.keys() != known.suspended.keys())
        if begun.permits is not None:
            self._adopt_permits(begun.permits, found.budget, begun.now, shift)
        else:
            known.budget.limit = found.budget.limit
            found.budget = known.budget
        self.app_state = found

    def _adopt_permits(self, permits: list[PermitRow], budget: Budget, now: float, shift: float) -> None:
        window = budget.limit.per + budget.limit.margin
        own, ended = 0, []
        for row in permits:
            if row.ended is not None:
                ended.append(row.ended + shift)
            elif row.turn in self._live:
                own += 1
            else:
                ended.append(_look_again(row.taken, row.lapses + window, now) - window + shift)
        budget.load(own, ended)

    async def _write_locks(self, transaction: _Transaction, locks: Sequence[_LockRow]) -> None:
        """Keep what is to be known of these locks, and drop those of which nothing is."""
        lock = schema.lock.c
        gone = [one for one in locks if one.at_rest(transaction.now)]
        if gone:
            this = lock.kind == sa.bindparam("this_kind"), lock.key == sa.bindparam("this_key")
            await transaction.run(
                sa.delete(schema.lock).where(lock.app_id == transaction.app_id, *this),
                [{"this_kind": one.kind, "this_key": one.key} for one in gone],
            )
        if len(gone) < len(locks):
            await self._keep_locks(transaction, [one for one in locks if not one.at_rest(transaction.now)])

    async def _keep_locks(self, transaction: _Transaction, locks: Iterable[_LockRow]) -> None:
        rows = [
            {
                "app_id": transaction.app_id,
                "kind": lock.kind,
                "key": lock.key,
                "turn": lock.turn,
                "taken": lock.taken,
                "lapses": lock.lapses,
                "open_at": _or_null(lock.open_at),
                "backoff_until": _or_null(lock.backoff_until),
                "consecutive_refusals": lock.consecutive_refusals,
            }
            for lock in locks
        ]
        statement = self._database.insert(schema.lock)
        new = {
            name: statement.excluded[name]
            for name in ("turn", "taken", "lapses", "open_at", "backoff_until", "consecutive_refusals")
        }
        keys = ["app_id", "kind", "key"]
        await transaction.run(statement.on_conflict_do_update(index_elements=keys, set_=new), rows)

    async def _write_draft(
        self,
        transaction: _Transaction,
        key: DraftKey,
        values: dict[str, Any],
    ) -> None:
        values = {**values, "changed": wall_clock()}
        new = {"app_id": transaction.app_id, "user_key": key.user, "mailbox_key": key.mailbox}
        statement = self._database.insert(schema.draft).values({**new, "draft_id": key.draft_id, **values})
        await transaction.run(statement.on_conflict_do_update(index_elements=list(_DRAFT_KEY), set_=values))

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Do something that is not broken off with whoever wanted it."""
        task = start_task(work, "feishu-mail-ledger", self._tasks)
        task.add_done_callback(look_at)
        return task

    async def written(self) -> None:
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def abandon(self) -> None:
        """Break off what is still being written."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _nothing(_: _Transaction) -> None:
    pass


def _refused(draft_id: str | None, error: RecordRefused) -> RecordRefused:
    """What is told of the draft for whose sake the database refuses a transaction."""
    why = f"draft {draft_id}: not sent, because no record of it can be made: {error}"
    refused = RecordRefused(f"{why}; check its id, mailbox and user")
    refused.__cause__ = error.__cause__
    return refused


def _subjects_of(wanted: Iterable[Waiter | DraftKey]) -> set[str]:
    """All that must be open for one of these."""
    return {name for one in wanted for name in subjects(one.user, one.mailbox)}


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


def _look_again(since: float, until: float, now: float) -> float:
    """When to look whether another process's call has ended: soon if it is young, later if it takes long."""
    return min(until, now + min(_MOST_LOOK, max(_LEAST_LOOK, (now - since) / 4)))


def _told(error: FeishuMailError) -> dict[str, Any]:
    decided = root_cause(error)
    code = decided.code if isinstance(decided, ApiError) and abs(decided.code) <= _LARGEST_CODE else None
    return {"error": str(error), "code": code}


def _columns(app_state: AppState) -> dict[str, Any]:
    pause = app_state.pause
    return {
        "last": _or_null(app_state.last),
        "pauses": app_state.pauses,
        "pause_until": None if pause is None else pause.until,
        "pause_reason": None if pause is None else pause.reason,
        "probe": None if pause is None else pause.probe,
        "probe_lapses": None if pause is None or pause.probe is None else _or_null(pause.probe_lapses),
        "smooth_until": _or_null(app_state.smooth_until),
        "unreachable_since": app_state.unreachable_since,
        "unreachable_times": app_state.unreachable_times,
    }


def _or_null(moment: float) -> float | None:
    return moment if math.isfinite(moment) else None


def _or_never(moment: float | None) -> float:
    return -math.inf if moment is None else moment
