"""What the tests of the ledger share: books driven by hand, a clock that moves on request, looks at the tables."""

import asyncio
import contextlib
import itertools
import json
import math
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from feishu_mail_async import Draft, FeishuMailClient, Priority, RateLimit, codes
from feishu_mail_async._api.protocol import Judgement, Reply, lost, never_left
from feishu_mail_async._scheduling.state import Settled
from feishu_mail_async._scheduling.store import Offer
from feishu_mail_async._scheduling.waiters import CallLock, Turn, Waiter, mailbox_key
from feishu_mail_async.errors import FeishuMailError
from feishu_mail_async.ledger import Record, schema
from feishu_mail_async.ledger.clock import HostClock
from feishu_mail_async.ledger.database import Database
from feishu_mail_async.ledger.sql import SqlLedger
from feishu_mail_async.ledger.sqlstore import SqlStore
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.judgements import judge_send
from tests.helpers.scenes import FREE

HOMES: Final = ["sqlite", pytest.param("postgresql", marks=pytest.mark.soak)]
"""Both run the same code: `make test` takes the one at hand for most of it, and `make soak` the other too."""
APP: Final = "cli_x"
BASE: Final = "http://127.0.0.1:1"

SENT: Final = judge_send(
    Reply(200, b'{"code":0,"msg":"success","data":{"message_id":"m1","thread_id":"t1"}}', log_id="log1")
)
LOST: Final = lost("the connection broke")
NEVER: Final = never_left("refused")


def refused(name: str, *, reset: str | None = None, log_id: str | None = "log2") -> Judgement:
    """The judgement on the answer of that name in the table of codes."""
    row = codes.named(name)
    body = json.dumps({"code": row.number, "msg": row.message, "data": {}}).encode()
    return judge_send(Reply(row.http_status, body, log_id=log_id, reset=reset))


def home_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A ledger of the kind that the test is run for: nobody has used it yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'mail.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@contextlib.asynccontextmanager
async def locked(file: str | Path) -> AsyncIterator[None]:
    """Another program is in the midst of a transaction on a SQLite file."""
    other = sqlite3.connect(file, isolation_level=None, timeout=30, check_same_thread=False)
    with contextlib.closing(other):
        # Not in the loop's thread: a transaction under way needs the loop for its end.
        await asyncio.to_thread(other.execute, "BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")


class Clock:
    """A ledger's clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def ledger_on(url: str, **settings: Any) -> SqlLedger:
    """A ledger at this URL; the settings are its database's."""
    return SqlLedger(Database(url, **settings))


class TimedDatabase(Database):
    """A database whose time is a `Clock`'s, wherever it lives."""

    def __init__(self, url: str, clock: Clock, **settings: Any) -> None:
        super().__init__(url, clock=HostClock(clock, boot="x"), **settings)
        self._told = clock

    async def now(self, connection: AsyncConnection) -> float:
        return await super().now(connection) if self._sqlite else self._told.now


def timed_ledger(url: str, clock: Clock, **settings: Any) -> SqlLedger:
    """A ledger on a `TimedDatabase`."""
    return SqlLedger(TimedDatabase(url, clock, **settings))


async def apps_of(url: str) -> list[tuple[str, str]]:
    """The apps in a ledger, which is made if it is not there, and closed again."""
    ledger = ledger_on(url)
    try:
        return await ledger.apps()
    finally:
        await ledger.close()


class Waits:
    """The waits of a policy, without chance."""

    def backoff(self, times: int) -> float:
        return min(8.0, 0.5 * 2.0**times)

    def outage(self, times: int, lasted: float) -> float:
        return self.backoff(times) + (0.25 if lasted > 0 else 0.0)


