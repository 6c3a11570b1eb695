"""Every query of a ledger goes by an index, however large the ledger is."""

import contextlib
import re
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
import sqlalchemy as sa

from feishu_mail_async import Draft, FeishuMailError, OutcomeStatus, RateLimit
from feishu_mail_async._auth.store import StoredToken
from feishu_mail_async.ledger import DraftKey
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.ledgers import APP, LOST, Process, ask, client_of, fleet, home_url, ledger_on, refused
from tests.helpers.scenes import FREE

_LARGE: Final = r"feishu_mail_(?:draft|permit|lock|suspension|token)"
_BY_APP_ALONE: Final = {"feishu_mail_permit", "feishu_mail_token", "feishu_mail_suspension"}
"""Of these an app has few, or they are listed."""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return home_url(request, tmp_path)


@contextlib.contextmanager
def statements() -> Iterator[dict[str, Any]]:
    """The statements that are sent to any database meanwhile, each with values that it was sent with."""
    seen: dict[str, Any] = {}

    def look(_: Any, __: Any, statement: str, values: Any, ___: Any, many: bool) -> None:
        seen.setdefault(statement, values[0] if many else values)

    sa.event.listen(sa.Engine, "before_cursor_execute", look)
    try:
        yield seen
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", look)


async def live(url: str) -> None:
    """All that a ledger is asked to do, for one and for many."""
    async with fleet(url, RateLimit(calls=8, per=60.0, spacing=0, reserve=1)) as processes:
        one, other = processes.start(), processes.start()
        await one.send(ask("d1"))
        asks = [ask(f"d{number}", user=f"user{number}") for number in range(2, 9)]
        await one.send(*asks)
        await one.settle(await one.turn(*asks[1:]), LOST)
        await one.settle(await other.turn(*asks[2:]), refused("MailboxNotFound"))
        await one.settle(await one.turn(*asks[3:]), refused("UserDailyQuota"))
        await one.settle(await one.turn(*asks[4:]), refused("ConcurrentWrite"))
        given = await one.turn(*asks[5:])
        await one.store.give_back(given.permit)
        await one.store.suspend_user("user8", FeishuMailError("no"), "mark", 0.0)
        await one.take(ask(user="user8"))
        one.store.resume("user:user8")
        one.store.set_limit(RateLimit(calls=9, per=60.0))
        keys = [DraftKey(f"user{number}", f"me/user{number}", f"d{number}") for number in range(300)]
        await other.store.records(keys)
        await other.store.records(keys[:1])
        for key in keys[20:260]:
            other.store.note(key, OutcomeStatus.FAILED, FeishuMailError("no"))
        await other.store.written()
        await one.store.written()
        processes.clock.now += 100_000.0
        await other.send(ask("d9"))
        ledger = one.ledger
        tokens = ledger.tokens("http://127.0.0.1:1", APP)
        for access in ("u-1", "u-2"):
            await tokens.save("user1", StoredToken(access, 2e9, 7200.0, "ur", None))
        await tokens.load("user1")
        lease = await tokens.lease("user1", 10.0)
        assert lease is not None
        await tokens.release("user1", lease)
        await tokens.users()
        await tokens.delete("user1")
        for app in await ledger.apps():
            await ledger.overview(*app)


