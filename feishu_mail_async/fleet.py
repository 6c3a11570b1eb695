"""The work queue across machines: drafts wait in PostgreSQL, and workers on any machine take them.

    enqueue --one job a draft--> PostgreSQL --> worker --> client.send_draft --> the ledger knows the outcome

The queue is procrastinate's. It decides who works on a draft and nothing else: permits, locks and what became of
a draft are the ledger's business, so a draft that two workers have at once is still sent once. No job ever holds
a token. A job that has succeeded is removed; one that has failed stays, to be seen with procrastinate's own tools.
"""

import asyncio
import contextlib
import hashlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final, LiteralString, TypeVar

import procrastinate
import psycopg
from procrastinate.connector import Notify
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Job
from procrastinate.manager import JobManager
from procrastinate.retry import BaseRetryStrategy, RetryDecision
from procrastinate.schema import SchemaManager
from procrastinate.utils import utcnow
from procrastinate.worker import Worker
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from .bulk import Outcome
from .client import FeishuMailClient
from .errors import ClientClosed, FeishuMailError, LedgerError, OutcomeUnknown
from .model import Draft, OutcomeStatus, Priority, RateLimit

__all__ = ["DraftWorker", "Left", "Queue", "QueueTrouble", "Queued", "Times", "enqueue", "jobs_left", "prepare"]

T = TypeVar("T")

_TASK: Final = "feishu_mail_async.send_draft"
_SCHEMA: Final = 0x6665_6973_6875
"""The advisory lock under which the tables are made."""
_CHUNK: Final = 1000
"""Jobs put into the queue in one transaction."""
_CONNECT: Final = 10
"""Seconds for a connection to come about."""
_SILENT: Final = 15
"""Seconds after which a connection that has gone silent is given up."""
_POOL: Final = 6
"""Connections of a worker for its queue, besides the one that listens."""
_PAUSE: Final = 0.5
"""Seconds between two tries while the database is away."""
_FAREWELL: Final = 10.0
"""Seconds for which a worker that is to end waits for a database that is away."""
_FORGOTTEN: Final = 86_400.0
"""Seconds after which the row of a worker that has died is removed."""

_CONNECTION: Final[dict[str, Any]] = {
    "connect_timeout": _CONNECT,
    "keepalives_idle": _SILENT // 3,
    "keepalives_interval": _SILENT // 3,
    "keepalives_count": 2,
    "tcp_user_timeout": _SILENT * 1000,
    "application_name": "feishu-mail-async",
}


class QueueTrouble(Exception):
    """The queue cannot be used; the sentence says why, and holds no password."""


@dataclass(frozen=True, slots=True)
class Queue:
    """The queue of one app: workers of another one never see its jobs.

    Args:
        base_url: the API's host.
        app: names the app's budget.
    """

    base_url: str
    app: str

    @property
    def name(self) -> str:
        """Its name, short enough for the channel that tells of new jobs."""
        return f"feishu-{_digest(self.base_url, self.app)[:32]}"

    def lock(self, draft: Draft) -> str:
        """What two jobs for the same draft have in common."""
        return _digest(self.base_url, self.app, draft.user, draft.mailbox.casefold(), draft.draft_id)

    def arguments(self, draft: Draft) -> dict[str, Any]:
        """What a job says of its draft."""
        return {
            "base_url": self.base_url,
            "app": self.app,
            "user": draft.user,
            "mailbox": draft.mailbox,
            "draft_id": draft.draft_id,
        }


@dataclass(frozen=True, slots=True)
class Queued:
    """What came of queueing drafts.

    Attributes:
        new: drafts that are in the queue now, and were not before.
        before: drafts that were queued, or with a worker, before.
    """

    new: int
    before: int


@dataclass(frozen=True, slots=True)
class Left:
    """The jobs of a queue that have not ended.

    Attributes:
        queued: that no worker has.
        running: that a worker has: their drafts wait for their turn, or are being sent.
    """

    queued: int = 0
    running: int = 0


@dataclass(frozen=True, slots=True)
class Times:
    """How long a worker waits for what, in seconds.

    Args:
        beat: between two signs of life, and between two looks for jobs of workers that have died.
        dead: without a sign of life, after which a worker counts as dead and others take its jobs.
        poll: between two looks for jobs, if the database does not tell of them at once.
        unknown: until a job is looked at again for whose user this worker has no token.
    """

    beat: float = 5.0
    dead: float = 15.0
    poll: float = 1.0
    unknown: float = 60.0


