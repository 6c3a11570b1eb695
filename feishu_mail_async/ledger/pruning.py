"""Pruning of a ledger's rows that are not needed any more: a few at a time, beside the calls.

A draft's record makes a rerun safe without a call. Without the record a call is made, and the server answers that
the mail was sent before; so an old record may go. A record in doubt stays: if the server has forgotten the draft
too, only the record says that the mail may have been sent.
"""

import logging
import math
from typing import Any, Final

import sqlalchemy as sa

from feishu_mail_async._clock import loop_time, wall_clock
from feishu_mail_async._scheduling.record import DraftState
from feishu_mail_async._scheduling.suspensions import APP
from feishu_mail_async.errors import LedgerError

from . import schema
from .session import Session
from .transaction import Transaction

__all__ = ["Pruner"]

_log: Final = logging.getLogger("feishu_mail_async.ledger")

_FIRST: Final = 10.0
"""Seconds until a process first drops rows that are not needed any more: most processes end before."""
_NEXT: Final = 1.0
"""Seconds until it does so again if there were many."""
_EVERY: Final = 60.0
"""Seconds until it does so again if there were few."""
_STEP: Final = 200
"""Rows of a table that are dropped in one transaction."""
_DAY: Final = 86_400.0
_KEPT: Final = 365 * _DAY
"""Seconds for which a draft's record is kept after its last change."""
_ENDED: Final = tuple(
    state.value for state in DraftState if state not in {DraftState.IN_FLIGHT, DraftState.UNKNOWN}
)


class Pruner:
    """The pruning of an app's rows by one process, in transactions beside those of its calls.

    Args:
        session: the session.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._at: float | None = None  # the time of the next pruning

    def soon(self) -> None:
        """Drop rows if it is time for that."""
        now = loop_time()
        if self._at is None:
            self._at = now + _FIRST
        if now >= self._at:
            self._at = math.inf
            self._session.start(self._run())

    async def _run(self) -> None:
        more = False
        try:
            more, _ = await self._session.transact(_prune)
        except LedgerError as error:
            _log.debug("%s; nothing is dropped from it", error)
        self._at = loop_time() + (_NEXT if more else _EVERY)


async def _prune(transaction: Transaction) -> bool:
    """Drop some rows of an app that are not needed any more; return whether there may be more such rows."""
    lock, suspension, draft = schema.lock.c, schema.suspension.c, schema.draft.c
    app_id, long_ago = transaction.app_id, transaction.now - _DAY
    found = [
        await _drop(
            transaction,
            schema.lock,
            lock.app_id == app_id,
            lock.lapses < long_ago,
            sa.func.coalesce(lock.open_at, lock.lapses) < long_ago,
        ),
        # Not the app's: when its suspension is over, one call has to probe, and it is dropped for that call.
        await _drop(
            transaction,
            schema.suspension,
            suspension.app_id == app_id,
            suspension.ends < transaction.now,
            suspension.subject != APP,
        ),
    ]
    if transaction.database.prunable:
        found.append(
            await _drop(
                transaction,
                schema.draft,
                draft.app_id == app_id,
                draft.state.in_(_ENDED),
                draft.changed < wall_clock() - _KEPT,
                draft.in_doubt.is_(False),
            )
        )
    return max(found) == _STEP


async def _drop(transaction: Transaction, table: sa.Table, *which: sa.ColumnElement[bool]) -> int:
    keys = [*table.primary_key]
    rows = (await transaction.run(sa.select(*keys).where(*which).limit(_STEP))).all()
    if rows:
        this: list[Any] = [key == sa.bindparam(f"this_{key.name}") for key in keys]
        values = [{f"this_{key.name}": row[place] for place, key in enumerate(keys)} for row in rows]
        await transaction.run(sa.delete(table).where(*this), values)
    return len(rows)
