"""Several loops on one store, in any order of events: what all of them do together is held against plain lists.

Each loop has a scheduler of its own; their clocks are one clock, which moves only when nothing is left to run in
any of them. In some worlds loops end in the midst of their calls, and new ones come.
"""

import math
import random
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from unittest import mock

import pytest

from feishu_mail_async._api.protocol import CallEnd, Judgement
from feishu_mail_async._scheduling import process
from feishu_mail_async._scheduling.memory import MemoryStore
from feishu_mail_async._scheduling.process import ProcessStore
from feishu_mail_async._scheduling.scheduler import Scheduler
from feishu_mail_async._scheduling.store import Offer
from feishu_mail_async._scheduling.waiters import Turn, Waiter
from feishu_mail_async.codes import ResumeWhen, Subject, Verdict
from feishu_mail_async.errors import FeishuMailError, Suspended
from feishu_mail_async.ledger import Record
from feishu_mail_async.model import Priority, RateLimit
from tests.models.scheduler_loop import FixedDelays, VirtualLoop

if TYPE_CHECKING:
    import asyncio

LIMIT: Final = RateLimit(calls=4, per=8.0, spacing=0.25, grace=2.0, margin=0.5)
SENT: Final = Judgement(Verdict.DONE)
LOST: Final = Judgement(Verdict.RETRY, CallEnd.LOST, conclusive=False)
NEVER_LEFT: Final = Judgement(Verdict.RETRY, CallEnd.NEVER_LEFT)
BUSY: Final = Judgement(Verdict.RETRY, subject=Subject.USER)
PAUSE: Final = Judgement(Verdict.RETRY, subject=Subject.APP, pause=3.0)
SUSPEND: Final = Judgement(
    Verdict.FATAL, subject=Subject.USER, until=ResumeWhen.RESUMED, error=FeishuMailError("suspended")
)
EPS: Final = 1e-4


@dataclass(eq=False)
class Flight:
    """A call, as the judge knows it; `latest`: when the server has counted it at the latest."""

    home: "Home"
    turn: Turn
    user: str
    mailbox: str
    latest: float = math.inf


class Asker:
    def __init__(self, home: "Home", user: str, mailbox: str, priority: Priority) -> None:
        self.home = home
        self.ask = Waiter(user, mailbox, priority, self)
        self.refusal: FeishuMailError | None = None
        self.had_turn = False

    def granted(self, turn: Turn) -> None:
        assert not self.had_turn
        self.had_turn = True
        self.home.world.dispatched(Flight(self.home, turn, self.ask.user, self.ask.mailbox))

    def refused(self, error: FeishuMailError) -> None:
        self.refusal = error

    def recorded(self, record: Record) -> None:
        raise AssertionError(record)


