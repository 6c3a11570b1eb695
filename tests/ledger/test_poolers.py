"""PostgreSQL behind poolers, on several hosts, and with refusals of every kind: what is said, and how soon."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from feishu_mail_async import Draft, LedgerError, OutcomeStatus, RateLimit
from feishu_mail_async.fleet import Queue, Queued, QueueTrouble, enqueue, jobs_left, prepare
from feishu_mail_async.ledger import open_ledger
from feishu_mail_async.ledger.sql import SqlLedger
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.canary import holds
from tests.helpers.ledgers import client_of, ledger_on, nothing_held, until
from tests.helpers.poolers import run_pooler
from tests.helpers.postgres import DATABASE_PASSWORD, PostgresServer, read_only

USERS = [f"user{n}" for n in range(3)]
QUICK = RateLimit(calls=100_000, per=0.3, spacing=0, margin=0, grace=0.1)


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(users=USERS, latency=0, calls=100_000) as one:
        yield one


async def send_some(sandbox: Sandbox, ledger: SqlLedger) -> None:
    """Send some drafts: each goes out once, and nothing is held afterwards."""
    drafts = [Draft(one, user=user) for user in USERS for one in sandbox.add_drafts(user, 8)]
    async with client_of(sandbox, ledger, rate_limit=QUICK, attempt_timeout=2.0) as client:
        assert {one.status async for one in client.send_drafts(drafts)} == {OutcomeStatus.SENT}
    assert sandbox.ledger.sent == {one.draft_id: 1 for one in drafts}
    await nothing_held(ledger)


def through(url: str, server: PostgresServer, port: int) -> str:
    return url.replace(f":{server.port}/", f":{port}/")


async def said(url: str, patience: float = 1000.0) -> LedgerError:
    """What a ledger there ends with; at once, unless its patience is short."""
    ledger = ledger_on(url, patience=patience)
    with pytest.raises(LedgerError) as caught:
        await asyncio.wait_for(ledger.apps(), 60)
    await ledger.close()
    assert not holds(caught.value, DATABASE_PASSWORD)
    return caught.value


# --- poolers ----------------------------------------------------------------------------------------------


async def test_a_pooler_in_transaction_mode(
    postgres_url: str, postgres_server: PostgresServer, sandbox: Sandbox
) -> None:
    """Each transaction has another session: nothing that a turn needs is left in the last one."""
    async with run_pooler(postgres_server.port) as pooler:
        url = through(postgres_url, postgres_server, pooler.port)
        ledger = ledger_on(url)
        await send_some(sandbox, ledger)
        await ledger.close()
        queue, drafts = Queue("https://x", "app"), [Draft(f"d{n}", user="alice") for n in range(2100)]
        await prepare(url)
        assert await enqueue(url, queue, drafts) == Queued(2100, 0)
        assert (await jobs_left(url))[queue].queued == 2100


async def test_a_transaction_is_bounded_and_leaves_nothing_in_its_session(postgres_url: str) -> None:
    """A host that vanishes must not keep the app's row; whoever has the session next has his own settings."""
    names = ["lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"]

    async def read(connection: AsyncConnection) -> tuple[int, list[str], int]:
        values = [(await connection.execute(sa.text(f"SHOW {name}"))).scalar_one() for name in names]
        prepared = (await connection.execute(sa.text("SELECT count(*) FROM pg_prepared_statements"))).scalar_one()
        return (await connection.execute(sa.text("SELECT pg_backend_pid()"))).scalar_one(), values, prepared

    async def leave(connection: AsyncConnection) -> list[str]:
        await connection.exec_driver_sql("COMMIT")
        return [(await connection.execute(sa.text(f"SHOW {name}"))).scalar_one() for name in names]

    ledger = ledger_on(postgres_url)
    for _ in range(8):  # often enough for a driver that prepares what comes again
        _, values, prepared = await ledger.database.transact(read)
        assert values == ["10s", "15s", "10s"]
        assert prepared == 0
    assert await ledger.database.transact(leave) == ["0", "0", "0"]
    await ledger.close()


# --- refusals ---------------------------------------------------------------------------------------------

