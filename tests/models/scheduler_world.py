"""A world in which one scheduler and its naive model live through the same events."""

import asyncio
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from feishu_mail_async._api.protocol import Judgement
from feishu_mail_async._scheduling import lanes, sweeps
from feishu_mail_async._scheduling.memory import MemoryStore
from feishu_mail_async._scheduling.process import ProcessStore
from feishu_mail_async._scheduling.scheduler import Scheduler
from feishu_mail_async._scheduling.snapshot import Snapshot
from feishu_mail_async._scheduling.waiters import Turn, Waiter
from feishu_mail_async.codes import Verdict
from feishu_mail_async.errors import FeishuMailError, Suspended
from feishu_mail_async.ledger import Record
from feishu_mail_async.model import Priority, RateLimit
from tests.models.scheduler_loop import FixedDelays, VirtualLoop
from tests.models.scheduler_model import Call, Model, Want

SLICE: Final = sweeps.SLICE
MOST_MOVES: Final = lanes._MOST_MOVES
EPS: Final = 1e-4
"""How late a dispatch may be: the bucket of the spacing may be a rounding error behind."""


@dataclass(eq=False, slots=True)
class Flight:
    """A turn the scheduler has granted, and the model's call."""

    turn: Turn
    call: Call


Reflex = Callable[[Flight], None]


class Asker:
    """The taker of one ask: it counts what it is told."""

    def __init__(self, world: "World", want: Want, reflex: Reflex | None) -> None:
        self.world = world
        self.want = want
        self.reflex = reflex
        self.told = 0
        stream = world.streams[want.stream] if want.stream is not None else None
        self.ask = Waiter(want.user, want.mailbox, want.priority, self, outage=want.outage, stream=stream)

    def granted(self, turn: Turn) -> None:
        self.told += 1
        self.world.on_grant(self, turn)

    def refused(self, error: FeishuMailError) -> None:
        self.told += 1
        self.world.refusals[self.want] = error

    def recorded(self, record: Record) -> None:
        raise AssertionError(record)


