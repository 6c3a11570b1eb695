"""procrastinate's connector and job manager, changed so that workers wait while the database is away.

procrastinate's own connector raises an error when the database is away, which would end the worker. Here every
query is repeated until the database answers, or until the worker stops and has waited long enough
(`Connector.give_up`). Errors that waiting cannot cure are raised.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, LiteralString, TypeVar

import procrastinate
import psycopg
from procrastinate.connector import Notify
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Job, Status
from procrastinate.manager import JobManager
from procrastinate.utils import utcnow
from psycopg_pool import AsyncConnectionPool

from feishu_mail_async._clock import loop_time
from feishu_mail_async.ledger.errors import is_transient, must_reconnect, reason

from .jobs import CONNECTION, conninfo

__all__ = ["PAUSE", "Connector", "Jobs"]

T = TypeVar("T")

_POOL: Final = 6
"""The number of a worker's connections for its queue, besides the one that listens."""
PAUSE: Final = 0.5
"""The time between two tries while the database is away, in seconds."""
_FAREWELL: Final = 10.0
"""The time that a stopping worker waits for a database that is away, in seconds."""
_FAREWELL_AT_ONCE: Final = 2.0
"""The time that a worker which stops at once takes to put jobs back, in seconds."""
_FREE: Final = 5.0
"""The time-out for a free connection, in seconds."""


class Connector(procrastinate.PsycopgConnector):
    """A connector that waits while the database is away, however long that takes.

    Args:
        database: the database's URL.
        tell: a function called with the reason when the database goes away, and with None when it is back.
    """

    def __init__(self, database: str, tell: Callable[[str | None], None]) -> None:
        super().__init__(
            pool_factory=_make_pool,
            conninfo=conninfo(database),
            kwargs=CONNECTION,
            configure=_configure,
            min_size=1,
            max_size=_POOL,
            timeout=_FREE,
            # The pool doubles its own delay with each try, and starts again from the shortest with a request.
            # Kept short here, because `_patiently` requests again and again anyway.
            reconnect_timeout=2.0,
        )
        self._tell = tell
        self._places = asyncio.Semaphore(_POOL)
        self._used = False
        self._listening: asyncio.Timeout | None = None
        self._failing: set[object] = set()
        self._told: set[str] = set()
        self._gone: float | None = None
        self._patience: float | None = None
        self._until = 0.0

    @property
    def away(self) -> bool:
        """True if the database was unreachable at the latest query."""
        return self._gone is not None

    def given_up(self) -> bool:
        """Return whether the connector has stopped waiting for the database."""
        if self._patience is None or loop_time() < self._until:
            return False
        return self._patience == 0.0 or (self._gone is not None and loop_time() >= self._gone + self._patience)

    def give_up(self, *, at_once: bool) -> None:
        """Limit the waiting from now on: the worker stops.

        Args:
            at_once: end all queries after 2 seconds, even if the database is reachable. If False, wait 10 seconds
                for a database that is away.
        """
        self._patience = 0.0 if at_once else _FAREWELL
        self._until = loop_time() + (_FAREWELL_AT_ONCE if at_once else _FAREWELL)

    async def execute_query_async(self, query: LiteralString, **arguments: Any) -> None:
        """Run a query without a result, as procrastinate's connector does, waiting while the database is away."""
        await self._patiently(lambda: super(Connector, self).execute_query_async(query, **arguments))

    async def execute_query_one_async(self, query: LiteralString, **arguments: Any) -> dict[str, Any]:
        """Run a query and return its only row, waiting while the database is away."""
        return await self._patiently(lambda: super(Connector, self).execute_query_one_async(query, **arguments))

    async def execute_query_all_async(self, query: LiteralString, **arguments: Any) -> list[dict[str, Any]]:
        """Run a query and return its rows, waiting while the database is away."""
        return await self._patiently(lambda: super(Connector, self).execute_query_all_async(query, **arguments))

    async def listen_notify(self, on_notification: Notify, channels: Iterable[str]) -> None:
        """Listen for notifications of new jobs, and connect again whenever the connection is lost."""
        while True:
            with contextlib.suppress(ConnectorException, TimeoutError):
                # Without an end, until `_give_up_connections` sets it to now in order to reconnect.
                async with asyncio.timeout(None) as self._listening:
                    await super().listen_notify(on_notification=on_notification, channels=channels)
            await asyncio.sleep(PAUSE)  # meanwhile the worker finds jobs by polling

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        # Stands for this query in `_failing` as long as its latest try has failed.
        failing = object()
        try:
            while not self.given_up():
                try:
                    # Thousands of queries may come at once. They wait here, not in the pool, which times out.
                    async with self._places:
                        if self.given_up():
                            break
                        answer = await ask()
                except ConnectorException as error:
                    if not _will_pass(error, opened=self._used):
                        raise
                    self._failing.add(failing)
                    self._go_away(reason(error.__cause__ or error))
                    await self._give_up_connections(error)
                    await asyncio.sleep(PAUSE)
                else:
                    self._failing.discard(failing)
                    self._come_back()
                    return answer
        finally:
            self._failing.discard(failing)
        raise ConnectorException

    def _go_away(self, why: str) -> None:
        if self._gone is None:
            self._gone = loop_time()
        if why not in self._told:
            self._told.add(why)
            self._tell(why)

    def _come_back(self) -> None:
        self._used = True
        # A read-only server (a standby after a failover) answers some queries and fails others. The database is
        # back only when no query is failing any more.
        if self._gone is not None and not self._failing:
            self._gone = None
            self._told.clear()
            self._tell(None)

    async def _give_up_connections(self, error: ConnectorException) -> None:
        """Replace all connections if the error shows that one is stale: all lead to the same server."""
        if error.__cause__ is None or not must_reconnect(error.__cause__):
            return
        await self.pool.drain()
        if self._listening is not None and self._listening.when() is None:
            with contextlib.suppress(RuntimeError):  # it is just ending by itself
                self._listening.reschedule(loop_time())


