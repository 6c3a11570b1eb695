"""Whose turn it is, and when: single histories, step by step."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feishu_mail_async._api.endpoints import SEND
from feishu_mail_async._api.protocol import Judgement, Reply, lost, never_left
from feishu_mail_async._auth.tokens import tokens_of
from feishu_mail_async._calls.call import Call
from feishu_mail_async._calls.caller import request
from feishu_mail_async._calls.intake import Intake
from feishu_mail_async._scheduling.memory import MemoryStore
from feishu_mail_async._scheduling.process import ProcessStore
from feishu_mail_async._scheduling.record import DraftKey
from feishu_mail_async._scheduling.scheduler import Scheduler
from feishu_mail_async._scheduling.waiters import Turn, Waiter, mailbox_key
from feishu_mail_async._transport import NOT_MADE, Failure
from feishu_mail_async.codes import ResumeWhen, Subject
from feishu_mail_async.errors import FeishuMailError, OutcomeUnknown
from feishu_mail_async.ledger import Record
from feishu_mail_async.model import Draft, Priority, RateLimit, RetryPolicy
from tests.helpers.judgements import SENT, fatal, throttled
from tests.models.scheduler_loop import FixedDelays, VirtualLoop
from tests.models.scheduler_model import HOUR
from tests.models.scheduler_world import World, fly, fly_more, shot

FEW: Final = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


def test_a_permit_comes_back_after_the_end_of_its_call(world: World) -> None:
    first, second = fly(world, ("A", "a"), ("B", "b"))
    waiting = [world.submit(user, user) for user in "CDEF"]
    world.run(20.0)
    assert world.log == [1, 2]  # in flight for 20 s: neither permit has come back
    world.sent(first)
    world.settle(second, lost("reset"))
    world.run(8.25)
    assert world.log == [1, 2]
    world.run(0.25)
    assert world.log == [1, 2, 3]
    world.run(1.75)
    assert world.log == [1, 2, 3]
    world.run(0.25)
    assert world.log == [1, 2, 3, 4]
    world.settle(world.flights[0], never_left("lookup"))
    assert shot(world).permits == 1
    assert [want.number for want in waiting] == [3, 4, 5, 6]


def test_a_lost_call_keeps_its_user_and_its_mailbox_for_the_grace(world: World) -> None:
    world.set_limit(RateLimit(20, 8.0, 0.0, 2.0, 0.5))
    (flight,) = fly(world, ("A", "m"))
    world.settle(flight, lost("reset"))
    for user, mailbox in (("A", "a"), ("B", "m"), ("C", "c")):
        world.submit(user, mailbox)
    world.run(1.75)
    assert world.log == [1, 4]
    world.run(0.25)
    assert world.log == [1, 4, 3, 2]  # B was never served


def test_a_stream_that_is_held_holds_up_no_other_and_goes_on_when_resumed() -> None:
    world = World(RateLimit(100, 8.0, 0.0))
    try:
        world.hold("s1")
        for user in "ABA":
            world.submit(user, user, stream="s1")
        world.submit("A", "A")
        world.submit("B", "B", stream="s2")
        world.run(100.0)
        assert world.log == [4, 5]
        world.unhold("s1")
        world.run()
        assert world.log == [4, 5]  # their users' calls are in flight
        world.sent(world.flights[1])
        world.run()
        world.hold("s1")
        world.sent(world.flights[0])
        world.run(100.0)
        assert world.log == [4, 5, 2]
        world.unhold("s1")
        world.run()
        assert world.log == [4, 5, 2, 1]
        world.finish()
    finally:
        world.end()


@pytest.mark.parametrize("to", [None, "s2"])
def test_an_ask_that_another_wants_too_is_held_by_no_stream(world: World, to: str | None) -> None:
    world.hold("s1")
    world.hold("s2")
    for user in "AB":
        world.submit(user, user, Priority.BULK, stream="s1")
    world.run(100.0)
    assert not world.log
    world.move(list(world.askers)[1], Priority.BULK, to)
    world.run()
    assert world.log == [2]
    world.move(next(iter(world.askers)), Priority.NORMAL, "s1")  # more urgent, but for the same stream
    world.run(100.0)
    assert world.log == [2]


def test_of_users_who_wait_for_one_mailbox_the_one_unserved_the_longest_goes() -> None:
    world = World(RateLimit(100, 8.0, 0.0))
    try:
        a, b = fly(world, ("A", "a"), ("B", "b"))
        world.sent(a)
        world.sent(b)
        (busy,) = fly(world, ("C", "m"))
        world.submit("A", "m")
        world.submit("B", "m")
        world.run()
        (elsewhere,) = fly_more(world, ("A", "a"))
        world.sent(elsewhere)
        world.run()
        world.sent(busy)  # A was better when it came to wait, and has been served since
        world.run()
        assert world.log == [1, 2, 3, 6, 5]
    finally:
        world.end()


def test_a_reserve_is_for_the_urgent() -> None:
    world = World(RateLimit(3, 8.0, 0.0, reserve=2))
    try:
        for user in "ABC":
            world.submit(user, user, Priority.NORMAL)
        world.run(1.0)
        assert world.log == [1]
        for user in "DEF":
            world.submit(user, user, Priority.INTERACTIVE)
        world.run(1.0)
        assert world.log == [1, 4, 5]
        world.finish()
    finally:
        world.end()


def test_next_permit_of_a_lowered_limit(world: World) -> None:
    world.set_limit(RateLimit(4, 8.0, 0.0, 2.0, 0.0))
    for flight in fly(world, *[(user, user) for user in "ABCD"]):
        world.sent(flight)
        world.run(1.0)
    world.set_limit(RateLimit(2, 8.0, 0.0, 2.0, 0.0))
    # They come back at 8, 9, 10 and 11 s, it is 4 s, and the third is the first that may be taken again.
    assert shot(world).next_permit == 6.0
    world.submit("E", "e")
    world.run(5.75)
    assert not world.flights
    world.run(0.25)
    assert len(world.flights) == 1


def test_a_raised_limit_lets_more_go_at_once(world: World) -> None:
    fly(world, ("A", "a"), ("B", "b"))
    world.submit("C", "c")
    world.run(1.0)
    assert world.log == [1, 2]
    world.set_limit(RateLimit(3, 8.0, 0.0))
    world.run()
    assert world.log == [1, 2, 3]


def test_a_scheduler_is_at_rest_when_nothing_is_left_to_remember() -> None:
    world = World(RateLimit(2, 0.5, 0.0, margin=0.0))

    def at_rest() -> bool:
        with world.loop.current():
            return world.scheduler.at_rest()

    try:
        assert at_rest()
        (flight,) = fly(world, ("A", "a"))
        world.settle(flight, SENT)
        assert not at_rest()
        world.run(0.5)
        assert at_rest()
        (flight,) = fly(world, ("A", "a"))
        world.settle(flight, throttled(Subject.USER))
        world.run(0.75)
        assert shot(world).cooling == {"A": 0.25}
        assert not at_rest(), "a user cools down: a scheduler made anew would not know"
        world.run(0.25)
        assert at_rest()
        (flight,) = fly(world, ("A", "a"))
        world.settle(flight, fatal(Subject.USER, ResumeWhen.HOUR))
        world.run(HOUR)
        assert not shot(world).suspended
        assert at_rest(), "a suspension whose hour is over is nothing to remember"
    finally:
        world.end()


class GivesUp:
    """A taker who, when it is refused, gives up another ask."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.other: Waiter | None = None
        self.told: list[object] = []

    def granted(self, turn: Turn) -> None:
        self.told.append(turn)

    def refused(self, error: FeishuMailError) -> None:
        self.told.append(error)
        if self.other is not None:
            self.scheduler.cancel(self.other)

    def recorded(self, record: Record) -> None:
        raise AssertionError(record)