class World:
    """A scheduler and its model, in one loop.

    Args:
        limit: the limit to begin with.
        moves: lanes that the scheduler moves in one go; a small world sees what lies beyond only if it is small.

    Attributes:
        flights: the calls in flight, in the order of their dispatch.
        log: numbers of the asks, in the order in which they were granted.
    """

    def __init__(self, limit: RateLimit, moves: int = 16) -> None:
        vars(lanes)["_MOST_MOVES"] = moves
        vars(sweeps)["SLICE"] = 10_000  # what ends many ends them at once, as the model does
        self.loop = VirtualLoop()
        self.loop.before_moving = self._before_moving
        self.delays = FixedDelays()
        self.scheduler = Scheduler(MemoryStore(ProcessStore(), limit))
        self.model = Model(limit, self.delays)
        self.streams = {name: self.scheduler.stream() for name in ("s1", "s2")}
        self.askers: dict[Want, Asker] = {}
        self.cancelled: set[Want] = set()
        self.flights: list[Flight] = []
        self.refusals: dict[Want, FeishuMailError] = {}
        self.failures: list[BaseException] = []
        self.log: list[int] = []
        self.ended: Counter[str] = Counter()

    @property
    def now(self) -> float:
        return self.loop.now

    # -- what the loop calls --

    def _before_moving(self, to: float) -> None:
        """Nothing is left to run: the two must agree, and nobody who could go may be waiting."""
        due = self.model.next_dispatch(self.now)
        if to > due + EPS or (to == self.now and due < self.now - EPS):
            could = [w for w in self.model.heads() if self.model.goes(w, self.now) <= due]
            self._fail(AssertionError(f"at {self.now}: {could} could go at {due}, and do not; moving to {to}"))
        tasks = [task for task in self.loop.tasks if not task.done()]
        if tasks:
            self._fail(AssertionError(f"whoever waits needs no task, and there are {tasks}"))

    def _fail(self, error: BaseException) -> None:
        if not self.failures:
            self.failures.append(error)

    def on_grant(self, asker: Asker, turn: Turn) -> None:
        try:
            assert asker.told == 1, f"{asker.want} was told twice"
            flight = Flight(turn, self.model.granted(asker.want, self.now))
            self.log.append(asker.want.number)
            self.flights.append(flight)
            if asker.reflex is not None:
                asker.reflex(flight)
        except AssertionError as error:
            self._fail(error)

    # -- events --

    def submit(
        self,
        user: str,
        mailbox: str,
        priority: Priority = Priority.NORMAL,
        outage: float = math.inf,
        *,
        reflex: Reflex | None = None,
        stream: str | None = None,
    ) -> Want:
        want = Want(len(self.askers) + 1, user, mailbox, priority, outage, stream)
        asker = self.askers[want] = Asker(self, want, reflex)
        scope = self.model.submit(want, self.now)
        self._do(lambda: self.scheduler.submit(asker.ask))
        error = self.refusals.get(want)
        assert (error is None) == (scope is None), f"{want}: refused with {error!r}; the model says {scope!r}"
        if scope is not None:
            self._closed_error(error, scope)
        return want

    def cancel(self, want: Want) -> None:
        if want in self.model.waiting:
            self.cancelled.add(want)
        self.model.cancel(want)
        self._do(lambda: self.scheduler.cancel(self.askers[want].ask))

    def move(self, want: Want, priority: Priority, stream: str | None = None) -> None:
        if want in self.model.waiting:
            self.model.move(want, priority, stream)
        to = self.streams[stream] if stream is not None else None
        self._do(lambda: self.scheduler.move(self.askers[want].ask, priority, to))

    def hold(self, stream: str) -> None:
        self.model.held.add(stream)
        self._do(lambda: self.scheduler.hold(self.streams[stream]))

    def unhold(self, stream: str) -> None:
        self.model.held.discard(stream)
        self._do(lambda: self.scheduler.unhold(self.streams[stream]))

    def settle(self, flight: Flight, judgement: Judgement, *, renewing: bool = False) -> None:
        self.flights.remove(flight)
        self.ended[f"{judgement.verdict.name} {judgement.subject.name} {judgement.end.name}"] += 1
        before = set(self.refusals)
        self._do(lambda: self.scheduler.settle(flight.turn, judgement, self.delays, renewing=renewing))
        expected = self.model.settle(flight.call, judgement, self.now, renewing=renewing)
        self._refused_were(expected, before)

    def sent(self, flight: Flight) -> None:
        self.settle(flight, Judgement(Verdict.DONE))

    def give_back(self, flight: Flight) -> None:
        self.flights.remove(flight)
        self.model.give_back(flight.call)
        self._do(lambda: self.scheduler.give_back(flight.turn))

    def renewed(self, user: str, *, worked: bool) -> None:
        expected = self.model.renewed(user, self.now, worked=worked)
        error = None if worked else FeishuMailError("refused")
        before = set(self.refusals)
        self._do(lambda: self.scheduler.renewed(user, error, f"mark of {user}"))
        self._refused_were(expected, before)
        assert self.scheduler.refused_fingerprint(user) == (None if worked else f"mark of {user}")

    def resume(self, scope: str) -> None:
        self.model.closed.pop(scope, None)
        self._do(lambda: self.scheduler.resume(scope))

    def set_limit(self, limit: RateLimit) -> None:
        self.compare()
        self.model.set_limit(limit, self.now)
        self._do(lambda: self.scheduler.set_limit(limit))
        assert self.scheduler.limit == limit

    def run(self, seconds: float = 0.0) -> None:
        """Let the dispatcher run, and that much time pass."""
        self.loop.run(seconds)
        if self.failures:
            raise self.failures[0]
        assert not self.loop.errors, self.loop.errors
        self.compare()

    def run_to_next(self) -> None:
        """Move to the very moment at which something could go or opens."""
        model = self.model
        at = [model.next_dispatch(self.now), model.smooth_until, model.paused()]
        at += [end + model.limit.per + model.limit.margin for end in model.ends]
        at += [lock.opens for lock in (*model.users.values(), *model.mailboxes.values())]
        later = [moment for moment in at if self.now < moment < math.inf]
        self.run(min(later) - self.now if later else 0.0)

    def finish(self) -> None:
        """End every call well, resume and renew all: then every ask is granted or refused."""
        for user, lock in self.model.users.items():
            if lock.held:
                self.renewed(user, worked=True)
        for stream in list(self.model.held):
            self.unhold(stream)
        for _ in range(20 * len(self.askers) + 20):
            self.run()
            while self.flights:
                self.sent(self.flights[0])
            if not self.model.waiting:
                break
            due = self.model.next_dispatch(self.now)
            assert due < math.inf, f"{self.model.waiting} wait for nothing"
            self.run(max(due - self.now, 0.0) + 2.0**-10)
        assert not self.model.waiting, f"{self.model.waiting} never got a turn"
        self.run()
        self.compare()

    def end(self) -> None:
        """Each ask was told once, or cancelled, or still waits; and nothing failed unseen."""
        vars(lanes)["_MOST_MOVES"] = MOST_MOVES
        vars(sweeps)["SLICE"] = SLICE
        self.loop.end()
        if self.failures:
            raise self.failures[0]
        assert not self.loop.errors, self.loop.errors
        for want, asker in self.askers.items():
            silent = want in self.cancelled or want in self.model.waiting
            assert asker.told == (0 if silent else 1), f"{want} was told {asker.told} times"

    # -- comparing --

    def _do(self, act: Callable[[], object]) -> None:
        if asyncio._get_running_loop() is self.loop:  # within a grant
            act()
            return
        with self.loop.current():
            act()

    def _refused_were(self, expected: dict[Want, type], before: set[Want]) -> None:
        new = {want: type(error) for want, error in self.refusals.items() if want not in before}
        assert new == expected, f"refused: {new}; the model says: {expected}"
        for want in new:
            error = self.refusals[want]
            if isinstance(error, Suspended):
                assert error.subject in self.model.scopes(want)
                self._closed_error(error, error.subject)

    def _closed_error(self, error: FeishuMailError | None, scope: str) -> None:
        assert isinstance(error, Suspended)
        assert error.subject == scope
        assert error.__cause__ is not None
        ends = self.model.closed[scope][1]
        assert error.until == (None if ends == math.inf else ends - self.now)

    def compare(self) -> None:
        """The scheduler's own account agrees with the model."""
        now, model = self.now, self.model
        if asyncio._get_running_loop() is self.loop:
            shot = self.scheduler.snapshot()
        else:
            with self.loop.current():
                shot = self.scheduler.snapshot()
        waiting = Counter(want.priority for want in model.waiting)
        assert shot.waiting == {priority: waiting[priority] for priority in Priority}
        assert shot.in_flight == len(model.flying) == len(self.flights)
        free = model.free(now)
        assert shot.permits == max(0, free), f"{shot.permits} permits; the model says {free}"
        assert shot.limit == model.limit
        at = model.permit(now, 1)
        expected = None if at == math.inf else max(0.0, at - now)
        assert shot.next_permit == expected, f"next permit {shot.next_permit}; the model says {expected}"
        assert shot.paused == (None if model.pause is None else max(0.0, model.pause.until - now))
        assert (shot.pause_reason is None) == (model.pause is None)
        cooling = {key: lock.cooling - now for key, lock in model.users.items() if lock.cooling > now}
        assert shot.cooling == cooling
        closed = {suspension.subject: suspension.seconds for suspension in shot.suspended}
        assert closed == {
            scope: None if ends == math.inf else ends - now
            for scope, (_, ends) in model.closed.items()
            if ends > now
        }


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
