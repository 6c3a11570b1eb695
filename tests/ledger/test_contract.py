"""The contract of a store: what holds alike in memory, on SQLite and on PostgreSQL, for all that share one."""

from pathlib import Path

import pytest

from feishu_mail_async import RateLimit
from tests.helpers.ledgers import LOST, ask, home_url, refused
from tests.helpers.scenes import FREE
from tests.helpers.stores import STORES, house_of

TWO = RateLimit(calls=2, per=60, spacing=0, margin=0)


@pytest.fixture(params=STORES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory" if request.param == "memory" else home_url(request, tmp_path)


async def test_permits_are_shared(url: str) -> None:
    async with house_of(url, TWO) as house:
        one, two = house.start(), house.start()
        await one.send(ask(user="a"))
        house.clock.now += 1
        turn = await two.turn(ask(user="b"))
        assert (await one.take(ask(user="c"))).granted is None
        assert (await two.take(ask(user="c"))).granted is None
        house.clock.now += 58.999
        assert (await one.take(ask(user="c"))).granted is None
        house.clock.now += 0.001  # the first has left the window, the second is still in flight
        await one.send(ask(user="c"))
        house.clock.now += 1
        assert (await two.take(ask(user="d"))).granted is None
        await two.settle(turn)
        house.clock.now += 58.999
        assert (await two.take(ask(user="d"))).granted is None
        house.clock.now += 0.001
        await two.send(ask(user="d"))


async def test_locks_are_shared(url: str) -> None:
    async with house_of(url, FREE) as house:
        one, two = house.start(), house.start()
        turn = await one.turn(ask(user="a", mailbox="team@x"))
        same_user = await two.take(ask(user="a", mailbox="other@x"))
        same_box = await two.take(ask(user="b", mailbox="TEAM@x"))
        assert same_user.granted is same_box.granted is None
        assert [(kind, key) for kind, key, *_ in same_user.shut] == [("user", "a")]
        assert [(kind, key) for kind, key, *_ in same_box.shut] == [("mailbox", "team@x")]
        await two.send(ask(user="b", mailbox="other@x"))
        await one.settle(turn)
        await two.send(ask(user="b", mailbox="team@x"))
        await two.send(ask(user="a", mailbox="other@x"))


async def test_a_lost_call_keeps_its_locks_and_its_permit_for_grace(url: str) -> None:
    limit = RateLimit(calls=2, per=60, spacing=0, margin=0, grace=10)
    async with house_of(url, limit) as house:
        one, two = house.start(), house.start()
        await one.send(ask(user="a"), judgement=LOST)
        assert (await two.take(ask(user="a"))).granted is None
        house.clock.now += 10
        await two.send(ask(user="a"))
        house.clock.now += 59.9
        assert (await one.take(ask(user="b"))).granted is None  # 69.9 s after the first has ended
        house.clock.now += 0.1
        await one.send(ask(user="b"))
        await two.send(ask(user="c"))
        await house.nothing_held()


async def test_spacing_is_kept_over_processes(url: str) -> None:
    limit = RateLimit(calls=100, per=60, spacing=0.5, margin=0)
    async with house_of(url, limit) as house:
        one, two = house.start(), house.start()
        await one.send(ask(user="a"))
        house.clock.now += 0.499
        assert (await two.take(ask(user="b"))).granted is None
        house.clock.now += 0.001
        await two.send(ask(user="b"))


async def test_one_pause_for_all_and_one_probe(url: str) -> None:
    limit = RateLimit(calls=60, per=60, spacing=0, margin=0)
    async with house_of(url, limit) as house:
        one, two = house.start(), house.start()
        await one.send(ask(user="a"), judgement=refused("FrequencyLimited", reset="30"))
        house.clock.now += 29.9
        assert (await two.take(ask(user="b"))).granted is None
        house.clock.now += 0.1
        probe = await two.turn(ask(user="b"))
        assert probe.permit.probe
        for other in (one, two):
            assert (await other.take(ask(user="c"))).granted is None
        await two.settle(probe)
        assert (await one.take(ask(user="c"))).granted is None  # the minute after it goes at an even pace
        house.clock.now += 1.0
        await one.send(ask(user="c"))
        assert (await two.take(ask(user="d"))).granted is None
        house.clock.now += 59.5
        await two.send(ask(user="d"))
        await one.send(ask(user="e"))  # and then no longer


async def test_a_probe_without_an_answer_leaves_it_to_the_next(url: str) -> None:
    async with house_of(url, FREE) as house:
        one, two = house.start(), house.start()
        await one.send(ask(user="a"), judgement=refused("FrequencyLimited", reset="30"))
        house.clock.now += 30
        probe = await two.turn(ask(user="b"))
        await two.settle(probe, LOST)
        again = await one.turn(ask(user="c"))
        assert again.permit.probe
        await one.give_back(again)
        assert (await two.turn(ask(user="d"))).permit.probe


async def test_a_user_that_cools_down_does_so_everywhere(url: str) -> None:
    async with house_of(url, FREE) as house:
        one, two = house.start(), house.start()
        for wait in (1.0, 2.0):  # longer while it repeats
            await one.send(ask(user="a"), judgement=refused("ConcurrentWrite"))
            house.clock.now += wait - 0.01
            assert (await two.take(ask(user="a"))).granted is None
            house.clock.now += 0.01
        await two.send(ask(user="a"))
        await one.send(ask(user="a"), judgement=refused("MailThrottled"))
        house.clock.now += 1.0
        await two.send(ask(user="a"))
