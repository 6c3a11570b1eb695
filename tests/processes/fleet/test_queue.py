"""The queue: what is put into it, once, and who takes turns."""

import asyncio

import psycopg
import pytest

from feishu_mail_async import Draft, RateLimit
from feishu_mail_async.fleet import Left, Queue, Queued, QueueTrouble, enqueue, jobs_left, prepare
from feishu_mail_async.fleet.worker import _Line
from tests.helpers.fleet import some
from tests.helpers.postgres import DATABASE_PASSWORD

BASE = "http://127.0.0.1:9"


async def test_the_tables_are_made_once_however_many_begin_together(postgres_url: str) -> None:
    assert await jobs_left(postgres_url) == {}
    await asyncio.gather(*[prepare(postgres_url) for _ in range(5)])
    await prepare(postgres_url)
    assert await jobs_left(postgres_url) == {}


async def test_a_draft_is_queued_once(postgres_url: str) -> None:
    await prepare(postgres_url)
    queue = Queue(BASE, "one")
    assert await enqueue(postgres_url, queue, some(3)) == Queued(3, 0)
    again = [
        *some(5),
        *some(5),
        Draft("d0", "Team@Example.com", "alice"),
        Draft("d0", "team@example.COM", "alice"),
    ]
    assert await enqueue(postgres_url, queue, again) == Queued(3, 3)
    # Of another user, app or host it is another draft.
    assert await enqueue(postgres_url, queue, some(3, "bob")) == Queued(3, 0)
    assert await enqueue(postgres_url, queue, some(3, None)) == Queued(3, 0)
    assert await enqueue(postgres_url, Queue(BASE, "two"), some(3)) == Queued(3, 0)
    assert await jobs_left(postgres_url) == {queue: Left(12, 0), Queue(BASE, "two"): Left(3, 0)}


async def test_a_draft_that_a_worker_has_is_not_queued_again(postgres_url: str) -> None:
    await prepare(postgres_url)
    queue = Queue(BASE, "one")
    await enqueue(postgres_url, queue, some(2))
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as connection:
        await connection.execute("UPDATE procrastinate_jobs SET status = 'doing' WHERE args->>'draft_id' = 'd0'")
        assert await enqueue(postgres_url, queue, some(3)) == Queued(1, 2)
        await connection.execute("UPDATE procrastinate_jobs SET status = 'failed' WHERE args->>'draft_id' = 'd0'")
        assert await enqueue(postgres_url, queue, some(3)) == Queued(1, 2)


async def test_two_that_queue_the_same_file_at_once(postgres_url: str) -> None:
    await prepare(postgres_url)
    queue = Queue(BASE, "one")
    told = await asyncio.gather(*[enqueue(postgres_url, queue, some(2500)) for _ in range(3)])
    assert sum(queued.new for queued in told) == 2500
    assert await jobs_left(postgres_url) == {queue: Left(2500, 0)}


async def test_the_users_take_turns(postgres_url: str) -> None:
    await prepare(postgres_url)
    drafts = [*some(2000, "alice"), *some(2, "bob"), *some(1, "carol")]
    await enqueue(postgres_url, Queue(BASE, "one"), drafts)
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        reply = await connection.execute("SELECT args->>'user' FROM procrastinate_jobs ORDER BY id")
        users = [user for (user,) in await reply.fetchall()]
    assert users == ["alice", "bob", "carol", "alice", "bob", *["alice"] * 1998]


async def test_a_name_of_any_length_makes_a_queue(postgres_url: str) -> None:
    """The channel that tells of new jobs may have 63 characters."""
    await prepare(postgres_url)
    queue = Queue("https://" + "a" * 200 + ".example.com", "飞书" * 200)
    assert await enqueue(postgres_url, queue, some(1)) == Queued(1, 0)


async def test_tables_of_an_older_procrastinate(postgres_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as connection:
        await connection.execute("CREATE TABLE procrastinate_jobs (id int)")
    with pytest.raises(QueueTrouble, match="older procrastinate"):
        await prepare(postgres_url)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{DATABASE_PASSWORD}@127.0.0.1:1/none",
        f"postgresql://me:{DATABASE_PASSWORD}@127.0.0.1:port/none",
        f"postgresql://me:{DATABASE_PASSWORD}@127.0.0.1:1/none?what={DATABASE_PASSWORD}",
    ],
)
async def test_what_is_said_of_a_database_holds_no_password(url: str) -> None:
    with pytest.raises(QueueTrouble) as caught:
        await prepare(url)
    assert DATABASE_PASSWORD not in str(caught.value)
    assert caught.value.__cause__ is None


def test_those_put_back_are_due_one_after_another() -> None:
    line = _Line(RateLimit(calls=20, per=60))
    waits = [line.wait("alice", 0.0) for _ in range(100)]
    for place, wait in enumerate(waits, 1):
        assert 3 * place <= wait <= 3 * place + 3
    assert line.wait("bob", 0.0) <= 6
    assert line.wait("alice", 1000.0) <= 6
