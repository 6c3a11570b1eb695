"""Pruning of a ledger's rows that are not needed any more: a few at a time, beside the calls.

A draft's record makes a rerun safe without a call. Without the record a call is made, and the server answers that
the mail was sent before; so an old record may go. A record in doubt stays: if the server has forgotten the draft
too, only the record says that the mail may have been sent.
"""

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from feishu_mail_async._clock import wall_clock
from feishu_mail_async._scheduling.record import DraftState
from feishu_mail_async._scheduling.suspensions import APP

from . import schema

__all__ = ["prune"]

_STEP: Final = 200
"""Rows of a table that are dropped in one transaction."""
_DAY: Final = 86_400.0
_KEPT: Final = 365 * _DAY
"""Seconds for which a draft's record is kept after its last change."""
_ENDED: Final = tuple(
    state.value for state in DraftState if state not in {DraftState.IN_FLIGHT, DraftState.UNKNOWN}
)


async def prune(connection: AsyncConnection, app_id: int, now: float, *, drafts: bool) -> bool:
    """Drop some rows of an app that are not needed any more.

    Args:
        connection: the database's, in a transaction that has locked the app's row.
        app_id: the app's row.
        now: the ledger's time.
        drafts: drop old records of drafts, too.

    Returns:
        whether there may be more such rows.
    """
    lock, suspension, draft = schema.lock.c, schema.suspension.c, schema.draft.c
    long_ago = now - _DAY
    found = [
        await _drop(
            connection,
            schema.lock,
            lock.app_id == app_id,
            lock.lapses < long_ago,
            sa.func.coalesce(lock.open_at, lock.lapses) < long_ago,
        ),
        # Not the app's: when its suspension is over, one call has to probe, and it is dropped for that call.
        await _drop(
            connection,
            schema.suspension,
            suspension.app_id == app_id,
            suspension.ends < now,
            suspension.subject != APP,
        ),
    ]
    if drafts:
        found.append(
            await _drop(
                connection,
                schema.draft,
                draft.app_id == app_id,
                draft.state.in_(_ENDED),
                draft.changed < wall_clock() - _KEPT,
                draft.in_doubt.is_(False),
            )
        )
    return max(found) == _STEP


async def _drop(connection: AsyncConnection, table: sa.Table, *which: sa.ColumnElement[bool]) -> int:
    keys = [*table.primary_key]
    rows = (await connection.execute(sa.select(*keys).where(*which).limit(_STEP))).all()
    if rows:
        this: list[Any] = [key == sa.bindparam(f"this_{key.name}") for key in keys]
        values = [{f"this_{key.name}": row[place] for place, key in enumerate(keys)} for row in rows]
        await connection.execute(sa.delete(table).where(*this), values)
    return len(rows)