class Home:
    """A loop and what is in it."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.loop = VirtualLoop()
        self.loop.now = world.now
        self.scheduler = Scheduler(MemoryStore(world.store, LIMIT))

    def submit(self, user: str, mailbox: str, priority: Priority) -> Asker:
        waiter = Asker(self, user, mailbox, priority)
        with self.loop.current():
            self.scheduler.submit(waiter.ask)
        return waiter

    def due(self) -> float:
        timers: list[asyncio.TimerHandle] = getattr(self.loop, "_scheduled")  # noqa: B009 - unknown to typeshed
        return min((timer.when() for timer in timers if not timer.cancelled()), default=math.inf)


class World:
    """The loops, and the judge.

    Args:
        seed: of what happens.
        calm: nothing pauses and no loop ends. Then whoever could go is never kept waiting.
    """

    def __init__(self, seed: int, *, calm: bool) -> None:
        self.draw = random.Random(seed)
        self.calm = calm
        self.now = 100.0
        self.store = ProcessStore()
        self.delays = FixedDelays()
        self.homes = [Home(self) for _ in range(3)]
        self.waiters: list[Asker] = []
        self.flights: list[Flight] = []
        self.past: list[Flight] = []
        self.last = -math.inf
        self.paused = -math.inf
        self.shut: dict[str, float] = {}
        self.suspended: set[str] = set()
        self.refusals = Counter[str]()

    # -- the judge --

    def dispatched(self, flight: Flight) -> None:
        now = self.now
        counted = [one for one in self.past if one.latest + LIMIT.per + LIMIT.margin > now + 1e-9]
        assert len(counted) + len(self.flights) < LIMIT.calls, "over the limit"
        assert now >= self.last + LIMIT.spacing - EPS, "too close to the one before"
        assert now >= self.paused - 1e-9, "in a pause"
        for other in self.flights:
            assert other.user != flight.user, "two calls of one user"
            assert other.mailbox != flight.mailbox, "two calls for one mailbox"
        for name in (f"user:{flight.user}", f"mailbox:{flight.mailbox}"):
            assert now >= self.shut.get(name, -math.inf) - 1e-9, f"{name} is still shut"
        assert flight.user not in self.suspended, "suspended"
        self.last = now
        self.flights.append(flight)

    def settle(self, flight: Flight, judgement: Judgement) -> None:
        self.land(flight, judgement)
        with flight.home.loop.current():
            flight.home.scheduler.settle(flight.turn, judgement, self.delays)

    def land(self, flight: Flight, judgement: Judgement) -> None:
        self.flights.remove(flight)
        if judgement.end is not CallEnd.NEVER_LEFT:
            flight.latest = self.now + (LIMIT.grace if judgement.end is CallEnd.LOST else 0.0)
            self.past.append(flight)
        if judgement.end is CallEnd.LOST:
            for name in (f"user:{flight.user}", f"mailbox:{flight.mailbox}"):
                self.shut[name] = max(self.shut.get(name, -math.inf), flight.latest)
        if judgement is BUSY:
            name = f"user:{flight.user}"
            self.refusals[name] += 1
            self.shut[name] = max(
                self.shut.get(name, -math.inf), self.now + self.delays.backoff(self.refusals[name])
            )
        if judgement is SENT:
            self.refusals[f"user:{flight.user}"] = 0
        if judgement is PAUSE:
            self.paused = max(self.paused, self.now + 3.0)
        if judgement is SUSPEND:
            self.suspended.add(flight.user)

    def nobody_could_go(self) -> None:
        """Nothing is left to run: then nobody waits who could go."""
        now = self.now
        counted = [one for one in self.past if one.latest + LIMIT.per + LIMIT.margin >= now]
        if len(counted) + len(self.flights) >= LIMIT.calls or now <= self.last + LIMIT.spacing + EPS:
            return
        busy = {one.user for one in self.flights} | {one.mailbox for one in self.flights}
        for one in self.waiters:
            user, mailbox = one.ask.user, one.ask.mailbox
            opens = max(self.shut.get(name, -math.inf) for name in (f"user:{user}", f"mailbox:{mailbox}"))
            waits = not one.had_turn and one.refusal is None
            assert not waits or {user, mailbox} & busy or opens >= now, f"{user} {mailbox} could go"

    # -- time --

    def settle_down(self) -> None:
        """Run all loops until nothing is left to run in any."""
        for _ in range(8):
            for home in self.homes:
                home.loop.run()
        for home in self.homes:
            assert not home.loop.errors, home.loop.errors
        if self.calm:
            self.nobody_could_go()

    def move(self, to: float) -> None:
        """Let the time pass, from one timer of any loop to the next."""
        self.settle_down()
        while self.now < to:
            self.now = min(to, max(self.now, min(home.due() for home in self.homes)))
            for home in self.homes:
                home.loop.now = self.now
            self.settle_down()

    # -- events --

    def act(self) -> None:
        draw = self.draw
        what = draw.random()
        if what < 0.45:
            user, box = draw.choice("abc"), draw.choice(["x", "y", "z"])
            self.waiters.append(draw.choice(self.homes).submit(user, box, draw.choice(list(Priority))))
        elif what < 0.8 and self.flights:
            ends = [SENT] * 12 + [LOST, NEVER_LEFT, BUSY, SUSPEND] + [PAUSE] * (not self.calm)
            self.settle(draw.choice(self.flights), draw.choice(ends))
        elif what < 0.83 and self.flights:
            flight = draw.choice(self.flights)
            self.flights.remove(flight)
            with flight.home.loop.current():
                flight.home.scheduler.give_back(flight.turn)
        elif what < 0.86 and self.suspended:
            user = draw.choice(sorted(self.suspended))
            self.suspended.remove(user)
            home = draw.choice(self.homes)
            with home.loop.current():
                home.scheduler.resume(f"user:{user}")
        elif what < 0.88 and not self.calm:
            self.end(draw.choice(self.homes))
        else:
            self.move(self.now + draw.choice([0.1, 0.5, 2.0, 6.0]))
        self.settle_down()

    def end(self, home: Home) -> None:
        """A loop is closed in the midst of everything, and another one comes."""
        for flight in [one for one in self.flights if one.home is home]:
            self.land(flight, LOST)
        self.waiters = [one for one in self.waiters if one.home is not home]
        self.homes.remove(home)
        tasks = home.loop.tasks
        home.loop.close()
        for task in tasks:
            setattr(task, "_log_destroy_pending", False)  # noqa: B010 - unknown to typeshed
        self.homes.append(Home(self))

    def finish(self) -> None:
        """All calls end well: then everyone who waits has a turn or is refused, in a time that is bounded."""
        bound = self.now + 1000.0
        while any(not one.had_turn and one.refusal is None for one in self.waiters):
            assert self.now < bound, "somebody waits for ever"
            while self.flights:
                self.settle(self.flights[0], SENT)
                self.settle_down()
            self.move(self.now + 0.5)
        for one in self.waiters:
            assert one.refusal is None or (isinstance(one.refusal, Suspended) and not one.had_turn)


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("calm", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_events_in_several_loops(seed: int, calm: bool) -> None:
    world = World(seed, calm=calm)
    # The loops take turns in this thread: those that do not run now have not come to a standstill.
    running = mock.patch.object(MemoryStore, "stands_still", return_value=False)
    with running, mock.patch.object(process, "monotonic", side_effect=lambda: world.now):
        for _ in range(150):
            world.act()
        world.finish()
        assert world.past
        for home in world.homes:
            home.loop.end()


def test_what_another_loop_has_dispatched_since_the_look_counts() -> None:
    """Two loops in threads see that a call may go now: the one that is second to take its turn has to wait."""
    world = World(0, calm=True)
    for home in world.homes:
        with home.loop.current():
            home.scheduler.snapshot()  # now it has joined

    def goes(home: Home, user: str) -> bool:
        asked = Asker(home, user, user, Priority.NORMAL).ask
        offer = home.scheduler.store.take([asked], world.now)
        assert isinstance(offer, Offer)
        return offer.granted is not None

    one, two, three = world.homes
    assert goes(one, "a")
    assert not goes(two, "b")
    world.now += LIMIT.spacing
    assert goes(two, "b")
    assert not goes(three, "c")
    for home in world.homes:
        home.loop.end()
