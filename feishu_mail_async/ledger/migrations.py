"""Migrations: the steps from an older schema of a ledger to this one.

The first process of this version takes them when it opens the ledger, in one transaction. Processes of an older
version fail from then on, because the tables they know are gone: stop them before.
"""

import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from feishu_mail_async._api.endpoints import SEND
from feishu_mail_async._scheduling.suspensions import EVERYWHERE, reach_of
from feishu_mail_async.codes import CODES
from feishu_mail_async.errors import ApiError, AutomatedSendDisabled, FeishuMailError

from . import schema
from .rows import load_error

__all__ = ["make_prunable", "migrate"]

_MOVED: Final = (
    "calls",
    "per",
    "spacing",
    "grace",
    "margin",
    "reserve",
    "last",
    "pauses",
    "pause_until",
    "pause_reason",
    "probe",
    "probe_lapses",
    "smooth_until",
    "unreachable_since",
    "unreachable_times",
)
"""The columns that schema 2 moves from the app to the budget of its sends."""

_RENAMED: Final = (
    ("lock", "cooling", "backoff_until"),
    ("lock", "strikes", "consecutive_refusals"),
    ("draft", "doubtful", "in_doubt"),
)
_RESUMED: Final = {"REOPEN": "RESUMED"}


async def migrate(connection: AsyncConnection, version: int) -> None:
    """Migrate a ledger to this schema.

    Args:
        connection: the database's, in a transaction during which no other process opens the ledger.
        version: the ledger's present schema.
    """
    for step in range(version, schema.VERSION):
        await _STEPS[step](connection)
    await connection.execute(sa.update(schema.schema).values(version=schema.VERSION))


async def make_prunable(connection: AsyncConnection) -> bool:
    """Make the index by which old records are found, if an older ledger lacks it.

    Returns:
        whether it exists; where it may not be made, the ledger works without, and its drafts are kept.
    """
    index = schema.draft_by_state

    def there(sync: sa.Connection) -> bool:
        return sa.inspect(sync).has_index(schema.draft.name, str(index.name))

    if not await connection.run_sync(there):
        with contextlib.suppress(DBAPIError):
            async with connection.begin_nested():
                await connection.run_sync(index.create)
    return await connection.run_sync(there)


async def _from_1_to_2(connection: AsyncConnection) -> None:
    """Give each endpoint a budget of its own, and each suspension a reach; until now there were only sends."""

    async def run(statement: str) -> None:
        await connection.execute(sa.text(statement))

    await connection.run_sync(schema.budget.create)
    columns = ", ".join(_MOVED)
    await run(
        f"INSERT INTO feishu_mail_budget (app_id, endpoint, {columns}) "  # noqa: S608 - names of our own
        f"SELECT id, '{SEND.name}', {columns} FROM feishu_mail_app"
    )
    for column in _MOVED:
        await run(f"ALTER TABLE feishu_mail_app DROP COLUMN {column}")
    await run(f"ALTER TABLE feishu_mail_permit ADD COLUMN endpoint TEXT NOT NULL DEFAULT '{SEND.name}'")
    for table, old, new in _RENAMED:
        await run(f"ALTER TABLE feishu_mail_{table} RENAME COLUMN {old} TO {new}")
    await connection.run_sync(schema.suspension.create)
    for row in await connection.execute(sa.text("SELECT * FROM feishu_mail_closure")):
        values = {
            "app_id": row.app_id,
            "reach": _reach(load_error(row.reason)),
            "reason": row.reason,
            "until": _RESUMED.get(row.until, row.until),
            "fingerprint": row.mark,
        }
        # In plain SQL, which copies the stored form: a long name is stored as a digest, and to store that through
        # the column's type would make a digest of the digest.
        await connection.execute(
            sa.text(
                "INSERT INTO feishu_mail_suspension (app_id, subject, reach, reason, until, ends, fingerprint) "
                "VALUES (:app_id, :subject, :reach, :reason, :until, :ends, :fingerprint)"
            ),
            values | {"subject": row.scope, "ends": row.ends},
        )
    await run("DROP TABLE feishu_mail_closure")


async def _from_2_to_3(connection: AsyncConnection) -> None:
    """Let a draft be scheduled; until now all of them were sent at once."""
    await connection.execute(sa.text("ALTER TABLE feishu_mail_draft ADD COLUMN scheduled_for DOUBLE PRECISION"))


def _reach(reason: FeishuMailError) -> str:
    """Return the reach of a suspension by the answer to a send that caused it."""
    if isinstance(reason, AutomatedSendDisabled):
        return SEND.name
    row = CODES.get(reason.code) if isinstance(reason, ApiError) else None
    return EVERYWHERE if row is None else reach_of(SEND, row.reach)


_STEPS: Final[dict[int, Callable[[AsyncConnection], Awaitable[None]]]] = {1: _from_1_to_2, 2: _from_2_to_3}
