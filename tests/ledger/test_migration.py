"""A ledger of schema 1 opens under this version, with all that stands in it."""

import asyncio
import sqlite3
import time
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from feishu_mail_async import Draft, FeishuMailClient, LedgerError, OutcomeStatus, RateLimit, StoredToken
from feishu_mail_async._api.endpoints import SEND
from feishu_mail_async._scheduling.record import DraftKey, Record
from feishu_mail_async._scheduling.suspensions import SuspensionKey
from feishu_mail_async._scheduling.waiters import mailbox_key
from feishu_mail_async.ledger import schema
from feishu_mail_async.ledger.clock import HostClock
from feishu_mail_async.ledger.sql import SqlLedger
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.ledgers import APP, Clock, Process, ask, home_url, ledger_on, timed_ledger

LEDGERS = Path(__file__).parent / "samples"
BASE = "https://open.feishu.cn"
LIMIT = RateLimit(calls=10, per=60, spacing=0)
LONG = "很" * 512


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A ledger that the last version with schema 1 has written: its clock stood still at 1000 s."""
    found = home_url(request, tmp_path)
    script = (LEDGERS / f"schema-1.{request.param}.sql").read_text(encoding="utf-8")
    if request.param == "sqlite":
        file = Path(found.removeprefix("sqlite:///"))
        file.touch(mode=0o600)
        connection = sqlite3.connect(file)
        connection.executescript(script)
        connection.close()
    else:
        with psycopg.connect(found) as server:
            server.execute(script.encode())
    return found


def start(url: str, clock: Clock | None = None, app: str = APP) -> Process:
    ledger = timed_ledger(url, clock or Clock())
    return Process(ledger, ledger.store(BASE, app, LIMIT))


async def test_what_was_used_up_still_counts(url: str) -> None:
    clock = Clock()
    one = start(url, clock)
    overview = await one.ledger.overview(BASE, APP)
    assert overview is not None
    assert (overview.limit, overview.in_use, overview.in_flight) == (LIMIT, 10, 1)
    assert overview.drafts == {"sent": 2, "failed": 5, "waiting": 2, "in_flight": 1}
    assert (await one.take(ask(user="zoe"))).granted is None
    clock.now += 59.9
    assert (await one.take(ask(user="zoe"))).granted is None
    clock.now += 0.3
    await one.send(ask(user="zoe"))
    await one.ledger.close()


async def test_what_was_locked_stays_so_and_a_killed_call_is_in_doubt(url: str) -> None:
    clock = Clock()
    one = start(url, clock)
    one.store.set_limit(RateLimit(calls=100, per=60, spacing=0))
    for user, mailbox in ("hugo", "me"), ("ann", "me"), ("zoe", "ann@x"), ("fred", "me"):
        assert (await one.take(ask(user=user, mailbox=mailbox))).granted is None
    clock.now += 10.0
    await one.send(ask(user="ann"), ask(user="fred"))
    assert (await one.take(ask(user="hugo"))).granted is None
    clock.now += 35.1
    turn = await one.turn(ask("flying", user="hugo"))
    assert turn.permit.in_doubt
    await one.ledger.close()


async def test_who_is_suspended_stays_so_as_far_as_it_reaches(url: str) -> None:
    clock = Clock()
    one, other = start(url, clock), start(url, clock, "cli_b")
    overview, others = await one.ledger.overview(BASE, APP), await other.ledger.overview(BASE, "cli_b")
    assert overview is not None
    assert others is not None
    assert {(one.subject, one.reach): one.seconds for one in overview.suspended} == {
        ("user:bob", "send"): pytest.approx(3600, abs=1),
        ("user:carol", SEND.scope): None,
        ("user:gina", ""): None,
        ("mailbox:gone@x", ""): None,
        ("mailbox:off@x", "send"): None,
    }
    assert [(one.subject, one.reach) for one in others.suspended] == [("app", "")]
    clock.now += 61
    for user, mailbox in ("bob", "me"), ("carol", "me"), ("gina", "me"), ("z", "gone@x"), ("z", "off@x"):
        assert (await one.take(ask(user=user, mailbox=mailbox))).granted is None
    assert one.store.state.suspensions.entries[SuspensionKey("user:gina", "")].fingerprint == "fingerprint"
    one.store.resume("user:carol")
    await one.send(ask(user="carol"))
    clock.now += 3600
    await one.send(ask(user="bob"))
    assert (await other.turn(ask())).permit.probe
    await one.ledger.close()
    await other.ledger.close()


async def test_records_and_logins_are_there(url: str) -> None:
    one = start(url)
    keys = [
        DraftKey("alice", mailbox_key("alice", "me"), "sent"),
        DraftKey(LONG, "long@x", LONG),
        DraftKey("ann", "ann@x", "lost"),
        DraftKey("bob", mailbox_key("bob", "me"), "quota"),
    ]
    records = await one.store.records(keys)
    found = [records[key] for key in keys]
    assert all(isinstance(record, Record) for record in found)
    assert [(str(record.state), record.in_doubt) for record in found if isinstance(record, Record)] == [
        ("sent", False),
        ("sent", False),
        ("waiting", True),
        ("failed", False),
    ]
    store = one.ledger.tokens(BASE, APP)
    assert await store.users() == ["alice", "bob"]
    scopes = "mail:user_mailbox.message:send offline_access"
    assert await store.load("alice") == StoredToken("u-alice", 5000.0, 7200, "r-alice", 9000.0, scopes)
    await one.ledger.close()


async def test_processes_that_open_it_at_once(url: str) -> None:
    ledgers = [ledger_on(url) for _ in range(4)]
    apps = await asyncio.gather(*(ledger.apps() for ledger in ledgers))
    assert apps == [[(BASE, APP), (BASE, "cli_b")]] * 4

    async def tables(connection: AsyncConnection) -> set[str]:
        return set(await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names()))

    assert await ledgers[0].database.transact(tables) == set(schema.metadata.tables)
    for ledger in ledgers:
        await ledger.close()


async def test_a_migration_that_breaks_off_leaves_all_as_it_was(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise LedgerError("ledger: broken off")

    with monkeypatch.context() as patch:
        patch.setattr("feishu_mail_async.ledger.migrations.load_error", broken)
        first = start(url)
        with pytest.raises(LedgerError, match="broken off"):
            await first.ledger.apps()
        await first.ledger.close()
    one = start(url)
    overview = await one.ledger.overview(BASE, APP)
    assert overview is not None
    assert len(overview.suspended) == 5
    await one.ledger.close()


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_a_run_that_was_killed_under_the_old_version_goes_on(url: str) -> None:
    async with Sandbox(users=["alice", "ann", "fred", "hugo"], latency=0.0) as sandbox:
        sandbox.share_mailbox("ann@x", "ann")
        drafts = [Draft("sent", user="alice"), Draft("lost", "ann@x", "ann")]
        drafts += [Draft("slow", user="fred"), Draft("flying", user="hugo")]
        for draft in drafts:
            assert draft.user is not None
            sandbox.add_draft(draft.user, draft.draft_id, draft.mailbox)
        async with FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url) as before:
            for draft in drafts:
                if draft.draft_id != "slow":  # these went out, and for two of them the answer was lost
                    await before.send_draft(draft)
        called = len(sandbox.ledger.sends)
        ledger = old_days(url, sandbox.base_url)
        limit = RateLimit(calls=100, per=60, spacing=0)
        async with (
            FeishuMailClient(
                sandbox.tokens, app=APP, base_url=sandbox.base_url, ledger=ledger, rate_limit=limit
            ) as client,
            client.send_drafts(drafts) as run,
        ):
            found = {outcome.draft.draft_id: outcome.status async for outcome in run}
        await ledger.close()
        assert found == {
            "sent": OutcomeStatus.ALREADY_SENT,
            "slow": OutcomeStatus.SENT,
            "lost": OutcomeStatus.ALREADY_SENT,
            "flying": OutcomeStatus.ALREADY_SENT,
        }
        assert [arrival.draft_id for arrival in sandbox.ledger.sends[called:]].count("sent") == 0
        assert set(sandbox.ledger.sent.values()) == {1}


def old_days(url: str, base_url: str) -> SqlLedger:
    """The ledger some days later, as that of another host."""
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    with connection:
        connection.execute("UPDATE feishu_mail_app SET base_url = ?", (base_url,))
    connection.close()
    return ledger_on(url, clock=HostClock(lambda: time.monotonic() + 1e6, boot="x"))
