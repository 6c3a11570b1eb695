"""The queue: who waits in it, and how drafts get there."""

import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final

import psycopg
from procrastinate.schema import SchemaManager
from psycopg.types.json import Jsonb

from feishu_mail_async.ledger.errors import remedy
from feishu_mail_async.ledger.postgres import check_encoding
from feishu_mail_async.model import Draft

__all__ = [
    "CONNECTION",
    "TASK",
    "Left",
    "Queue",
    "QueueTrouble",
    "Queued",
    "conninfo",
    "enqueue",
    "jobs_left",
    "prepare",
    "read_draft",
    "said",
]

TASK: Final = "feishu_mail_async.send_draft"
"""The name of the jobs' task."""
_SCHEMA: Final = 0x6665_6973_6875
"""The advisory lock under which the tables are made."""
_CHUNK: Final = 1000
"""Jobs put into the queue in one transaction."""
_CONNECT: Final = 10
"""Seconds for a connection to come about."""
_SILENT: Final = 15
"""Seconds after which a connection that has gone silent is given up."""

CONNECTION: Final[dict[str, Any]] = {
    "connect_timeout": _CONNECT,
    "keepalives_idle": _SILENT // 3,
    "keepalives_interval": _SILENT // 3,
    "keepalives_count": 2,
    "tcp_user_timeout": _SILENT * 1000,
    "application_name": "feishu-mail-async",
    "client_encoding": "utf8",
    # Behind a pooler in transaction mode the next statement may have another session.
    "prepare_threshold": None,
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
        """What a job says of its draft, as `read_draft` takes it."""
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


def read_draft(arguments: object) -> Draft:
    """The draft that a job says it is for.

    Raises:
        TypeError, ValueError: it says nothing that could be one.
    """
    if not isinstance(arguments, dict):
        raise TypeError(f"arguments: give an object, not {type(arguments).__name__}")
    for name in ("draft_id", "mailbox", "user"):
        if name not in arguments:
            raise ValueError(f"{name}: it is missing")
    return Draft(arguments["draft_id"], arguments["mailbox"], arguments["user"])


def _digest(*parts: str | None) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def conninfo(database: str) -> str:
    """The URL as libpq takes it: without the name of a driver, which SQLAlchemy's may have."""
    scheme, colon, rest = database.partition(":")
    return f"{scheme.partition('+')[0]}{colon}{rest}"


@contextlib.asynccontextmanager
async def _connected(database: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """One connection; whatever the database refuses is a QueueTrouble."""
    try:
        async with await psycopg.AsyncConnection.connect(
            conninfo(database), autocommit=True, **CONNECTION
        ) as connection:
            yield connection
    except psycopg.Error as error:
        # Of a URL that cannot be read psycopg quotes parts, and the password may be among them.
        unread = isinstance(error, psycopg.ProgrammingError) and error.sqlstate is None
        why = "its URL cannot be read" if unread else f"{said(error)}: {remedy(error)}"
        raise QueueTrouble(f"the database cannot be used: {why}") from None


def said(error: BaseException | str) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())


async def prepare(database: str) -> None:
    """Make the queue's tables, unless they are there. Any number of programs may do it at once.

    Args:
        database: its URL, `postgresql://…`.

    Raises:
        QueueTrouble: the database cannot be used, or has tables of an older procrastinate.
    """
    async with _connected(database) as connection, connection.transaction():
        reply = await connection.execute("SELECT getdatabaseencoding(), pg_advisory_xact_lock(%s)", [_SCHEMA])
        advice = check_encoding((await reply.fetchone() or ("",))[0])
        if advice is not None:
            raise QueueTrouble(f"the database cannot be used: {advice}")
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
                        "task": TASK,
                        "locks": [lock for lock, _ in chunk],
                        "args": [Jsonb(queue.arguments(draft), _dump) for _, draft in chunk],
                    },
                )
                new += (await reply.fetchone() or (0,))[0]
    return Queued(new, len(turns) - new)


def _dump(value: Any) -> str:
    # As the characters they are: a database that takes bytes as they come does not know what an escape stands for.
    return json.dumps(value, ensure_ascii=False)


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
            [TASK],
        )
        return {Queue(base_url, app): Left(todo, doing) async for base_url, app, todo, doing in reply}