@pytest.mark.parametrize(
    "end", [fatal(Subject.APP, ResumeWhen.HOUR), never_left("lookup")], ids=["closed", "outage"]
)
def test_an_ask_that_is_given_up_while_others_are_refused_is_told_nothing(end: Judgement) -> None:
    loop = VirtualLoop()
    try:
        scheduler = Scheduler(MemoryStore(ProcessStore(), RateLimit(1)))
        flying, first, second = (GivesUp(scheduler) for _ in range(3))
        with loop.current():
            scheduler.submit(Waiter("A", "a", Priority.BULK, flying))
        loop.run()
        (turn,) = flying.told
        assert isinstance(turn, Turn)
        with loop.current():
            asks = [Waiter("B", "b", Priority.BULK, taker, outage=0.0) for taker in (first, second)]
            first.other, second.other = asks[1], asks[0]
            for ask in asks:
                scheduler.submit(ask)
            scheduler.settle(turn, end, FixedDelays())
        assert len(first.told) == 1
        assert not second.told
    finally:
        loop.end()
    assert not loop.errors


class Wire:
    """A transport whose first call fails, and whose others succeed."""

    closed = False
    attempt_timeout = 30.0
    base_url = "https://open.feishu.cn"

    def __init__(self) -> None:
        self.calls = 0

    async def exchange(self, *_: object, may_go: Callable[[], bool]) -> Reply | Failure:
        if not may_go():
            return NOT_MADE
        self.calls += 1
        return Reply(500, b"") if self.calls == 1 else Reply(200, b'{"code": 0, "data": {}}')