def _digest(*parts: str | None) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


# -- the database ------------------------------------------------------------------------------------------


def _conninfo(database: str) -> str:
    """The URL as libpq takes it: without the name of a driver, which SQLAlchemy's may have."""
    scheme, colon, rest = database.partition(":")
    return f"{scheme.partition('+')[0]}{colon}{rest}"


@contextlib.asynccontextmanager
async def _connected(database: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """One connection; whatever the database refuses is a QueueTrouble."""
    try:
        async with await psycopg.AsyncConnection.connect(
            _conninfo(database), autocommit=True, **_CONNECTION
        ) as connection:
            yield connection
    except psycopg.OperationalError as error:
        raise QueueTrouble(f"the database cannot be used: {_said(error)}") from None
    except psycopg.ProgrammingError as error:
        # Of a URL that cannot be read psycopg quotes parts, and the password may be among them.
        why = _said(error) if error.sqlstate else "its URL cannot be read"
        raise QueueTrouble(f"the database cannot be used: {why}") from None


def _said(error: BaseException | str) -> str:
    return " ".join(str(error).split())


async def prepare(database: str) -> None:
    """Make the queue's tables, unless they are there. Any number of programs may do it at once.

    Args:
        database: its URL, `postgresql://…`.

    Raises:
        QueueTrouble: the database cannot be used, or has tables of an older procrastinate.
    """
    async with _connected(database) as connection, connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", [_SCHEMA])
        if not await _is_there(connection):
            await connection.execute(SchemaManager.get_schema())
            return
        # The newest of the functions that are used here.
        reply = await connection.execute(
            "SELECT to_regprocedure('procrastinate_fetch_job_v2(character varying[], bigint)') IS NOT NULL"
            " AND to_regprocedure('procrastinate_retry_job_v2(bigint, timestamp with time zone, integer,"
            " character varying, character varying)') IS NOT NULL"
        )
        if await reply.fetchone() != (True,):
            raise QueueTrouble(
                "the database has the tables of an older procrastinate; migrate them, or give an empty database"
            )


async def _is_there(connection: psycopg.AsyncConnection[Any]) -> bool:
    reply = await connection.execute("SELECT to_regclass('procrastinate_jobs') IS NOT NULL")
    return await reply.fetchone() == (True,)


# A job that a worker has may be put back at any time, so a draft with a worker counts as queued, too.
_DEFER: Final = """
SELECT count(*) FROM unnest(procrastinate_defer_jobs_v1(ARRAY(
    SELECT ROW(%(queue)s, %(task)s, 0, NULL, wanted.lock, wanted.args, NULL)::procrastinate_job_to_defer_v1
    FROM unnest(%(locks)s::text[], %(args)s::jsonb[]) WITH ORDINALITY AS wanted (lock, args, place)
    WHERE NOT EXISTS (
        SELECT FROM procrastinate_jobs AS job
        WHERE job.queueing_lock = wanted.lock AND job.status IN ('todo', 'doing')
    )
    ORDER BY wanted.place
)))
"""


async def enqueue(database: str, queue: Queue, drafts: Iterable[Draft]) -> Queued:
    """Put drafts into the queue, each once, users taking turns.

    Args:
        database: its URL, `postgresql://…`; `prepare` has been run on it.
        queue: which one.
        drafts: in any order. What is queued already, or with a worker, stays as it is.

    Raises:
        QueueTrouble: the database cannot be used. Doing it again is safe.
    """
    wanted = {queue.lock(draft): draft for draft in drafts}
    turns = _in_turn(list(wanted.items()))
    new = 0
    async with _connected(database) as connection:
        for start in range(0, len(turns), _CHUNK):
            chunk = turns[start : start + _CHUNK]
            async with connection.transaction():
                # Two that queue the same draft at the same moment must not both find that it is not there.
                await connection.execute(
                    "SELECT pg_advisory_xact_lock(hashtextextended(%s, %s))", [queue.name, _SCHEMA]
                )
                reply = await connection.execute(
                    _DEFER,
                    {
                        "queue": queue.name,
                        "task": _TASK,
                        "locks": [lock for lock, _ in chunk],
                        "args": [Jsonb(queue.arguments(draft)) for _, draft in chunk],
                    },
                )
                new += (await reply.fetchone() or (0,))[0]
    return Queued(new, len(turns) - new)


def _in_turn(items: Sequence[tuple[str, Draft]]) -> list[tuple[str, Draft]]:
    """One of each user, then the next of each: the many drafts of one do not stand in front of the others'."""
    by_user: dict[str | None, list[tuple[str, Draft]]] = {}
    for item in items:
        by_user.setdefault(item[1].user, []).append(item)
    return [item for turn in zip_longest(*by_user.values()) for item in turn if item is not None]


async def jobs_left(database: str) -> dict[Queue, Left]:
    """The queues in which there is something to do, and how much; a database without a queue has none.

    Raises:
        QueueTrouble: the database cannot be used.
    """
    async with _connected(database) as connection:
        if not await _is_there(connection):
            return {}
        reply = await connection.execute(
            "SELECT args->>'base_url', args->>'app', count(*) FILTER (WHERE status = 'todo'),"
            " count(*) FILTER (WHERE status = 'doing') FROM procrastinate_jobs"
            " WHERE task_name = %s AND status IN ('todo', 'doing') GROUP BY 1, 2 ORDER BY 1, 2",
            [_TASK],
        )
        return {Queue(base_url, app): Left(todo, doing) async for base_url, app, todo, doing in reply}


# -- procrastinate, with patience --------------------------------------------------------------------------


class _Connector(procrastinate.PsycopgConnector):
    """Waits while the database is away, however long that takes.

    Args:
        database: its URL.
        tell: called with False when the database goes away, and with True when it is back.
    """

    def __init__(self, database: str, tell: Callable[[bool], None]) -> None:
        super().__init__(
            pool_factory=_make_pool,
            conninfo=_conninfo(database),
            kwargs=_CONNECTION,
            configure=_configure,
            min_size=1,
            max_size=_POOL,
            timeout=_CONNECT,
            # Each further try of the pool's own waits twice as long; a request makes it begin anew.
            reconnect_timeout=2.0,
        )
        self._tell = tell
        self._there = True
        self._until: float | None = None

    @property
    def away(self) -> bool:
        """Whether the database was not reachable when it was last asked."""
        return not self._there

    @property
    def given_up(self) -> bool:
        """Whether nobody waits for the database any more."""
        return self._until is not None and _now() >= self._until

    def give_up(self, seconds: float) -> None:
        """Wait for the database so long from now and no longer."""
        self._until = _now() + seconds

    async def execute_query_async(self, query: LiteralString, **arguments: Any) -> None:
        await self._patiently(lambda: super(_Connector, self).execute_query_async(query, **arguments))

    async def execute_query_one_async(self, query: LiteralString, **arguments: Any) -> dict[str, Any]:
        return await self._patiently(lambda: super(_Connector, self).execute_query_one_async(query, **arguments))

    async def execute_query_all_async(self, query: LiteralString, **arguments: Any) -> list[dict[str, Any]]:
        return await self._patiently(lambda: super(_Connector, self).execute_query_all_async(query, **arguments))

    async def listen_notify(self, on_notification: Notify, channels: Iterable[str]) -> None:
        while True:
            with contextlib.suppress(ConnectorException):
                await super().listen_notify(on_notification=on_notification, channels=channels)
            await asyncio.sleep(_PAUSE)  # meanwhile jobs are found by looking for them

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        while True:
            if self.given_up and self.away:
                raise ConnectorException
            try:
                answer = await ask()
            except ConnectorException as error:
                if not _will_pass(error) or self.given_up:
                    raise
                # That there was no connection to be had may also mean that all are in use.
                if self._there and not isinstance(error.__cause__, PoolTimeout):
                    self._there = False
                    self._tell(False)
                await asyncio.sleep(_PAUSE)
            else:
                if not self._there:
                    self._there = True
                    self._tell(True)
                return answer


async def _configure(connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.set_autocommit(True)


def _make_pool(**arguments: Any) -> AsyncConnectionPool[Any]:
    # What is lost with a connection is asked for again, so none is tried out before each use.
    return AsyncConnectionPool(**arguments | {"check": None})


def _will_pass(error: ConnectorException) -> bool:
    # A worker that slept for a day has lost its row; the next sign of life brings it back.
    return isinstance(error.__cause__, psycopg.OperationalError | psycopg.errors.ForeignKeyViolation)


class _Jobs(JobManager):
    """The jobs, where what another worker has done with one in the meantime stands."""

    def __init__(self, connector: _Connector) -> None:
        super().__init__(connector)
        self._connector = connector

    async def prune_stalled_workers(self, seconds_since_heartbeat: float) -> list[int]:  # noqa: ARG002
        """Leave the dead to `DraftWorker`, which does not count the time when the database itself was away."""
        return []

    async def finish_job_by_id_async(
        self, job_id: int, status: procrastinate.jobs.Status, delete_job: bool
    ) -> None:
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
        # The database's clock decides when a job is due; ours may go differently.
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
        """A job that was taken from us is no longer ours to end; one that we cannot end others will rescue."""
        try:
            yield
        except ConnectorException as error:
            gone = isinstance(error.__cause__, psycopg.errors.RaiseException)
            if not gone and not self._connector.given_up:
                raise


class _PutBack(Exception):
    """The job goes back into the queue.

    Args:
        seconds: until it is due.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__(f"put back for {seconds:.1f} s")
        self.seconds = seconds


class _Failed(Exception):
    """The job is done and its draft was not sent; the ledger knows why."""


class _Retry(BaseRetryStrategy):
    """What is put back is tried again, and nothing else: the client has tried as often as is worth it."""

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:  # noqa: ARG002
        if not isinstance(exception, _PutBack):
            return None
        return RetryDecision(retry_in={"milliseconds": round(1000 * exception.seconds)})


def _now() -> float:
    return asyncio.get_running_loop().time()


# -- the worker --------------------------------------------------------------------------------------------

_BEAT: Final = """
INSERT INTO procrastinate_workers (id, last_heartbeat) OVERRIDING SYSTEM VALUE VALUES (%(worker)s, now())
ON CONFLICT (id) DO UPDATE SET last_heartbeat = now()
"""
"""A sign of life, also of a worker that was taken for dead."""

_RESCUE: Final = """
SELECT stalled.id, procrastinate_retry_job_v2(stalled.id, now(), NULL, NULL, NULL) FROM (
    SELECT job.id FROM procrastinate_jobs AS job
    LEFT JOIN procrastinate_workers AS worker ON worker.id = job.worker_id
    WHERE job.status = 'doing' AND job.queue_name = %(queue)s
        AND (worker.id IS NULL OR worker.last_heartbeat < now() - make_interval(secs => %(dead)s))
        AND pg_postmaster_start_time() < now() - make_interval(secs => %(dead)s)
        AND NOT EXISTS (
            SELECT FROM procrastinate_jobs AS other
            WHERE other.queueing_lock = job.queueing_lock AND other.status = 'todo'
        )
    FOR UPDATE OF job SKIP LOCKED
) AS stalled
"""
"""Puts the jobs of dead workers back, each once, however many look for them. Nobody counts as dead before the
database has been up long enough to hear of him."""


class _Line:
    """When the jobs of a user that were put back are due: one after another, as fast as the limit allows.

    Args:
        limit: the app's.
    """

    def __init__(self, limit: RateLimit) -> None:
        self._pace = limit.per / limit.calls
        self._ends: dict[str | None, float] = {}

    def wait(self, user: str | None, now: float) -> float:
        """Seconds until one more job of this user is due."""
        self._ends[user] = max(self._ends.get(user, now), now) + self._pace
        return self._ends[user] - now + random.uniform(0.0, self._pace)


class DraftWorker:
    """Takes jobs out of a queue and sends their drafts, until it is stopped.

    Args:
        database: its URL, `postgresql://…`; `prepare` has been run on it.
        queue: which one.
        client: sends the drafts; it keeps its permits and locks in the same ledger as that of other workers.
        user_of: gives the user whose token sends the drafts of a user, or raises ValueError: there is no token.
        limit: the app's limit.
        at_once: jobs taken at once.
        times: how long it waits for what.
        tell: called with each outcome.
        note: called with what a person should know.
    """

    def __init__(
        self,
        database: str,
        queue: Queue,
        client: FeishuMailClient,
        *,
        user_of: Callable[[str | None], str | None],
        limit: RateLimit,
        at_once: int,
        times: Times,
        tell: Callable[[Outcome], None],
        note: Callable[[str], None],
    ) -> None:
        self._queue = queue
        self._client = client
        self._user_of = user_of
        self._most = limit.calls
        self._line = _Line(limit)
        self._times = times
        self._tell = tell
        self._note = note
        self._stopping = False
        self._halted = False
        self._trouble: BaseException | None = None
        self._ends: set[asyncio.Task[None]] = set()
        self._taken: Counter[str | None] = Counter()
        self._unknown: set[str | None] = set()
        self._held: set[int] = set()
        self._strays: set[int] = set()
        self._connector = _Connector(database, self._database)
        app = procrastinate.App(connector=self._connector)
        app.job_manager = _Jobs(self._connector)
        app.task(name=_TASK, retry=_Retry(), pass_context=True)(self._work)
        self._app = app
        self._worker = Worker(
            app,
            queues=[queue.name],
            name=None,
            concurrency=at_once,
            fetch_job_polling_interval=times.poll,
            delete_jobs="successful",
            install_signal_handlers=False,
        )

    async def run(self, *, until_empty: bool = False) -> None:
        """Work until `stop`. The client is open, and is closed afterwards by whoever opened it.

        Args:
            until_empty: end as soon as there is no job left, with any worker, that this one could do.

        Raises:
            QueueTrouble: the database cannot be used.
        """
        try:
            async with self._app.open_async():
                await self._run(until_empty=until_empty)
        except psycopg.OperationalError as error:
            raise QueueTrouble(f"the database cannot be used: {_said(error)}") from None

    def stop(self, *, at_once: bool = False) -> None:
        """Take no more jobs, put back those whose drafts wait, and finish the calls under way.

        Args:
            at_once: break off the calls under way, too.
        """
        self._stopping = True
        self._halt()
        self._connector.give_up(_PAUSE if at_once else _FAREWELL)
        self._ends.add(asyncio.ensure_future(self._leave(at_once=at_once)))

    async def _run(self, *, until_empty: bool) -> None:
        # First, so that what a worker left behind when it was killed, this one perhaps, need not wait.
        await self._rescue()
        tasks = [asyncio.create_task(self._tend(), name="feishu-mail-tend")]
        if until_empty:
            tasks.append(asyncio.create_task(self._watch(), name="feishu-mail-watch"))
        for task in tasks:
            task.add_done_callback(self._beside_ended)
        try:
            if not self._halted:
                await self._worker.run()  # type: ignore[no-untyped-call]
        except ConnectorException:
            # It gave up waiting for a database that is away: others will rescue what it had.
            if not self._connector.given_up:
                raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, *self._ends, return_exceptions=True)
        if self._trouble is not None or not self._halted:
            raise QueueTrouble(f"the queue cannot be used: {_said(self._trouble or 'it ended of itself')}")

    async def _leave(self, *, at_once: bool) -> None:
        """Close the client: calls under way are finished, unless the database that records them stays away."""
        closing = asyncio.ensure_future(self._client.close(0.0 if at_once else None))
        while not closing.done():
            await asyncio.wait([closing], timeout=_PAUSE)
            if self._connector.given_up and self._connector.away:
                await self._client.close(0.0)
        await closing

    def _beside_ended(self, task: asyncio.Task[None]) -> None:
        """Without its signs of life a worker must not go on."""
        if not task.cancelled() and task.exception() is not None and not self._connector.given_up:
            self._trouble = task.exception()
            self.stop()

    def _halt(self) -> None:
        self._halted = True
        self._worker.stop()  # type: ignore[no-untyped-call]  # procrastinate says nothing of its type

    def _database(self, there: bool) -> None:
        self._note(
            "the database is reachable again"
            if there
            else "the database is not reachable: waiting until it is, and no drafts are lost"
        )

    # -- one job -----------------------------------------------------------------------------------------

    async def _work(
        self,
        context: procrastinate.JobContext,
        /,
        *,
        user: str | None,
        mailbox: str,
        draft_id: str,
        **_: str,
    ) -> None:
        """Send one draft. What it raises says whether the job is put back, or has failed."""
        job_id = context.job.id
        assert job_id is not None
        self._held.add(job_id)
        try:
            outcome = await self._outcome(user, mailbox, draft_id)
        finally:
            self._held.discard(job_id)
        self._tell(outcome)
        if outcome.error is not None:
            raise _Failed

    async def _outcome(self, user: str | None, mailbox: str, draft_id: str) -> Outcome:
        if self._stopping:
            raise _PutBack
        try:
            draft = Draft(draft_id, mailbox, self._user_of(user))
        except ValueError as error:
            if user not in self._unknown:
                self._unknown.add(user)
                self._note(f"the drafts of {_name(user)} are left to other workers: {error}")
            raise _PutBack(self._times.unknown) from None
        if self._taken[draft.user] >= self._most:
            raise _PutBack(self._line.wait(draft.user, _now()))
        self._taken[draft.user] += 1
        try:
            result = await self._client.send_draft(draft, priority=Priority.BULK)
        except FeishuMailError as error:
            last = error.__cause__ if isinstance(error, OutcomeUnknown) else error
            if isinstance(last, ClientClosed):  # by our own stopping: others go on with it
                raise _PutBack from None
            if isinstance(last, LedgerError):
                self._note(f"draft {draft_id} is put back: {_said(last)}")
                raise _PutBack(self._times.beat) from None
            return Outcome(draft, error.status, None, error)
        except Exception as error:
            self._note(
                f"draft {draft_id} is put back for {self._times.unknown:g} s: "
                f"{type(error).__name__}: {_said(error)}"
            )
            raise _PutBack(self._times.unknown) from error
        finally:
            self._taken[draft.user] -= 1
        status = OutcomeStatus.ALREADY_SENT if result.already_sent else OutcomeStatus.SENT
        return Outcome(draft, status, result, None)

    # -- what goes on beside -----------------------------------------------------------------------------

    async def _tend(self) -> None:
        """Give signs of life, and see to the jobs that nobody works on."""
        while True:
            await asyncio.sleep(self._times.beat)
            worker = self._worker.worker_id
            if worker is not None:
                await self._connector.execute_query_async(_BEAT, worker=worker)
                await self._find_strays(worker)
            if not self._stopping:
                await self._rescue()

    async def _rescue(self) -> None:
        """Put back the jobs of workers that have died."""
        with contextlib.suppress(procrastinate.exceptions.UniqueViolation):  # queued again just now
            rescued = await self._connector.execute_query_all_async(
                _RESCUE, queue=self._queue.name, dead=self._times.dead
            )
            if rescued:
                number = "1 draft" if len(rescued) == 1 else f"{len(rescued)} drafts"
                self._note(f"put back {number} of a worker that has died")
        await self._connector.execute_query_async(
            "DELETE FROM procrastinate_workers WHERE last_heartbeat < now() - make_interval(secs => %(old)s)",
            old=_FORGOTTEN,
        )

    async def _find_strays(self, worker: int) -> None:
        """Put back the jobs that count as ours and never came: the reply was lost with its connection."""
        rows = await self._connector.execute_query_all_async(
            "SELECT id FROM procrastinate_jobs WHERE worker_id = %(worker)s AND status = 'doing'", worker=worker
        )
        strays = {row["id"] for row in rows} - self._held
        for job_id in strays & self._strays:  # twice in a row: it is not merely on its way to us
            await self._app.job_manager.retry_job_by_id_async(job_id, utcnow())
        self._strays = strays

    async def _watch(self) -> None:
        """Stop as soon as there is no job left that we could do."""
        while not self._stopping:
            await asyncio.sleep(self._times.poll)
            users = await self._connector.execute_query_all_async(
                "SELECT DISTINCT args->>'user' AS name FROM procrastinate_jobs"
                " WHERE queue_name = %(queue)s AND status IN ('todo', 'doing')",
                queue=self._queue.name,
            )
            if not any(self._knows(user["name"]) for user in users):
                self._halt()
                return

    def _knows(self, user: str | None) -> bool:
        try:
            self._user_of(user)
        except ValueError:
            return False
        return True


def _name(user: str | None) -> str:
    return "no named user" if user is None else f"user {user!r}"
