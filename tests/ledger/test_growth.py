"""A ledger does not grow without end, and neither does a process that runs for months."""

import asyncio
import contextlib
import gc
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from feishu_mail_async import Draft, FeishuMailError, OutcomeStatus
from feishu_mail_async._scheduling.suspensions import SuspensionEntry
from feishu_mail_async.ledger import schema
from feishu_mail_async.ledger.sql import SqlLedger
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.ledgers import LOST, Fleet, ask, client_of, fleet, ledger_on, refused, rows
from tests.helpers.scenes import FREE

_DAY: Final = 86_400.0
_YEAR: Final = 365 * _DAY
_INDEX: Final = "feishu_mail_draft_state"


@pytest.fixture
async def processes(url: str) -> AsyncIterator[Fleet]:
    async with fleet(url, FREE) as one:
        yield one


@pytest.fixture
def tidy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What may go is looked for after each call."""
    for name in ("_FIRST", "_NEXT", "_EVERY"):
        monkeypatch.setattr(f"feishu_mail_async.ledger.pruning.{name}", 0.0)


@contextlib.contextmanager
def deletions() -> Iterator[Counter[str]]:
    """The most rows of a table that one transaction deletes meanwhile."""
    most: Counter[str] = Counter()
    now: Counter[str] = Counter()

    def begin(_: Any) -> None:
        now.clear()

    def look(_: Any, cursor: Any, statement: str, *__: Any) -> None:
        if statement.startswith("DELETE FROM "):
            table = statement.split()[2]
            now[table] += cursor.rowcount
            most[table] = max(most[table], now[table])

    sa.event.listen(sa.Engine, "begin", begin)
    sa.event.listen(sa.Engine, "after_cursor_execute", look)
    try:
        yield most
    finally:
        sa.event.remove(sa.Engine, "begin", begin)
        sa.event.remove(sa.Engine, "after_cursor_execute", look)


async def write(ledger: SqlLedger, drafts: list[tuple[str, str, bool, float]]) -> None:
    """Have drafts on record: id, state, whether they are in doubt, and how many seconds ago that was written."""

    async def insert(connection: AsyncConnection) -> None:
        app_id = (await connection.execute(sa.select(schema.app.c.id))).scalar_one()
        await connection.execute(
            sa.insert(schema.draft),
            [
                {
                    "app_id": app_id,
                    "user_key": "alice",
                    "mailbox_key": "me/alice",
                    "draft_id": name,
                    "state": state,
                    "in_doubt": in_doubt,
                    "calls": 1,
                    "changed": time.time() - ago,
                }
                for name, state, in_doubt, ago in drafts
            ],
        )

    await ledger.database.transact(insert)


async def ids(ledger: SqlLedger) -> set[str]:
    return {row["draft_id"] for row in await rows(ledger, schema.draft)}


# --- drafts -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tidy")
async def test_records_of_more_than_a_year_ago_go(processes: Fleet) -> None:
    """But for those that are in doubt: of these nobody else knows that they may have been sent."""
    one = processes.start()
    await one.send(ask("first"))
    old, young = _YEAR + _DAY, _YEAR - _DAY
    states = ["sent", "already_sent", "failed", "skipped", "waiting"]
    gone = [(f"old-{state}", state, False, old) for state in states]
    kept = [(f"young-{state}", state, False, young) for state in states]
    kept += [(f"in_doubt-{state}", state, True, old) for state in ("unknown", "waiting", "skipped")]
    kept += [("in-flight", "in_flight", False, old)]
    await write(one.ledger, gone + kept)
    for number in range(3):
        await one.send(ask(f"new{number}"))
        await one.store.written()
    assert await ids(one.ledger) == {name for name, *_ in kept} | {"first", "new0", "new1", "new2"}


@pytest.mark.usefixtures("tidy")
async def test_they_go_a_few_at_a_time(processes: Fleet) -> None:
    """And beside the calls: none waits for more than a few rows."""
    one, other = processes.start(), processes.start()
    await one.send(ask("first"))
    await write(one.ledger, [(f"old{number}", "sent", False, 2 * _YEAR) for number in range(1100)])
    with deletions() as most:
        for number in range(20):
            await (one if number % 2 else other).send(ask(f"new{number}"))
            await one.store.written()
            await other.store.written()
    assert await ids(one.ledger) == {"first"} | {f"new{number}" for number in range(20)}
    assert 0 < most["feishu_mail_draft"] <= 200


async def test_nothing_is_looked_for_at_each_call(processes: Fleet) -> None:
    one = processes.start()
    await one.send(ask("first"))
    await write(one.ledger, [("old", "sent", False, 2 * _YEAR)])
    for _ in range(5):
        await one.send(ask())
    await one.store.written()
    assert "old" in await ids(one.ledger)


@pytest.mark.usefixtures("tidy")
async def test_a_draft_whose_record_is_gone_is_not_sent_twice(url: str) -> None:
    """The server says that it was sent: that costs one call."""
    async with Sandbox(users=["alice"], latency=0, calls=100_000) as sandbox:
        first, second = sandbox.add_drafts("alice", 2)
        async with client_of(sandbox, url, rate_limit=FREE) as client:
            await client.send_draft(first, user="alice")
            ledger = ledger_on(url)

            async def age(connection: AsyncConnection) -> None:
                await connection.execute(sa.update(schema.draft).values(changed=time.time() - 2 * _YEAR))

            await ledger.database.transact(age)
            await client.send_draft(second, user="alice")
        async with client_of(sandbox, url, rate_limit=FREE) as client:
            [record] = await client.records([Draft(first, user="alice")])
            again = await client.send_draft(first, user="alice")
        await ledger.close()
    assert record is None
    assert (again.status, again.attempts) == (OutcomeStatus.ALREADY_SENT, 1)
    assert sandbox.ledger.sent == Counter([first, second])


def execute(url: str, *statements: str) -> None:
    """Do something to a database behind the ledger's back."""
    if url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
            for statement in statements:
                file.execute(statement)
        return
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@pytest.mark.usefixtures("tidy")
@pytest.mark.parametrize("may", [True, False])
async def test_a_ledger_without_the_index(url: str, may: bool) -> None:
    """One made by an earlier version gets it; where that cannot be done, it works as before."""
    async with fleet(url, FREE) as processes:
        await processes.start().send(ask("first"))
    execute(
        url, f"DROP INDEX {_INDEX}", *([] if may else [f"CREATE VIEW {_INDEX} AS SELECT 1"])
    )  # its name is taken
    async with fleet(url, FREE) as processes:
        one = processes.start()
        await one.send(ask("second"))
        await write(one.ledger, [("old", "sent", False, 2 * _YEAR)])
        await one.send(ask("third"))
        await one.store.written()
        assert await ids(one.ledger) == {"first", "second", "third"} | (set() if may else {"old"})


