"""Two processes on one ledger, held against the model."""

import asyncio
import contextlib
import itertools
import os
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from feishu_mail_async._scheduling.waiters import Turn, mailbox_key
from feishu_mail_async.ledger.sql import SqlLedger
from feishu_mail_async.model import Priority, RateLimit
from tests.helpers.ledgers import HOMES, Clock, Process, ask, home_url, timed_ledger
from tests.models.ledger_model import ENDS, HOUR, TIMEOUT, Call, Model

T = TypeVar("T")

LIMITS: Final = [
    RateLimit(calls=2, per=60, spacing=0, margin=0, grace=10),
    RateLimit(calls=3, per=20, spacing=0.25, margin=0.25, grace=5),
    RateLimit(calls=4, per=60, spacing=0, margin=0, grace=0, reserve=2),
    RateLimit(calls=80, per=20, spacing=0, margin=0, grace=10),
]


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
            assert (grant.probe, grant.in_doubt) == (call.probe, call.in_doubt)
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
        from feishu_mail_async._scheduling.waiters import CallLock  # noqa: PLC0415

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


def test_the_names_of_the_model_are_those_of_the_package() -> None:
    assert mailbox_key("b@x", "B@X") == mailbox_key("b@x", "me") == "b@x"
