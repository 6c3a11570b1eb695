"""Pauses, probes, cool-downs and outages: who waits for how long, and what ends it."""

import math

import pytest

from feishu_mail_async._api.protocol import Judgement, lost, never_left
from feishu_mail_async.codes import ResumeWhen, Subject
from feishu_mail_async.errors import Suspended, TransportError
from feishu_mail_async.model import Priority, RateLimit
from tests.helpers.judgements import SENT, fatal, throttled
from tests.models.scheduler_loop import FixedDelays
from tests.models.scheduler_model import HOUR
from tests.models.scheduler_world import World, fly, shot


@pytest.mark.parametrize(
    "old", [SENT, throttled(Subject.USER), fatal(Subject.DRAFT, None), lost("reset")], ids=str
)
def test_the_end_of_an_older_call_ends_no_pause(world: World, old: Judgement) -> None:
    older, refused = fly(world, ("A", "a"), ("B", "b"))
    world.settle(refused, throttled(Subject.APP, 20.0))
    world.settle(older, old)
    world.submit("C", "c")
    world.submit("D", "d")
    world.run(19.75)
    assert world.log == [1, 2]
    world.run(0.25)
    assert world.log == [1, 2, 3]  # one probe
    world.run(100.0)
    assert world.log == [1, 2, 3]
    world.sent(world.flights[0])
    world.run(4.0)
    assert world.log == [1, 2, 3, 4]


def test_a_probe_of_an_older_pause_ends_no_newer_one(world: World) -> None:
    older, refused = fly(world, ("A", "a"), ("B", "b"))
    world.settle(refused, throttled(Subject.APP, 1.0))
    world.submit("C", "c")
    world.run(20.0)
    # The window leaves one permit for the probe; while it flies, the older call is refused.
    probe = world.flights[-1]
    assert probe.call.probe
    world.settle(older, throttled(Subject.APP, 30.0))
    world.sent(probe)
    assert shot(world).paused == 30.0
    world.submit("D", "d")
    world.run(29.0)
    assert world.log == [1, 2, 3]
    world.run(1.0)
    assert world.log == [1, 2, 3, 4]


@pytest.mark.parametrize("end", [lost("reset"), None], ids=["lost", "given back"])
def test_a_probe_without_an_answer_leaves_the_pause_to_the_next(world: World, end: Judgement | None) -> None:
    (refused,) = fly(world, ("A", "a"))
    world.settle(refused, throttled(Subject.APP, 100.0))
    for user in "BCD":
        world.submit(user, user)
    world.run(100.0)
    for _ in range(2):
        (probe,) = world.flights
        if end is None:
            world.give_back(probe)
        else:
            world.settle(probe, end)
        assert shot(world).paused == 0.0
        world.run(50.0)
        assert len(world.flights) == 1  # though two permits are free
    world.sent(world.flights[0])
    assert shot(world).paused is None


def test_the_latest_deadline_of_a_pause_wins(world: World) -> None:
    first, second = fly(world, ("A", "a"), ("B", "b"))
    world.settle(first, throttled(Subject.APP, 30.0))
    world.settle(second, throttled(Subject.APP, 10.0))
    assert shot(world).paused == 30.0
    world.run(0.5)
    assert shot(world).paused == 29.5


def test_a_user_waits_longer_while_it_repeats_and_not_after_a_success(world: World) -> None:
    world.set_limit(RateLimit(100, 8.0, 0.0))
    waits = []
    for end in [throttled(Subject.USER)] * 3 + [SENT] + [throttled(Subject.USER)]:
        (flight,) = fly(world, ("A", "a"))
        world.settle(flight, end)
        waits.append(shot(world).cooling.get("A", 0.0))
        world.run(waits[-1])
    assert waits == [1.0, 2.0, 4.0, 0.0, 1.0]


def test_an_app_that_was_closed_for_an_hour_probes_with_one_call(world: World) -> None:
    (flight,) = fly(world, ("A", "a"))
    late = world.submit("B", "b")
    world.settle(flight, fatal(Subject.APP, ResumeWhen.HOUR))
    assert isinstance(world.refusals[late], Suspended)
    world.run(HOUR)
    for user in "CDE":
        world.submit(user, user)
    world.run(30.0)
    assert world.log == [1, 3]
    world.settle(world.flights[0], fatal(Subject.APP, ResumeWhen.HOUR))
    assert len(world.refusals) == 3
    assert not any(shot(world).waiting.values())


