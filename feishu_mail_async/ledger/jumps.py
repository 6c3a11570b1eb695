"""Jumps of a PostgreSQL server's clock, which may be set, and which is another clock after a failover.

By its own monotonic clock each client knows how much time can have passed since it last read the database's. If
the database's clock has advanced by more, the difference counts as no time: otherwise permits would come back
early, and the limit would be broken. Calls on record count as just ended, and a time that would have come by the
jump alone is moved by as much. A client that has begun after the jump cannot notice it; so every client that was
there before corrects the tables, the first time that it looks.
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
"""Seconds by which the database's clock may be ahead without counting as a jump: a limit's margin is larger."""
_DRIFT: Final = 0.001
"""Seconds per second by which two clocks may drift apart."""


def elapsed() -> float:
    """Return the seconds of a clock that goes on while the host sleeps, where there is one."""
    try:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    except (AttributeError, OSError):
        return time.monotonic()


class Jumps:
    """The jumps of a database's clock: it notices them, and corrects the rows so that nothing comes free by them.

    Args:
        where: the ledger, as it may be shown.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._last: tuple[float, float, float] | None = None
        self._total = 0.0
        self._counted: dict[int, float] = {}
        self._uncommitted: WeakKeyDictionary[AsyncConnection, tuple[int, float]] = WeakKeyDictionary()

    def look(self, database_time: float, before: float, after: float) -> None:
        """Compare the database's time with the clock here.

        Args:
            database_time: the database's time, in seconds.
            before: `elapsed` before it was asked for.
            after: `elapsed` after the answer.
        """
        last, self._last = self._last, (database_time, before, after)
        if last is None:
            return
        went, least, most = database_time - last[0], before - last[2], after - last[1]
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

    async def correct(self, connection: AsyncConnection, app_id: int, now: float) -> None:
        """Move the times in an app's rows by the jumps that are not corrected yet.

        Args:
            connection: the database's, in a transaction that has locked the app's row.
            app_id: the app's row.
            now: the ledger's time.
        """
        jump = self._total - self._counted.get(app_id, 0.0)
        if jump <= 0.0:
            return
        self._uncommitted[connection] = app_id, self._total

        def later(column: sa.Column[Any]) -> Any:
            """Return the time, moved by the jump if the jump alone would have ended it."""
            return sa.case((sa.and_(column > now - jump, column <= now), column + jump), else_=column)

        budget, permit, lock = schema.budget.c, schema.permit.c, schema.lock.c
        since = budget.unreachable_since
        calls = {name: later(budget[name]) for name in ("pause_until", "probe_lapses", "smooth_until")}
        calls["last"] = sa.case((budget.last.is_not(None), now), else_=None)
        calls["unreachable_since"] = sa.case((since <= now - jump, since + jump), else_=since)
        ended = sa.case((permit.ended.is_not(None), now), else_=None)
        changes: dict[sa.Table, dict[str, Any]] = {
            schema.budget: calls,
            schema.permit: {"ended": ended, "lapses": later(permit.lapses)},
            schema.lock: {name: later(lock[name]) for name in ("lapses", "open_at", "backoff_until")},
            schema.suspension: {"ends": later(schema.suspension.c.ends)},
            schema.token: {"lease_lapses": later(schema.token.c.lease_lapses)},
        }
        for table, values in changes.items():
            await connection.execute(sa.update(table).where(table.c.app_id == app_id).values(values))

    def committed(self, connection: AsyncConnection) -> None:
        """Note that the transaction of a correction was committed: one that was rolled back is done again."""
        done = self._uncommitted.pop(connection, None)
        if done is not None:
            self._counted[done[0]] = done[1]
