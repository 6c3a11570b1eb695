"""A naive model of the scheduler, written from DESIGN.md, and a world in which the two are compared.

The model keeps flat lists and scans all of them for every question: slow, and easy to believe. A `World` drives
one `Scheduler` and one `Model` through the same events, in a loop whose clock moves only when nothing is left to
run. Every grant and every refusal is checked when it happens, and the clock may never pass the moment at which
the model says that some ask could go.
"""

import asyncio
import contextlib
import itertools
import math
import selectors
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from feishu_mail_async._api.protocol import CallEnd, Judgement
from feishu_mail_async._scheduling import lanes, sweeps
from feishu_mail_async._scheduling.lanes import Turn, Waiter
from feishu_mail_async._scheduling.memory import MemoryStore
from feishu_mail_async._scheduling.process import ProcessStore
from feishu_mail_async._scheduling.scheduler import Scheduler
from feishu_mail_async.codes import ResumeWhen, Subject, Verdict
from feishu_mail_async.errors import FeishuMailError, Suspended, TransportError
from feishu_mail_async.ledger import Record
from feishu_mail_async.model import Priority, RateLimit

HOUR: Final = 3600.0
SLICE: Final = sweeps.SLICE
MOST_MOVES: Final = lanes._MOST_MOVES
EPS: Final = 1e-4
"""How late a dispatch may be: the bucket of the spacing may be a rounding error behind."""


# -- a loop with a clock of its own --------------------------------------------------------------------


