"""What breaks under a ledger: disks, locks, files, servers, answers; and clients that end in the midst of it.

Whatever it is: no call is made without a record of the intent, nothing is sent twice, nothing is held for good,
each draft has one outcome, and the person reads what happened and what to do.
"""

# ruff: noqa: ASYNC240 - a look at a file of the test's own may block its loop

import asyncio
import contextlib
import gc
import logging
import sqlite3
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from feishu_mail_async import (
    ApiError,
    BulkRun,
    ClientClosed,
    Draft,
    FeishuMailClient,
    LedgerError,
    NotSent,
    OutcomeStatus,
    OutcomeUnknown,
    Priority,
    RateLimit,
    RetryPolicy,
    SendResult,
)
from feishu_mail_async.ledger import DraftState, schema
from feishu_mail_async.ledger.database import Database
from feishu_mail_async.ledger.sql import SqlLedger
from feishu_mail_async.sandbox import Arrival, Fault, Sandbox
from tests.helpers.ledgers import (
    APP,
    HOMES,
    Process,
    apps_of,
    ask,
    client_of,
    home_url,
    ledger_on,
    nothing_held,
    rows,
    until,
)
from tests.helpers.postgres import DATABASE_PASSWORD, PostgresServer
from tests.helpers.support import FREE, ONCE, TOKEN, always, cancel_all, holds, http, raw_server

USERS = [f"user{n}" for n in range(5)]
QUICK = RateLimit(calls=100_000, per=0.3, spacing=0, margin=0, grace=0.1)
"""No limit that a test would notice, and nothing that is kept for long."""


