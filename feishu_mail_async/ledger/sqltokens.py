"""The tokens of one app's users on a database."""

import dataclasses
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from feishu_mail_async._auth.store import StoredToken

from . import schema
from .database import Database
from .texts import storable

__all__ = ["SqlTokens"]

T = TypeVar("T")

_token: Final = schema.token.c
_STORED: Final = tuple(field.name for field in dataclasses.fields(StoredToken))
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

        async def read(connection: AsyncConnection, app_id: int) -> list[str]:
            rows = sa.select(_token.user_key).where(_token.app_id == app_id, _token.access_token.is_not(None))
            return list((await connection.execute(rows.order_by(_token.user_key))).scalars())

        return await self._transact(read)

    async def load(self, user: str) -> StoredToken | None:
        """See `TokenStore`."""

        async def read(connection: AsyncConnection, app_id: int) -> StoredToken | None:
            row = await _row(connection, app_id, user)
            if row is None or row.access_token is None:
                return None
            return StoredToken(**{name: getattr(row, name) for name in _STORED} | {"scope": row.scope or ""})

        return await self._transact(read)

    async def lease(self, user: str, seconds: float) -> str | None:
        """See `TokenStore`."""
        lease = uuid.uuid4().hex

        async def take(connection: AsyncConnection, app_id: int) -> str | None:
            now = await self._database.synchronize(connection, app_id)
            row = await _row(connection, app_id, user)
            if row is None or (row.lease not in {None, lease} and row.lease_lapses > now):
                return None
            await _update(connection, app_id, user, {"lease": lease, "lease_lapses": now + seconds})
            return lease

        return await self._transact(take)

    async def save(self, user: str, token: StoredToken, lease: str | None = None) -> bool:
        """See `TokenStore`."""

        async def write(connection: AsyncConnection, app_id: int) -> bool:
            row = await _row(connection, app_id, user)
            if row is None and lease is None:
                await connection.execute(
                    sa.insert(schema.token).values({"app_id": app_id, "user_key": user, **_values(token)})
                )
                return True
            if row is None:
                return False  # logged out meanwhile
            if lease is not None and row.lease != lease:
                # Either the lease has lapsed, and another process has refreshed the token; or this is the retry
                # of a commit whose answer was lost.
                return (row.access_token, row.refresh_token) == (token.access_token, token.refresh_token)
            await _update(connection, app_id, user, _values(token))
            return True

        return await self._transact(write)

    async def release(self, user: str, lease: str) -> None:
        """See `TokenStore`."""

        async def write(connection: AsyncConnection, app_id: int) -> None:
            row = await _row(connection, app_id, user)
            if row is not None and row.lease == lease:
                await _update(connection, app_id, user, _NO_LEASE)

        await self._transact(write)

    async def delete(self, user: str) -> bool:
        """See `TokenStore`."""

        async def write(connection: AsyncConnection, app_id: int) -> bool:
            gone = sa.delete(schema.token).where(*_its(app_id, user))
            return (await connection.execute(gone)).rowcount > 0

        return await self._transact(write)

    async def _transact(self, work: Callable[[AsyncConnection, int], Awaitable[T]]) -> T:
        """Run work in a transaction, with the row of the app."""

        async def transaction(connection: AsyncConnection) -> T:
            return await work(connection, await self._database.hold(connection, self._base_url, self._app))

        return await self._database.transact(transaction)


def _its(app_id: int, user: str) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    """Return the conditions for a user's row."""
    return _token.app_id == app_id, _token.user_key == user


async def _row(connection: AsyncConnection, app_id: int, user: str) -> sa.Row[Any] | None:
    return (await connection.execute(sa.select(schema.token).where(*_its(app_id, user)))).one_or_none()


async def _update(connection: AsyncConnection, app_id: int, user: str, values: dict[str, Any]) -> None:
    await connection.execute(sa.update(schema.token).where(*_its(app_id, user)).values(values))


def _values(token: StoredToken) -> dict[str, Any]:
    """Return the columns of a token, which end the lease. Not a local variable: a traceback may show those."""
    return {**dataclasses.asdict(token), "scope": storable(token.scope), **_NO_LEASE}
