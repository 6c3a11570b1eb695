"""Processes that are killed: nothing is lost, sent twice, claimed, or over the limit."""

import asyncio
import os
import random
import signal
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.ledger_processes import SHORT, SLACK, STUBBORN, TIMEOUT, Programs, steadily
from tests.helpers.postgres import PostgresServer
from tests.helpers.servers import SERVERS

pytestmark = pytest.mark.skipif(os.name != "posix", reason="it forks, and sends signals")

POINTS: Final = ("timed", "taking", "taken", "calling", "answered", "settling", "settled")


def mishap(draw: random.Random) -> Fault:
    """Something that a further attempt mends."""
    make: Callable[[], Fault] = draw.choice(
        [
            Fault.reset_before,
            Fault.reset_after,
            Fault.hang_before,
            Fault.hang_after,
            Fault.gateway,
            lambda: Fault.gateway(accepted=True),
            lambda: Fault.broken(accepted=True),
            lambda: Fault.code("InternalError"),
            lambda: Fault.code("InternalError", accepted=True),
            lambda: Fault.code("ConcurrentWrite"),
            lambda: Fault.delay(TIMEOUT + 0.3),  # it arrives after it was given up
            lambda: Fault.delay(0.2, 0.2),
        ]
    )
    return make()


def ways(draw: random.Random) -> tuple[float, float]:
    """Some calls are long on their way to the server: when it counts them tells nothing of when they set out."""
    return draw.uniform(0.005, 0.5 if draw.random() < 0.3 else 0.06), draw.uniform(0.005, 0.06)


