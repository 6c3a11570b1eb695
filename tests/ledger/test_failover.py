"""A PostgreSQL that changes under a ledger: read-only for a while, another server's connections, what it refuses.

What passes is waited out on new connections: no draft is lost, skipped or sent twice for it. What does not pass
ends with its remedy.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from feishu_mail_async import Draft, LedgerError, OutcomeStatus, OutcomeUnknown, RateLimit
from feishu_mail_async.ledger.database import Database
from feishu_mail_async.ledger.sql import SqlLedger
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.canary import holds
from tests.helpers.ledgers import client_of, ledger_on, nothing_held, until
from tests.helpers.postgres import DATABASE_PASSWORD, read_only

USERS = [f"user{n}" for n in range(5)]
QUICK = RateLimit(calls=100_000, per=0.3, spacing=0, margin=0, grace=0.1)


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(users=USERS, latency=0, calls=100_000) as one:
        yield one


def drafts_of(sandbox: Sandbox, number: int) -> list[Draft]:
    """That many drafts of every user."""
    return [Draft(one, user=user) for user in USERS for one in sandbox.add_drafts(user, number)]


async def send_all(sandbox: Sandbox, ledger: SqlLedger, drafts: list[Draft]) -> set[OutcomeStatus]:
    """Send them all, and close the client."""
    async with client_of(sandbox, ledger, rate_limit=QUICK, attempt_timeout=2.0) as client:
        outcomes = [one async for one in client.send_drafts(drafts)]
    assert sorted(one.draft.draft_id for one in outcomes) == sorted(one.draft_id for one in drafts)
    return {one.status for one in outcomes}


def sent_once(sandbox: Sandbox, drafts: list[Draft]) -> None:
    assert sandbox.ledger.sent == {one.draft_id: 1 for one in drafts}
    assert len(sandbox.ledger.sends) == len(drafts)


@contextlib.contextmanager
def failures() -> Iterator[list[str | None]]:
    """The SQLSTATEs of what fails meanwhile, in all ledgers."""
    seen: list[str | None] = []

    def note(context: sa.engine.ExceptionContext) -> None:
        seen.append(getattr(context.original_exception, "sqlstate", None))

    sa.event.listen(sa.Engine, "handle_error", note)
    try:
        yield seen
    finally:
        sa.event.remove(sa.Engine, "handle_error", note)


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


# --- what passes ------------------------------------------------------------------------------------------


async def test_connections_to_a_server_that_is_the_wrong_one_are_given_up(
    postgres_url: str, sandbox: Sandbox
) -> None:
    """All that are kept lead there, and none of them will ever do; a new one leads to the right one."""
    drafts = drafts_of(sandbox, 4)
    ledger = ledger_on(postgres_url)
    await ledger.apps()
    await ledger.close()
    with read_only(postgres_url):
        await asyncio.gather(*(ledger.apps() for _ in range(4)))
    with failures() as seen:
        assert await send_all(sandbox, ledger, drafts) == {OutcomeStatus.SENT}
    assert set(seen) == {"25006"}
    assert len(seen) <= 2  # not one connection after the other
    sent_once(sandbox, drafts)
    await nothing_held(ledger)
    await ledger.close()


async def test_a_server_that_can_only_be_read_for_a_while(
    postgres_url: str, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "feishu_mail_async.ledger")
    drafts = drafts_of(sandbox, 10)
    ledger = ledger_on(postgres_url)
    await ledger.apps()
    await ledger.close()
    with failures() as seen:
        with read_only(postgres_url):
            sending = asyncio.create_task(send_all(sandbox, ledger, drafts))
            await until(lambda: len(seen) >= 5)
            assert not sending.done()
        assert await sending == {OutcomeStatus.SENT}
    sent_once(sandbox, drafts)
    await nothing_held(ledger)
    await ledger.close()
    said = [one.getMessage() for one in caplog.records if one.name == "feishu_mail_async.ledger"]
    assert len(said) == 2  # gone, and back
    assert "the database can only be read" in said[0]
    assert "it answers again" in said[1]


PASSING = [
    "08006",
    "25006",
    "25P02",
    "25P03",
    "25P04",
    "40001",
    "40P01",
    "53100",
    "53200",
    "53300",
    "55P03",
    "57014",
    "57P01",
    "57P03",
    "58030",
    "XX000",
    "HV00N",
]


@pytest.mark.parametrize("state", PASSING)
async def test_what_passes_is_waited_out(postgres_url: str, state: str, sandbox: Sandbox) -> None:
    """Whatever the server says three times in the midst of it, as a settlement and as the next turn begin."""
    drafts = drafts_of(sandbox, 3)
    ledger = ledger_on(postgres_url)
    await ledger.apps()
    # A sequence counts though the transaction is rolled back.
    execute(
        postgres_url,
        "CREATE SEQUENCE tries",
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$"
        " DECLARE times int := nextval('tries'); BEGIN"
        f" IF times BETWEEN 5 AND 7 THEN RAISE EXCEPTION 'not now' USING ERRCODE = '{state}'; END IF;"
        " RETURN NEW; END $$",
        "CREATE TRIGGER fail BEFORE INSERT OR UPDATE ON feishu_mail_permit FOR EACH ROW EXECUTE FUNCTION fail()",
    )
    with failures() as seen:
        assert await send_all(sandbox, ledger, drafts) == {OutcomeStatus.SENT}
    assert seen == [state] * 3
    sent_once(sandbox, drafts)
    await nothing_held(ledger)
    await ledger.close()


class Stalling(Database):
    """A database whose client stands still in a transaction, once, until the server has ended its session."""

    stalls = 0

    async def now(self, connection: AsyncConnection) -> float:
        if self.stalls == 1:
            await connection.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout = 50"))
            pid = (await connection.execute(sa.text("SELECT pg_backend_pid()"))).scalar_one()
            with psycopg.connect(self._url.render_as_string(hide_password=False), autocommit=True) as look:
                while look.execute("SELECT FROM pg_stat_activity WHERE pid = %s", [pid]).fetchall():
                    time.sleep(0.02)  # noqa: ASYNC251 - nothing else runs in a process that is stopped
        self.stalls -= 1
        return await super().now(connection)


@pytest.mark.parametrize("stalls", [2, 3, 5])
async def test_a_process_that_was_stopped_in_a_transaction(
    postgres_url: str, stalls: int, sandbox: Sandbox
) -> None:
    drafts = drafts_of(sandbox, 3)
    database = Stalling(postgres_url)
    database.stalls = stalls
    ledger = SqlLedger(database)
    with failures() as seen:
        assert await send_all(sandbox, ledger, drafts) == {OutcomeStatus.SENT}
    assert "25P03" in seen
    sent_once(sandbox, drafts)
    await nothing_held(ledger)
    await ledger.close()


async def test_the_time_for_which_a_process_was_stopped_is_not_waiting(
    postgres_url: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has not tried for that long: the server is asked again, though more than the patience has passed."""
    loop = asyncio.get_running_loop()
    real = loop.time
    drafts = drafts_of(sandbox, 1)[:1]

    class Stopped(Stalling):
        async def now(self, connection: AsyncConnection) -> float:
            if self.stalls == 1:
                monkeypatch.setattr(loop, "time", lambda: real() + 1000.0)
            return await super().now(connection)

    database = Stopped(postgres_url)
    database.stalls = 2
    ledger = SqlLedger(database)
    with failures() as seen:
        assert await send_all(sandbox, ledger, drafts) == {OutcomeStatus.SENT}
    assert real() + 1000.0 <= loop.time()
    assert seen != []
    sent_once(sandbox, drafts)
    await ledger.close()


