"""The tokens of one app's users on a database."""

import uuid
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from feishu_mail_async._auth.store import StoredToken

from . import schema
from .database import Database
from .texts import storable

__all__ = ["SqlTokens"]

_TABLE: Final = schema.token
_NO_LEASE: Final = {"lease": None, "lease_lapses": None}


class SqlTokens:
    """The tokens of one app's users on a database; see `TokenStore` for its methods.

    Args:
        database: the database.
        base_url: the API's host.
        app: the app's name.
    """

    def __init__(self, database: Database, base_url: str, app: str) -> None:
        self._database = database
        self._base_url = base_url
        self._app = app

    async def users(self) -> list[str]:
        """See `TokenStore`."""

        async def read(connection: AsyncConnection) -> list[str]:
            mine = await self._mine(connection)
            rows = sa.select(_TABLE.c.user_key).where(mine, _TABLE.c.access_token.is_not(None))
            return list((await connection.execute(rows.order_by(_TABLE.c.user_key))).scalars())

        return await self._database.transact(read)

    async def load(self, user: str) -> StoredToken | None:
        """See `TokenStore`."""

        async def read(connection: AsyncConnection) -> StoredToken | None:
            row = await self._row(connection, user)
            if row is None or row.access_token is None:
                return None
            return StoredToken(
                row.access_token,
                row.expires,
                row.lifetime,
                row.refresh_token,
                row.refresh_expires,
                row.scope or "",
            )

        return await self._database.transact(read)

    async def lease(self, user: str, seconds: float) -> str | None:
        """See `TokenStore`."""
        lease = uuid.uuid4().hex

        async def take(connection: AsyncConnection) -> str | None:
            now = await self._database.synchronize(connection, await self._app_id(connection))
            row = await self._row(connection, user)
            if row is None or (row.lease not in {None, lease} and row.lease_lapses > now):
                return None
            await self._update(connection, user, {"lease": lease, "lease_lapses": now + seconds})
            return lease

        return await self._database.transact(take)

    async def save(self, user: str, token: StoredToken, lease: str | None = None) -> bool:
        """See `TokenStore`."""

        async def write(connection: AsyncConnection) -> bool:
            row = await self._row(connection, user)
            if row is None and lease is None:
                app_id = await self._app_id(connection)
                row_of = {"app_id": app_id, "user_key": user, **_values(token)}
                await connection.execute(sa.insert(_TABLE).values(row_of))
                return True
            if row is None:
                return False  # logged out meanwhile
            if lease is not None and row.lease != lease:
                # Either the lease has lapsed, and another process has refreshed the token; or this is the retry
                # of a commit whose answer was lost.
                return (row.access_token, row.refresh_token) == (token.access_token, token.refresh_token)
            await self._update(connection, user, _values(token))
            return True

        return await self._database.transact(write)

    async def release(self, user: str, lease: str) -> None:
        """See `TokenStore`."""

        async def write(connection: AsyncConnection) -> None:
            row = await self._row(connection, user)
            if row is not None and row.lease == lease:
                await self._update(connection, user, _NO_LEASE)

        await self._database.transact(write)

    async def delete(self, user: str) -> bool:
        """See `TokenStore`."""

        async def write(connection: AsyncConnection) -> bool:
            gone = sa.delete(_TABLE).where(await self._mine(connection), _TABLE.c.user_key == user)
            return (await connection.execute(gone)).rowcount > 0

        return await self._database.transact(write)

    async def _app_id(self, connection: AsyncConnection) -> int:
        return await self._database.hold(connection, self._base_url, self._app)

    async def _mine(self, connection: AsyncConnection) -> sa.ColumnElement[bool]:
        return _TABLE.c.app_id == await self._app_id(connection)

    async def _row(self, connection: AsyncConnection, user: str) -> sa.Row[Any] | None:
        wanted = sa.select(_TABLE).where(await self._mine(connection), _TABLE.c.user_key == user)
        return (await connection.execute(wanted)).one_or_none()

    async def _update(self, connection: AsyncConnection, user: str, values: dict[str, Any]) -> None:
        mine = await self._mine(connection)
        await connection.execute(sa.update(_TABLE).where(mine, _TABLE.c.user_key == user).values(values))


def _values(token: StoredToken) -> dict[str, Any]:
    """Return the columns of a token. They end the lease."""
    return {
        "access_token": token.access_token,
        "expires": token.expires,
        "lifetime": token.lifetime,
        "refresh_token": token.refresh_token,
        "refresh_expires": token.refresh_expires,
        "scope": storable(token.scope),
        **_NO_LEASE,
    }