class Nobody:
    """A taker that notes what it is told."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.errors: list[FeishuMailError] = []
        self.records: list[Record] = []

    def granted(self, turn: Turn) -> None:
        self.turns.append(turn)

    def refused(self, error: FeishuMailError) -> None:
        self.errors.append(error)

    def recorded(self, record: Record) -> None:
        self.records.append(record)


_ids: Final = itertools.count(1)


def ask(
    draft_id: str | None = None,
    user: str = "alice",
    mailbox: str = "me",
    priority: Priority = Priority.NORMAL,
    **settings: Any,
) -> Waiter:
    """One that wants a turn."""
    draft_id = draft_id or f"draft{next(_ids)}"
    return Waiter(user, mailbox_key(user, mailbox), priority, Nobody(), draft_id=draft_id, **settings)


class Sharer(ABC):
    """One of several that share a store, driven by hand."""

    @abstractmethod
    async def take(self, *asks: Waiter) -> Offer:
        """Take a turn for one of these, if one may go."""

    @abstractmethod
    async def settle(self, turn: Turn, judgement: Judgement = SENT, *, renewing: bool = False) -> Settled:
        """End a turn whose call has ended now."""

    @abstractmethod
    async def give_back(self, turn: Turn) -> None:
        """End a turn in which no call was made."""

    async def turn(self, *asks: Waiter) -> Turn:
        """A turn for one of these, which must be had now."""
        taken = await self.take(*asks)
        assert taken.granted is not None, taken
        given, grant = taken.granted
        return Turn(CallLock(given.user), CallLock(given.mailbox), given, grant)

    async def send(self, *asks: Waiter, judgement: Judgement = SENT) -> Turn:
        turn = await self.turn(*asks)
        await self.settle(turn, judgement)
        return turn


@dataclass
class Process(Sharer):
    """What stands for a process: a ledger of its own on the common database, and one store."""

    ledger: SqlLedger
    store: SqlStore

    async def take(self, *asks: Waiter) -> Offer:
        return await self.store.take(asks, 0.0)

    async def settle(self, turn: Turn, judgement: Judgement = SENT, *, renewing: bool = False) -> Settled:
        # The call ends when this is called: the machine's speed is no part of it.
        return await self.store.settle(turn, judgement, Waits(), math.inf, renewing=renewing)

    async def give_back(self, turn: Turn) -> None:
        await self.store.give_back(turn.permit)


@dataclass
class Fleet:
    """Several processes on one database."""

    url: str
    limit: RateLimit
    clock: Clock
    processes: list[Process] = field(default_factory=list)

    def start(self, limit: RateLimit | None = None, base_url: str = BASE, app: str = APP) -> Process:
        """Another process."""
        ledger = timed_ledger(self.url, self.clock, patience=5.0)
        process = Process(ledger, ledger.store(base_url, app, limit or self.limit))
        self.processes.append(process)
        return process

    async def nothing_held(self) -> None:
        """See that no turn holds anything."""
        await nothing_held(self.processes[0].ledger)


@contextlib.asynccontextmanager
async def fleet(url: str, limit: RateLimit) -> AsyncIterator[Fleet]:
    """Processes on a ledger whose time stands still unless it is moved."""
    one = Fleet(url, limit, Clock())
    try:
        yield one
    finally:
        for process in one.processes:
            await process.ledger.close()


async def rows(ledger: SqlLedger, table: sa.Table) -> list[dict[str, Any]]:
    """All that stands in a table."""

    async def read(connection: AsyncConnection) -> list[dict[str, Any]]:
        return [dict(row._mapping) for row in await connection.execute(sa.select(table))]

    return await ledger.database.transact(read)


async def nothing_held(ledger: SqlLedger) -> None:
    """No turn holds anything: neither permit nor lock nor probe; what a process left behind has lapsed."""

    async def read(connection: AsyncConnection) -> float:
        return await ledger.database.now(connection)

    now = await ledger.database.transact(read)
    assert [row for row in await rows(ledger, schema.permit) if row["ended"] is None and row["lapses"] > now] == []
    assert [row for row in await rows(ledger, schema.lock) if row["turn"] and row["lapses"] > now] == []
    assert [row for row in await rows(ledger, schema.budget) if row["probe"] and row["probe_lapses"] > now] == []
    assert [row for row in await rows(ledger, schema.draft) if row["state"] == "in_flight"] == []


@contextlib.contextmanager
def transactions() -> Iterator[list[None]]:
    """Counts the transactions that are committed meanwhile, in all ledgers."""
    counted: list[None] = []

    def count(_: sa.Connection) -> None:
        counted.append(None)

    sa.event.listen(sa.Engine, "commit", count)
    try:
        yield counted
    finally:
        sa.event.remove(sa.Engine, "commit", count)


def client_of(sandbox: Sandbox, ledger: Any, **settings: Any) -> FeishuMailClient:
    """A client of all the sandbox's users on a ledger."""
    settings = {"tokens": sandbox.tokens, "app": APP, "base_url": sandbox.base_url} | settings
    return FeishuMailClient(settings.pop("tokens"), ledger=ledger, **settings)


async def until(condition: Any, seconds: float = 30.0) -> None:
    """Wait for a condition, however slow the machine is."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - it is not told when it comes true
            await asyncio.sleep(0.005)


def open_client(sandbox: Sandbox, ledger: Any, **settings: Any) -> FeishuMailClient:
    return client_of(sandbox, ledger, **({"rate_limit": FREE} | settings))


async def outcomes(client: FeishuMailClient, drafts: Any) -> dict[str, Any]:
    return {one.draft.draft_id: one async for one in client.send_drafts(drafts)}


async def mark_sent(ledger: SqlLedger, drafts: list[Draft]) -> None:
    """Have it on record that these were sent."""

    async def write(connection: Any) -> None:
        app_id = (await connection.execute(sa.select(schema.app.c.id))).scalar_one()
        row = {"app_id": app_id, "state": "sent", "in_doubt": False, "calls": 1, "changed": 0.0, "message_id": "m"}
        gone = sa.delete(schema.draft).where(schema.draft.c.draft_id.in_([one.draft_id for one in drafts]))
        await connection.execute(gone)
        await connection.execute(
            sa.insert(schema.draft),
            [
                row | {"user_key": one.user, "mailbox_key": f"me/{one.user}", "draft_id": one.draft_id}
                for one in drafts
            ],
        )

    await ledger.database.transact(write)
