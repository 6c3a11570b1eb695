"""Servers that go away, refuse or lose an answer under a ledger."""

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from feishu_mail_async import ApiError, Draft, FeishuMailClient, OutcomeUnknown, RetryPolicy
from feishu_mail_async.ledger import schema
from feishu_mail_async.ledger.database import Database
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.canary import TOKEN, holds
from tests.helpers.ledger_clients import QUICK, USERS, drafts_of, open_client, outcomes, refused_at_once, sent_once
from tests.helpers.ledgers import APP, ledger_on, nothing_held, rows
from tests.helpers.postgres import DATABASE_PASSWORD, PostgresServer, run_server
from tests.helpers.raw_server import always, http, raw_server
from tests.helpers.scenes import FREE, ONCE

# --- a server that goes away ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shaky() -> Iterator[PostgresServer]:
    """A server that tests may stop: each leaves it running."""
    with run_server() as server:
        yield server


@pytest.fixture
def shaky_url(shaky: PostgresServer) -> Iterator[str]:
    shaky.start()
    name = shaky.create()
    yield shaky.url(name)
    shaky.start()
    shaky.drop(name)


@pytest.mark.parametrize(
    "crash", [True, pytest.param(False, marks=pytest.mark.soak)], ids=lambda crash: "crash" if crash else "restart"
)
async def test_a_server_that_goes_away_and_returns(
    shaky: PostgresServer, shaky_url: str, crash: bool, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    drafts = drafts_of(sandbox, 4)
    caplog.set_level(logging.WARNING, "feishu_mail_async.ledger")
    async with open_client(sandbox, shaky_url) as client:
        async with client.send_drafts(drafts) as run:
            found = {(first := await anext(run)).draft.draft_id: first.status}
            await asyncio.to_thread(shaky.stop, crash=crash)
            away = len(sandbox.ledger.sends)
            await asyncio.sleep(1.0)
            assert len(sandbox.ledger.sends) == away  # no call without a record
            await asyncio.to_thread(shaky.start)
            found |= await outcomes(run)
        assert set(found.values()) == {"sent"}
        assert len(found) == len(drafts)
    sent_once(sandbox, drafts)
    assert [one.getMessage() for one in caplog.records if "does not answer" in one.getMessage()] != []
    said = [one.levelname for one in caplog.records if one.name == "feishu_mail_async.ledger"]
    assert said == ["WARNING", "WARNING"]  # gone, and back
    assert DATABASE_PASSWORD not in caplog.text
    ledger = ledger_on(shaky_url)
    await nothing_held(ledger)
    await ledger.close()


async def test_a_server_that_never_comes_back(
    shaky: PostgresServer, shaky_url: str, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    drafts = drafts_of(sandbox, 4)
    ledger = ledger_on(shaky_url, patience=0.3)
    sandbox.script(drafts[-1].draft_id, Fault.delay(0.5))
    async with open_client(sandbox, ledger) as client:
        async with client.send_drafts(drafts) as run:
            found = {(first := await anext(run)).draft.draft_id: first.status}
            await asyncio.to_thread(shaky.stop, crash=True)
            found |= await outcomes(run)
        with pytest.raises(OutcomeUnknown, match="does not answer: check that it runs") as caught:
            await client.send_draft(drafts[0])
        assert not holds(caught.value, DATABASE_PASSWORD)
    await ledger.close()
    assert len(found) == len(drafts)
    arrived = {one.draft_id for one in sandbox.ledger.sends}
    for draft_id, status in found.items():
        assert (status == "sent") == (draft_id in arrived)
    assert "sent" in found.values()
    assert set(found.values()) <= {"sent", "skipped", "unknown"}
    assert DATABASE_PASSWORD not in caplog.text
    await asyncio.to_thread(shaky.start)
    async with open_client(sandbox, shaky_url) as client:
        assert set((await outcomes(client.send_drafts(drafts))).values()) <= {"sent", "already_sent"}
    sent_once(sandbox, drafts)


async def test_a_server_that_was_never_there_tells_all_at_once(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of many does not wait for it anew for every few of them."""
    ledger = ledger_on(f"postgresql://u:{DATABASE_PASSWORD}@127.0.0.1:1/mail", patience=0.3)
    tries = 0

    async def counted(*arguments: Any) -> Any:
        nonlocal tries
        tries += 1
        return await Database._transact(ledger.database, *arguments)

    monkeypatch.setattr(ledger.database, "_transact", counted)
    async with open_client(sandbox, ledger) as client:
        with pytest.raises(OutcomeUnknown, match="does not answer: check that it runs"):
            await client.send_draft(Draft("d", user=USERS[0]))
        single, tries = tries, 0
        found = await outcomes(client.send_drafts([Draft(f"d{n}", user=USERS[0]) for n in range(1000)]))
    await ledger.close()
    assert set(found.values()) == {"unknown"}
    assert len(found) == 1000
    assert tries <= 4 * single, (tries, single)


async def test_a_database_that_does_not_exist(shaky: PostgresServer, sandbox: Sandbox) -> None:
    shaky.start()
    await refused_at_once(sandbox, shaky.url("nosuch"), "no such database: create it")


async def test_a_password_that_is_refused(shaky: PostgresServer, sandbox: Sandbox, tmp_path: Path) -> None:
    shaky.start()
    rules = shaky._data / "pg_hba.conf"
    before = rules.read_text()
    shaky._execute("DROP ROLE IF EXISTS mailer")
    shaky._execute("CREATE ROLE mailer LOGIN PASSWORD 'right'")
    rules.write_text(
        f"host all mailer 127.0.0.1/32 scram-sha-256\nhost all stranger 127.0.0.1/32 reject\n{before}"
    )
    shaky._execute("SELECT pg_reload_conf()")
    try:
        where = f"127.0.0.1:{shaky.port}/postgres"
        for who in (f"mailer:{DATABASE_PASSWORD}", "mailer", f"stranger:{DATABASE_PASSWORD}"):
            await refused_at_once(sandbox, f"postgresql://{who}@{where}", "does not let this user in")
    finally:
        rules.write_text(before)
        shaky._execute("SELECT pg_reload_conf()")


async def test_rights_that_are_missing(shaky: PostgresServer, sandbox: Sandbox) -> None:
    shaky.start()
    shaky._execute("DROP ROLE IF EXISTS reader")
    shaky._execute("CREATE ROLE reader LOGIN")
    name = shaky.create()
    url = f"postgresql://reader:{DATABASE_PASSWORD}@127.0.0.1:{shaky.port}/{name}"
    await refused_at_once(sandbox, url, "the user may not use the tables")
    shaky.drop(name)


# --- an answer that is lost -------------------------------------------------------------------------------


class Proxy:
    """Stands between client and database; drops the answer to a COMMIT, and with it the connection.

    Attributes:
        countdown: COMMITs until the one whose answer is lost; 0: none is.
        lost: answers that were lost.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._tasks: set[asyncio.Task[Any]] = set()
        self.countdown = 0
        self.lost = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there, out = await asyncio.open_connection("127.0.0.1", self._port)
        swallow = False

        async def up() -> None:
            nonlocal swallow
            while data := await reader.read(65536):
                if b"COMMIT" in data and self.countdown:
                    self.countdown -= 1
                    swallow = self.countdown == 0
                out.write(data)

        async def down() -> None:
            while data := await there.read(65536):
                if swallow:
                    self.lost += 1
                    return
                writer.write(data)

        both = {asyncio.create_task(up()), asyncio.create_task(down())}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in both:
                one.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            for end in (writer, out):
                end.close()
            for end in (writer, out):
                with contextlib.suppress(OSError):
                    await end.wait_closed()
            self._tasks.discard(task)

    async def end(self) -> None:
        if self._tasks:  # its clients have closed their connections, which it has yet to hear of
            await asyncio.wait(self._tasks, timeout=5)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.mark.parametrize("which", range(1, 8))
async def test_a_commit_whose_answer_is_lost(
    postgres_url: str, postgres_server: PostgresServer, which: int, sandbox: Sandbox
) -> None:
    """It was committed, and nobody heard: doing it once more changes nothing."""
    proxy = Proxy(postgres_server.port)
    listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    one, two = drafts_of(sandbox, 1)[:2]
    broken = one if which % 2 else two
    sandbox.script(broken.draft_id, Fault.code("ConcurrentWrite"), Fault.code("TooManyRecipients"))
    ledger = ledger_on(postgres_url.replace(str(postgres_server.port), str(port)))
    direct = ledger_on(postgres_url)
    await ledger.apps()
    proxy.countdown = which
    policy = RetryPolicy(initial=0.05, maximum=0.05)
    async with open_client(sandbox, ledger, retry=policy) as client:
        found = await outcomes(client.send_drafts([one, two]))
    assert proxy.lost == 1
    assert found == {one.draft_id: "sent", two.draft_id: "sent"} | {broken.draft_id: "failed"}
    await nothing_held(direct)
    records = {row["draft_id"]: (row["state"], row["calls"]) for row in await rows(direct, schema.draft)}
    assert records == {one.draft_id: ("sent", 1), two.draft_id: ("sent", 1)} | {broken.draft_id: ("failed", 2)}
    refusals = [row["consecutive_refusals"] for row in await rows(direct, schema.lock) if row["kind"] == "user"]
    assert refusals == [1]  # of the other user nothing is to be known
    assert len(sandbox.ledger.sends) == 3
    await ledger.close()
    await direct.close()
    listener.close()
    await proxy.end()


# --- texts of the server's --------------------------------------------------------------------------------


async def test_a_code_that_no_database_takes(url: str) -> None:
    """More than 64 bits: the refusal is told all the same, and the next draft of the user goes."""
    answers = always(http(400, b'{"code":36893488147419103232,"msg":"new"}', ("Content-Type", "application/json")))
    ledger = ledger_on(url, patience=5.0)
    async with raw_server(answers) as server:
        settings: dict[str, Any] = {"app": APP, "base_url": server.base_url, "rate_limit": QUICK, "retry": ONCE}
        async with FeishuMailClient("u-1", ledger=ledger, **settings) as client:
            for draft in ("d1", "d2"):
                with pytest.raises(ApiError, match="36893488147419103232"):
                    await asyncio.wait_for(client.send_draft(draft), 60)
            records = await client.records(["d1", "d2"])
    assert [None if one is None else one.state for one in records] == ["failed", "failed"]
    await nothing_held(ledger)
    await ledger.close()


@pytest.mark.parametrize("bad", ["\\ud800", "\\u0000"])
async def test_texts_that_no_database_takes(url: str, bad: str) -> None:
    """A lone surrogate, a NUL: JSON can hold them. The mail went out, and the next one goes too."""
    sent = f'{{"code":0,"msg":"success","data":{{"message_id":"m{bad}","thread_id":"{bad}"}}}}'.encode()
    refusal = f'{{"code":1236003,"msg":"too many {bad}","data":{{}}}}'.encode()
    closing = (
        f'{{"code":0,"msg":"","data":{{"automation_send_disable":{{"reason":"x{bad}","reference":"{bad}"}}}}}}'
    ).encode()
    kind = ("Content-Type", "application/json")
    answers = always(http(200, sent, kind), http(400, refusal, kind), http(200, closing, kind))
    ledger = ledger_on(url, patience=5.0)
    async with raw_server(answers) as server:
        settings: dict[str, Any] = {"app": APP, "base_url": server.base_url, "rate_limit": QUICK, "retry": ONCE}
        async with FeishuMailClient("u-1", ledger=ledger, **settings) as client:
            result = await asyncio.wait_for(client.send_draft("d1"), 60)
            assert str(result.message_id).startswith("m")
            for draft in ("d2", "d3", "d4"):
                with pytest.raises(Exception, match=r"1236003|automated|closed") as caught:
                    await asyncio.wait_for(client.send_draft(draft), 60)
                assert not isinstance(caught.value, OutcomeUnknown)
            records = await client.records(["d1", "d2", "d3", "d4"])
    assert [None if one is None else one.state for one in records] == ["sent", "failed", "failed", "skipped"]
    await nothing_held(ledger)
    await ledger.close()


# --- secrets ----------------------------------------------------------------------------------------------


async def test_no_secret_is_told(
    shaky: PostgresServer, shaky_url: str, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the database's password nor a token is in any error, log line or repr, however much is logged."""
    caplog.set_level(logging.DEBUG)
    for name in ("sqlalchemy", "psycopg", "aiosqlite", "feishu_mail_async"):
        caplog.set_level(logging.DEBUG, name)
    sandbox.renew_token(USERS[0], token=TOKEN)
    drafts = drafts_of(sandbox, 1)
    ledger = ledger_on(shaky_url, patience=0.5)
    async with open_client(sandbox, ledger) as client:
        await client.send_draft(drafts[0])
        await asyncio.to_thread(shaky.stop, crash=True)
        with pytest.raises(OutcomeUnknown) as caught:
            await client.send_draft(drafts[1])
        for text in (repr(ledger), repr(client), str(ledger.store("https://x", "y", FREE)), caplog.text):
            assert DATABASE_PASSWORD not in text
            assert TOKEN not in text
    await ledger.close()
    assert not holds(caught.value, DATABASE_PASSWORD)
    assert not holds(caught.value, TOKEN)
    assert "127.0.0.1" in str(caught.value)
