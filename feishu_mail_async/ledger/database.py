"""The database of a ledger: its connections, its transactions, its time.

Every change is one transaction, in which the app's row is locked first. So everything that a turn depends on
(permits, locks, pauses, suspensions) is read and changed by one process at a time, and rows are never locked in
two different orders, which would deadlock. Transient failures are retried here, on new connections: the callers
see a result, or an error that waiting does not help against.
"""

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from feishu_mail_async._forks import Origin, forked
from feishu_mail_async.errors import LedgerError, RecordRefused

from . import postgres, schema, sqlite
from .clock import HostClock, Reading
from .errors import TROUBLE, is_locked, is_transient, must_reconnect, reason, server_message, to_ledger_error
from .jumps import Jumps, elapsed
from .migrations import make_prunable, migrate
from .patience import LONG_LOCKED, LONGEST, Patience, backoff
from .sqlite import LedgerFile

__all__ = ["Database"]

T = TypeVar("T")

_log: Final = logging.getLogger("feishu_mail_async.ledger")

_MOST_LOST: Final = 1.0
"""Seconds between two writes of a SQLite ledger's clock, at most: a restart of the host may lose as many."""
_SCHEMA_KEY: Final = 0x46_4D_41_49_4C
"""The key of the advisory lock under which one process makes the tables ("FMAIL")."""


