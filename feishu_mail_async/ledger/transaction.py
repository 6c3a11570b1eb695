"""One transaction of an endpoint's store: what it reads and writes of permits, locks and suspensions."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from feishu_mail_async._api.endpoints import Endpoint
from feishu_mail_async._scheduling.state import EndpointState
from feishu_mail_async._scheduling.suspensions import APP, EVERYWHERE, SuspensionEntry, SuspensionKey

from . import schema
from .database import Database
from .lookup import rows_of
from .rows import LockRow, PermitRow, budget_columns, permits_of, suspension_row
from .texts import stored

__all__ = ["Transaction"]

_LOCK_KEY: Final = ("kind", "key")
_LOCK: Final = tuple(one.name for one in dataclasses.fields(LockRow) if one.name not in _LOCK_KEY)


@dataclass(slots=True)
class Transaction:
    """One transaction on an app whose row it has locked.

    Attributes:
        database: the database.
        connection: the connection that the transaction runs on.
        app_id: the app's row.
        now: the ledger's time.
        began: the loop's time when the ledger's was read, or a little before.
        state: the endpoint's state; changes in it and in its suspensions are written by `write_back`.
        permits: the calls that the window still holds, once they are loaded.
        granted: the turn that it grants, if any.
    """

    database: Database
    connection: AsyncConnection
    app_id: int
    now: float
    began: float
    state: EndpointState
    permits: list[PermitRow] | None = None
    granted: str | None = None
    _before: dict[str, Any] = field(init=False)
    _suspended_before: dict[SuspensionKey, SuspensionEntry] = field(init=False)

    def __post_init__(self) -> None:
        self._before = budget_columns(self.state)
        self._suspended_before = dict(self.state.suspensions.entries)

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
        ended = [row.end for row in self.permits if row.ended is not None or row.lapses <= self.now]
        self.state.budget.load(len(self.permits) - len(ended), ended)
        return self.permits

    def lock_keys(self, user: str, mailbox: str) -> tuple[tuple[str, str], tuple[str, str]]:
        """Return the kinds and keys of the locks of a call: all writing endpoints share them."""
        own = "" if self.endpoint.writes else f":{self.endpoint.name}"
        return (f"user{own}", user), (f"mailbox{own}", mailbox)

    async def locks(self, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], LockRow]:
        """Read the locks of these kinds and keys; one without a row is free."""
        locks = {pair: LockRow(*pair) for pair in pairs}
        asked = {(kind, stored(key)): (kind, key) for kind, key in locks}
        for row in await rows_of(self.connection, schema.lock, self.app_id, asked):
            pair = asked[row.kind, row.key]
            locks[pair] = LockRow(*pair, **{name: getattr(row, name) for name in _LOCK})
        return locks

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
        rows = [{"app_id": self.app_id, **dataclasses.asdict(one)} for one in locks if not one.at_rest(self.now)]
        if rows:
            insert = self.database.insert(schema.lock)
            new = {name: insert.excluded[name] for name in _LOCK}
            await self.run(insert.on_conflict_do_update(index_elements=["app_id", *_LOCK_KEY], set_=new), rows)

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
