"""Whose turn it is: the scheduler against a naive model of DESIGN.md, and the cost of its decisions."""

import asyncio
import heapq
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import FrameType
from typing import Any, Final, Self
from unittest.mock import Mock, patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from feishu_mail_async._api.protocol import CallEnd, Judgement, Reply, lost, never_left
from feishu_mail_async._auth.tokens import Tokens
from feishu_mail_async._calls.retry import PolicyDelays
from feishu_mail_async._calls.sending import Sender
from feishu_mail_async._scheduling import lanes as lanes_module
from feishu_mail_async._scheduling.lanes import (
    USERS_REMEMBERED,
    CallLock,
    Lane,
    LaneHeap,
    Turn,
    Waiter,
    mailbox_key,
)
from feishu_mail_async._scheduling.memory import MemoryStore
from feishu_mail_async._scheduling.process import ProcessStore
from feishu_mail_async._scheduling.scheduler import Scheduler, Snapshot
from feishu_mail_async.codes import ResumeWhen, Subject, Verdict
from feishu_mail_async.errors import FeishuMailError, OutcomeUnknown, Suspended, TransportError
from feishu_mail_async.ledger import Record
from feishu_mail_async.model import Draft, Priority, RateLimit, RetryPolicy
from tests.helpers.clock import SEEDED
from tests.models.scheduler_model import HOUR, FixedDelays, Flight, Reflex, VirtualLoop, Want, World

FEW: Final = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
MANY: Final = settings(FEW, max_examples=1_500, stateful_step_count=70, derandomize=SEEDED)

# Powers of two, so that the model's sums and the scheduler's are the same floats.
LIMITS: Final = st.builds(
    lambda calls, per, spacing, grace, margin, reserve: RateLimit(
        calls, per, spacing, grace, margin, min(reserve, calls - 1)
    ),
    st.sampled_from([1, 2, 2, 3, 4, 6]),
    st.sampled_from([4.0, 8.0, 16.0]),
    st.sampled_from([0.0, 0.0, 0.25, 1.0]),
    st.sampled_from([0.0, 2.0, 8.0]),
    st.sampled_from([0.0, 0.125, 0.5]),
    st.sampled_from([0, 0, 1, 2]),
)
USERS: Final = st.sampled_from(["A", "A", "B", "B", "C", "D"])
MAILBOXES: Final = st.sampled_from(["me", "me", "m1", "m1", "m2"])
STEPS: Final = st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0])
PAUSES: Final = st.sampled_from([None, 0.0, 0.5, 4.0, 20.0])
OUTAGES: Final = st.sampled_from([math.inf, math.inf, 0.0, 2.0, 16.0])
STREAMS: Final = st.sampled_from([None, None, None, "s1", "s2"])
ERROR: Final = FeishuMailError("refused")


def fatal(scope: Subject, until: ResumeWhen | None) -> Judgement:
    return Judgement(Verdict.FATAL, subject=scope, until=until, error=ERROR)


def throttled(scope: Subject, pause: float | None = None, end: CallEnd = CallEnd.ANSWERED) -> Judgement:
    return Judgement(Verdict.RETRY, end, subject=scope, pause=pause, error=ERROR)


SENT: Final = Judgement(Verdict.SENT)
JUDGEMENTS: Final = st.one_of(
    st.sampled_from([SENT, SENT, Judgement(Verdict.ALREADY_SENT)]),
    st.just(throttled(Subject.USER)),
    st.builds(throttled, st.just(Subject.APP), PAUSES),
    st.just(throttled(Subject.DRAFT)),
    st.sampled_from([lost("reset"), never_left("lookup")]),
    st.builds(
        fatal,
        st.sampled_from([Subject.USER, Subject.MAILBOX]),
        st.sampled_from([ResumeWhen.HOUR, ResumeWhen.TOKEN, ResumeWhen.RESUMED]),
    ),
    st.sampled_from(
        [fatal(Subject.APP, ResumeWhen.HOUR), fatal(Subject.APP, ResumeWhen.RESUMED), fatal(Subject.DRAFT, None)]
    ),
)
REFLEXES: Final = st.sampled_from(["", "", "", "", "sent", "give back", "submit", "lost", "throttled"])