@pytest.fixture(params=HOMES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return home_url(request, tmp_path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mail.db"


@pytest.fixture(autouse=True)
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feishu_mail_async.ledger.sqlstore.SLACK", 0.5)
    monkeypatch.setattr("feishu_mail_async.client._LEAST_WRITING", 0.2)


def workers() -> list[threading.Thread]:
    """The threads in which SQLite works."""
    return [
        one
        for one in threading.enumerate()
        if "aiosqlite" in repr(getattr(one, "_target", "")) or ("_connection_worker" in one.name)
    ]


@pytest.fixture(autouse=True)
async def nothing_left() -> AsyncIterator[None]:
    """No test leaves a thread or a task behind."""
    before = asyncio.all_tasks()
    yield
    await until(lambda: not workers())
    await until(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()})


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(users=USERS, latency=0, calls=100_000) as one:
        yield one


def open_client(sandbox: Sandbox, ledger: Any, **settings: Any) -> FeishuMailClient:
    return client_of(sandbox, ledger, **({"rate_limit": QUICK, "attempt_timeout": 2.0} | settings))


def drafts_of(sandbox: Sandbox, number: int) -> list[Draft]:
    """That many drafts of every user."""
    return [Draft(one, user=user) for user in USERS for one in sandbox.add_drafts(user, number)]


async def outcomes(run: BulkRun) -> dict[str, OutcomeStatus]:
    found: dict[str, OutcomeStatus] = {}
    async for one in run:
        assert one.draft.draft_id not in found
        found[one.draft.draft_id] = one.status
    return found


@contextlib.contextmanager
def witnessed(sandbox: Sandbox, url: str) -> Iterator[list[str]]:
    """Looks into the tables whenever a call arrives, and notes the draft if its intent is not on record."""
    without: list[str] = []
    question = "SELECT state FROM feishu_mail_draft WHERE draft_id = "
    if url.startswith("sqlite"):
        connection: Any = sqlite3.connect(url.removeprefix("sqlite:///"), timeout=30, isolation_level=None)
        question += "?"
    else:
        import psycopg  # noqa: PLC0415

        connection = psycopg.connect(url, autocommit=True)
        question += "%s"

    def look(arrival: Arrival) -> Fault | None:
        found = connection.execute(question, (arrival.draft_id,)).fetchall()
        if [state for (state,) in found] != ["in_flight"]:
            without.append(f"{arrival.draft_id} {found}")
        return None

    sandbox.on_call = look
    try:
        yield without
    finally:
        sandbox.on_call = None
        connection.close()


def sent_once(sandbox: Sandbox, drafts: list[Draft]) -> None:
    assert sandbox.ledger.sent == {one.draft_id: 1 for one in drafts}


# --- the disk ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(pages: int) -> Iterator[None]:
    """SQLite's own bound: what would need more room gets SQLITE_FULL, as from a disk without any."""

    def bound(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA max_page_count={pages}")
        cursor.close()

    sa.event.listen(sa.pool.Pool, "connect", bound)
    try:
        yield
    finally:
        sa.event.remove(sa.pool.Pool, "connect", bound)


async def test_a_full_disk(file: Path, sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    url = f"sqlite:///{file}"
    drafts = drafts_of(sandbox, 8)
    async with open_client(sandbox, url) as client:
        await client.records(drafts[:1])
    with contextlib.closing(sqlite3.connect(file)) as look:
        [pages] = look.execute("PRAGMA page_count").fetchone()
    ledger = ledger_on(url, patience=0.5)  # there may be room again in a moment
    with small_disk(pages + 1), witnessed(sandbox, url) as without:
        async with open_client(sandbox, ledger) as client:
            first = await outcomes(client.send_drafts(drafts))
            with pytest.raises(LedgerError, match="disk is full: free some space"):
                await client.send_draft(next(one for one in drafts if first[one.draft_id] == "skipped"))
        await ledger.close()
    assert without == []
    assert first.keys() == {one.draft_id for one in drafts}
    arrived = {one.draft_id for one in sandbox.ledger.sends}
    for draft_id, status in first.items():
        assert (status in {"sent", "already_sent"}) == (draft_id in arrived)
    assert set(first.values()) == {"sent", "skipped"}
    async with open_client(sandbox, url) as client:  # there is room again
        second = await outcomes(client.send_drafts(drafts))
    assert set(second.values()) <= {"sent", "already_sent"}
    sent_once(sandbox, drafts)
    assert not [one for one in caplog.records if "Traceback" in one.getMessage()]


# --- a file that is locked --------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def locked(file: Path) -> AsyncIterator[None]:
    """Another program is in the midst of a transaction."""
    other = sqlite3.connect(file, isolation_level=None, timeout=30, check_same_thread=False)
    with contextlib.closing(other):
        # Not in the loop's thread: a transaction under way needs the loop for its end.
        await asyncio.to_thread(other.execute, "BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")


async def test_a_file_that_is_locked_for_a_while(file: Path, sandbox: Sandbox) -> None:
    drafts = drafts_of(sandbox, 4)
    async with open_client(sandbox, f"sqlite:///{file}") as client:
        await client.records(drafts[:1])
        with witnessed(sandbox, f"sqlite:///{file}") as without:
            async with client.send_drafts(drafts) as run:
                await anext(run)
                async with locked(file):
                    before = len(sandbox.ledger.sends)
                    await asyncio.sleep(1.0)
                    assert len(sandbox.ledger.sends) <= before + len(USERS)
                rest = await outcomes(run)
        assert set(rest.values()) == {"sent"}
        assert without == []
        assert client.snapshot().in_flight == 0
    sent_once(sandbox, drafts)
    ledger = ledger_on(f"sqlite:///{file}")
    await nothing_held(ledger)
    await ledger.close()


async def test_a_file_that_stays_locked(file: Path, sandbox: Sandbox) -> None:
    drafts = drafts_of(sandbox, 2)
    url = f"sqlite:///{file}"
    await apps_of(url)
    ledger = ledger_on(url, patience=0.5)
    async with open_client(sandbox, ledger) as client:
        async with locked(file):
            with pytest.raises(
                OutcomeUnknown, match="another program keeps it locked: end that, then run it again"
            ) as it:
                await client.send_draft(drafts[0])
            assert it.value.draft == drafts[0]
            found = await outcomes(client.send_drafts(drafts))
            assert set(found.values()) == {"unknown"}
            assert sandbox.ledger.sends == []
        assert set((await outcomes(client.send_drafts(drafts))).values()) == {"sent"}
    await nothing_held(ledger)
    await ledger.close()
    sent_once(sandbox, drafts)


async def test_a_success_is_told_though_it_cannot_be_written(
    file: Path, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """And the rest goes on once it can: the lease of the call that was not written lapses."""
    url = f"sqlite:///{file}"
    ledger = ledger_on(url, patience=0.3)
    one, two = drafts_of(sandbox, 1)[:2]
    sandbox.script(one.draft_id, Fault.delay(0.4))
    limit = RateLimit(calls=1, per=0.3, spacing=0, margin=0, grace=0.1)
    async with open_client(sandbox, ledger, rate_limit=limit, attempt_timeout=1.0) as client:
        first = asyncio.create_task(client.send_draft(one))
        second = asyncio.create_task(client.send_draft(two))
        await until(lambda: client.snapshot().in_flight == 1)
        await until(lambda: client.snapshot().waiting[Priority.NORMAL] == 1)
        async with locked(file):
            result = await first
        assert not result.already_sent
        assert (await asyncio.wait_for(second, 30)).attempts == 1
        assert "not on record" in caplog.text
        await until(lambda: client.snapshot().waiting[Priority.NORMAL] == 0)
        assert (await client.send_draft(one)).already_sent  # asked for again: the server knows
    await nothing_held(ledger)
    await ledger.close()
    sent_once(sandbox, [one, two])


# --- files that are none ----------------------------------------------------------------------------------


async def refused_at_once(sandbox: Sandbox, url: str, says: str, **settings: Any) -> LedgerError:
    """A single draft and a run are told the same, without waiting, and no call is made.

    No record was read, so nobody claims that the draft was not sent by an earlier call.
    """
    ledger = ledger_on(url, **({"patience": 1000.0} | settings))
    async with open_client(sandbox, ledger) as client:
        with pytest.raises(OutcomeUnknown, match=says) as caught:
            await asyncio.wait_for(client.send_draft(Draft("d1", user=USERS[0])), 60)
        found = await asyncio.wait_for(outcomes(client.send_drafts([Draft("d2", user=USERS[0])])), 60)
    await ledger.close()
    assert found == {"d2": OutcomeStatus.UNKNOWN}
    assert sandbox.ledger.sends == []
    assert not holds(caught.value, DATABASE_PASSWORD)
    assert caught.value.draft == Draft("d1", user=USERS[0])
    cause = caught.value.__cause__
    assert isinstance(cause, LedgerError)
    assert str(cause).startswith("ledger: ")
    return cause


async def test_a_file_of_garbage(file: Path, sandbox: Sandbox) -> None:
    file.write_bytes(b"This is no database, by any means.\n" * 1000)
    file.chmod(0o600)
    await refused_at_once(sandbox, f"sqlite:///{file}", "no SQLite file, or a damaged one: give another path")
    assert file.read_bytes().startswith(b"This is no database")


async def test_a_file_that_was_cut_off(file: Path, sandbox: Sandbox) -> None:
    async with open_client(sandbox, f"sqlite:///{file}") as client:
        await outcomes(client.send_drafts(drafts_of(sandbox, 4)))
    sandbox.ledger.sends.clear()
    with file.open("r+b") as damaged:
        damaged.truncate(file.stat().st_size // 2)
    await refused_at_once(sandbox, f"sqlite:///{file}", "damaged")


async def test_an_empty_file_is_a_new_ledger(file: Path, sandbox: Sandbox) -> None:
    file.touch(0o600)
    drafts = drafts_of(sandbox, 1)
    async with open_client(sandbox, f"sqlite:///{file}") as client:
        assert set((await outcomes(client.send_drafts(drafts))).values()) == {"sent"}


async def test_paths_that_cannot_be_opened(tmp_path: Path, sandbox: Sandbox) -> None:
    (tmp_path / "plain").touch()
    for path in (tmp_path / "no" / "mail.db", tmp_path, tmp_path / "plain" / "mail.db"):
        await refused_at_once(sandbox, f"sqlite:///{path}", "it cannot be opened .*: check its path")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["plain"]


async def test_a_file_that_cannot_be_written(file: Path, sandbox: Sandbox) -> None:
    """SQLite's word for it, as it comes where rights count (for root they do not)."""
    await apps_of(f"sqlite:///{file}")

    def only_read(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA query_only=ON")
        cursor.close()

    sa.event.listen(sa.pool.Pool, "connect", only_read)
    try:
        await refused_at_once(sandbox, f"sqlite:///{file}", "it cannot be written: check the rights of the file")
    finally:
        sa.event.remove(sa.pool.Pool, "connect", only_read)


async def test_tables_that_are_not_what_they_should_be(url: str, sandbox: Sandbox) -> None:
    """Somebody meddled with them: it is said, and nothing waits for ever."""
    ledger = ledger_on(url)

    async def meddle(connection: AsyncConnection) -> None:
        await connection.execute(sa.delete(schema.schema))

    await ledger.database.transact(meddle)
    await ledger.close()
    await refused_at_once(sandbox, url, ": ledger: ")


# --- a server that goes away ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shaky() -> Iterator[PostgresServer]:
    """A server that tests may stop: each leaves it running."""
    with tempfile.TemporaryDirectory(prefix="feishu-pg-", ignore_cleanup_errors=True) as directory:
        server = PostgresServer(Path(directory))
        try:
            yield server
        finally:
            server.stop()


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
    strikes = [row["consecutive_refusals"] for row in await rows(direct, schema.lock) if row["kind"] == "user"]
    assert strikes == [1]  # of the other user nothing is to be known
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


# --- clients that end, callers that give up ---------------------------------------------------------------


class Holding(Database):
    """A database on which one transaction can be held up: before it begins, or after it is committed.

    Attributes:
        held: set while one is held up.
        release: set it to let that one go on.
    """

    def __init__(self, url: str, **settings: Any) -> None:
        super().__init__(url, **settings)
        self._wanted: tuple[int, str] | None = None
        self.held = asyncio.Event()
        self.release = asyncio.Event()

    def hold_up(self, number: int, place: str) -> None:
        """Hold up one of the next transactions, `before` or `after` it."""
        self._wanted = number, place

    async def _transact(self, *arguments: Any) -> Any:
        number, place = self._wanted or (0, "")
        self._wanted = None if number <= 1 else (number - 1, place)
        if number == 1 and place == "before":
            await self._held_up()
        done = await super()._transact(*arguments)
        if number == 1 and place == "after":
            await self._held_up()
        return done

    async def _held_up(self) -> None:
        self.held.set()
        await self.release.wait()


class Held(SqlLedger):
    """A ledger on such a database."""

    database: Holding

    def __init__(self, url: str, **settings: Any) -> None:
        super().__init__(Holding(url, **settings))


PHASES = [(number, place) for number in (1, 2, 3) for place in ("before", "after")]
"""Of the look-up, the take and the settlement."""


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.soak)])
async def held(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Held]:
    ledger = Held(home_url(request, tmp_path))
    await ledger.apps()
    yield ledger
    ledger.database.release.set()
    await ledger.close()


async def all_is_well(ledger: SqlLedger, sandbox: Sandbox, draft: Draft) -> None:
    """Nothing is held for good, and the draft goes out, once."""
    async with open_client(sandbox, ledger) as client:
        result = await asyncio.wait_for(client.send_draft(draft), 60)
    assert len(sandbox.ledger.calls(draft.draft_id)) <= 1 + result.already_sent
    sent_once(sandbox, [draft])
    await nothing_held(ledger)


@pytest.mark.parametrize("phase", PHASES, ids=str)
async def test_a_caller_that_is_cancelled(held: Held, phase: tuple[int, str], sandbox: Sandbox) -> None:
    [draft] = drafts_of(sandbox, 1)[:1]
    async with open_client(sandbox, held) as client:
        held.database.hold_up(*phase)
        task = asyncio.create_task(client.send_draft(draft))
        await held.database.held.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 30)
        held.database.release.set()
    called = len(sandbox.ledger.calls(draft.draft_id))
    assert called == (1 if phase[0] == 3 else 0)
    await nothing_held(held)
    await all_is_well(held, sandbox, draft)
    assert len(sandbox.ledger.calls(draft.draft_id)) == 1


@pytest.mark.parametrize("phase", PHASES, ids=str)
async def test_a_deadline_that_passes(held: Held, phase: tuple[int, str], sandbox: Sandbox) -> None:
    [draft] = drafts_of(sandbox, 1)[:1]
    async with open_client(sandbox, held) as client:
        held.database.hold_up(*phase)
        with pytest.raises(NotSent if phase[0] == 2 else OutcomeUnknown):
            await asyncio.wait_for(client.send_draft(draft, deadline=0.4), 30)
        held.database.release.set()
    assert len(sandbox.ledger.calls(draft.draft_id)) == (1 if phase[0] == 3 else 0)
    await all_is_well(held, sandbox, draft)


@pytest.mark.parametrize("phase", PHASES, ids=str)
async def test_a_client_that_is_closed_at_once(held: Held, phase: tuple[int, str], sandbox: Sandbox) -> None:
    """Though the database does not answer, it closes; a call whose end is known is told."""
    [draft] = drafts_of(sandbox, 1)[:1]
    client = open_client(sandbox, held)
    held.database.hold_up(*phase)
    task = asyncio.create_task(client.send_draft(draft))
    await held.database.held.wait()
    await asyncio.wait_for(client.close(timeout=0), 30)
    if phase[0] == 3:
        assert isinstance(await asyncio.wait_for(task, 30), SendResult)
    elif phase[0] == 2:
        with pytest.raises(ClientClosed):
            await asyncio.wait_for(task, 30)
    else:
        held.database.release.set()
        with pytest.raises(ClientClosed):
            await asyncio.wait_for(task, 30)
    await asyncio.wait_for(held.close(), 30)
    await all_is_well(held, sandbox, draft)


async def test_what_has_ended_is_on_record_though_the_client_closes_at_once(
    held: Held, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a moment for it; longer if the database is slow than if it is not there."""
    monkeypatch.setattr("feishu_mail_async.client._LEAST_WRITING", 30.0)
    [draft] = drafts_of(sandbox, 1)[:1]
    client = open_client(sandbox, held)
    held.database.hold_up(3, "before")
    task = asyncio.create_task(client.send_draft(draft))
    await held.database.held.wait()
    closing = asyncio.create_task(client.close(timeout=0))
    assert not (await asyncio.wait_for(task, 30)).already_sent
    held.database.release.set()
    await asyncio.wait_for(closing, 30)
    [row] = await rows(held, schema.draft)
    assert (row["state"], row["in_doubt"]) == ("sent", False)
    await nothing_held(held)


# A connection that is cancelled while it opens is left to the garbage collector by aiosqlite.
@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
@pytest.mark.parametrize("passes", [1, 5, 40])
async def test_all_tasks_are_cancelled(passes: int, url: str, sandbox: Sandbox) -> None:
    """The ledger's own too; what was in flight is free again when its lease lapses."""
    drafts = drafts_of(sandbox, 2)
    async with open_client(sandbox, url) as client:
        first = asyncio.ensure_future(anext(client.send_drafts(drafts[5:])))
        callers = [*(asyncio.ensure_future(client.send_draft(draft)) for draft in drafts[:5]), first]
        await cancel_all(callers, passes)
        await asyncio.wait_for(asyncio.gather(*map(client.send_draft, drafts)), 60)
    assert sandbox.ledger.sent == {draft.draft_id: 1 for draft in drafts}
    assert sandbox.ledger.conflicts == 0
    gc.collect()


@pytest.mark.parametrize("phase", PHASES, ids=str)
async def test_a_run_that_is_left(held: Held, phase: tuple[int, str], sandbox: Sandbox) -> None:
    [draft] = drafts_of(sandbox, 1)[:1]
    async with open_client(sandbox, held) as client:
        held.database.hold_up(*phase)
        run = client.send_drafts([draft])
        async with run:
            await held.database.held.wait()
            asyncio.get_running_loop().call_later(0.1, held.database.release.set)
    await nothing_held(held)
    await all_is_well(held, sandbox, draft)


async def test_a_call_in_flight_whose_caller_goes(url: str, sandbox: Sandbox) -> None:
    [draft] = drafts_of(sandbox, 1)[:1]
    sandbox.script(draft.draft_id, Fault.delay(0, 1))
    async with open_client(sandbox, url) as client:
        task = asyncio.create_task(client.send_draft(draft))
        await until(lambda: sandbox.ledger.calls(draft.draft_id))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    async with open_client(sandbox, url) as client:
        [record] = await client.records([draft])
        assert record is not None
        assert (record.state, record.in_doubt) == (DraftState.SENT, False)
    sent_once(sandbox, [draft])


async def test_a_call_in_flight_that_is_broken_off(url: str, sandbox: Sandbox) -> None:
    [draft] = drafts_of(sandbox, 1)[:1]
    sandbox.script(draft.draft_id, Fault.hang_after())
    client = open_client(sandbox, url)
    task = asyncio.create_task(client.send_draft(draft))
    await until(lambda: sandbox.ledger.calls(draft.draft_id))
    await client.close(timeout=0)
    with pytest.raises(OutcomeUnknown):
        await task
    async with open_client(sandbox, url) as client:
        [record] = await client.records([draft])
        assert record is not None
        assert (record.state, record.in_doubt, record.calls) == (DraftState.UNKNOWN, True, 1)
        assert (await client.send_draft(draft)).already_sent


async def test_a_slow_settlement_is_waited_for(held: Held, sandbox: Sandbox) -> None:
    [draft] = drafts_of(sandbox, 1)[:1]
    async with open_client(sandbox, held) as client:
        held.database.hold_up(3, "before")
        task = asyncio.create_task(client.send_draft(draft))
        await held.database.held.wait()
        await asyncio.sleep(0.3)
        assert not task.done()
        held.database.release.set()
        assert not (await task).already_sent


async def test_a_token_that_is_refused_as_the_client_closes(held: Held, sandbox: Sandbox) -> None:
    """A source that takes its time does not keep a client from closing."""
    [draft] = drafts_of(sandbox, 1)[:1]
    asked = 0

    async def source(_: str | None) -> str:
        nonlocal asked
        asked += 1
        if asked > 1:
            await asyncio.get_running_loop().create_future()
        return "u-of-yesterday"

    client = open_client(sandbox, held, tokens=source)
    held.database.hold_up(3, "before")
    task = asyncio.create_task(client.send_draft(draft))
    await held.database.held.wait()
    closing = asyncio.create_task(client.close(timeout=0))
    await asyncio.sleep(0.05)
    held.database.release.set()
    await asyncio.wait_for(closing, 30)
    with pytest.raises(NotSent):
        await task


async def test_two_clients_share_a_ledger_and_the_last_one_closes_it(file: Path, sandbox: Sandbox) -> None:
    url = f"sqlite:///{file}"
    one, two, three = drafts_of(sandbox, 1)[:3]
    first = open_client(sandbox, url)
    second = open_client(sandbox, url)
    await asyncio.gather(first.send_draft(one), second.send_draft(one))
    assert len(workers()) == 1
    assert len(sandbox.ledger.sends) == 1
    await first.close()
    await second.send_draft(two)
    assert len(workers()) == 1
    await second.close()
    await until(lambda: not workers())
    third = open_client(sandbox, url)  # and opens again
    await third.send_draft(three)
    await third.close()
    sent_once(sandbox, [one, two, three])


async def test_a_ledger_of_the_callers_is_left_open(file: Path, sandbox: Sandbox) -> None:
    ledger = ledger_on(f"sqlite:///{file}")
    for draft in drafts_of(sandbox, 1)[:2]:
        async with open_client(sandbox, ledger) as client:
            await client.send_draft(draft)
        assert len(workers()) == 1
    await ledger.close()
    await ledger.close()
    await until(lambda: not workers())


async def test_closing_one_client_does_not_wait_for_another(url: str, sandbox: Sandbox) -> None:
    drafts = drafts_of(sandbox, 8)
    ledger = ledger_on(url)
    async with open_client(sandbox, ledger) as busy:
        idle = open_client(sandbox, ledger)
        await idle.send_draft(drafts[0])
        async with busy.send_drafts(drafts[1:]) as run:
            await anext(run)
            rest = asyncio.create_task(outcomes(run))
            await asyncio.wait_for(idle.close(), 60)
            left = len(drafts) - sandbox.ledger.sent.total()
            await rest
    await ledger.close()
    assert left > 8
    sent_once(sandbox, drafts)


def test_one_ledger_in_several_loops(url: str) -> None:
    """Closed at the end of the one, it serves the next."""
    ledger = ledger_on(url)
    sent: list[SendResult] = []

    async def one_loop() -> None:
        async with Sandbox(users=USERS, latency=0, port=0) as sandbox:
            draft = sandbox.add_draft(USERS[0])
            looks = [ledger.apps() for _ in range(4)]
            async with open_client(sandbox, ledger) as client, open_client(sandbox, ledger, app="other") as second:
                await asyncio.gather(*looks, second.records([Draft("x", user=USERS[0])]))
                sent.append(await client.send_draft(Draft(draft, user=USERS[0])))
        await ledger.close()

    async def in_thread() -> None:
        await asyncio.to_thread(asyncio.run, one_loop())

    asyncio.run(in_thread())
    asyncio.run(in_thread())
    assert [one.already_sent for one in sent] == [False, False]


async def test_many_that_are_stopped_at_once_do_not_hold_the_others_up(url: str, sandbox: Sandbox) -> None:
    """What became of thousands is written in pieces: in between, other processes have their turn."""
    ledger, other = ledger_on(url), ledger_on(url)
    drafts = [Draft(f"d{n}", user=USERS[0]) for n in range(1500)]
    there = Process(other, other.store(sandbox.base_url, APP, RateLimit(calls=1, per=600)))
    sizes: list[int] = []

    def begun(_: sa.Connection) -> None:
        sizes.append(0)

    def count(_: Any, __: Any, statement: str, parameters: Any, ___: Any, many: bool) -> None:
        if sizes and statement.startswith("INSERT INTO feishu_mail_draft"):
            sizes[-1] += len(parameters) if many else 1

    async with open_client(sandbox, ledger, rate_limit=RateLimit(calls=1, per=600)) as client:
        await there.send(ask())
        async with client.send_drafts(drafts) as run:
            await until(lambda: client.snapshot().waiting[Priority.BULK] == len(drafts), 120)
            sa.event.listen(sa.Engine, "begin", begun)
            sa.event.listen(sa.Engine, "before_cursor_execute", count)
            try:
                run.stop()
                found = await outcomes(run)
                await client.close()
            finally:
                sa.event.remove(sa.Engine, "begin", begun)
                sa.event.remove(sa.Engine, "before_cursor_execute", count)
    assert set(found.values()) == {"skipped"}
    assert len(await rows(other, schema.draft)) == len(drafts) + 1
    assert 0 < max(sizes) <= 500
    await ledger.close()
    await other.close()
