"""Two processes on one ledger against a small model: permits, locks, leases, pauses, probes, suspensions.

And the ledger's clock against boots and elapsed time. All times are multiples of a quarter of a second, so that
sums are exact and no comparison depends on rounding.
"""

import asyncio
import contextlib
import itertools
import math
import os
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from feishu_mail_async._api.protocol import Judgement, Reply, judge
from feishu_mail_async._scheduling.lanes import Turn, mailbox_key
from feishu_mail_async.ledger.clock import HostClock, Reading
from feishu_mail_async.ledger.sql import SqlLedger
from feishu_mail_async.model import Priority, RateLimit
from tests.helpers.ledgers import (
    HOMES,
    LOST,
    NEVER,
    SENT,
    Clock,
    Process,
    Waits,
    ask,
    home_url,
    ledger_on,
    refused,
    timed_ledger,
)

T = TypeVar("T")

HOUR: Final = 3600.0
TIMEOUT: Final = 30.0
SLACK: Final = 5.0

ENDS: Final[dict[str, Judgement]] = {
    "sent": SENT,
    "already": judge(Reply(409, b'{"code":1236005,"msg":"","data":{}}')),
    "lost": LOST,
    "never": NEVER,
    "busy": refused("ConcurrentWrite"),
    "frequency": refused("FrequencyLimited", reset="30"),
    "frequency-bare": refused("FrequencyLimited"),
    "quota": refused("UserDailyQuota"),
    "storage": refused("TenantStorageFull"),
    "mailbox": refused("MailboxNotFound"),
    "rejected": refused("TooManyRecipients"),
    "internal": refused("InternalError"),
}

LIMITS: Final = [
    RateLimit(calls=2, per=60, spacing=0, margin=0, grace=10),
    RateLimit(calls=3, per=20, spacing=0.25, margin=0.25, grace=5),
    RateLimit(calls=4, per=60, spacing=0, margin=0, grace=0, reserve=2),
    RateLimit(calls=80, per=20, spacing=0, margin=0, grace=10),
]


# --- the model --------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Call:
    """A call that was granted."""

    turn: str
    user: str
    mailbox: str
    draft: str
    at: float
    lapses: float
    probe: bool
    pauses: int
    doubtful: bool
    ended: float | None = None
    gone: bool = False
    """It never left, or its turn was given back."""

    @property
    def open(self) -> bool:
        return self.ended is None and not self.gone

    @property
    def end(self) -> float:
        return self.lapses if self.ended is None else self.ended


@dataclass
class Note:
    """What is known of a draft."""

    sent: bool = False
    doubtful: bool = False
    turn: str | None = None