def key(user: str, mailbox: str) -> str:
    return f"me/{user}" if mailbox == "me" else mailbox


class SchedulerMachine(RuleBasedStateMachine):
    """Everything that can happen to a scheduler, in any order."""

    world: World

    @initialize(limit=LIMITS, moves=st.sampled_from([16, 1, 2, 3]))
    def start(self, limit: RateLimit, moves: int) -> None:
        self.world = World(limit, moves)

    def reflex(self, name: str, user: str, mailbox: str) -> Reflex | None:
        """What a taker does before it returns from `granted`."""
        world = self.world

        def act(flight: Flight) -> None:
            match name:
                case "sent":
                    world.sent(flight)
                case "give back":
                    world.give_back(flight)
                case "submit":
                    world.submit(user, mailbox)
                case "lost":
                    world.settle(flight, lost("reset"))
                case "throttled":
                    world.settle(flight, throttled(Subject.USER))

        return act if name else None

    def pick(self, index: int) -> Flight:
        return self.world.flights[index % len(self.world.flights)]

    def want(self, index: int) -> Want:
        return list(self.world.askers)[-1 - index % len(self.world.askers)]

    def then(self, *, run: bool) -> None:
        """Events may come one upon the other, before the dispatcher has had its chance."""
        if run:
            self.world.run()

    @rule(
        user=USERS,
        mailbox=MAILBOXES,
        priority=st.sampled_from(Priority),
        outage=OUTAGES,
        reflex=REFLEXES,
        stream=STREAMS,
        run=st.booleans(),
    )
    def submit(
        self,
        *,
        user: str,
        mailbox: str,
        priority: Priority,
        outage: float,
        reflex: str,
        stream: str | None,
        run: bool,
    ) -> None:
        box = key(user, mailbox)
        self.world.submit(user, box, priority, outage, reflex=self.reflex(reflex, user, box), stream=stream)
        self.then(run=run)

    @rule(
        asks=st.lists(st.tuples(USERS, MAILBOXES, st.sampled_from(Priority), STREAMS), min_size=2, max_size=8),
        run=st.booleans(),
    )
    def burst(self, asks: list[tuple[str, str, Priority, str | None]], run: bool) -> None:
        for user, mailbox, priority, stream in asks:
            self.world.submit(user, key(user, mailbox), priority, stream=stream)
        self.then(run=run)

    @precondition(lambda self: self.world.askers)
    @rule(index=st.integers(0, 20), run=st.booleans())
    def cancel(self, index: int, run: bool) -> None:
        self.world.cancel(self.want(index))
        self.then(run=run)

    @precondition(lambda self: self.world.askers)
    @rule(index=st.integers(0, 20), priority=st.sampled_from(Priority), stream=STREAMS, run=st.booleans())
    def move(self, index: int, priority: Priority, stream: str | None, run: bool) -> None:
        self.world.move(self.want(index), priority, stream)
        self.then(run=run)

    @rule(stream=st.sampled_from(["s1", "s2"]), run=st.booleans())
    def hold_or_resume(self, stream: str, run: bool) -> None:
        if stream in self.world.model.held:
            self.world.resume(stream)
        else:
            self.world.hold(stream)
        self.then(run=run)

    @precondition(lambda self: self.world.flights)
    @rule(index=st.integers(0, 5), judgement=JUDGEMENTS, run=st.booleans())
    def settle(self, index: int, judgement: Judgement, run: bool) -> None:
        self.world.settle(self.pick(index), judgement)
        self.then(run=run)

    @precondition(lambda self: self.world.flights)
    @rule(judgements=st.lists(JUDGEMENTS, min_size=1, max_size=6), steps=st.lists(STEPS, min_size=6, max_size=6))
    def settle_many(self, judgements: list[Judgement], steps: list[float]) -> None:
        """A run of calls: dispatched, waited for, answered."""
        for judgement, step in zip(judgements, steps, strict=False):
            if self.world.flights:
                self.world.settle(self.world.flights[0], judgement)
            self.world.run(step)
            self.world.run_to_next()

    @precondition(lambda self: self.world.flights)
    @rule(index=st.integers(0, 5), run=st.booleans())
    def give_back(self, index: int, run: bool) -> None:
        self.world.give_back(self.pick(index))
        self.then(run=run)

    @precondition(lambda self: self.world.flights)
    @rule(index=st.integers(0, 5), run=st.booleans())
    def token_refused(self, index: int, run: bool) -> None:
        self.world.settle(self.pick(index), fatal(Subject.USER, ResumeWhen.TOKEN), renewing=True)
        self.then(run=run)

    @precondition(lambda self: any(lock.held for lock in self.world.model.users.values()))
    @rule(worked=st.booleans(), run=st.booleans())
    def renewed(self, worked: bool, run: bool) -> None:
        user = next(user for user, lock in self.world.model.users.items() if lock.held)
        self.world.renewed(user, worked=worked)
        self.then(run=run)

    @precondition(lambda self: self.world.model.closed)
    @rule(index=st.integers(0, 5), run=st.booleans())
    def reopen(self, index: int, run: bool) -> None:
        scopes = list(self.world.model.closed)
        self.world.reopen(scopes[index % len(scopes)])
        self.then(run=run)

    @rule(limit=LIMITS, run=st.booleans())
    def set_limit(self, limit: RateLimit, run: bool) -> None:
        self.world.set_limit(limit)
        self.then(run=run)

    @rule(seconds=STEPS)
    def time_passes(self, seconds: float) -> None:
        self.world.run(seconds)

    @rule()
    def run_to_next(self) -> None:
        self.world.run_to_next()

    @precondition(lambda self: self.world.model.closed)
    @rule(before=st.sampled_from([0.0, 0.5]))
    def an_hour_passes(self, before: float) -> None:
        self.world.run(HOUR - before)

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "world"):
            self.world.compare()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self.world.finish()
        finally:
            self.world.end()


