"""Random and exhaustive histories of the scheduler, held against the naive model."""

import math
from collections.abc import Callable
from functools import partial
from typing import Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from feishu_mail_async._api.protocol import Judgement, lost, never_left
from feishu_mail_async.codes import ResumeWhen, Subject, Verdict
from feishu_mail_async.model import Priority, RateLimit
from tests.helpers.clock import SEEDED
from tests.helpers.judgements import SENT, fatal, throttled
from tests.models.scheduler_model import HOUR, Want
from tests.models.scheduler_world import Flight, Reflex, World

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
JUDGEMENTS: Final = st.one_of(
    st.sampled_from([SENT, SENT, Judgement(Verdict.ALREADY_DONE)]),
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
            self.world.unhold(stream)
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
    def resume(self, index: int, run: bool) -> None:
        scopes = list(self.world.model.closed)
        self.world.resume(scopes[index % len(scopes)])
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