@dataclass
class Model:
    """A ledger as its promises say, over flat lists."""

    limit: RateLimit
    now: float
    calls: list[Call] = field(default_factory=list)
    drafts: dict[str, Note] = field(default_factory=dict)
    shut_until: dict[tuple[str, str], float] = field(default_factory=dict)
    strikes: dict[str, int] = field(default_factory=dict)
    closed: dict[str, float] = field(default_factory=dict)
    last: float = -math.inf
    pause: float | None = None
    prober: Call | None = None
    pauses: int = 0
    smooth_until: float = -math.inf
    unreachable_since: float | None = None
    unreachable_times: int = 0

    def counted(self) -> int:
        window = self.limit.per + self.limit.margin
        return sum(not one.gone and one.end + window > self.now for one in self.calls)

    def holder(self, kind: str, key: str) -> Call | None:
        """The call that holds a lock."""
        return next(
            (one for one in self.calls if one.open and one.lapses > self.now and getattr(one, kind) == key), None
        )

    def open_at(self, kind: str, key: str) -> bool:
        return self.holder(kind, key) is None and self.shut_until.get((kind, key), -math.inf) <= self.now

    def lapse(self, scopes: list[str]) -> None:
        for scope in scopes:
            if self.closed.get(scope, math.inf) <= self.now:
                del self.closed[scope]
                if scope == "app":
                    self.pause_until(self.now)

    def pause_until(self, until: float) -> None:
        self.pauses += 1
        self.pause = until if self.pause is None else max(self.pause, until)

    def may_go(self) -> bool:
        pace = self.limit.spacing
        if self.now < self.smooth_until:
            pace = max(pace, self.limit.per / self.limit.calls)
        if self.now < self.last + pace or self.counted() >= self.limit.calls:
            return False
        if self.pause is None:
            return True
        return self.now >= self.pause if self.prober is None else self.now >= self.prober.lapses

    def take(self, wanted: list[Any]) -> tuple[int | None, list[int], set[tuple[str, str]]]:
        """Which of them goes, which were sent before, and what keeps others."""
        for one in wanted:
            self.lapse(["app", f"user:{one.user}", f"mailbox:{one.mailbox}"])
        may_go, reserved = self.may_go(), self.limit.calls - self.counted() <= self.limit.reserve
        granted, recorded, shut = None, [], set()
        for place, one in enumerate(wanted):
            if self.drafts.setdefault(one.draft_id, Note()).sent:
                recorded.append(place)
                continue
            if {"app", f"user:{one.user}", f"mailbox:{one.mailbox}"} & self.closed.keys():
                continue
            kept = {(kind, getattr(one, kind)) for kind in ("user", "mailbox")}
            kept = {pair for pair in kept if not self.open_at(*pair)}
            shut |= kept
            urgent = one.priority is Priority.INTERACTIVE
            if not kept and may_go and granted is None and (urgent or not reserved):
                granted = place
                # What this one takes keeps those after it.
                self.granted(one)
        return granted, recorded, shut

    def granted(self, one: Any) -> None:
        note = self.drafts[one.draft_id]
        lapses = self.now + TIMEOUT + self.limit.grace + SLACK
        doubtful = note.doubtful or note.turn is not None
        call = Call(
            "",
            one.user,
            one.mailbox,
            one.draft_id,
            self.now,
            lapses,
            self.pause is not None,
            self.pauses,
            doubtful,
        )
        self.calls.append(call)
        note.doubtful = doubtful
        self.last = self.now
        if self.pause is not None:
            self.prober = call

    def settle(self, call: Call, kind: str) -> None:
        self.lapse(["app", f"user:{call.user}", f"mailbox:{call.mailbox}"])
        judgement = ENDS[kind]
        end = self.now + self.limit.grace if kind == "lost" else self.now
        forgotten = call.lapses + self.limit.per + self.limit.margin <= self.now
        taken = self.now if forgotten else call.at
        if kind == "never" or forgotten:
            call.gone = True
        call.ended = end
        if kind == "lost":
            for lock in (("user", call.user), ("mailbox", call.mailbox)):
                self.shut_until[lock] = max(self.shut_until.get(lock, -math.inf), end)
        if self.prober is call:
            self.prober = None
        answered = kind not in {"lost", "never"} and call.probe and call.pauses == self.pauses
        if answered:
            self.unreachable_since, self.unreachable_times = None, 0
        if kind == "never":
            self.unreachable(call, taken)
        elif kind.startswith("frequency"):
            self.pause_until(self.now + (self.limit.per if kind.endswith("bare") else 30.0))
        elif answered:
            self.pause, self.smooth_until = None, self.now + self.limit.per
        if kind == "busy":
            self.strikes[call.user] = self.strikes.get(call.user, 0) + 1
            until = self.now + Waits().backoff(self.strikes[call.user])
            lock = "user", call.user
            self.shut_until[lock] = max(self.shut_until.get(lock, -math.inf), until)
        elif kind in {"sent", "already"}:
            self.strikes[call.user] = 0
        match kind:
            case "quota":
                self.closed[f"user:{call.user}"] = self.now + HOUR
            case "storage":
                self.closed["app"] = self.now + HOUR
            case "mailbox":
                self.closed[f"mailbox:{call.mailbox}"] = math.inf
        note = self.drafts[call.draft]
        if note.turn == call.turn:
            note.turn = None
            note.sent = kind in {"sent", "already"}
            note.doubtful = not note.sent and (call.doubtful or not judgement.conclusive)

    def unreachable(self, call: Call, taken: float) -> None:
        if self.unreachable_since is not None and call.pauses != self.pauses:
            return
        if self.unreachable_since is None or (self.pause is not None and taken > self.pause + 60):
            self.unreachable_since, self.unreachable_times = self.now, 0
        self.unreachable_times += 1
        lasted = self.now - self.unreachable_since
        self.pause_until(self.now + Waits().outage(self.unreachable_times, lasted))

    def give_back(self, call: Call) -> None:
        call.gone = True
        if self.prober is call:
            self.prober = None
        note = self.drafts[call.draft]
        if note.turn == call.turn:
            note.turn = None


