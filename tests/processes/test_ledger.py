"""Several processes, one ledger: real processes, real kill -9, real databases, judged by what the server saw."""

import asyncio
import contextlib
import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from feishu_mail_async import FeishuMailClient, RateLimit
from feishu_mail_async.ledger.sqlstore import SqlStore
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.ledger_processes import Scene, cycles, pulse, shares
from tests.helpers.postgres import PostgresServer
from tests.simulation.test_limit import SERVERS, Server

pytestmark = pytest.mark.skipif(os.name != "posix", reason="it forks, and sends signals")


@pytest.fixture
def sqlite_urls(tmp_path: Path) -> Iterator[str]:
    """URLs of files that are not there yet."""
    return (f"sqlite:///{tmp_path}/ledger{number}.db" for number in itertools.count())


async def steadily(act: Callable[[], Awaitable[None]], stall: float) -> None:
    """Do something that takes a server for granted which does not stand still for that long.

    Where this process, and so the sandbox in it, stood still for longer, that tells nothing of the package: it is
    done again.
    """
    for last in (False, False, True):
        async with pulse() as beat:
            try:
                await act()
            except AssertionError:
                if last or beat.longest < stall:
                    raise
            else:
                return


# --- kill -9, and the same command again -------------------------------------------------------------------

SHORT: Final[dict[str, Any]] = {"calls": 10, "per": 1.0, "spacing": 0.0, "grace": 0.7, "margin": 0.05}
"""A limit whose windows pass quickly."""
TIMEOUT: Final = 0.7
SLACK: Final = 0.3
LEASE: Final[float] = TIMEOUT + SHORT["grace"] + SLACK
"""Seconds after which what a killed process held is free again."""
STUBBORN: Final[dict[str, Any]] = {"attempts": 15, "refusals": 60, "initial": 0.05, "maximum": 0.2, "outage": None}
"""As many attempts as it takes."""

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
        scene = Scene(sandbox, url, SHORT, attempt_timeout=TIMEOUT, slack=SLACK, retry=STUBBORN)
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
                assert record.state.settled
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
            Scene(sandbox, next(sqlite_urls), SHORT, attempt_timeout=TIMEOUT, slack=SLACK) as scene,
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


# --- a crowd -----------------------------------------------------------------------------------------------

ROUND_TRIP: Final = 0.02
CROWD: Final = 4
IDLE: Final = 0.5
"""Seconds that a permit may lie idle at the least, on whatever machine."""


@contextlib.asynccontextmanager
async def crowded(
    url: str, server: Server, limit: dict[str, Any], *, users: int, **more: Any
) -> AsyncIterator[Scene]:
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
        Scene(sandbox, url, limit, **more) as scene,
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
        Scene(sandbox, url, limit) as scene,
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


# --- what one ledger keeps apart ---------------------------------------------------------------------------


async def test_a_rehearsal_and_another_app_count_for_nothing(sqlite_urls: Iterator[str]) -> None:
    url = next(sqlite_urls)
    # Of one seed: both have the same ids.
    async with (
        Sandbox(users=("alice",), latency=0.01) as rehearsal,
        Sandbox(users=("alice",), latency=0.01) as real,
    ):
        limit = {"calls": 20, "per": 60.0, "spacing": 0.0}
        async with Scene(rehearsal, url, limit) as first, Scene(real, url, limit) as second:
            drafts = first.add("alice", 5)
            assert second.add("alice", 5) == drafts
            assert set((await first.run()).values()) == {"sent"}
            assert set((await second.run()).values()) == {"sent"}
            assert set((await second.run()).values()) == {"already_sent"}
            assert len(real.ledger.sends) == 5, "the second run is known to be done"
            second.told.clear()
            second.app = "cli_b"
            assert set((await second.run()).values()) == {"already_sent"}
            assert len(real.ledger.sends) == 10, "of another app nothing is known: the server is asked"


# --- who waits, and what is suspended, across processes -------------------------------------------------------


async def test_a_pause_that_one_process_is_told_of_holds_for_all_and_one_call_probes(
    sqlite_urls: Iterator[str],
) -> None:
    limit = {"calls": 20, "per": 4.0, "spacing": 0.1, "grace": 2.0, "margin": 0.05}
    users = [f"user{number}" for number in range(9)]
    async with (
        Sandbox(users=users, latency=0.2, calls=1000) as sandbox,
        Scene(sandbox, next(sqlite_urls), limit, retry=STUBBORN) as scene,
    ):
        for user in users:
            scene.add(user, 2)
        refused: list[float] = []

        def answer(arrival: Any) -> Fault | None:
            if not refused or (len(refused) == 1 and arrival.time > refused[0] + 1):
                refused.append(arrival.time)
                return Fault.frequency(reset="2" if len(refused) == 1 else "1")
            return None

        sandbox.on_call = answer
        given = list(scene.owners)
        programs = [await scene.start(given[number::3]) for number in range(3)]
        for program in programs:
            await program.done()
            assert set(program.outcomes.values()) == {"sent"}
        times = [send.time for send in sandbox.ledger.sends]
        first, second = refused
        # Those that had their turns before the answer was there are under way; after them there is silence.
        assert not [at for at in times if first + 1.2 < at < first + 2.0]
        probes = [at for at in times if at > first + 1]
        assert probes[0] == second, "one probe, by whichever process"
        assert probes[1] >= second + 1, "a probe that is refused begins the pause anew"
        assert probes[2] >= probes[1] + 0.2, "nobody else before the probe's answer"
        for number, at in enumerate(probes[2:]):
            # A call may take a while to its arrival; the pace is kept all the same.
            assert at >= probes[2] + number * 0.2 - 0.3, "after a pause calls go at the even pace"