async def test_a_file_that_can_only_be_read_for_a_while(tmp_path: Path, sandbox: Sandbox) -> None:
    """SQLite opens a file that it cannot write, and that connection never will."""
    drafts = drafts_of(sandbox, 2)
    opened: list[Any] = []

    def only_read(connection: Any, _: object) -> None:
        opened.append(connection)
        if len(opened) <= 3:
            cursor = connection.cursor()
            cursor.execute("PRAGMA query_only=ON")
            cursor.close()

    async def spoil(connection: AsyncConnection) -> None:
        await connection.execute(sa.text("PRAGMA query_only=ON"))

    ledger = ledger_on(f"sqlite:///{tmp_path / 'mail.db'}")
    await ledger.apps()
    await ledger.database.transact(spoil)
    sa.event.listen(sa.pool.Pool, "connect", only_read)
    try:
        assert await send_all(sandbox, ledger, drafts) == {OutcomeStatus.SENT}
    finally:
        sa.event.remove(sa.pool.Pool, "connect", only_read)
    assert len(opened) == 4
    sent_once(sandbox, drafts)
    await nothing_held(ledger)
    await ledger.close()


# --- what does not pass -----------------------------------------------------------------------------------


async def test_a_server_that_can_only_be_read_for_good(postgres_url: str, sandbox: Sandbox) -> None:
    drafts = drafts_of(sandbox, 2)
    ledger = ledger_on(postgres_url, patience=0.5)
    await ledger.apps()
    await ledger.close()
    with read_only(postgres_url), failures() as seen:
        async with client_of(sandbox, ledger) as client:
            with pytest.raises(
                OutcomeUnknown, match="can only be read: give the address of the one that is"
            ) as it:
                await client.send_draft(drafts[0])
        assert isinstance(it.value.__cause__, LedgerError)
        assert seen.count("25006") > 1
        assert await send_all(sandbox, ledger, drafts) == {OutcomeStatus.UNKNOWN}
    assert not holds(it.value, DATABASE_PASSWORD)
    assert sandbox.ledger.sends == []
    assert await send_all(sandbox, ledger, drafts) == {OutcomeStatus.SENT}
    await ledger.close()