def test_of_those_who_come_in_one_pass_of_the_loop_the_most_urgent_goes_first(world: World) -> None:
    for user, priority in ("A", Priority.BULK), ("B", Priority.NORMAL), ("C", Priority.INTERACTIVE):
        world.submit(user, user, priority)
    world.run()
    assert world.log == [3, 2]


def test_one_timer_is_set_for_those_who_wait_and_none_when_nobody_does(world: World) -> None:
    for user in "AB":  # while these have their turns, the next look gets due
        world.submit(user, user, reflex=world.sent)
    late = world.submit("C", "c")
    world.run(1.0)

    def timers() -> int:
        found: list[asyncio.TimerHandle] = getattr(world.loop, "_scheduled")  # noqa: B009 - unknown to typeshed
        return sum(not timer.cancelled() for timer in found)

    assert world.log == [1, 2]
    assert timers() == 1
    world.cancel(late)
    assert timers() == 0


@pytest.mark.parametrize("closing", [False, True])
def test_a_draft_that_is_given_up_in_the_pass_of_the_loop_in_which_it_is_told_stops_nothing(
    *, closing: bool
) -> None:
    # Its deadline passes in the very pass in which its permit comes back, or in which the app is closed.
    loop = VirtualLoop()
    scheduler = Scheduler(MemoryStore(ProcessStore(), RateLimit(2 if closing else 1, 8.0, 0.0, margin=0.0)))
    transport: Any = Wire()
    with loop.current():
        tokens, policy = tokens_of({"A": "u-a", "B": "u-b"}), RetryPolicy(initial=1.0, maximum=1.0)
        intake = Intake(scheduler, transport, tokens, policy)

    async def send(draft_id: str, deadline: float) -> None:
        call = Call(SEND, "/", DraftKey("A", "me/A", draft_id), tokens.account("A"), Draft(draft_id))
        job = await request(intake, call, Priority.NORMAL, deadline)
        job.sent(Draft(draft_id))

    async def story() -> None:
        if closing:
            other = GivesUp(scheduler)
            scheduler.submit(Waiter("B", "me/B", Priority.INTERACTIVE, other))
            await asyncio.sleep(0)
        sending = asyncio.create_task(send("d", 4.0 if closing else 8.0))
        if closing:
            await asyncio.sleep(3.0)
            turn: Any = other.told[0]
            settle = partial(scheduler.settle, turn, fatal(Subject.APP, ResumeWhen.HOUR), FixedDelays())
            loop.call_at(4.0, loop.call_soon, settle)  # one pass after the deadline, as the draft is given up
        with pytest.raises(OutcomeUnknown):
            await sending
        await asyncio.sleep(0)
        scheduler.resume("app")
        await send("d2", 100.0)

    running = loop.create_task(story())
    try:
        loop.run(1_000.0)
        assert running.done()
        running.result()
        with loop.current():
            assert scheduler.snapshot().in_flight == 0
    finally:
        loop.end()
    assert not loop.errors


ADDRESSES: Final = st.sampled_from(
    ["ann@x.com", "Ann@X.com", "bob@x.com", "ME", "me", "Me", "straße@x.com", "STRASSE@x.com"]
)


@settings(FEW)
@given(ADDRESSES, ADDRESSES, st.sampled_from(["ann", "Ann", "ann@x.com", "ANN@x.com"]))
def test_mailboxes_compare_without_case_and_me_is_the_users_own(one: str, other: str, user: str) -> None:
    assert (mailbox_key(user, one) == mailbox_key(user, other)) == (
        (user if one.lower() == "me" and "@" in user else one).casefold()
        == (user if other.lower() == "me" and "@" in user else other).casefold()
    )
    assert mailbox_key("ann", "me") != mailbox_key("Ann", "me")
    assert mailbox_key(user, "me") != mailbox_key("bob", "me")
