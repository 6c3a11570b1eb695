"""Databases in other encodings than UTF-8: either every text comes back as it was, or the way out is told."""

from collections.abc import Iterator

import pytest

from feishu_mail_async import Draft, LedgerError, RateLimit
from feishu_mail_async.fleet import Left, Queue, Queued, QueueTrouble, enqueue, jobs_left, prepare
from feishu_mail_async.ledger import schema
from tests.helpers.canary import holds
from tests.helpers.ledgers import APP, BASE, Process, ask, ledger_on, rows
from tests.helpers.postgres import DATABASE_PASSWORD, PostgresServer

TEXTS = ["草稿一", "naïve", "📮", "ascii"]


@pytest.fixture
def made(postgres_server: PostgresServer) -> Iterator[list[str]]:
    """Names of databases that are dropped afterwards."""
    names: list[str] = []
    yield names
    for name in names:
        postgres_server.drop(name)


def database(server: PostgresServer, made: list[str], encoding: str) -> str:
    made.append(f"in_{encoding.lower()}")
    server._execute(f"CREATE DATABASE {made[-1]} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'")
    return server.url(made[-1])


async def keeps_every_text(url: str) -> None:
    ledger = ledger_on(url)
    process = Process(ledger, ledger.store(BASE, f"{APP} 飞书", RateLimit(calls=100, per=60, spacing=0)))
    for text in TEXTS:
        await process.send(ask(text, user=text, mailbox=f"{text}@example.com"))
    assert await ledger.apps() == [(BASE, f"{APP} 飞书")]
    assert [row["draft_id"] for row in await rows(ledger, schema.draft)] == TEXTS
    await ledger.close()
    queue = Queue(BASE, "飞书")
    await prepare(url)
    assert await enqueue(url, queue, [Draft(text, user=text) for text in TEXTS]) == Queued(len(TEXTS), 0)
    assert await jobs_left(url) == {queue: Left(len(TEXTS), 0)}


@pytest.mark.parametrize("setting", ["", "?client_encoding=latin1"])
@pytest.mark.parametrize("encoding", ["SQL_ASCII", "UTF8"])
async def test_an_encoding_that_holds_every_text(
    postgres_server: PostgresServer,
    made: list[str],
    encoding: str,
    setting: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "EUC_CN")
    await keeps_every_text(database(postgres_server, made, encoding) + setting)


@pytest.mark.parametrize("encoding", ["LATIN1", "EUC_CN", "WIN1252"])
async def test_an_encoding_that_does_not(postgres_server: PostgresServer, made: list[str], encoding: str) -> None:
    """It is told before anything is done, and what is advised helps."""
    url = database(postgres_server, made, encoding)
    ledger = ledger_on(url, patience=1000.0)
    with pytest.raises(LedgerError, match=f"its encoding is {encoding}, .*: make one .*UTF8") as caught:
        await ledger.apps()
    await ledger.close()
    assert not holds(caught.value, DATABASE_PASSWORD)
    with pytest.raises(QueueTrouble, match=f"its encoding is {encoding}, .*: make one .*UTF8"):
        await prepare(url)
    advised = str(caught.value).rpartition(": ")[2].removeprefix("make one with ")
    assert advised.startswith("CREATE DATABASE mail ")
    made.append("advised")
    postgres_server._execute(advised.replace(" mail ", " advised "))
    await keeps_every_text(postgres_server.url("advised"))