async def _configure(connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.set_autocommit(True)


def _make_pool(**arguments: Any) -> AsyncConnectionPool[Any]:
    # A query lost with its connection is repeated, so testing connections before each use would gain nothing.
    return AsyncConnectionPool(**arguments | {"check": None})


def _will_pass(error: ConnectorException, *, opened: bool) -> bool:
    # A worker that slept for a day has lost its row; its next heartbeat inserts it again.
    cause = error.__cause__
    return isinstance(cause, psycopg.errors.ForeignKeyViolation) or (
        isinstance(cause, psycopg.Error) and is_transient(cause, opened=opened)
    )


class Jobs(JobManager):
    """A job manager that leaves a job alone if another worker has taken it in the meantime.

    Args:
        connector: the connections.
        failed: a function called with the error when a job cannot be ended.
    """

    def __init__(self, connector: Connector, failed: Callable[[ConnectorException], None]) -> None:
        super().__init__(connector)
        self._failed = failed

    async def fetch_job(self, queues: Iterable[str] | None, worker_id: int) -> Job | None:
        """Fetch a job whose arguments are passed to the task as one value, so that the task can validate them."""
        job = await super().fetch_job(queues, worker_id)
        return None if job is None else job.evolve(task_kwargs={"arguments": job.task_kwargs})

    async def prune_stalled_workers(self, seconds_since_heartbeat: float) -> list[int]:  # noqa: ARG002
        """Do nothing: `DraftWorker` handles dead workers, without counting time when the database was down."""
        return []

    async def finish_job_by_id_async(self, job_id: int, status: Status, delete_job: bool) -> None:
        """End a job, unless another worker has taken it."""
        with self._settled():
            await super().finish_job_by_id_async(job_id, status, delete_job)

    async def retry_job_by_id_async(
        self,
        job_id: int,
        retry_at: Any,
        priority: int | None = None,
        queue: str | None = None,
        lock: str | None = None,
    ) -> None:
        """Put a job back into the queue, unless another worker has taken it."""
        # Sent as a delay, because the database's clock decides when a job is due, and ours may differ from it.
        wait = max(0.0, (retry_at - utcnow()).total_seconds())
        with self._settled():
            await self.connector.execute_query_async(
                "SELECT procrastinate_retry_job_v2(%(job)s, now() + make_interval(secs => %(wait)s),"
                " %(priority)s, %(queue)s, %(lock)s)",
                job=job_id,
                wait=wait,
                priority=priority,
                queue=queue,
                lock=lock,
            )

    @contextlib.contextmanager
    def _settled(self) -> Any:
        """Ignore the error of ending a job that others took from us; report any other (others rescue the job)."""
        try:
            yield
        except ConnectorException as error:
            if not isinstance(error.__cause__, psycopg.errors.RaiseException):
                self._failed(error)
