"""One transaction of an endpoint's store: its reads and writes for an app whose row it has locked."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from feishu_mail_async._api.endpoints import Endpoint
from feishu_mail_async._api.protocol import CallEnd, Judgement
from feishu_mail_async._clock import wall_clock
from feishu_mail_async._scheduling.lanes import Turn
from feishu_mail_async._scheduling.record import DraftKey, DraftState, Record
from feishu_mail_async._scheduling.state import EndpointState
from feishu_mail_async._scheduling.suspensions import APP, EVERYWHERE, SuspensionKey
from feishu_mail_async.codes import Verdict
from feishu_mail_async.errors import ApiError, FeishuMailError, root_cause
from feishu_mail_async.model import OutcomeStatus, RateLimit

from . import schema
from .database import Database
from .lookup import rows_of
from .rows import LockRow, PermitRow, budget_columns, permits_of, suspension_row
from .texts import stored

__all__ = ["Notes", "Transaction", "budget_row"]

Notes = Mapping[DraftKey, tuple[OutcomeStatus, FeishuMailError]]
"""The outcomes of drafts that ended without a call of their own."""

_DRAFT_KEY: Final = ("app_id", "user_key", "mailbox_key", "draft_id")
_SETTLED: Final = tuple(state for state in DraftState if state.settled)
_LARGEST_CODE: Final = 2**31 - 1


async def budget_row(connection: AsyncConnection, app_id: int, endpoint: str, limit: RateLimit) -> sa.Row[Any]:
    """Read the row of an endpoint, making it with that limit if there is none; the app's row must be locked."""
    table = schema.budget
    mine = sa.select(table).where(table.c.app_id == app_id, table.c.endpoint == endpoint)
    row = (await connection.execute(mine)).one_or_none()
    if row is None:
        values = {"app_id": app_id, "endpoint": endpoint, "pauses": 0, "unreachable_times": 0}
        await connection.execute(sa.insert(table).values({**values, **dataclasses.asdict(limit)}))
        row = (await connection.execute(mine)).one()
    return row