def test_any_order_of_events() -> None:
    run_state_machine_as_test(SchedulerMachine, settings=FEW)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_any_order_of_events_many() -> None:
    run_state_machine_as_test(SchedulerMachine, settings=MANY)


# -- all histories of a small world ---------------------------------------------------------------------

LANES: Final = [("A", "m1"), ("A", "m2"), ("B", "m1"), ("B", "m2")]
Event = Callable[[], object]


def possible(world: World, limits: bool) -> list[Event]:
    """What can happen next; the first of two users and mailboxes is A and m1, whichever it is."""
    waiting, flights = world.model.waiting, world.flights
    lanes = LANES if world.askers else LANES[:1]
    events: list[Event] = [partial(world.submit, *lane) for lane in lanes]
    if flights:
        events += [partial(world.sent, flights[0]), partial(world.settle, flights[0], throttled(Subject.USER))]
        events += [partial(world.settle, flights[-1], lost("reset"))]
    if len(flights) > 1:
        events += [partial(world.sent, flights[-1])]
    if waiting:
        events += [partial(world.cancel, waiting[0]), partial(world.move, waiting[-1], Priority.INTERACTIVE)]
    if len(waiting) > 1:
        events += [partial(world.cancel, waiting[-1])]
    if limits and flights:
        events += [partial(world.settle, flights[0], throttled(Subject.APP)), partial(world.give_back, flights[0])]
    return [*events, world.run_to_next]


def every_history(length: int, limit: RateLimit, moves: int, *, hasty: bool) -> int:
    """Live through all histories of so many events, and say how many there were.

    With `hasty`, the dispatcher runs only where time passes: the events come one upon the other.
    """
    choices: list[tuple[int, int]] = []  # at each step: which of how many
    histories = 0
    while True:
        world = World(limit, moves)
        try:
            for step in range(length):
                events = possible(world, limits=limit.calls < 10)
                if step == len(choices):
                    choices.append((0, len(events)))
                events[choices[step][0]]()
                if not hasty:
                    world.run()
            world.finish()
        finally:
            world.end()
        histories += 1
        while choices and choices[-1][0] + 1 == choices[-1][1]:
            choices.pop()
        if not choices:
            return histories
        choices[-1] = choices[-1][0] + 1, choices[-1][1]


ROOMY: Final = RateLimit(50, 8.0, 0.0, 2.0, 0.125)
TIGHT: Final = RateLimit(2, 8.0, 0.25, 2.0, 0.125, 1)