async def test_a_mailbox_that_one_process_finds_closed_is_closed_for_all_until_one_reopens_it(
    sqlite_urls: Iterator[str], tmp_path: Path
) -> None:
    limit = {"calls": 20, "per": 60.0, "spacing": 0.0}
    async with (
        Sandbox(users=("alice", "bob"), latency=0.1) as sandbox,
        Scene(sandbox, next(sqlite_urls), limit) as scene,
    ):
        a, b = scene.add("alice", 7), scene.add("bob", 2)
        sandbox.disable_automation("alice@example.com")

        def of_alice() -> int:
            return sum(send.user == "alice" for send in sandbox.ledger.sends)

        # Two at once: one finds it closed, the other hears of it while it waits for alice's lock.
        waits = tmp_path / "reopened"
        later = {"when": str(waits), "drafts": [(a[2], "alice", "me")]}
        lasting = await scene.start(a[:2], then=[later])
        other = await scene.start(a[2:4])
        await other.done()
        await lasting.says("waits")
        told = Counter(other.outcomes.values()) + Counter(lasting.outcomes.values())
        assert told == {"failed": 1, "skipped": 3}
        assert of_alice() == 1
        # One that is started later knows it, and the other users go.
        assert await scene.run([a[4], b[0]]) == {a[4]: "skipped", b[0]: "sent"}
        assert of_alice() == 1
        sandbox.open_mailbox("alice@example.com")
        assert await scene.run([a[5]]) == {a[5]: "skipped"}, "nobody has resumed it"
        assert await scene.run([a[5]], resume=["mailbox:me/alice"]) == {a[5]: "sent"}
        assert await scene.run([a[6]]) == {a[6]: "sent"}
        waits.touch()
        await lasting.done()
        assert lasting.outcomes[a[2]] == "sent", "it is open for one that had found it closed"
        assert of_alice() == 4


async def test_a_user_who_cools_down_does_so_in_every_process(sqlite_urls: Iterator[str]) -> None:
    limit = {"calls": 20, "per": 60.0, "spacing": 0.0}
    async with (
        Sandbox(users=("alice", "bob"), latency=0.02) as sandbox,
        Scene(sandbox, next(sqlite_urls), limit, retry={"initial": 3.0, "maximum": 3.0}) as scene,
    ):
        (first,) = scene.add("alice")
        others = scene.add("alice", 2) + scene.add("bob", 2)
        sandbox.script(first, Fault.code("MailThrottled"))
        throttled = await scene.start([first])
        while not sandbox.ledger.sends:  # noqa: ASYNC110 - the sandbox has no event for that
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        other = await scene.start(others)
        await other.done()
        await throttled.done()
        alice = [send.time for send in sandbox.ledger.sends if send.user == "alice"]
        bob = [send.time for send in sandbox.ledger.sends if send.user == "bob"]
        assert alice[1] - alice[0] >= 1.5
        assert bob[-1] < alice[1]
        assert set(shares([throttled, other])) == {"sent"}


# --- a process that stands still ---------------------------------------------------------------------------


async def test_a_turn_that_a_process_has_slept_through_is_not_used(sqlite_urls: Iterator[str]) -> None:
    limit = {"calls": 20, "per": 60.0, "spacing": 0.0, "grace": 0.3}
    async with (
        Sandbox(users=("alice",), latency=lambda _: (0.1, 0.7)) as sandbox,
        Scene(sandbox, next(sqlite_urls), limit, attempt_timeout=1.2, slack=0.3) as scene,
    ):
        mine, other = scene.add("alice", 2)
        stop = {"point": "taken", "nth": 1, "number": signal.SIGSTOP}
        asleep = await scene.start([mine], crashes=[stop])
        await asleep.says("reached")
        began = time.monotonic()
        awake = await scene.start([other])
        while not sandbox.ledger.sends:  # noqa: ASYNC110 - the sandbox has no event for that
            await asyncio.sleep(0.01)
        assert time.monotonic() - began > 1.2, "the lease had not lapsed yet"
        assert sandbox.ledger.sends[0].draft_id == other
        asleep.signal(signal.SIGCONT)  # in the midst of the other's call
        await awake.done()
        await asleep.done()
        assert [send.draft_id for send in sandbox.ledger.sends] == [other, mine]
        assert (asleep.outcomes, awake.outcomes) == ({mine: "sent"}, {other: "sent"})