class Transaction:
    """One transaction on an app whose row it has locked.

    Args:
        database: the database.
        connection: the connection that the transaction runs on.
        app_id: the app's row.
        now: the ledger's time.
        began: the loop's time when the ledger's was read, or a little before.
        state: the endpoint's state; changes in it and in its suspensions are written by `write_back`.

    Attributes:
        database: as above; so are the others.
        permits: the calls that the window still holds, once they are loaded.
    """

    def __init__(
        self,
        database: Database,
        connection: AsyncConnection,
        app_id: int,
        *,
        now: float,
        began: float,
        state: EndpointState,
    ) -> None:
        self.database = database
        self.connection = connection
        self.app_id = app_id
        self.now = now
        self.began = began
        self.state = state
        self.permits: list[PermitRow] | None = None
        self._before = budget_columns(state)
        self._suspended_before = dict(state.suspensions.entries)

    @property
    def endpoint(self) -> Endpoint[Any]:
        """The endpoint of the store."""
        return self.state.endpoint

    async def run(self, statement: sa.Executable, values: Any = None) -> sa.CursorResult[Any]:
        """Execute a statement."""
        result: sa.CursorResult[Any] = await self.connection.execute(statement, values)
        return result

    async def load_permits(self) -> list[PermitRow]:
        """Read the calls that the window still holds, and drop the rows of those that it does not."""
        limit = self.state.budget.limit
        found = await permits_of(self.connection, self.app_id, self.endpoint.name)
        begins = self.now - limit.per - limit.margin
        self.permits = [row for row in found if row.end > begins]
        if len(self.permits) < len(found):
            gone = [row.turn for row in found if row.end <= begins]
            await self.run(sa.delete(schema.permit).where(schema.permit.c.turn.in_(gone)))
        self.state.budget.load(0, [row.end for row in self.permits])
        return self.permits

    def lock_keys(self, user: str, mailbox: str) -> tuple[tuple[str, str], tuple[str, str]]:
        """Return the kinds and keys of the locks of a call: all writing endpoints share them."""
        own = "" if self.endpoint.writes else f":{self.endpoint.name}"
        return (f"user{own}", user), (f"mailbox{own}", mailbox)

    async def locks(self, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], LockRow]:
        """Read the locks of these kinds and keys; one without a row is free."""
        wanted = {pair: LockRow(*pair) for pair in pairs}
        asked = {(kind, stored(key)): (kind, key) for kind, key in wanted}
        for row in await rows_of(self.connection, schema.lock, self.app_id, asked):
            pair = asked[row.kind, row.key]
            wanted[pair] = LockRow(
                *pair,
                row.turn,
                row.taken,
                row.lapses,
                row.open_at,
                row.backoff_until,
                row.consecutive_refusals,
            )
        return wanted

    async def drafts(self, keys: Sequence[DraftKey]) -> dict[DraftKey, Record]:
        """Read the records of these drafts; one without a record is left out."""
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

    async def write_locks(self, locks: Sequence[LockRow]) -> None:
        """Write these locks, and delete the rows of those at rest."""
        lock = schema.lock.c
        gone = [one for one in locks if one.at_rest(self.now)]
        if gone:
            this = lock.kind == sa.bindparam("this_kind"), lock.key == sa.bindparam("this_key")
            await self.run(
                sa.delete(schema.lock).where(lock.app_id == self.app_id, *this),
                [{"this_kind": one.kind, "this_key": one.key} for one in gone],
            )
        if len(gone) < len(locks):
            await self._keep_locks([one for one in locks if not one.at_rest(self.now)])

    async def _keep_locks(self, locks: Iterable[LockRow]) -> None:
        rows = [
            {
                "app_id": self.app_id,
                "kind": lock.kind,
                "key": lock.key,
                "turn": lock.turn,
                "taken": lock.taken,
                "lapses": lock.lapses,
                "open_at": lock.open_at,
                "backoff_until": lock.backoff_until,
                "consecutive_refusals": lock.consecutive_refusals,
            }
            for lock in locks
        ]
        statement = self.database.insert(schema.lock)
        new = {
            name: statement.excluded[name]
            for name in ("turn", "taken", "lapses", "open_at", "backoff_until", "consecutive_refusals")
        }
        keys = ["app_id", "kind", "key"]
        await self.run(statement.on_conflict_do_update(index_elements=keys, set_=new), rows)

    async def write_draft(self, key: DraftKey, values: dict[str, Any]) -> None:
        """Write these columns of a draft's record, making it if there is none."""
        values = {**values, "changed": wall_clock()}
        new = {"app_id": self.app_id, "user_key": key.user, "mailbox_key": key.mailbox}
        statement = self.database.insert(schema.draft).values({**new, "draft_id": key.draft_id, **values})
        await self.run(statement.on_conflict_do_update(index_elements=list(_DRAFT_KEY), set_=values))

    async def write_outcome(self, turn: Turn, judgement: Judgement, *, renewing: bool) -> None:
        """Write the outcome of a call in its draft's record.

        The record is found by the turn, so it is left alone if the turn has been freed, or if this was done
        before.
        """
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
        await self.run(sa.update(draft).where(mine).values(state=state, changed=wall_clock(), **values))

    async def write_outcomes(self, notes: Notes) -> None:
        """Write the outcomes of drafts that were not sent.

        A record that says SENT, ALREADY_SENT or IN_FLIGHT is not changed: another process has sent the draft, or
        is sending it.
        """
        rows = [
            {
                "app_id": self.app_id,
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
        statement = self.database.insert(schema.draft)
        new = {name: statement.excluded[name] for name in ("state", "changed", "error", "code")}
        new["in_doubt"] = sa.or_(draft.in_doubt, statement.excluded.in_doubt)
        # Not as a list: a statement for many rows cannot hold one.
        unsettled = sa.and_(*(draft.state != state.value for state in (*_SETTLED, DraftState.IN_FLIGHT)))
        await self.run(
            statement.on_conflict_do_update(index_elements=list(_DRAFT_KEY), set_=new, where=unsettled), rows
        )

    async def free(self, turn: str) -> None:
        """Free permit, locks and draft of a turn in which no call was made; the turn need not be on record."""
        await self.run(sa.delete(schema.permit).where(schema.permit.c.turn == turn))
        await self.run(sa.update(schema.lock).where(schema.lock.c.turn == turn).values(turn=None))
        draft = schema.draft
        await self.run(
            sa.update(draft)
            .where(draft.c.turn == turn, draft.c.state == DraftState.IN_FLIGHT)
            .values(state=DraftState.WAITING, turn=None, calls=draft.c.calls - 1)
        )
        self.state.give_back(turn)

    async def lapse(self) -> None:
        """Drop the suspensions whose time is over; the calls of an app that they reached begin with one probe."""
        suspensions, budget = self.state.suspensions, schema.budget.c
        everywhere = SuspensionKey(APP, EVERYWHERE)
        entry = suspensions.entries.get(everywhere)
        suspensions.lapse([key for key in suspensions.entries if self.state.concerns(key)], self.now)
        if entry is not None and everywhere not in suspensions.entries:
            others = budget.app_id == self.app_id, budget.endpoint != self.endpoint.name
            values = {"pauses": budget.pauses + 1, "pause_until": self.now, "pause_reason": str(entry.reason)}
            paused = sa.update(schema.budget).where(*others, budget.pause_until.is_(None))
            await self.run(paused.values(**values, probe=None))

    async def write_back(self) -> None:
        """Write the changes of the state and of the suspensions."""
        after = budget_columns(self.state)
        changed = {name: value for name, value in after.items() if value != self._before[name]}
        if changed:
            budget = schema.budget.c
            mine = budget.app_id == self.app_id, budget.endpoint == self.endpoint.name
            await self.run(sa.update(schema.budget).where(*mine).values(changed))
        entries, before = self.state.suspensions.entries, self._suspended_before
        new = {key: entry for key, entry in entries.items() if before.get(key) is not entry}
        suspension = schema.suspension.c
        for subject, reach in itertools.chain((key for key in before if key not in entries), new):
            await self.run(
                sa.delete(schema.suspension).where(
                    suspension.app_id == self.app_id, suspension.subject == subject, suspension.reach == reach
                )
            )
        if new:
            rows = [suspension_row(self.app_id, key, entry) for key, entry in new.items()]
            await self.run(sa.insert(schema.suspension), rows)


def _told(error: FeishuMailError) -> dict[str, Any]:
    decided = root_cause(error)
    code = decided.code if isinstance(decided, ApiError) and abs(decided.code) <= _LARGEST_CODE else None
    return {"error": str(error), "code": code}
