"""Jumps of a PostgreSQL's clock, which somebody may set, and which is another one after a failover.

How much time can have passed since it looked last, each client knows by a clock of its own that nobody sets. Where
the database's has gone on by more, that counts as no time: calls on record count as just ended, and what was to
last for a while lasts as much longer. A client that has begun after the jump knows nothing of it: those that were
there before correct what stands in the tables, the first time that each of them looks.
"""

import logging
import time
from typing import Any, Final
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from . import schema

__all__ = ["Jumps", "elapsed"]

_log: Final = logging.getLogger("feishu_mail_async.ledger")

_TOLERANCE: Final = 0.5
"""Seconds that the database's clock may be found ahead: a limit's margin is larger."""
_DRIFT: Final = 0.001
"""Seconds a second by which two clocks may go differently."""


def elapsed() -> float:
    """Seconds of a clock that goes on while the host sleeps, where there is one."""
    try:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    except (AttributeError, OSError):
        return time.monotonic()


class Jumps:
    """Notices the jumps of a database's clock, and sees to it that nothing comes free by them.

    Args:
        where: the ledger, as it may be shown.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._last: tuple[float, float, float] | None = None
        self._total = 0.0
        self._counted: dict[int, float] = {}
        self._uncommitted: WeakKeyDictionary[AsyncConnection, tuple[int, float]] = WeakKeyDictionary()

    def look(self, told: float, before: float, after: float) -> None:
        """The database has told its time, between two readings of the clock here."""
        last, self._last = self._last, (told, before, after)
        if last is None:
            return
        went, least, most = told - last[0], before - last[2], after - last[1]
        allowed = _TOLERANCE + _DRIFT * max(0.0, most)
        if went > most + allowed:
            self._total += went - least
            _log.warning(
                "ledger: %s: the database's clock has jumped forward by %.1f s; that counts as no time, and what "
                "has been used of the limit counts as just used",
                self._where,
                went - least,
            )
        elif went < least - allowed:
            _log.warning(
                "ledger: %s: the database's clock has gone back by %.1f s; calls and pauses last that much longer",
                self._where,
                most - went,
            )

    async def correct(self, connection: AsyncConnection, app_id: int, now: float) -> bool:
        """Let nothing of an app come free by a jump; its row is held. True if anything was changed."""
        jump = self._total - self._counted.get(app_id, 0.0)
        if jump <= 0.0:
            return False
        self._uncommitted[connection] = app_id, self._total

        def later(column: sa.Column[Any]) -> Any:
            """What would have ended by the jump alone lasts as much longer."""
            return sa.case((sa.and_(column > now - jump, column <= now), column + jump), else_=column)

        budget, permit, lock = schema.budget.c, schema.permit.c, schema.lock.c
        ended = sa.case((permit.ended.is_not(None), now), else_=None)
        changes: list[tuple[sa.Table, dict[str, Any]]] = [
            (schema.permit, {"ended": ended, "lapses": later(permit.lapses)}),
            (schema.lock, {name: later(lock[name]) for name in ("lapses", "open_at", "backoff_until")}),
            (schema.suspension, {"ends": later(schema.suspension.c.ends)}),
            (schema.token, {"lease_lapses": later(schema.token.c.lease_lapses)}),
        ]
        for table, values in changes:
            await connection.execute(sa.update(table).where(table.c.app_id == app_id).values(values))
        values = {name: later(budget[name]) for name in ("pause_until", "probe_lapses", "smooth_until")}
        values["last"] = sa.case((budget.last.is_not(None), now), else_=None)
        before = budget.unreachable_since <= now - jump
        values["unreachable_since"] = sa.case(
            (before, budget.unreachable_since + jump), else_=budget.unreachable_since
        )
        await connection.execute(sa.update(schema.budget).where(budget.app_id == app_id).values(values))
        return True

    def committed(self, connection: AsyncConnection) -> None:
        """What was changed in this transaction stays so."""
        done = self._uncommitted.pop(connection, None)
        if done is not None:
            self._counted[done[0]] = done[1]