class Database:
    """The database of a ledger. It is opened, and its tables are made, when it is first used.

    Args:
        url: "sqlite:///PATH" or "postgresql://…".
        patience: seconds for which a transaction is retried while the database does not answer, or is locked.
        clock: the clock of a SQLite ledger; a PostgreSQL ledger uses its database's clock.

    Attributes:
        jumps: notices jumps of the database's clock, and corrects the rows.
        prunable: there is an index by which old drafts are found without reading all; known once it is open.
    """

    def __init__(self, url: str, *, patience: float = 60.0, clock: HostClock | None = None) -> None:
        self._url = postgres.read_address(url)
        self._sqlite = self._url.drivername.startswith("sqlite")
        self._file = LedgerFile(self.where)
        self._patience = patience
        self._clock = clock or HostClock()
        self.jumps = Jumps(self.where)
        self._engine: AsyncEngine | None = None
        self._opening = asyncio.Lock()
        self._opened = False
        self._used = False
        self.prunable = False
        self._failing = False
        self._origin = Origin()

    @property
    def where(self) -> str:
        """The database as it may be shown: a file's path, or a URL without its password."""
        if self._sqlite:
            return self._url.database or ""
        return postgres.show_address(self._url)

    @property
    def caution(self) -> str:
        """A warning if tokens may cross a network unencrypted without the user's explicit consent; else empty."""
        return "" if self._sqlite else postgres.caution(self._url)

    @property
    def elsewhere(self) -> bool:
        """True if it was opened by a process that this one was forked from."""
        return self._origin.elsewhere

    async def close(self) -> None:
        """Close the connections. The next use opens it again."""
        engine, self._engine, self._opened, self._used = self._engine, None, False, False
        self._origin = Origin()
        self._opening = asyncio.Lock()  # the next one to open it may run in another event loop
        if engine is not None:
            await engine.dispose()

    # -- transactions ----------------------------------------------------------------------------------

    async def transact(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run work in one transaction; after a transient failure wait, and run it again in a new one.

        Args:
            work: the work; it has to be idempotent, because a commit whose answer was lost is repeated.

        Returns:
            the work's result.

        Raises:
            LedgerError: it failed for good, or for `patience` seconds; the message says what to do. RecordRefused
                if the database refuses a value in it, so that the same with other values may succeed.
        """
        if self._origin.elsewhere:
            raise LedgerError(
                f"ledger: {self.where}: {forked('it', 'call open_ledger and open a new client here')}"
            )

        def again(state: RetryCallState) -> None:
            assert state.outcome is not None
            error = state.outcome.exception()
            assert error is not None
            if not is_locked(error) or (state.seconds_since_start or 0.0) > LONG_LOCKED:
                self._warn(error)

        retrying = AsyncRetrying(
            retry=retry_if_exception(
                lambda error: isinstance(error, TROUBLE) and is_transient(error, opened=self._used)
            ),
            wait=backoff,
            stop=Patience(self._patience),
            before_sleep=again,
            reraise=True,
        )
        failed_for_good: LedgerError | None = None
        try:
            done: T = await retrying(self._transact, work)
        except LedgerError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, without the ledger there is no call
            failed_for_good = to_ledger_error(self.where, error, self._url.password or "")
            if not isinstance(error, TROUBLE) and not isinstance(failed_for_good, RecordRefused):
                # As text: given the exception, a log handler may show the local variables, secrets among them.
                _log.error("%s\n%s", failed_for_good, "".join(traceback.format_exception(error)))
        if failed_for_good is not None:
            # Not within the handler: the database's error would be the context of this one, with its statement
            # and its connection.
            raise failed_for_good
        self._used = True
        if self._failing:
            self._failing = False
            _log.warning("ledger: %s: it answers again", self.where)
        return done

    async def _transact(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        async with asyncio.timeout(None if self._sqlite else LONGEST):
            engine = await self._open()
            async with engine.begin() as connection:
                done = await work(connection)
            self.jumps.committed(connection)
            return done

    def _warn(self, error: BaseException) -> None:
        if not self._failing:
            self._failing = True
            _log.warning(
                "ledger: %s: %s%s; no calls are made until that has passed, for up to %.0f s",
                self.where,
                reason(error),
                server_message(error, self._url.password or ""),
                self._patience,
            )

    async def now(self, connection: AsyncConnection) -> float:
        """Read the ledger's time, after the transaction has locked its rows: waiting for locks takes time."""
        if not self._sqlite:
            before = elapsed()
            database_time = float((await connection.execute(_DATABASE_TIME)).scalar_one())
            self.jumps.look(database_time, before, elapsed())
            return database_time
        row = (await connection.execute(sa.select(schema.schema))).one()
        last = Reading(row.time, row.monotonic, row.boot)
        reading = self._clock.read(last)
        if reading.boot != last.boot or abs(reading.monotonic - last.monotonic) >= _MOST_LOST:
            await connection.execute(sa.update(schema.schema).values(asdict(reading)))
        return reading.time

    async def synchronize(self, connection: AsyncConnection, app_id: int) -> float:
        """Read the ledger's time, and correct an app's rows, which must be locked, if that has jumped."""
        now = await self.now(connection)
        await self.jumps.correct(connection, app_id, now)
        return now

    async def hold(self, connection: AsyncConnection, base_url: str, app: str) -> int:
        """Lock the row of an app until the transaction ends, making it if there is none, and return its id."""
        table = schema.app
        mine = sa.select(table.c.id).where(table.c.base_url == base_url, table.c.app == app).with_for_update()
        found: int | None = (await connection.execute(mine)).scalar_one_or_none()
        if found is None:
            values = {"base_url": base_url, "app": app}
            await connection.execute(self.insert(table).values(values).on_conflict_do_nothing())
            found = int((await connection.execute(mine)).scalar_one())
        return found

    def insert(self, table: sa.Table) -> Any:
        """Return an INSERT that supports ON CONFLICT."""
        # Not imported at the top: by now the engine has loaded its own dialect, and the other one costs time.
        if self._sqlite:
            from sqlalchemy.dialects.sqlite import insert  # noqa: PLC0415

            return insert(table)
        from sqlalchemy.dialects.postgresql import insert as insert_there  # noqa: PLC0415

        return insert_there(table)

    # -- opening ---------------------------------------------------------------------------------------

    async def _open(self) -> AsyncEngine:
        async with self._opening:
            if self._engine is None:
                self._origin.opened()
                self._engine = self._make_engine()
                event.listen(self._engine.sync_engine, "handle_error", _discard_connection)
            if not self._opened:
                async with self._engine.begin() as connection:
                    await self._check_schema(connection)
                self._opened = True
            return self._engine

    def _make_engine(self) -> AsyncEngine:
        if self._sqlite:
            return sqlite.make_engine(self.where, self._file, self._patience)
        return postgres.make_engine(self._url)

    async def _check_schema(self, connection: AsyncConnection) -> None:
        if not self._sqlite:
            locked = sa.select(sa.func.getdatabaseencoding(), sa.func.pg_advisory_xact_lock(_SCHEMA_KEY))
            advice = postgres.check_encoding((await connection.execute(locked)).one()[0])
            if advice is not None:
                raise LedgerError(f"ledger: {self.where}: {advice}")
        if not await connection.run_sync(lambda sync: sa.inspect(sync).has_table(schema.schema.name)):
            await connection.run_sync(schema.metadata.create_all)
            first = asdict(self._clock.first())
            await connection.execute(sa.insert(schema.schema).values(id=1, version=schema.VERSION, **first))
        version = (await connection.execute(sa.select(schema.schema.c.version))).scalar_one()
        if version > schema.VERSION:
            raise LedgerError(
                f"ledger: {self.where}: a newer version of this program made it (schema {version}, and this one "
                f"knows {schema.VERSION}): upgrade with pip install -U feishu-mail-async"
            )
        if version < schema.VERSION:
            await migrate(connection, version)
            _log.warning("ledger: %s: it is in schema %d now (it was in %d)", self.where, schema.VERSION, version)
        self.prunable = await make_prunable(connection)


def _discard_connection(context: sa.engine.ExceptionContext) -> None:
    """Discard a connection that is of no use any more, with all older ones of the pool."""
    # A cancelled statement was waiting for a server that does not answer.
    if context.is_disconnect or must_reconnect(context.original_exception):
        context.is_disconnect = context.invalidate_pool_on_disconnect = True


_DATABASE_TIME: Final = sa.select(sa.func.extract("epoch", sa.func.clock_timestamp()))