# --- locks and suspensions -----------------------------------------------------------------------------------


async def test_a_lock_that_nobody_holds_leaves_nothing(processes: Fleet) -> None:
    one = processes.start()
    for number in range(20):
        await one.send(ask(user=f"user{number}"))
    assert await rows(one.ledger, schema.lock) == []
    await one.send(ask(user="cooling"), judgement=refused("ConcurrentWrite"))
    await one.send(ask(user="lost"), judgement=LOST)
    kept = {(row["kind"], row["key"]) for row in await rows(one.ledger, schema.lock)}
    assert kept == {("user", "cooling"), ("user", "lost"), ("mailbox", "me/lost")}


@pytest.mark.usefixtures("tidy")
async def test_what_was_locked_and_closed_for_a_while_goes(processes: Fleet) -> None:
    """What is suspended until somebody reopens it stays closed."""
    one, other = processes.start(), processes.start()
    for number in range(5):
        await one.send(ask(user=f"cooling{number}"), judgement=refused("ConcurrentWrite"))
        await one.send(ask(user=f"quota{number}"), judgement=refused("UserDailyQuota"))
    await one.turn(ask(user="died"))
    await one.send(ask(user="shared", mailbox="gone@x"), judgement=refused("MailboxNotFound"))
    processes.clock.now += 3 * _DAY
    await other.send(ask(user="somebody"))
    await other.store.written()
    assert await rows(one.ledger, schema.lock) == []
    assert [row["subject"] for row in await rows(one.ledger, schema.suspension)] == ["mailbox:gone@x"]


@pytest.mark.usefixtures("tidy")
async def test_a_lock_that_is_held_or_cools_stays(processes: Fleet) -> None:
    one, other = processes.start(), processes.start()
    await one.send(ask(user="cooling"), judgement=refused("ConcurrentWrite"))
    held = await one.turn(ask(user="held"))
    before = await rows(one.ledger, schema.lock)
    await other.send(ask(user="somebody"))
    await other.store.written()
    assert await rows(one.ledger, schema.lock) == before
    await one.settle(held)


# --- in memory --------------------------------------------------------------------------------------------


def alive(kind: type) -> int:
    """How many objects of a class there are."""
    gc.collect()
    return sum(isinstance(one, kind) for one in gc.get_objects())


async def spend_quotas(sandbox: Sandbox, client: Any, names: list[str]) -> None:
    for name in names:
        sandbox.add_user(name)
        sandbox.set_quota(name, 0)
        with pytest.raises(FeishuMailError):
            await client.send_draft(sandbox.add_draft(name), user=name)


@pytest.mark.looptime
async def test_closures_that_have_ended_are_forgotten() -> None:
    """A process sees ever new users, each of whom is closed for an hour."""
    async with Sandbox(users=["alice"], latency=0, calls=100_000) as sandbox:

        async def token(user: str | None) -> str:
            return sandbox.token(str(user))

        async with client_of(sandbox, None, tokens=token, rate_limit=FREE) as client:
            counts = []
            for hour in range(12):
                await spend_quotas(sandbox, client, [f"user{hour}-{number}" for number in range(40)])
                await asyncio.sleep(7200.0)
                counts.append(alive(SuspensionEntry))
    assert max(counts) <= 2 * 40 + 64


async def test_closures_that_have_ended_are_forgotten_with_a_ledger(processes: Fleet) -> None:
    one = processes.start()
    for number in range(30):
        await one.send(ask(user=f"user{number}"), judgement=refused("UserDailyQuota"))
    assert len(one.store.state.suspensions.entries) == 30
    processes.clock.now += 7200.0
    # The process's own clock has not moved: what it knows ends by that.
    for suspension in one.store.state.suspensions.entries.values():
        suspension.ends -= 7200.0
    await one.send(ask(user="somebody"))
    assert dict(one.store.state.suspensions.entries) == {}