REFUSALS = [
    ("08P01", "unsupported startup parameter: options", "the pooler takes no such setting: leave it out"),
    ("08P01", "unsupported startup parameter in options: work_mem", "the pooler takes no such setting"),
    ("08P01", "no such database: mail", "there is no such database: create it"),
    ("3D000", 'database "mail" does not exist', "there is no such database: create it"),
    ("3D000", '数据库 "mail" 不存在', "there is no such database: create it"),
    ("28P01", 'password authentication failed for user "u"', "does not let this user in: check the name"),
    ("28P01", '用户 "u" Password 认证失败', "does not let this user in: check the name"),
    ("08P01", "SASL authentication failed", "does not let this user in: check the name"),
    (
        "28000",
        'no pg_hba.conf entry for host "1.2.3.4", user "u", database "d", no encryption',
        "does not let this",
    ),
    ("28000", "connection requires a valid client certificate", "cannot be made secure: check sslmode"),
    ("22023", 'invalid value for parameter "search_path": "x"', "a setting in the URL is refused: correct it"),
]


@pytest.mark.parametrize(("state", "words", "advice"), REFUSALS)
async def test_who_is_not_let_in_is_told_why_at_once(state: str, words: str, advice: str) -> None:
    async with run_pooler(1, refuses=(state, words)) as pooler:
        url = f"postgresql://u:{DATABASE_PASSWORD}@127.0.0.1:{pooler.port}/mail"
        error = await said(url)
        assert advice in str(error)
        assert f"({words})" in str(error)
        assert str(error).count("\n") == 0
        with pytest.raises(QueueTrouble) as caught:
            await prepare(url)
        assert words in str(caught.value)
        assert advice.partition(": ")[2] in str(caught.value)


async def test_what_may_pass_is_told_at_once_and_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    words = "no more connections allowed (max_client_conn)"
    async with run_pooler(1, refuses=("08P01", words)) as pooler:
        error = await said(f"postgresql://u@127.0.0.1:{pooler.port}/mail", patience=0.5)
    assert "has no connection left: raise its max_connections" in str(error)
    [warning] = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert f"the database has no connection left ({words}); no calls are made until" in warning


async def test_the_words_of_a_server_cannot_steer_or_tell_secrets() -> None:
    words = f"password {DATABASE_PASSWORD}\x1b[2J\nauthentication failed \u202e" + "x" * 5000
    async with run_pooler(1, refuses=("28P01", words)) as pooler:
        error = await said(f"postgresql://u:{DATABASE_PASSWORD}@127.0.0.1:{pooler.port}/mail")
    assert "does not let this user in" in str(error)
    assert str(error).isprintable()
    assert len(str(error)) < 600


async def test_ssl_that_the_server_does_not_have(postgres_url: str) -> None:
    error = await said(f"{postgres_url}?sslmode=require")
    assert "the server takes no SSL, and the URL asks for it: switch it on there" in str(error)
    assert "(server does not support SSL, but SSL was required)" in str(error)


@pytest.mark.parametrize("query", ["what=1", "sslmode=maybe", "options=-cno_such_thing%3D1"])
async def test_a_setting_that_nobody_knows(postgres_url: str, query: str) -> None:
    assert "a setting in the URL is refused: correct it" in str(await said(f"{postgres_url}?{query}"))


# --- several hosts ----------------------------------------------------------------------------------------


async def test_several_hosts(postgres_url: str, postgres_server: PostgresServer, sandbox: Sandbox) -> None:
    """The first one that answers, as libpq takes them."""
    several = postgres_url.replace("@127.0.0.1", "@127.0.0.1:1,127.0.0.1")
    opened = open_ledger(several)
    assert isinstance(opened, SqlLedger)
    name = postgres_url.rpartition("/")[2]
    assert opened.where == f"postgresql://postgres:***@127.0.0.1:1,127.0.0.1:{postgres_server.port}/{name}"
    assert DATABASE_PASSWORD not in repr(opened)
    await send_some(sandbox, opened)
    await opened.close()
    await prepare(several)


async def test_several_hosts_of_which_none_can_be_written_to_for_a_while(
    postgres_url: str, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    url = postgres_url.replace("@127.0.0.1", "@127.0.0.1:1,127.0.0.1") + "?target_session_attrs=read-write"
    ledger = ledger_on(url)
    with read_only(postgres_url):
        sending = asyncio.create_task(send_some(sandbox, ledger))
        await until(lambda: "the database can only be read" in caplog.text)
        assert not sending.done()
    await sending
    await ledger.close()


@pytest.mark.parametrize("hosts", ["a:1,b:x", "a,b:0", "a:1,[::1", "a:1,b@c:1"])
def test_hosts_that_cannot_be_read(hosts: str) -> None:
    with pytest.raises(ValueError, match="the URL cannot be read") as caught:
        open_ledger(f"postgresql://u:{DATABASE_PASSWORD}@{hosts}/mail")
    assert DATABASE_PASSWORD not in str(caught.value)