class _Select(selectors.SelectSelector):
    """Waits for nothing: where a real selector would sleep, the loop's clock moves."""

    def __init__(self, wait: Callable[[float | None], None]) -> None:
        super().__init__()
        self._wait = wait

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._wait(timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time stands still while anything can run.

    Attributes:
        now: its time.
        horizon: where a run ends.
        before_moving: called with the time to which the clock is about to move, whenever nothing is left to run.
        each_pass: called in every pass of the loop.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.horizon = 0.0
        self.before_moving: Callable[[float], None] = lambda _: None
        self.each_pass: Callable[[], None] = lambda: None
        self.errors: list[dict[str, Any]] = []
        self._spins = 0
        super().__init__(_Select(self._idle))
        self.set_exception_handler(lambda _, context: self.errors.append(context))

    @property
    def tasks(self) -> list[asyncio.Task[Any]]:
        """Those that have not ended."""
        return list(asyncio.all_tasks(self))

    def time(self) -> float:
        return self.now

    def _idle(self, timeout: float | None) -> None:
        self.each_pass()
        if timeout is not None and timeout <= 0:
            self._spins += 1
            assert self._spins < 100_000, "something runs for ever without the clock moving"
            return
        self._spins = 0
        # The exact time of the next timer; `now + timeout` would be a rounding error away.
        timers: list[asyncio.TimerHandle] = getattr(self, "_scheduled")  # noqa: B009 - unknown to typeshed
        at = timers[0].when() if timers else math.inf
        # What asyncio takes to be due at the horizon must not run before its time.
        if at <= self.horizon + 1e-8:
            self.before_moving(at)
            self.now = max(self.now, at)
        else:
            self.horizon = max(self.now, self.horizon)
            self.before_moving(self.horizon)
            self.now = self.horizon
            self.stop()

    def run(self, seconds: float = 0.0) -> None:
        """Run for that long; with 0, until nothing is left to run at this moment."""
        self.horizon = self.now + seconds
        self.run_forever()

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Within it, this is the running loop: what is called acts like a callback of the loop."""
        asyncio._set_running_loop(self)
        try:
            yield
        finally:
            asyncio._set_running_loop(None)

    def end(self) -> None:
        """Cancel what still runs, and close."""
        self.before_moving = lambda _: None
        tasks = self.tasks
        for task in tasks:
            task.cancel()
        self.run()
        for task in tasks:
            if not task.cancelled() and task.exception() is not None:
                self.errors.append({"exception": task.exception()})
        self.close()


class FixedDelays:
    """Waits without jitter. They grow to a maximum, and the arguments show in their lengths."""

    longest = 16.0
    asked = 0, 0.0

    def backoff(self, times: int) -> float:
        assert times >= 1
        return min(self.longest, 0.5 * 2.0 ** min(times, 20))

    def outage(self, times: int, lasted: float) -> float:
        assert lasted >= 0
        self.asked = times, lasted
        return self.backoff(times) + (0.25 if lasted > 0 else 0.0)


# -- the model -----------------------------------------------------------------------------------------


Lane = tuple[str, str, Priority, str | None]


@dataclass(eq=False, slots=True)
class Want:
    """An ask, as the model knows it. `arrived` orders all asks, `place` those of its lane."""

    number: int
    user: str
    mailbox: str
    priority: Priority
    outage: float
    stream: str | None = None
    arrived: int = 0
    place: int = 0

    @property
    def lane(self) -> Lane:
        return self.user, self.mailbox, self.priority, self.stream

    def __repr__(self) -> str:
        return f"#{self.number}({self.user}, {self.mailbox}, {self.priority.name}, {self.stream})"


@dataclass(eq=False, slots=True)
class Call:
    """A call in flight, or one that has ended: then `latest` is the last moment at which it may be counted."""

    want: Want
    at: float
    era: int
    probe: bool
    late: bool = False
    latest: float = math.inf


@dataclass(slots=True)
class Paused:
    until: float
    probe: Call | None = None


@dataclass(slots=True)
class Lock:
    """What is known of a user or a mailbox."""

    opens: float = -math.inf
    cooling: float = -math.inf
    served: int = 0
    consecutive_refusals: int = 0
    held: bool = False


@dataclass(slots=True)
class Model:
    """What DESIGN.md says, in the plainest words that run."""

    limit: RateLimit
    delays: FixedDelays
    waiting: list[Want] = field(default_factory=list)
    flying: list[Call] = field(default_factory=list)
    past: list[Call] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    users: dict[str, Lock] = field(default_factory=dict)
    mailboxes: dict[str, Lock] = field(default_factory=dict)
    closed: dict[str, tuple[ResumeWhen, float]] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    pause: Paused | None = None
    era: int = 0
    since: float | None = None
    times: int = 0
    in_doubt: bool = False
    last: float = -math.inf
    smooth_until: float = -math.inf
    limit_since: float = -math.inf
    turns: int = 0
    moved: bool = False
    clock: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def user(self, key: str) -> Lock:
        return self.users.setdefault(key, Lock())

    def mailbox(self, key: str) -> Lock:
        return self.mailboxes.setdefault(key, Lock())

    # -- when could it go --

    def heads(self) -> list[Want]:
        """The first of each lane."""
        first: dict[Lane, Want] = {}
        for want in self.waiting:
            if want.lane not in first or want.place < first[want.lane].place:
                first[want.lane] = want
        return list(first.values())

    def locks_open(self, want: Want) -> float:
        """Invariant 3: one call at a time for the user and for the mailbox; lost calls and cool-downs too."""
        if self.user(want.user).held or want.stream in self.held:
            return math.inf
        if any(call.want.user == want.user or call.want.mailbox == want.mailbox for call in self.flying):
            return math.inf
        return max(self.user(want.user).opens, self.mailbox(want.mailbox).opens)

    def forget(self, now: float) -> None:
        """Drop the calls whose permits have come back."""
        self.ends = [end for end in self.ends if end + self.limit.per + self.limit.margin > now]

    def free(self, now: float) -> int:
        self.forget(now)
        return self.limit.calls - len(self.flying) - len(self.ends)

    def permit(self, now: float, wanted: int) -> float:
        """Invariant 1: when so many permits are free, if no further call ends."""
        missing = wanted - self.free(now)
        if missing <= 0:
            return -math.inf
        if missing > len(self.ends):
            return math.inf
        return sorted(self.ends)[missing - 1] + self.limit.per + self.limit.margin

    def permit_for(self, want: Want, now: float) -> float:
        return self.permit(now, 1 if want.priority is Priority.INTERACTIVE else self.limit.reserve + 1)

    def spaced(self, now: float) -> float:
        """Invariant 2, and the smooth rate after a pause."""
        plain = self.last + self.limit.spacing
        smooth = self.last + max(self.limit.spacing, self.limit.per / self.limit.calls)
        if now >= self.smooth_until:
            return plain
        return min(smooth, max(plain, self.smooth_until))

    def paused(self) -> float:
        if self.pause is None:
            return -math.inf
        return self.pause.until if self.pause.probe is None else math.inf

    def goes(self, want: Want, now: float) -> float:
        """When this head of a lane could go if nothing happened before."""
        return max(self.locks_open(want), self.permit_for(want, now), self.spaced(now), self.paused())

    def next_dispatch(self, now: float) -> float:
        """Invariant 6: the clock may not pass this moment without a dispatch."""
        return min((self.goes(want, now) for want in self.heads()), default=math.inf)

    # -- events --

    def scopes(self, want: Want) -> tuple[str, str, str]:
        return "app", f"user:{want.user}", f"mailbox:{want.mailbox}"

    def submit(self, want: Want, now: float) -> str | None:
        """The closed scope because of which the ask is refused; None if it waits."""
        for scope in self.scopes(want):
            until, ends = self.closed.get(scope, (None, -math.inf))
            if until is None:
                continue
            if ends > now:
                return scope
            del self.closed[scope]
            if scope == "app":
                self.pause_until(now)  # "quotas and storage an hour, then one probe"
        want.arrived = want.place = next(self.clock)
        self.waiting.append(want)
        return None

    def cancel(self, want: Want) -> None:
        if want in self.waiting:
            self.waiting.remove(want)

    def move(self, want: Want, priority: Priority, stream: str | None) -> None:
        """Another wants it too: it becomes more urgent, leaves a single stream, and goes behind its new lane."""
        if priority < want.priority or stream != want.stream:
            self.moved = True
            want.priority = min(priority, want.priority)
            want.stream = want.stream if stream == want.stream else None
            want.place = next(self.clock)

    def granted(self, want: Want, now: float) -> Call:
        """Check that it was the turn of this ask, and take the turn."""
        assert want in self.waiting, f"{want} was granted a turn, and does not wait"
        assert self.locks_open(want) <= now, f"{want}: its user or mailbox is locked until {self.locks_open(want)}"
        assert self.permit_for(want, now) <= now, f"{want}: no permit before {self.permit_for(want, now)}"
        assert self.spaced(now) <= now, f"{want}: {now} is too close to the dispatch before, {self.last}"
        assert self.paused() <= now, f"{want}: paused until {self.paused()}"
        heads = self.heads()
        assert want in heads, f"{want} overtook its own lane"
        for other in heads:
            if self.locks_open(other) > now or self.permit_for(other, now) > now:
                continue
            assert want.priority <= other.priority, f"{want} went before {other}, which is more urgent"
            if want.priority == other.priority:
                mine, theirs = self.user(want.user).served, self.user(other.user).served
                assert mine <= theirs, f"{want} went before {other}, whose user is unserved for longer"
                # Which of one user's mailboxes comes first is no promise; but they take turns as they came, as
                # long as no ask has moved into another lane (where it is last, though it came early).
                if mine == theirs and not self.moved:
                    assert want.arrived <= other.arrived, f"{want} went before {other}, which came first"
        self.as_the_server_counts(now)
        self.turns += 1
        self.user(want.user).served = self.turns
        self.waiting.remove(want)
        late = self.pause is not None and now > self.pause.until + self.delays.longest
        call = Call(want, now, self.era, probe=self.pause is not None, late=late)
        self.flying.append(call)
        self.last = now
        if self.pause is not None:
            self.pause.probe = call
        return call

    def as_the_server_counts(self, now: float) -> None:
        """Invariant 1 once more, from the calls alone: however late the others arrived, this one fits."""
        if self.limit_since > -math.inf:
            return
        counted = [call for call in self.past if call.latest + self.limit.per > now]
        assert len(counted) + len(self.flying) < self.limit.calls, f"over the limit at {now}"

    def give_back(self, call: Call) -> None:
        self.flying.remove(call)
        if self.pause is not None and self.pause.probe is call:
            self.pause.probe = None

    def settle(self, call: Call, judgement: Judgement, now: float, *, renewing: bool) -> dict[Want, type]:
        """The call has ended: who is refused, and with what."""
        refused: dict[Want, type] = {}
        want, verdict, scope = call.want, judgement.verdict, judgement.subject
        user, mailbox = self.user(want.user), self.mailbox(want.mailbox)
        self.give_back(call)
        if judgement.end is not CallEnd.NEVER_LEFT:
            call.latest = now + (self.limit.grace if judgement.end is CallEnd.LOST else 0.0)
            self.ends.append(call.latest)
            self.past.append(call)
        if judgement.end is CallEnd.LOST:
            user.opens = max(user.opens, call.latest)
            mailbox.opens = max(mailbox.opens, call.latest)
        user.held = renewing
        answered = judgement.end is CallEnd.ANSWERED and call.probe and call.era == self.era
        if answered:  # whatever it says, the server can be reached
            self.since, self.times, self.in_doubt = None, 0, False
        if verdict is Verdict.RETRY and scope is Subject.APP:
            if judgement.end is CallEnd.NEVER_LEFT:
                self.unreachable(call, now, refused)
            else:
                per = self.limit.per
                self.pause_until(
                    now + (per if judgement.pause is None else min(judgement.pause, max(60.0, 4 * per)))
                )
                self.in_doubt = self.since is not None and call.probe  # of an older pause, but it was answered
        elif answered:
            self.pause = None
            self.smooth_until = now + self.limit.per
        if verdict is Verdict.RETRY and scope is Subject.USER:
            user.consecutive_refusals += 1
            user.cooling = now + self.delays.backoff(user.consecutive_refusals)
            user.opens = max(user.opens, user.cooling)
        elif verdict in {Verdict.SENT, Verdict.ALREADY_SENT}:
            user.consecutive_refusals = 0
        if verdict is Verdict.FATAL and judgement.until is not None and not renewing:
            name = {Subject.USER: f"user:{want.user}", Subject.MAILBOX: f"mailbox:{want.mailbox}"}.get(
                scope, "app"
            )
            self.close(name, judgement.until, now, refused)
        return refused

    def close(self, name: str, until: ResumeWhen, now: float, refused: dict[Want, type]) -> None:
        self.closed[name] = until, now + HOUR if until is ResumeWhen.HOUR else math.inf
        for other in [other for other in self.waiting if name in self.scopes(other)]:
            self.waiting.remove(other)
            refused[other] = Suspended

    def renewed(self, key: str, now: float, *, worked: bool) -> dict[Want, type]:
        refused: dict[Want, type] = {}
        self.user(key).held = False
        if not worked:
            self.close(f"user:{key}", ResumeWhen.TOKEN, now, refused)
        return refused

    def pause_until(self, until: float) -> None:
        """The latest deadline wins; whatever probes now was made before this."""
        self.era += 1
        if self.pause is None:
            self.pause = Paused(until)
        else:
            self.pause.until = max(self.pause.until, until)

    def unreachable(self, call: Call, now: float, refused: dict[Want, type]) -> None:
        if self.since is None:
            self.since = now
        elif call.era != self.era:
            return
        if (self.in_doubt or call.late) and self.delays.asked == (1, 0.0):
            # Where an older call was answered in between, or nobody tried for long, it may or may not go on.
            self.since, self.times = now, 0
        self.in_doubt = False
        lasted = now - self.since
        self.times += 1
        self.pause_until(now + self.delays.outage(self.times, lasted))
        for want in [want for want in self.waiting if want.outage <= lasted]:
            self.waiting.remove(want)
            refused[want] = TransportError

    def set_limit(self, limit: RateLimit, now: float) -> None:
        self.forget(now)
        self.limit = limit
        self.limit_since = now


# -- the world -----------------------------------------------------------------------------------------


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
        try:
            tasks = [task for task in self.loop.tasks if not task.done()]
            assert len(tasks) == bool(self.model.waiting), f"{self.model.waiting} wait, and there are {tasks}"
        except AssertionError as error:
            self._fail(error)

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

    def resume(self, stream: str) -> None:
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
        self.settle(flight, Judgement(Verdict.SENT))

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

    def reopen(self, scope: str) -> None:
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
        """End every call well, reopen and renew all: then every ask is granted or refused."""
        for user, lock in self.model.users.items():
            if lock.held:
                self.renewed(user, worked=True)
        for stream in list(self.model.held):
            self.resume(stream)
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