@pytest.mark.parametrize("state", ["22001", "23514", "42703", "0A000", "XX001"])
async def test_what_is_wrong_with_a_statement_is_told_at_once(
    postgres_url: str, state: str, sandbox: Sandbox
) -> None:
    ledger = ledger_on(postgres_url, patience=1000.0)
    await ledger.apps()
    execute(
        postgres_url,
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" RAISE EXCEPTION 'never' USING ERRCODE = '{state}'; END $$",
        "CREATE TRIGGER fail BEFORE INSERT ON feishu_mail_permit FOR EACH ROW EXECUTE FUNCTION fail()",
    )
    async with client_of(sandbox, ledger) as client:
        with pytest.raises(LedgerError, match=r"\bledger: "):
            await asyncio.wait_for(client.send_draft(drafts_of(sandbox, 1)[0]), 60)
    await ledger.close()
    assert sandbox.ledger.sends == []


async def test_rights_that_are_taken_and_given_back(postgres_url: str, sandbox: Sandbox) -> None:
    """A database that has let this user in, and does not now, is being changed by somebody."""
    drafts = drafts_of(sandbox, 3)
    owner = ledger_on(postgres_url)
    await owner.apps()
    await owner.close()
    name = "mailer_" + postgres_url.rpartition("/")[2]
    everything = "ALL ON ALL TABLES IN SCHEMA public"
    sequences = "ALL ON ALL SEQUENCES IN SCHEMA public"
    execute(
        postgres_url,
        f"CREATE ROLE {name} LOGIN",
        f"GRANT USAGE ON SCHEMA public TO {name}",
        f"GRANT {everything} TO {name}",
        f"GRANT {sequences} TO {name}",
    )
    ledger = ledger_on(postgres_url.replace("postgres:", f"{name}:"))
    try:
        await ledger.apps()
        execute(postgres_url, f"REVOKE {everything} FROM {name}")
        with failures() as seen:
            sending = asyncio.create_task(send_all(sandbox, ledger, drafts))
            await until(lambda: len(seen) >= 3)
            execute(postgres_url, f"GRANT {everything} TO {name}")
            assert await sending == {OutcomeStatus.SENT}
        assert set(seen) == {"42501"}
        sent_once(sandbox, drafts)
    finally:
        await ledger.close()
        execute(postgres_url, f"DROP OWNED BY {name}", f"DROP ROLE {name}")