@pytest.mark.parametrize("hasty", [False, True], ids=["patient", "hasty"])
@pytest.mark.parametrize("limit", [ROOMY, TIGHT], ids=["roomy", "tight"])
def test_every_short_history(limit: RateLimit, *, hasty: bool) -> None:
    assert every_history(4, limit, 1 if hasty else 16, hasty=hasty) > 300


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("moves", [1, 16])
@pytest.mark.parametrize("hasty", [False, True], ids=["patient", "hasty"])
@pytest.mark.parametrize("limit", [ROOMY, TIGHT], ids=["roomy", "tight"])
def test_every_longer_history(limit: RateLimit, moves: int, *, hasty: bool) -> None:
    assert every_history(6, limit, moves, hasty=hasty) > 10_000


# -- what a decision costs -----------------------------------------------------------------------------


class Lines:
    """Counts the lines that the scheduler and the budget execute: a cost that no machine makes faster."""

    def __init__(self) -> None:
        self.count = 0

    def _trace(self, frame: FrameType, event: str, _: object) -> "Callable[..., Any] | None":
        if not frame.f_code.co_filename.endswith(("scheduler.py", "lanes.py", "budget.py")):
            return None
        self.count += event == "line"
        return self._trace

    def __enter__(self) -> Self:
        self.before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.before)

    def of(self, act: Callable[[], object]) -> int:
        """The lines that `act` executes."""
        start = self.count
        with self:
            act()
        return self.count - start


class Crowd:
    """Many asks of one scheduler, without a model: each call ends well as soon as it is made."""

    def __init__(self, limit: RateLimit, judgement: Judgement = SENT) -> None:
        self.loop = VirtualLoop()
        self.scheduler = Scheduler(MemoryStore(ProcessStore(), limit))
        self.lines = Lines()
        self.judgement = judgement
        self.costs: list[int] = []
        self.longest = 0
        self.loop.each_pass = self._breathe
        self.order: list[str] = []
        self.mark = self.breath = 0

    def submit(self, lanes: Iterable[tuple[str, str]], priority: Priority = Priority.BULK) -> list[Waiter]:
        stream = self.scheduler.stream()
        asks = [Waiter(user, mailbox, priority, self, stream=stream) for user, mailbox in lanes]
        with self.loop.current():
            for ask in asks:
                self.scheduler.submit(ask)
        return asks

    def _breathe(self) -> None:
        self.longest = max(self.longest, self.lines.count - self.breath)
        self.breath = self.lines.count

    def granted(self, turn: Turn) -> None:
        self.costs.append(self.lines.count - self.mark)
        self.mark = self.lines.count
        self._breathe()
        self.order.append(turn.user.key)
        self.loop.call_soon(self.scheduler.settle, turn, self.judgement, FixedDelays())

    def refused(self, error: FeishuMailError) -> None:
        raise error

    def recorded(self, record: Record) -> None:
        raise AssertionError(record)

    def decide(self) -> list[int]:
        """Let as many calls go as the limit allows, and return the cost of each, settling included.

        `longest` is what was done at the longest without a decision and without a chance for others in the loop.
        """
        self.costs.clear()
        self.longest = 0
        self.mark = self.breath = self.lines.count
        with self.lines:
            self.loop.run()
        return self.costs

    def end(self) -> None:
        self.loop.end()
        assert not self.loop.errors, self.loop.errors


CALLS: Final = 150
SHAPES: Final[dict[str, Callable[[int], tuple[str, str]]]] = {
    "one user": lambda n: ("u", "me/u"),
    "a draft each": lambda n: (f"u{n}", f"me/u{n}"),
    "one user, a mailbox each": lambda n: ("u", f"m{n}"),
    "one mailbox, a user each": lambda n: (f"u{n}", "m"),
}
MOST_LINES: Final = 400
SLICE: Final = 15_000
"""Lines in one go, where many lanes have to move: they take a millisecond or two."""