# --- the machine ------------------------------------------------------------------------------------------

USERS: Final = ["a", "b@x"]
BOXES: Final = ["me", "team@x", "B@X"]  # the last is the own mailbox of the second user
SUBJECTS: Final = ["app", "user:a", "user:b@x", "mailbox:team@x", "mailbox:me/a", "mailbox:b@x"]

asks: Final = st.builds(
    ask,
    st.integers(1, 2).map("draft{}".format),
    st.sampled_from(USERS),
    st.sampled_from(BOXES),
    st.sampled_from([Priority.NORMAL, Priority.INTERACTIVE]),
    timeout=st.just(TIMEOUT),
)


class World:
    """The database, and the ledgers on it, which all examples use: each has an app of its own."""

    numbers = itertools.count(1)

    def __init__(self, url: str) -> None:
        self.runner = asyncio.Runner()
        self.clock = Clock()
        self.runner.get_loop()
        self.ledgers = [timed_ledger(url, self.clock) for _ in range(2)]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def close(self) -> None:
        for ledger in self.ledgers:
            self.run(ledger.close())
        self.runner.close()


class Processes(RuleBasedStateMachine):
    """Two processes that take turns at random; whatever one does, the other finds as the model says."""

    world: World

    @initialize(limit=st.sampled_from(LIMITS))
    def begin(self, limit: RateLimit) -> None:
        self.app = f"app{next(World.numbers)}"
        self.model = Model(limit, self.world.clock.now)
        self.processes = [self.process(ledger, limit) for ledger in self.world.ledgers]
        self.turns: list[tuple[Call, Turn, int]] = []

    def process(self, ledger: SqlLedger, limit: RateLimit) -> Process:
        process = Process(ledger, ledger.store("https://x", self.app, limit))
        self.world.run(self.opened(process))
        return process

    async def opened(self, process: Process) -> None:
        """The limit that a process brings takes its place when it first looks into the ledger: now."""
        await process.store.records([])

    @rule(who=st.integers(0, 1), wanted=st.lists(asks, min_size=1, max_size=3))
    def take(self, who: int, wanted: list[Any]) -> None:
        for one in wanted:
            one.draft_id = f"{one.user}/{one.mailbox}/{one.draft_id}"
        before = list(self.model.calls)
        granted, recorded, shut = self.model.take(wanted)
        taken = self.world.run(self.processes[who].take(*wanted))
        if granted is None:
            assert taken.granted is None, (taken, self.model)
        else:
            assert taken.granted is not None, self.model
            one, grant = taken.granted
            assert one is wanted[granted]
            call = self.model.calls[-1]
            call.turn = self.model.drafts[call.draft].turn = grant.turn
            assert (grant.probe, grant.in_doubt) == (call.probe, call.doubtful)
            self.never_too_much(call, before)
            self.turns.append((call, self.turn(one, grant), who))
        assert [wanted.index(one) for one, _ in taken.recorded] == recorded
        assert {(kind, key) for kind, key, *_ in taken.shut} == shut

    def never_too_much(self, call: Call, before: list[Call]) -> None:
        """As the server may see it: with the calls that can arrive in one window with it, it is not too much."""
        limit, now = self.model.limit, self.world.clock.now
        others = [one for one in before if not one.gone and one.end + limit.per > now]
        assert len(others) < limit.calls
        living = [one for one in before if one.open and one.lapses > now]
        assert all(one.user != call.user and one.mailbox != call.mailbox for one in living)

    def turn(self, one: Any, grant: Any) -> Turn:
        from feishu_mail_async._scheduling.lanes import CallLock  # noqa: PLC0415

        return Turn(CallLock(one.user), CallLock(one.mailbox), one, grant)

    @precondition(lambda self: self.turns)
    @rule(data=st.data(), kind=st.sampled_from(sorted(ENDS)))
    def settle(self, data: st.DataObject, kind: str) -> None:
        call, turn, who = self.turns.pop(data.draw(st.integers(0, len(self.turns) - 1)))
        self.model.settle(call, kind)
        self.world.run(self.processes[who].settle(turn, ENDS[kind]))
        if kind == "sent":  # once more: a commit whose answer was lost
            self.world.run(self.processes[who].settle(turn, ENDS[kind]))

    @precondition(lambda self: self.turns)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        call, turn, who = self.turns.pop(data.draw(st.integers(0, len(self.turns) - 1)))
        self.model.give_back(call)
        self.world.run(self.given_back(who, turn))

    async def given_back(self, who: int, turn: Turn) -> None:
        await self.processes[who].store.give_back(turn.permit)

    @rule(who=st.integers(0, 1))
    def vanish(self, who: int) -> None:
        """Its process dies, and another one starts."""
        self.turns = [one for one in self.turns if one[2] != who]
        self.processes[who] = self.process(self.world.ledgers[who], self.model.limit)

    @rule(seconds=st.sampled_from([0.25, 0.5, 1.0, 5.0, 10.0, 20.0, 45.0, 60.0, 105.25, HOUR]))
    def advance(self, seconds: float) -> None:
        self.world.clock.now += seconds
        self.model.now = self.world.clock.now

    @rule(who=st.integers(0, 1), subject=st.sampled_from(SUBJECTS))
    def resume(self, who: int, subject: str) -> None:
        self.model.closed.pop(subject, None)
        self.world.run(self.told(who, "resume", subject))

    @rule(who=st.integers(0, 1), limit=st.sampled_from(LIMITS))
    def limited(self, who: int, limit: RateLimit) -> None:
        self.model.limit = limit
        self.world.run(self.told(who, "set_limit", limit))

    async def told(self, who: int, what: str, value: Any) -> None:
        store = self.processes[who].store
        getattr(store, what)(value)
        await store.written()


@contextlib.contextmanager
def world(url: str) -> Iterator[type[Processes]]:
    one = World(url)
    try:
        yield type("Bound", (Processes,), {"world": one})
    finally:
        one.close()


@pytest.fixture(params=HOMES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return home_url(request, tmp_path)


def test_two_processes_and_the_model(url: str) -> None:
    with world(url) as machine:
        run_state_machine_as_test(machine, settings=settings(max_examples=20, stateful_step_count=30))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_two_processes_and_the_model_for_long(url: str) -> None:
    with world(url) as machine:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=120, stateful_step_count=50, derandomize=not os.environ.get("SOAK_RANDOM")
            ),
        )


# --- the clock --------------------------------------------------------------------------------------------

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
            await here.settle(Turn(_gate(one.user), _gate(one.mailbox), one, taken.granted[1]))
        await here.ledger.close()

    asyncio.run(main())


def _gate(key: str) -> Any:
    from feishu_mail_async._scheduling.lanes import CallLock  # noqa: PLC0415

    return CallLock(key)


def test_the_names_of_the_model_are_those_of_the_package() -> None:
    assert mailbox_key("b@x", "B@X") == mailbox_key("b@x", "me") == "b@x"