def explained(url: str, statement: str, values: Any) -> list[str]:
    """The lines of a statement's plan."""
    if url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
            return [row[3] for row in file.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
    with psycopg.connect(url) as connection:
        connection.execute("SET enable_seqscan = off")  # few rows as there are, it would pay
        return [row[0] for row in connection.execute(f"EXPLAIN {statement}".encode(), values)]


def misses(plan: list[str]) -> list[str]:
    """The lines of a plan by which rows are looked at that have nothing to do with what is asked."""
    return [line for line in plan if re.search(rf"SCAN {_LARGE}|Seq Scan on {_LARGE}", line)]


async def test_every_query_goes_by_an_index(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_FIRST", "_NEXT", "_EVERY"):
        monkeypatch.setattr(f"feishu_mail_async.ledger.pruning.{name}", 0.0)
    with statements() as seen:
        await live(url)
    asked = {
        statement: values
        for statement, values in seen.items()
        if re.search(_LARGE, statement) and re.match("SELECT|UPDATE|DELETE", statement)
    }
    for table in ("draft", "permit", "lock", "suspension", "token"):
        assert sum(f"feishu_mail_{table}" in one for one in asked) > 1, table
    assert sum("LIMIT" in one for one in asked) == 3  # what may be forgotten
    plans = {statement: explained(url, statement, values) for statement, values in asked.items()}
    assert {statement: plan for statement, plan in plans.items() if misses(plan)} == {}
    if url.startswith("sqlite"):
        # A search by the app alone is a scan of all that is the app's.
        coarse = {
            match[1]: statement
            for statement, plan in plans.items()
            for line in plan
            if (match := re.search(r"SEARCH (\S+) .*\(app_id=\?\)$", line)) and "count(" not in statement
            if match[1] != "feishu_mail_lock" or "LIMIT" not in statement  # those at rest are not kept
        }
        assert set(coarse) <= _BY_APP_ALONE, coarse


# --- what a large ledger costs ----------------------------------------------------------------------------


@contextlib.contextmanager
def steps() -> Iterator[list[int]]:
    """Counts the steps, in hundreds, that SQLite's machine takes meanwhile on connections opened meanwhile."""
    counted = [0]

    def step() -> int:
        counted[0] += 1
        return 0

    def opened(connection: Any, _: object) -> None:
        connection.driver_connection._conn.set_progress_handler(step, 100)

    sa.event.listen(sa.Engine, "connect", opened)
    try:
        yield counted
    finally:
        sa.event.remove(sa.Engine, "connect", opened)


async def on_record(url: str, base_url: str, number: int, users: int = 40) -> list[Draft]:
    """Have it on record that so many drafts were sent."""
    ledger = ledger_on(url)
    process = Process(ledger, ledger.store(base_url, APP, FREE))
    await process.send(ask("first"))
    await ledger.close()
    with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file, file:
        file.executemany(
            "INSERT INTO feishu_mail_draft"
            " (app_id, user_key, mailbox_key, draft_id, state, in_doubt, calls, changed)"
            " VALUES (1, ?, ?, ?, 'sent', 0, 1, 4e9)",
            [(f"user{one % users}", f"me/user{one % users}", f"d{one}") for one in range(number)],
        )
    return [Draft(f"d{one}", "me", f"user{one % users}") for one in range(number)]


async def resumed(directory: Path, number: int) -> int:
    """Steps of the database for a run over drafts that are all on record."""
    url = f"sqlite:///{directory / f'{number}.db'}"
    async with Sandbox(users=[f"user{one}" for one in range(40)], latency=0) as sandbox:
        drafts = await on_record(url, sandbox.base_url, number)
        with steps() as counted:
            async with client_of(sandbox, url, rate_limit=FREE) as client:
                statuses = {outcome.status async for outcome in client.send_drafts(drafts)}
        assert statuses == {OutcomeStatus.ALREADY_SENT}
        assert sandbox.ledger.sends == []
    return counted[0]


async def test_resuming_costs_each_draft_the_same(tmp_path: Path) -> None:
    few, many = await resumed(tmp_path, 1000), await resumed(tmp_path, 8000)
    assert few > 100  # it is counted at all
    assert many < 8 * few * 1.25


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(users=[f"user{one}" for one in range(8)], latency=0, calls=100_000) as one:
        yield one


async def test_sending_costs_the_same_however_much_is_on_record(tmp_path: Path, sandbox: Sandbox) -> None:
    costs = []
    for number in (100, 20_000):
        url = f"sqlite:///{tmp_path / f'{number}.db'}"
        await on_record(url, sandbox.base_url, number)
        drafts = [Draft(sandbox.add_draft(user), "me", user) for user in [*sandbox.tokens] * 5]
        with steps() as counted:
            async with client_of(sandbox, url, rate_limit=FREE) as client:
                assert {one.status async for one in client.send_drafts(drafts)} == {OutcomeStatus.SENT}
        costs.append(counted[0])
    assert costs[1] < costs[0] * 1.5 + 20
