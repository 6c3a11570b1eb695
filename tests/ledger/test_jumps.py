"""A PostgreSQL whose clock is set: nothing of the limit, no pause and no lease comes free by it."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from feishu_mail_async import RateLimit
from feishu_mail_async._auth.store import StoredToken
from feishu_mail_async.ledger import schema
from tests.helpers.ledgers import APP, BASE, Process, ask, ledger_on, rows

if TYPE_CHECKING:
    from feishu_mail_async.ledger.sql import SqlLedger

LIMIT = RateLimit(calls=4, per=60, spacing=0)
TIME = sa.func.extract("epoch", sa.func.clock_timestamp())


class Fleet:
    """Processes on one database, whose clock can be set."""

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._url = url
        self._patch = monkeypatch
        self.ledgers: list[SqlLedger] = []

    def start(self) -> Process:
        ledger = ledger_on(self._url)
        self.ledgers.append(ledger)
        return Process(ledger, ledger.store(BASE, APP, LIMIT))

    def set_clock(self, ahead: float) -> None:
        self._patch.setattr("feishu_mail_async.ledger.database._DATABASE_TIME", sa.select(TIME + ahead))


@pytest.fixture
async def fleet(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fleet]:
    one = Fleet(postgres_url, monkeypatch)
    yield one
    for ledger in one.ledgers:
        await ledger.close()


async def granted(process: Process) -> bool:
    return (await process.take(ask(user="somebody", mailbox="some@where"))).granted is not None


@pytest.mark.parametrize("ahead", [70.0, 3600.0, 10 * 365 * 86_400.0])
async def test_a_clock_that_is_set_forward(fleet: Fleet, ahead: float, caplog: pytest.LogCaptureFixture) -> None:
    one, two = fleet.start(), fleet.start()
    for place, process in enumerate((one, two, one)):
        await process.send(ask(user=f"user{place}", mailbox=f"{place}@x"))
    await two.turn(ask(user="flying", mailbox="flying@x"))  # its call is under way
    fleet.set_clock(ahead)
    for process in (one, two, fleet.start(), one, two):
        assert not await granted(process)
    told = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert len(told) == 2  # each that was there before, once
    assert all("the database's clock has jumped forward by" in line for line in told)
    overview = await one.ledger.overview(BASE, APP)
    assert overview is not None
    assert overview.in_use == LIMIT.calls
    assert overview.in_flight == 1
    assert 50 < overview.next_permit < 70  # a window, and not as long as the jump


async def test_time_that_passes_is_no_jump(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    one, two = fleet.start(), fleet.start()
    for place in range(4):
        await (one, two)[place % 2].send(ask(user=f"user{place}", mailbox=f"{place}@x"))
        await asyncio.gather(*(process.ledger.overview(BASE, APP) for process in (one, two) for _ in range(3)))
    assert caplog.records == []


async def test_what_lasts_for_a_while_lasts_as_long(fleet: Fleet) -> None:
    """A lock while its call is under way, and the lease under which a token is refreshed: there is but one."""
    one = fleet.start()
    await one.turn(ask(user="alice", mailbox="a@x"))
    tokens = one.ledger.tokens(BASE, APP)
    await tokens.save("alice", StoredToken("u-1", 1e10, 7200.0, "r-1", 1e10, ""))
    assert await tokens.lease("alice", 30.0) is not None
    before = await rows(one.ledger, schema.lock)
    fleet.set_clock(3600.0)
    assert await tokens.lease("alice", 30.0) is None
    after = await rows(one.ledger, schema.lock)
    assert [row["lapses"] for row in after] == pytest.approx([row["lapses"] + 3600.0 for row in before], abs=5.0)
    taken = await one.take(ask(user="alice", mailbox="b@x"))
    assert taken.granted is None
    assert [(shut.kind, shut.key) for shut in taken.shut] == [("user", "alice")]


async def test_a_correction_that_is_not_committed_is_done_again(fleet: Fleet) -> None:
    one = fleet.start()
    for place in range(4):
        await one.send(ask(user=f"user{place}", mailbox=f"{place}@x"))

    async def broken(connection: AsyncConnection) -> None:
        database = one.ledger.database
        app_id = await database.hold(connection, BASE, APP)
        ended = sa.select(schema.permit.c.ended)
        before = (await connection.execute(ended)).all()
        await database.jumps.correct(connection, app_id, await database.now(connection))
        assert (await connection.execute(ended)).all() != before
        raise KeyboardInterrupt

    fleet.set_clock(3600.0)
    await one.ledger.overview(BASE, APP)
    with pytest.raises(KeyboardInterrupt):
        await one.ledger.database.transact(broken)
    assert not await granted(one)


async def test_a_clock_that_is_set_back(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    one = fleet.start()
    for place in range(3):
        await one.send(ask(user=f"user{place}", mailbox=f"{place}@x"))
    fleet.set_clock(-600.0)
    assert not await granted(one)
    [told] = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert "the database's clock has gone back by 600" in told