def test_the_smooth_rate_lasts_one_window() -> None:
    world = World(RateLimit(4, 16.0, 0.0, margin=0.0))
    try:
        (refused,) = fly(world, ("A", "a"))
        world.settle(refused, throttled(Subject.APP, 1.0))
        world.submit("B", "b")
        world.run(1.0)
        world.sent(world.flights[0])
        world.run(15.0)
        for user in "CDE":
            world.submit(user, user)
        world.run()
        assert world.log == [1, 2, 3]
        world.run(1.0)
        # The window is over, two permits are free, and the plain spacing has passed.
        assert world.log == [1, 2, 3, 4, 5]
    finally:
        world.end()


def test_the_plain_rate_comes_back_after_the_smooth_one() -> None:
    world = World(RateLimit(4, 16.0, 0.0, margin=0.0))
    try:
        (refused,) = fly(world, ("A", "a"))
        world.settle(refused, throttled(Subject.APP, 20.0))
        asks = [world.submit(user, user) for user in "BCDEFG"]
        at = []
        while len(world.log) <= len(asks):
            world.run(1.0)
            at += [world.now for _ in world.flights]
            while world.flights:
                world.sent(world.flights[0])
        assert at == [20.0, 24.0, 28.0, 32.0, 36.0, 40.0]
        world.run(16.0)
        fly(world, *[(user, user) for user in "BCDE"])
    finally:
        world.end()


def test_an_outage_grows_to_a_maximum_and_refuses_those_it_lasted_too_long_for(world: World) -> None:
    brief = world.submit("Q", "q", Priority.BULK, outage=30.0)
    patient = world.submit("P", "p", Priority.NORMAL)
    world.run()
    other = next(flight for flight in world.flights if flight.call.want is brief)
    world.give_back(other)
    world.run_to_next()
    brief = world.submit("Q", "q", Priority.BULK, outage=30.0)
    gaps, began, refused_after = [], world.now, math.inf
    while world.now < 120.0:
        before = world.now
        world.settle(world.flights[0], never_left("lookup"))
        if brief in world.refusals:
            refused_after = min(refused_after, world.now - began)
        patient = world.submit("P", "p", Priority.NORMAL)
        world.run_to_next()
        gaps.append(world.now - before)
    assert gaps == sorted(gaps)
    assert gaps[0] == 1.0
    assert gaps[-1] == gaps[-2] == FixedDelays.longest + 0.25
    assert isinstance(world.refusals[brief], TransportError)
    assert 30.0 <= refused_after < 30.0 + FixedDelays.longest + 0.5
    assert patient not in world.refusals


def test_a_refusal_that_came_from_the_server_ends_an_outage(world: World) -> None:
    (flight,) = fly(world, ("A", "a"))
    waiting = world.submit("W", "w", Priority.BULK, outage=60.0)
    world.settle(flight, never_left("lookup"))
    world.submit("A", "a")
    world.run(1.0)
    (probe,) = world.flights
    world.settle(probe, throttled(Subject.APP, 50.0))  # the server has answered
    world.submit("A", "a")
    world.run(50.0)
    (probe,) = world.flights
    world.settle(probe, never_left("lookup"))
    world.submit("A", "a")
    world.run_to_next()
    (probe,) = world.flights
    world.run(10.0)
    world.settle(probe, never_left("lookup"))
    # Nothing was reachable for some ten seconds.
    assert waiting not in world.refusals, str(world.refusals[waiting])
    with world.loop.current():
        assert world.scheduler.unreachable_for() < 60.0


def test_calls_that_one_outage_ended_together_count_once(world: World) -> None:
    world.set_limit(RateLimit(20, 8.0, 0.0))
    for flight in fly(world, ("A", "a"), ("B", "b"), ("C", "c")):
        world.settle(flight, never_left("lookup"))
        world.run(0.25)
    assert shot(world).paused == 0.25  # a second after the first; three in a row would be four