async def test_a_turn_that_was_not_used_is_there_for_another(sqlite_urls: Iterator[str]) -> None:
    limit = {"calls": 1, "per": 60.0, "spacing": 0.0, "grace": 0.3}
    async with (
        Sandbox(users=("alice",), latency=0.02) as sandbox,
        Scene(sandbox, next(sqlite_urls), limit, attempt_timeout=2.0, slack=0.2) as scene,
    ):
        (draft,) = scene.add("alice")
        stop = {"point": "taken", "nth": 1, "number": signal.SIGSTOP}
        asleep = await scene.start([draft], crashes=[stop])
        await asleep.says("reached")
        await asyncio.sleep(0.5)
        asleep.signal(signal.SIGCONT)
        async with asyncio.timeout(10):
            await asleep.done()
        assert len(sandbox.ledger.sends) == 1


async def standing_still(url: str, point: str) -> None:
    limit = {"calls": 20, "per": 60.0, "spacing": 0.0, "grace": 0.3}
    async with (
        Sandbox(users=("alice", "bob"), latency=0.1) as sandbox,
        Scene(sandbox, url, limit, attempt_timeout=0.8, slack=0.3, retry=STUBBORN) as scene,
    ):
        a, b = scene.add("alice", 3), scene.add("bob", 3)
        stop = {"point": point, "nth": 2, "number": signal.SIGSTOP, "delay": 0.05}
        asleep = await scene.start([*a[:2], b[0]], crashes=[stop])
        await asleep.says("reached")
        awake = await scene.start([a[2], *b[1:]])
        await asyncio.sleep(2.0)  # longer than the lease
        asleep.signal(signal.SIGCONT)
        await awake.done()
        await asleep.done()
        assert sandbox.ledger.sent == dict.fromkeys(scene.owners, 1)
        assert set(shares([asleep, awake])) <= {"sent", "already_sent"}


async def test_a_process_that_stands_still_anywhere_goes_on_as_if_nothing_had_been(
    sqlite_urls: Iterator[str],
) -> None:
    points = ("taking", "calling", "settling")
    await asyncio.gather(*(standing_still(next(sqlite_urls), point) for point in points))


# --- what a killed call leaves open ------------------------------------------------------------------------


async def doubted(url: str, why: str, *, each: bool) -> None:
    limit = {"calls": 20, "per": 60.0, "spacing": 0.0, "grace": 0.3}
    async with (
        Sandbox(users=("alice",), latency=0.02) as sandbox,
        Scene(sandbox, url, limit, attempt_timeout=1.0, slack=0.3) as scene,
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
        Scene(sandbox, next(sqlite_urls), limit, attempt_timeout=0.5, slack=0.3) as scene,
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
        Scene(sandbox, next(sqlite_urls), limit, attempt_timeout=0.5, slack=0.3) as scene,
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


@pytest.mark.parametrize("what", ["permit", "probe"])
async def test_a_send_given_up_while_the_ledger_is_asked_leaves_its_turn_to_another(
    sqlite_urls: Iterator[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    granted: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    take = SqlStore._take
    left = [1 if what == "permit" else 2]

    async def slow(store: SqlStore, asks: Any) -> Any:
        taken = await take(store, asks)
        if taken.granted is not None:
            left[0] -= 1
            if not left[0]:
                granted.set_result(taken.granted[0].user)
                await asyncio.sleep(0.1)
        return taken

    monkeypatch.setattr(SqlStore, "_take", slow)
    limit = RateLimit(calls=1 if what == "permit" else 20, spacing=0)
    async with Sandbox(users=("alice", "bob"), latency=0.02) as sandbox:
        a, b = sandbox.add_draft("alice"), sandbox.add_draft("bob")
        if what == "probe":
            sandbox.script(a, Fault.frequency(reset="1"))
        async with FeishuMailClient(
            sandbox.tokens, app="cli_a", base_url=sandbox.base_url, ledger=next(sqlite_urls), rate_limit=limit
        ) as client:
            sends = {"alice": asyncio.create_task(client.send_draft(a, user="alice"))}
            if what == "probe":
                while not sandbox.ledger.sends:  # noqa: ASYNC110 - the sandbox has no event for that
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.2)
            sends["bob"] = asyncio.create_task(client.send_draft(b, user="bob"))
            given_up = sends.pop(await granted)
            given_up.cancel()
            async with asyncio.timeout(10):
                await asyncio.gather(*sends.values())
        assert sandbox.ledger.sent.total() == 1
