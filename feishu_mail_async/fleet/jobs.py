"""The queue: its jobs, and the functions that put drafts into it and count what is left."""

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
"""The name of the jobs' procrastinate task."""
_SCHEMA: Final = 0x6665_6973_6875
"""The advisory lock under which the tables are created."""
_CHUNK: Final = 1000
"""The number of jobs put into the queue in one transaction."""
_CONNECT: Final = 10
"""The time-out for establishing a connection, in seconds."""
_SILENT: Final = 15
"""The time after which a connection without any answer is given up, in seconds."""

CONNECTION: Final[dict[str, Any]] = {
    "connect_timeout": _CONNECT,
    "keepalives_idle": _SILENT // 3,
    "keepalives_interval": _SILENT // 3,
    "keepalives_count": 2,
    "tcp_user_timeout": _SILENT * 1000,
    "application_name": "feishu-mail-async",
    "client_encoding": "utf8",
    # Behind a pooler in transaction mode the next statement may run in another session, which does not know the
    # prepared statement.
    "prepare_threshold": None,
}


class QueueTrouble(Exception):
    """The queue cannot be used. The message says why, and contains no password."""


@dataclass(frozen=True, slots=True)
class Queue:
    """The queue of one app: workers of another app never see its jobs.

    Args:
        base_url: the API's base URL.
        app: the name of the app's budget.
    """

    base_url: str
    app: str

    @property
    def name(self) -> str:
        """The queue's name, short enough for PostgreSQL's channel that announces new jobs."""
        return f"feishu-{_digest(self.base_url, self.app)[:32]}"

    def lock(self, draft: Draft) -> str:
        """Return the queueing lock of a draft's job: equal for two jobs of the same draft.

        Args:
            draft: the draft; its mailbox is compared without case.
        """
        return _digest(self.base_url, self.app, draft.user, draft.mailbox.casefold(), draft.draft_id)

    def arguments(self, draft: Draft) -> dict[str, Any]:
        """Return the arguments of a draft's job; `read_draft` is the inverse.

        Args:
            draft: the draft.
        """
        return {
            "base_url": self.base_url,
            "app": self.app,
            "user": draft.user,
            "mailbox": draft.mailbox,
            "draft_id": draft.draft_id,
        }


@dataclass(frozen=True, slots=True)
class Queued:
    """The result of `enqueue`.

    Attributes:
        new: the number of drafts added to the queue.
        before: the number of drafts that were in the queue, or with a worker, before.
    """

    new: int
    before: int


@dataclass(frozen=True, slots=True)
class Left:
    """The number of jobs of a queue that have not ended.

    Attributes:
        queued: the jobs that no worker has.
        running: the jobs that a worker has; their drafts wait for a turn, or are being sent.
    """

    queued: int = 0
    running: int = 0


def read_draft(arguments: object) -> Draft:
    """Return the draft of a job.

    Args:
        arguments: the job's arguments, as read from the database, where any program may have put them.

    Raises:
        TypeError: they are not an object, or a value has the wrong type.
        ValueError: a value is missing or invalid.
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
    """Return the URL in libpq's form: without the driver that a URL of SQLAlchemy may name.

    Args:
        database: the database's URL.
    """
    scheme, colon, rest = database.partition(":")
    return f"{scheme.partition('+')[0]}{colon}{rest}"


@contextlib.asynccontextmanager
async def _connected(database: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """Open one connection for the block; every error of the database is raised as QueueTrouble."""
    try:
        async with await psycopg.AsyncConnection.connect(
            conninfo(database), autocommit=True, **CONNECTION
        ) as connection:
            yield connection
    except psycopg.Error as error:
        # For a URL that it cannot parse, psycopg's message quotes parts of it, perhaps the password. `from None`
        # keeps that message out of tracebacks, too.
        unread = isinstance(error, psycopg.ProgrammingError) and error.sqlstate is None
        why = "its URL cannot be read" if unread else f"{said(error)}: {remedy(error)}"
        raise QueueTrouble(f"the database cannot be used: {why}") from None


def said(error: BaseException | str) -> str:
    """Return an error's message in one line.

    Args:
        error: the error, or its text.
    """
    return " ".join(str(error).split())


async def prepare(database: str) -> None:
    """Create the queue's tables unless they exist. Idempotent, and safe for any number of programs at once.

    Args:
        database: the database's URL, `postgresql://…`.

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
        # The newest of procrastinate's functions that are used here: if they exist, the schema is new enough.
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


# procrastinate's own unique index covers `todo` only. A job that a worker has may be put back at any time, and
# would then meet its double, so a draft with a worker counts as queued too.
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
    """Put drafts into the queue, each once, with users taking turns. Idempotent.

    Args:
        database: the database's URL, `postgresql://…`; `prepare` has been run on it.
        queue: the queue.
        drafts: the drafts, in any order. Those already queued, or with a worker, stay unchanged.

    Raises:
        QueueTrouble: the database cannot be used. Repeating the call is safe.
    """
    wanted = {queue.lock(draft): draft for draft in drafts}
    turns = _in_turn(list(wanted.items()))
    new = 0
    async with _connected(database) as connection:
        for start in range(0, len(turns), _CHUNK):
            chunk = turns[start : start + _CHUNK]
            async with connection.transaction():
                # Otherwise two programs that enqueue the same draft at the same moment could both find no job.
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
    # Not escaped: a database with the encoding SQL_ASCII cannot convert an escape to a character.
    return json.dumps(value, ensure_ascii=False)


def _in_turn(items: Sequence[tuple[str, Draft]]) -> list[tuple[str, Draft]]:
    """Interleave the users' drafts, so that one user's many drafts do not delay the others'."""
    by_user: dict[str | None, list[tuple[str, Draft]]] = {}
    for item in items:
        by_user.setdefault(item[1].user, []).append(item)
    return [item for turn in zip_longest(*by_user.values()) for item in turn if item is not None]


async def jobs_left(database: str) -> dict[Queue, Left]:
    """Return the queues with unfinished jobs, and the number of these jobs.

    Args:
        database: the database's URL, `postgresql://…`; without the queue's tables there are no jobs.

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
