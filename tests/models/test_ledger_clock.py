"""The ledger's clock against boots, other starts, and elapsed time."""

import asyncio
import itertools
import math
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feishu_mail_async._scheduling.waiters import CallLock, Turn
from feishu_mail_async.ledger.clock import HostClock, Reading
from feishu_mail_async.model import RateLimit
from tests.helpers.ledgers import Clock, Process, ask, ledger_on, timed_ledger

quarters: Final = st.integers(0, 400).map(lambda number: number / 4)


@given(
    steps=st.lists(st.tuples(st.booleans(), quarters, quarters), max_size=30),
    named=st.booleans(),
    first=quarters,
)
def test_the_clock_is_never_ahead(steps: list[tuple[bool, float, float]], *, named: bool, first: float) -> None:
    """Restarts, whether the host's starts have names or not: it falls behind, at the most."""
    host = first
    boots = itertools.count(1)

    def clock() -> HostClock:
        return HostClock(lambda: host, boot=f"boot{next(boots)}" if named else "")

    here = clock()
    reading = here.first()
    begun, true = reading.time, 0.0
    for restarts, elapsed, since_boot in steps:
        if restarts:
            # The host was off for a while, and has run for a while before the ledger is looked at.
            here = clock()
            true += elapsed + since_boot
            host = since_boot
        else:
            true += elapsed
            host += elapsed
        before, reading = reading, here.read(reading)
        assert reading.time >= before.time
        assert reading.time - begun <= true
        if not restarts:
            assert reading.time - before.time == elapsed


def test_the_clock_of_another_start_counts_nothing() -> None:
    last = Reading(100.0, 50.0, "one")
    assert HostClock(lambda: 5000.0, boot="two").read(last) == Reading(100.0, 5000.0, "two")
    assert HostClock(lambda: 60.0, boot="one").read(last) == Reading(110.0, 60.0, "one")
    assert HostClock(lambda: 20.0, boot="one").read(last).time == 100.0
    assert HostClock(lambda: 20.0, boot="").read(Reading(100.0, 50.0, "")) == Reading(100.0, 20.0, "")


async def test_the_wall_clock_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does what it is set to in between."""
    limit = RateLimit(calls=1, per=60, spacing=0, margin=0)
    clock = Clock()
    ledger = timed_ledger(f"sqlite:///{tmp_path / 'mail.db'}", clock)
    one = Process(ledger, ledger.store("https://x", "app", limit))
    await one.send(ask(user="a"))
    for wall in (0.0, 1e12):
        monkeypatch.setattr("time.time", lambda wall=wall: wall)
        assert (await one.take(ask(user="b"))).granted is None
    clock.now += 60
    await one.send(ask(user="b"))
    await ledger.close()


@given(
    moves=st.lists(st.tuples(st.booleans(), st.integers(1, 200).map(lambda number: number / 4)), max_size=12),
    named=st.booleans(),
)
@settings(max_examples=8)
def test_a_window_never_opens_early_over_restarts(
    moves: list[tuple[bool, float]], *, named: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However often the host restarts, the next call comes no earlier than `per` of true time after the last."""
    limit = RateLimit(calls=1, per=20, spacing=0, margin=0)
    url = f"sqlite:///{tmp_path_factory.mktemp('clock') / 'mail.db'}"
    host, true, boots = Clock(), 0.0, itertools.count(1)

    async def main() -> None:
        nonlocal true

        def start() -> Process:
            boot = f"boot{next(boots)}" if named else ""
            ledger = ledger_on(url, clock=HostClock(host, boot=boot))
            return Process(ledger, ledger.store("https://x", "app", limit))

        here = start()
        sent = -math.inf
        for number, (restarts, seconds) in enumerate([(False, 0.25), *moves]):
            true += seconds
            host.now = seconds if restarts else host.now + seconds
            if restarts:
                await here.ledger.close()
                here = start()
            taken = await here.take(one := ask(user=f"user{number}"))
            if taken.granted is None:
                continue
            assert true - sent >= limit.per
            sent = true
            await here.settle(Turn(CallLock(one.user), CallLock(one.mailbox), one, taken.granted[1]))
        await here.ledger.close()

    asyncio.run(main())