async def killed_again_and_again(url: str, seed: int, *, drafts: int, kills: int, share: float = 0.25) -> None:
    """Kill a bulk run at several points, one after another, and run it again until it ends by itself."""
    draw = random.Random(f"kills {seed}")
    server = SERVERS[seed % len(SERVERS)]
    users = [f"user{number}" for number in range(6)]
    async with Sandbox(
        calls=SHORT["calls"],
        per=SHORT["per"],
        window=server.window,
        count_refusals=server.count_refusals,
        latency=ways,
        users=users,
        seed=seed,
    ) as sandbox:
        scene = Programs(sandbox, url, SHORT, attempt_timeout=TIMEOUT, slack=SLACK, retry=STUBBORN)
        async with scene:
            for number in range(drafts):
                scene.add(users[number % len(users)])
            given = draw.sample(list(scene.owners), drafts)
            for draft in draw.sample(given, round(drafts * share)):
                sandbox.script(draft, *(mishap(draw) for _ in range(draw.randint(1, 2))))
            if seed % 5 == 4:
                sandbox.script(given[drafts // 2], Fault.frequency(reset="1"))
            for number in range(kills):
                point = POINTS[(seed * kills + number) % len(POINTS)]
                if point == "timed":
                    program = await scene.start(given)
                    await asyncio.sleep(draw.uniform(0, 2))
                    program.signal(signal.SIGKILL)
                else:
                    crash = {
                        "point": point,
                        "nth": draw.randint(1, 6),
                        "number": signal.SIGKILL,
                        "delay": draw.uniform(0, 0.12),
                    }
                    program = await scene.start(given, crashes=[crash])
                await program.ended()
            outcomes = await scene.run(given)
            assert sorted(outcomes) == sorted(given)
            assert set(outcomes.values()) <= {"sent", "already_sent"}
            assert sandbox.ledger.sent == dict.fromkeys(given, 1)
            records = await scene.recall()
            for draft, record in records.items():
                assert record is not None
                assert record.state.done
                # A process that died between taking and calling has counted a call that it did not make.
                assert 0 <= record.calls - len(sandbox.ledger.calls(draft)) <= kills
            calls = len(sandbox.ledger.sends)
            assert set((await scene.run(given)).values()) == {"already_sent"}
            assert len(sandbox.ledger.sends) == calls, "the last run had nothing to do, and did something"


async def test_whatever_moment_a_run_is_killed_at_nothing_is_lost_sent_twice_or_over_the_limit(
    sqlite_urls: Iterator[str],
) -> None:
    async def rounds() -> None:
        await asyncio.gather(
            # At each of the points, and with each kind of server.
            *(killed_again_and_again(next(sqlite_urls), seed, drafts=12, kills=2) for seed in range(5))
        )

    await steadily(rounds, SHORT["grace"])


async def test_calls_of_a_killed_process_count_when_they_arrive(sqlite_urls: Iterator[str]) -> None:
    """They set out before it died, and are on their way for nearly as long as they may be."""
    users = [f"user{number}" for number in range(20)]

    async def act() -> None:
        async with (
            Sandbox(calls=10, per=1.0, latency=0.02, users=users) as sandbox,
            Programs(sandbox, next(sqlite_urls), SHORT, attempt_timeout=TIMEOUT, slack=SLACK) as scene,
        ):
            for user in users:
                scene.add(user)
            given = list(scene.owners)
            for draft in given[:10]:
                sandbox.script(draft, Fault.delay(TIMEOUT + SHORT["grace"] - 0.4))
            crash = {"point": "calling", "nth": 10, "number": signal.SIGKILL, "delay": 0.02}
            killed = await scene.start(given[:10], crashes=[crash])
            await killed.ended()
            arrived = sum(send.draft_id in given[:10] for send in sandbox.ledger.sends)
            assert arrived < 10, "none of them is on its way"
            assert set((await scene.run(given)).values()) == {"sent", "already_sent"}
            assert sandbox.ledger.sent == dict.fromkeys(given, 1)

    await steadily(act, 0.3)


@pytest.mark.soak
@pytest.mark.parametrize("tens", range(8))
async def test_soak_whatever_moment_a_run_is_killed_at(sqlite_urls: Iterator[str], tens: int) -> None:
    async def rounds() -> None:
        seeds = range(100 + 10 * tens, 110 + 10 * tens)
        await asyncio.gather(
            *(killed_again_and_again(next(sqlite_urls), seed, drafts=50, kills=5) for seed in seeds)
        )

    await steadily(rounds, SHORT["grace"])


@pytest.mark.soak
@pytest.mark.parametrize("fives", range(4))
async def test_soak_whatever_moment_a_run_is_killed_at_on_postgresql(
    postgres_server: PostgresServer, fives: int
) -> None:
    async def rounds() -> None:
        seeds = range(5 * fives, 5 * fives + 5)
        urls = [postgres_server.url(postgres_server.create()) for _ in seeds]
        await asyncio.gather(
            *(killed_again_and_again(url, seed, drafts=50, kills=5) for url, seed in zip(urls, seeds, strict=True))
        )

    await steadily(rounds, SHORT["grace"])


async def doubted(url: str, why: str, *, each: bool) -> None:
    limit = {"calls": 20, "per": 60.0, "spacing": 0.0, "grace": 0.3}
    async with (
        Sandbox(users=("alice",), latency=0.02) as sandbox,
        Programs(sandbox, url, limit, attempt_timeout=1.0, slack=0.3) as scene,
    ):
        sent, closing = scene.add("alice", 2)
        killed = await scene.start([sent], crashes=[{"point": "answered", "nth": 1, "number": signal.SIGKILL}])
        await killed.ended()
        assert sandbox.ledger.sent[sent] == 1
        if why == "deadline":
            assert await scene.run([sent], each=each, deadline=0.3) == {sent: "unknown"}
        else:
            await asyncio.sleep(1.7)  # the lease lapses
            sandbox.disable_automation("alice@example.com")
            assert await scene.run([closing]) == {closing: "failed"}
            assert await scene.run([sent], each=each) == {sent: "unknown"}


async def test_a_draft_that_a_killed_process_may_have_sent_is_not_told_as_not_sent(
    sqlite_urls: Iterator[str],
) -> None:
    await asyncio.gather(
        doubted(next(sqlite_urls), "deadline", each=True),
        doubted(next(sqlite_urls), "closed", each=True),
        doubted(next(sqlite_urls), "closed", each=False),
    )


async def test_a_refusal_after_a_killed_call_leaves_it_open_whether_the_mail_went_out(
    sqlite_urls: Iterator[str],
) -> None:
    limit = {"calls": 20, "per": 60.0, "spacing": 0.0, "grace": 0.3}
    async with (
        Sandbox(users=("alice",), latency=0.02) as sandbox,
        Programs(sandbox, next(sqlite_urls), limit, attempt_timeout=0.5, slack=0.3) as scene,
    ):
        (draft,) = scene.add("alice")
        killed = await scene.start([draft], crashes=[{"point": "answered", "nth": 1, "number": signal.SIGKILL}])
        await killed.ended()
        sandbox.script(draft, Fault.code("ContentRisk"))
        assert await scene.run([draft]) == {draft: "unknown"}
        assert await scene.run([draft]) == {draft: "already_sent"}


async def test_a_process_that_waits_hears_of_the_doubt_that_another_leaves(sqlite_urls: Iterator[str]) -> None:
    limit = {"calls": 20, "per": 60.0, "spacing": 0.0, "grace": 0.3}
    async with (
        Sandbox(users=("alice",), latency=0.02) as sandbox,
        Programs(sandbox, next(sqlite_urls), limit, attempt_timeout=0.5, slack=0.3) as scene,
    ):
        (draft,) = scene.add("alice")
        stop = {"point": "recalled", "nth": 1, "number": signal.SIGSTOP}
        waits = await scene.start([draft], crashes=[stop])  # when it asks, nothing is known of the draft
        await waits.says("reached")
        killed = await scene.start([draft], crashes=[{"point": "answered", "nth": 1, "number": signal.SIGKILL}])
        await killed.ended()
        sandbox.script(draft, Fault.code("ContentRisk"))
        waits.signal(signal.SIGCONT)
        await waits.done()
        assert waits.outcomes == {draft: "unknown"}
