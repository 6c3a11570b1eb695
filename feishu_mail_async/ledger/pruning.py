"""What a ledger may forget, and when: a few rows at a time, beside the calls.

A draft's record makes a rerun safe without a call. Without it the server says that the mail was sent, so an old
record may go. One in doubt stays: if the server has forgotten the draft too, only the record says that it may have
been sent.
"""

import contextlib
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from feishu_mail_async._clock import wall_clock
from feishu_mail_async._scheduling.record import DraftState
from feishu_mail_async._scheduling.suspensions import APP

from . import schema

__all__ = ["make_prunable", "prune"]

_STEP: Final = 200
"""Rows of a table that go in one transaction."""
_DAY: Final = 86_400.0
_KEPT: Final = 365 * _DAY
"""Seconds for which a draft's record is kept after its last change."""
_ENDED: Final = tuple(
    state.value for state in DraftState if state not in {DraftState.IN_FLIGHT, DraftState.UNKNOWN}
)


async def make_prunable(connection: AsyncConnection) -> bool:
    """Make the index that old records are found by, if a ledger of an earlier day lacks it.

    Returns:
        whether it is there; where it may not be made the ledger works without, and its drafts are kept.
    """
    index = schema.draft_by_state

    def there(sync: sa.Connection) -> bool:
        return sa.inspect(sync).has_index(schema.draft.name, str(index.name))

    if not await connection.run_sync(there):
        with contextlib.suppress(DBAPIError):
            async with connection.begin_nested():
                await connection.run_sync(index.create)
    return await connection.run_sync(there)


async def prune(connection: AsyncConnection, app_id: int, now: float, *, drafts: bool) -> bool:
    """Drop some rows of an app that nobody needs any more.

    Args:
        connection: the database's, in a transaction that holds the app's row.
        app_id: the app's row.
        now: the ledger's time.
        drafts: whether drafts are looked for, too.

    Returns:
        whether there may be more of them.
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
        # When the app's own suspension is over, one call has to probe: it goes as that call is made.
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