def check_cost(shape: str, waiting: int) -> None:
    crowd = Crowd(RateLimit(CALLS, spacing=0.0))
    try:
        asks = crowd.submit(SHAPES[shape](number) for number in range(waiting))
        costs = crowd.decide()
        assert len(costs) == CALLS
        assert max(costs) < MOST_LINES, f"{max(costs)} lines for one decision, with {waiting} asks"
        with crowd.loop.current():
            user, mailbox = SHAPES[shape](waiting - 1)
            late = Waiter(user, mailbox, Priority.NORMAL, crowd)
            acts: dict[str, Callable[[], object]] = {
                "submit": lambda: crowd.scheduler.submit(late),
                "move": lambda: crowd.scheduler.move(late, Priority.INTERACTIVE, None),
                "cancel": lambda: crowd.scheduler.cancel(asks[-1]),
                "cancel in the middle": lambda: crowd.scheduler.cancel(asks[waiting // 2]),
                "set_limit": lambda: crowd.scheduler.set_limit(RateLimit(CALLS + 1, spacing=0.0)),
            }
            for name, act in acts.items():
                cost = crowd.lines.of(act)
                assert cost < MOST_LINES, f"{cost} lines to {name}, with {waiting} asks"
        assert len(crowd.decide()) == 1
        assert max(crowd.costs) < MOST_LINES
    finally:
        crowd.end()


@pytest.mark.parametrize("waiting", [200, 10_000])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_decision_costs_the_same_however_many_wait(shape: str, waiting: int) -> None:
    check_cost(shape, waiting)


@pytest.mark.soak
@pytest.mark.parametrize("shape", SHAPES)
def test_a_decision_costs_the_same_with_100_000(shape: str) -> None:
    check_cost(shape, 100_000)


def crossed(users: int, mailboxes: int) -> Crowd:
    """Every user has a draft in every one of a few shared mailboxes."""
    crowd = Crowd(RateLimit(CALLS, spacing=0.0))
    crowd.submit((f"u{number % users}", f"m{number // users}") for number in range(users * mailboxes))
    return crowd


def test_users_who_share_mailboxes_cost_a_little_for_each_draft() -> None:
    users, mailboxes = 300, 10
    crowd = crossed(users, mailboxes)
    try:
        costs = crowd.decide()
        assert len(costs) == CALLS
        assert sum(costs) < 3 * MOST_LINES * CALLS + 100 * users * mailboxes
    finally:
        crowd.end()


def test_users_who_share_mailboxes_never_keep_the_loop() -> None:
    crowd = crossed(300, 10)
    try:
        crowd.decide()
        assert crowd.longest < SLICE, f"{crowd.longest} lines in one go"
    finally:
        crowd.end()


def test_users_served_in_the_opposite_order_never_keep_the_loop() -> None:
    # Each of them, when it comes, is better than the one that stands for the mailbox.
    count = 400
    crowd = Crowd(RateLimit(2 * count, spacing=0.0))
    try:
        crowd.submit((f"u{number}", f"me/u{number}") for number in range(count))
        assert len(crowd.decide()) == count
        crowd.submit((f"u{number}", "m") for number in reversed(range(count)))
        costs = crowd.decide()
        assert crowd.order[count:] == crowd.order[:count]
        assert sum(costs) < 3 * MOST_LINES * count
        assert crowd.longest < SLICE, f"{crowd.longest} lines in one go"
    finally:
        crowd.end()


def test_users_who_cool_down_at_one_mailbox_cost_each_of_their_calls_the_same() -> None:
    count = 400
    crowd = Crowd(RateLimit(count, spacing=0.0), throttled(Subject.USER))
    try:
        crowd.submit(
            (f"u{number % count}", "m" if number >= count else f"me/u{number}") for number in range(2 * count)
        )
        costs = crowd.decide()
        assert len(costs) == count
        assert sum(costs) / count < MOST_LINES
    finally:
        crowd.end()


def test_a_long_pause_with_many_comings_and_goings_takes_no_memory() -> None:
    crowd = Crowd(RateLimit(1, spacing=0.0), throttled(Subject.APP, HOUR))
    try:
        crowd.submit([("u", "me/u")])
        assert len(crowd.decide()) == 1
        scheduler = crowd.scheduler
        for round_ in range(20):
            # Some pass as they come, others stay for a round, in every shape.
            lanes = [shape(round_ * 200 + number) for shape in SHAPES.values() for number in range(200)]
            asks = crowd.submit(lanes)
            with crowd.loop.current():
                for ask in asks[::3]:
                    scheduler.move(ask, Priority.INTERACTIVE, None)
                for ask in asks:
                    scheduler.cancel(ask)
        gates = [*scheduler._lanes.users.values(), *scheduler._lanes.mailboxes.values()]
        heaps = [scheduler._lanes.ready, *(gate.parked for gate in gates)]
        sizes = [len(heap._records) + len(heap._old) for heap in heaps]
        assert max(sizes) <= 64
        assert sum(sizes) <= 2_000
        assert len(scheduler._lanes.alarms) <= 2
        assert not scheduler._lanes.lanes
        assert not scheduler._lanes.mailboxes
        assert len(scheduler._lanes.users) <= USERS_REMEMBERED
        assert not any(gate.lanes for gate in gates)
    finally:
        crowd.end()


def test_lanes_that_leave_a_heap_one_after_another_each_cost_the_same() -> None:
    heap, count = LaneHeap(), 2_000
    lanes = [
        Lane(CallLock(str(number)), CallLock(str(number)), Waiter(str(number), "me", Priority.BULK, Mock()))
        for number in range(count)
    ]
    keys = {lane: (0, number * 7919 % count, number) for number, lane in enumerate(lanes)}
    for lane, key in keys.items():
        heap.push(lane, key)
    with patch.object(lanes_module, "heapq", Mock(wraps=heapq)) as counted:
        for left, lane in zip(range(count - 1, -1, -1), lanes, strict=True):
            heap.remove(lane)
            del keys[lane]
            assert len(counted.mock_calls) <= 4
            assert not counted.heapify.called  # which looks at all
            assert len(heap._records) + len(heap._old) <= 4 * left + 130
            if left % 100 == 1:
                best = min(keys, key=keys.__getitem__)
                assert heap.first() == (keys[best], best)
            counted.reset_mock()
    assert heap.first() is None


def test_of_the_users_only_those_served_last_are_remembered() -> None:
    more = 50
    count = USERS_REMEMBERED + more
    crowd = Crowd(RateLimit(2 * count, spacing=0.0))
    try:
        crowd.submit((f"u{number}", f"me/u{number}") for number in range(count))
        crowd.loop.run()
        assert len(crowd.order) == count
        assert len(crowd.scheduler._lanes.users) == USERS_REMEMBERED
        assert not crowd.scheduler._lanes.mailboxes
        # Those who were forgotten count as never served; the others stand in the order of their last turns.
        again = [f"u{number}" for number in (count - 1, more, more - 1, 0)]
        crowd.submit((user, f"me/{user}") for user in again)
        crowd.loop.run()
        assert crowd.order[count:] == [f"u{more - 1}", "u0", f"u{more}", f"u{count - 1}"]
    finally:
        crowd.end()


# -- single promises -----------------------------------------------------------------------------------


@pytest.fixture
def world() -> Iterator[World]:
    """Two calls in eight seconds, with room between them, to tell a story in."""
    world = World(RateLimit(2, 8.0, 0.0, 2.0, 0.5))
    yield world
    world.end()


def fly(world: World, *lanes: tuple[str, str]) -> list[Flight]:
    """Submit asks and let them go."""
    for user, mailbox in lanes:
        world.submit(user, mailbox)
    world.run()
    assert len(world.flights) == len(lanes)
    return list(world.flights)


def fly_more(world: World, lane: tuple[str, str]) -> list[Flight]:
    """Submit an ask and let it go beside those in flight."""
    before = len(world.flights)
    world.submit(*lane)
    world.run()
    return world.flights[before:]


def shot(world: World) -> Snapshot:
    with world.loop.current():
        return world.scheduler.snapshot()


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
        world.resume("s1")
        world.run()
        assert world.log == [4, 5]  # their users' calls are in flight
        world.sent(world.flights[1])
        world.run()
        world.hold("s1")
        world.sent(world.flights[0])
        world.run(100.0)
        assert world.log == [4, 5, 2]
        world.resume("s1")
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


def test_a_user_closed_by_a_token_is_known_by_its_mark_until_reopened(world: World) -> None:
    (flight,) = fly(world, ("A", "a"))
    other = world.submit("A", "b")
    world.settle(flight, fatal(Subject.USER, ResumeWhen.TOKEN), renewing=True)
    world.run(100.0)
    assert world.log == [1]  # held
    world.renewed("A", worked=False)
    assert isinstance(world.refusals[other], Suspended)
    assert world.scheduler.refused_fingerprint("A") == "mark of A"
    assert world.scheduler.refused_fingerprint("B") is None
    world.submit("A", "b")
    world.reopen("user:A")
    assert world.scheduler.refused_fingerprint("A") is None
    world.submit("A", "b")
    world.run()
    assert world.log == [1, 4]


@pytest.mark.parametrize("scope", [Subject.USER, Subject.MAILBOX])
def test_a_closure_that_no_token_caused_has_no_mark(world: World, scope: Subject) -> None:
    for until in (ResumeWhen.HOUR, ResumeWhen.RESUMED):
        (flight,) = fly(world, ("A", "a"))
        world.settle(flight, fatal(scope, until))
        assert world.scheduler.refused_fingerprint("A") is None
        world.reopen("user:A" if scope is Subject.USER else "mailbox:a")
        world.run(20.0)


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


def test_calls_that_one_outage_ended_together_count_once(world: World) -> None:
    world.set_limit(RateLimit(20, 8.0, 0.0))
    for flight in fly(world, ("A", "a"), ("B", "b"), ("C", "c")):
        world.settle(flight, never_left("lookup"))
        world.run(0.25)
    assert shot(world).paused == 0.25  # a second after the first; three in a row would be four


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

    async def exchange(self, *_: object) -> Reply:
        self.calls += 1
        return Reply(500, b"") if self.calls == 1 else Reply(200, b'{"code": 0, "data": {}}')


@pytest.mark.parametrize("closing", [False, True])
def test_a_draft_that_is_given_up_in_the_pass_of_the_loop_in_which_it_is_told_stops_nothing(
    *, closing: bool
) -> None:
    # Its deadline passes in the very pass in which its permit comes back, or in which the app is closed.
    loop = VirtualLoop()
    scheduler = Scheduler(MemoryStore(ProcessStore(), RateLimit(2 if closing else 1, 8.0, 0.0, margin=0.0)))
    transport: Any = Wire()
    with loop.current():
        tokens, policy = Tokens({"A": "u-a", "B": "u-b"}), RetryPolicy(initial=1.0, maximum=1.0)
        sender = Sender(scheduler, transport, tokens, policy)

    async def story() -> None:
        if closing:
            other = GivesUp(scheduler)
            scheduler.submit(Waiter("B", "me/B", Priority.INTERACTIVE, other))
            await asyncio.sleep(0)
        sending = asyncio.create_task(sender.send(Draft("d"), "A", Priority.NORMAL, 4.0 if closing else 8.0))
        if closing:
            await asyncio.sleep(3.0)
            turn: Any = other.told[0]
            settle = partial(scheduler.settle, turn, fatal(Subject.APP, ResumeWhen.HOUR), FixedDelays())
            loop.call_at(4.0, loop.call_soon, settle)  # one pass after the deadline, as the draft is given up
        with pytest.raises(OutcomeUnknown):
            await sending
        await asyncio.sleep(0)
        scheduler.resume("app")
        await sender.send(Draft("d2"), "A", Priority.NORMAL, 100.0)

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


# -- names and waits -----------------------------------------------------------------------------------

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


@settings(FEW)
@given(
    st.floats(0.01, 100.0),
    st.floats(0.01, 1_000.0),
    st.integers(1, 5_000),
    st.one_of(st.none(), st.floats(0.0, 1_000.0)),
    st.floats(0.0, 2_000.0),
)
def test_waits_grow_to_their_maximum_and_the_last_probe_falls_on_the_end_of_the_outage(
    initial: float, more: float, times: int, outage: float | None, lasted: float
) -> None:
    delays = PolicyDelays(RetryPolicy(initial=initial, maximum=initial + more, outage=outage))
    longest = min(initial + more, initial * 2.0 ** min(times - 1, 60))
    assert longest / 2 <= delays.backoff(times) <= longest
    wait = delays.outage(times, lasted)
    assert 0.0 < wait <= max(longest, 0.1)
    if outage is not None and lasted < outage:
        assert lasted + wait <= max(outage, lasted + 0.1) + 1e-9
