"""Crowds of processes on one ledger keep one limit, and lose no time."""

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import pytest

from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.ledger_processes import SHORT, SLACK, STUBBORN, TIMEOUT, Programs, cycles, shares, steadily
from tests.helpers.servers import SERVERS, Server

pytestmark = pytest.mark.skipif(os.name != "posix", reason="it forks, and sends signals")
LEASE: Final[float] = TIMEOUT + SHORT["grace"] + SLACK
"""Seconds after which what a killed process held is free again."""


ROUND_TRIP: Final = 0.02
CROWD: Final = 4
IDLE: Final = 0.5
"""Seconds that a permit may lie idle at the least, on whatever machine."""


@contextlib.asynccontextmanager
async def crowded(
    url: str, server: Server, limit: dict[str, Any], *, users: int, **more: Any
) -> AsyncIterator[Programs]:
    names = [f"user{number}" for number in range(users)]
    async with (
        Sandbox(
            calls=limit["calls"],
            per=limit["per"],
            window=server.window,
            count_refusals=server.count_refusals,
            latency=ROUND_TRIP,
            users=names,
        ) as sandbox,
        Programs(sandbox, url, limit, **more) as scene,
    ):
        yield scene


def bound(limit: dict[str, Any]) -> float:
    """Seconds after which a permit can be taken again at the earliest."""
    seconds: float = limit["per"] + limit["margin"] + ROUND_TRIP
    return seconds


async def crowd(url: str, server: Server, *, drafts: int, per: float) -> None:
    """Some processes of one app, with users in common, and drafts that all of them are given.

    The shortest cycle, from a call to the one that has its permit next, is held against the shortest there can be;
    a machine that is busy with other things makes most of them longer.
    """
    limit = {"calls": 20, "per": per, "spacing": 0.0, "grace": 2.0, "margin": 0.05}
    async with crowded(url, server, limit, users=7, attempt_timeout=5.0) as scene:
        draw = random.Random(f"crowd {server}")
        for number in range(drafts):
            scene.add(f"user{number % 7}")
        shared = set(draw.sample(list(scene.owners), round(drafts * 0.3)))
        lists: list[list[str]] = [[] for _ in range(CROWD)]
        for draft in scene.owners:
            for one in lists if draft in shared else [draw.choice(lists)]:
                one.append(draft)
        for one in lists:
            draw.shuffle(one)
        programs = [await scene.start(one) for one in lists]
        for program, one in zip(programs, lists, strict=True):
            await program.done()
            assert sorted(program.outcomes) == sorted(one)
            assert program.logged == []
        scene.check()
        ledger = scene.sandbox.ledger
        assert len(ledger.sends) == drafts, "a call that was not needed"
        assert shares(programs) == {"sent": drafts, "already_sent": (CROWD - 1) * len(shared)}
        assert ledger.busiest_window() <= 20
        assert min(cycles(ledger.sends, 20)) <= bound(limit) + IDLE, "permits lay idle"


async def waiting_processes(url: str, what: str) -> None:
    """They wait for a permit, or for a user whose call in another process takes long."""
    limit = {"calls": 3 if what == "permit" else 20, "per": 60.0, "spacing": 0.0, "grace": 0.3}
    async with (
        Sandbox(users=("alice", "bob"), latency=0.02) as sandbox,
        Programs(sandbox, url, limit) as scene,
    ):
        a, b = scene.add("alice", 5), scene.add("bob", 6)
        assert len(await scene.run(b[:2])) == 2
        sandbox.script(a[0], Fault.delay(0.0, 4.0))
        await scene.start(a[:1])
        while len(sandbox.ledger.sends) < 3:  # noqa: ASYNC110 - the sandbox has no event for that
            await asyncio.sleep(0.01)
        wanted = b[2:] if what == "permit" else a[1:]
        waiting = [await scene.start([draft]) for draft in wanted]
        await asyncio.sleep(1.5)
        began = time.monotonic()
        await asyncio.sleep(1.5)
        for program in waiting:
            assert program.running
            assert sum(began < at for at, _ in program.transactions) <= 6
        assert len(sandbox.ledger.sends) == 3
        if what == "user":
            async with asyncio.timeout(20):  # long before the lease would have lapsed
                for program in waiting:
                    await program.done()


async def test_whoever_waits_asks_the_ledger_seldom(sqlite_urls: Iterator[str]) -> None:
    await asyncio.gather(
        *(waiting_processes(next(sqlite_urls), what) for what in ("permit", "user")),
    )


async def test_a_crowd_of_processes_keeps_one_limit_and_one_call_at_a_time(
    sqlite_urls: Iterator[str], postgres_url: str
) -> None:
    await asyncio.gather(
        crowd(next(sqlite_urls), SERVERS[3], drafts=30, per=2.5),
        crowd(postgres_url, SERVERS[2], drafts=30, per=2.5),
    )


@pytest.mark.soak
@pytest.mark.parametrize("server", SERVERS, ids=str)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_soak_a_crowd_of_processes_loses_no_time(
    sqlite_urls: Iterator[str], postgres_url: str, server: Server, kind: str
) -> None:
    url = next(sqlite_urls) if kind == "sqlite" else postgres_url
    await crowd(url, server, drafts=120, per=6.0)


async def dying_crowd(url: str, seed: int, *, drafts: int, deaths: int) -> None:
    """Processes of one app are killed and started again while others go on."""
    draw = random.Random(f"dying {seed}")
    async with crowded(
        url,
        SERVERS[seed % len(SERVERS)],
        SHORT,
        users=8,
        attempt_timeout=TIMEOUT,
        slack=SLACK,
        retry=STUBBORN,
    ) as scene:
        for number in range(drafts):
            scene.add(f"user{number % 8}")
        given = list(scene.owners)
        began = time.monotonic()
        running = [await scene.start(draw.sample(given, drafts)) for _ in range(CROWD)]
        for _ in range(deaths):
            await asyncio.sleep(draw.uniform(0.05, 0.8))
            victim = running.pop(draw.randrange(CROWD))
            await victim.kill()
            running.append(await scene.start(draw.sample(given, drafts)))
        for program in running:
            await program.done()
            assert set(program.outcomes) == set(given)
            assert set(program.outcomes.values()) <= {"sent", "already_sent"}
        took = time.monotonic() - began
        ledger = scene.sandbox.ledger
        assert ledger.sent == dict.fromkeys(given, 1)
        lost = len(ledger.sends) - drafts
        assert lost <= deaths * 2
        # Each death takes its permits, and the users' locks, out of use for a lease; then all is as before.
        cycle = bound(SHORT)
        # Three times that, because the machine may be busy with other things; a lost wake-up costs far more.
        assert took <= 3 * ((drafts / 10 + 1) * cycle / 0.8 + deaths * (LEASE + cycle)), "slower than its leases"


async def test_a_crowd_whose_processes_die_and_come_back_keeps_its_limit(sqlite_urls: Iterator[str]) -> None:
    async def act() -> None:
        await dying_crowd(next(sqlite_urls), 1, drafts=24, deaths=3)

    await steadily(act, SHORT["grace"])


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize("seed", range(4))
async def test_soak_a_crowd_whose_processes_die_and_come_back(
    sqlite_urls: Iterator[str], postgres_url: str, seed: int, kind: str
) -> None:
    async def act() -> None:
        url = next(sqlite_urls) if kind == "sqlite" else postgres_url
        await dying_crowd(url, seed, drafts=100, deaths=15)

    await steadily(act, SHORT["grace"])
