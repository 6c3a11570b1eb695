"""The ledger on a database: SQLite for the processes of one host, PostgreSQL for those of many."""

import asyncio
import logging
import os
import socket
from typing import Any, Final
from weakref import WeakSet

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from feishu_mail_async._api.endpoints import SEND, Endpoint
from feishu_mail_async._scheduling.state import EndpointState
from feishu_mail_async._tasks import carry_through
from feishu_mail_async.model import RateLimit

from . import schema
from .database import Database
from .overview import Overview
from .rows import permits_of, state_of, suspensions_of
from .session import Session
from .sqlstore import SqlStore
from .sqltokens import SqlTokens

__all__ = ["SqlLedger"]

_log: Final = logging.getLogger("feishu_mail_async.ledger")

_cautioned: Final[set[str]] = set()
"""The ledgers about which a warning was logged: once in a process is enough."""


class SqlLedger:
    """A ledger on a database.

    Args:
        database: the database.

    Attributes:
        database: as above.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self._closing: asyncio.Future[None] | None = None
        self._sessions: WeakSet[Session] = WeakSet()

    @property
    def where(self) -> str:
        """The ledger as it may be shown: a file's path, or a URL without its password."""
        return self.database.where

    @property
    def caution(self) -> str:
        """A warning if tokens may cross a network unencrypted without the user's explicit consent; else empty."""
        return self.database.caution

    def store(self, base_url: str, app: str, limit: RateLimit, endpoint: Endpoint[Any] = SEND) -> SqlStore:
        """Return a store of one app and endpoint. The database is opened when the store is first used."""
        session = Session(self.database, base_url, app, endpoint, limit)
        self._sessions.add(session)
        return SqlStore(session, holder=f"{socket.gethostname()}:{os.getpid()}")

    def tokens(self, base_url: str, app: str) -> SqlTokens:
        """Return the tokens of one app's users."""
        if self.caution and self.where not in _cautioned:
            _cautioned.add(self.where)
            _log.warning("ledger: %s: %s", self.where, self.caution)
        return SqlTokens(self.database, base_url, app)

    async def apps(self) -> list[tuple[str, str]]:
        """Return the apps that have a store: base_url and app."""

        async def read(connection: AsyncConnection) -> list[tuple[str, str]]:
            rows = await connection.execute(
                sa.select(schema.app.c.base_url, schema.app.c.app).order_by(schema.app.c.id)
            )
            return [(row.base_url, row.app) for row in rows]

        return await self.database.transact(read)

    async def overview(self, base_url: str, app: str) -> Overview | None:
        """Return the state of an app's sends; None if the ledger does not know the app."""

        async def read(connection: AsyncConnection) -> Overview | None:
            mine = sa.select(schema.app.c.id).where(schema.app.c.base_url == base_url, schema.app.c.app == app)
            app_id = (await connection.execute(mine)).scalar_one_or_none()
            return None if app_id is None else await self._overview(connection, app_id)

        return await self.database.transact(read)

    async def _overview(self, connection: AsyncConnection, app_id: int) -> Overview:
        now = await self.database.now(connection)
        suspensions = await suspensions_of(connection, app_id)
        its = schema.budget.c.app_id == app_id, schema.budget.c.endpoint == SEND.name
        row = (await connection.execute(sa.select(schema.budget).where(*its))).one_or_none()
        # An app without a budget has a login, and no sends so far.
        state = EndpointState(SEND, SEND.limit, suspensions) if row is None else state_of(SEND, row, suspensions)
        draft = schema.draft.c
        states = await connection.execute(
            sa.select(draft.state, sa.func.count()).where(draft.app_id == app_id).group_by(draft.state)
        )
        budget, pause = state.budget, state.pause
        permits = await permits_of(connection, app_id, SEND.name)
        budget.load(0, [permit.end for permit in permits])
        return Overview(
            drafts={str(one[0]): int(one[1]) for one in states},
            limit=budget.limit,
            in_use=budget.limit.calls - budget.free(now),
            in_flight=sum(permit.ended is None and permit.lapses > now for permit in permits),
            next_permit=max(0.0, budget.next_at(now) - now),
            paused=None if pause is None else max(0.0, pause.until - now),
            pause_reason=None if pause is None else pause.reason,
            suspended=state.suspensions.holding(now),
        )

    async def close(self) -> None:
        """Cancel the writes under way, and close the connections. In a forked process nothing happens."""
        if self.database.elsewhere:
            return
        if self._closing is None:
            # Shared by concurrent callers: none of them returns before it is closed, and cancelling one of them
            # does not cancel the closing for the others.
            self._closing = carry_through(self._close(), "feishu-mail-ledger")
            self._closing.add_done_callback(self._closed)
        await asyncio.shield(self._closing)

    def _closed(self, closing: asyncio.Future[None]) -> None:
        if self._closing is closing:
            self._closing = None

    async def _close(self) -> None:
        for session in list(self._sessions):
            await session.abandon()
        await self.database.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.where}>"
