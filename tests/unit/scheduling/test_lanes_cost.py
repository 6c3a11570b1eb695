"""What a decision costs, and what is remembered, however many wait."""

import heapq
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Final, Self
from unittest.mock import Mock, patch

import pytest

from feishu_mail_async._api.protocol import Judgement
from feishu_mail_async._scheduling import lanes as lanes_module
from feishu_mail_async._scheduling.lanes import USERS_REMEMBERED, LaneHeap
from feishu_mail_async._scheduling.memory import MemoryStore
from feishu_mail_async._scheduling.process import ProcessStore
from feishu_mail_async._scheduling.scheduler import Scheduler
from feishu_mail_async._scheduling.waiters import CallLock, Lane, Turn, Waiter
from feishu_mail_async.codes import Subject
from feishu_mail_async.errors import FeishuMailError
from feishu_mail_async.ledger import Record
from feishu_mail_async.model import Priority, RateLimit
from tests.helpers.judgements import SENT, throttled
from tests.models.scheduler_loop import FixedDelays, VirtualLoop
from tests.models.scheduler_model import HOUR


class Lines:
    """Counts the lines that the scheduler and the budget execute: a cost that no machine makes faster."""

    def __init__(self) -> None:
        self.count = 0

    def _trace(self, frame: FrameType, event: str, _: object) -> "Callable[..., Any] | None":
        if not frame.f_code.co_filename.endswith(("dispatcher.py", "scheduler.py", "lanes.py", "budget.py")):
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
        locks = [*scheduler._lanes.users.values(), *scheduler._lanes.mailboxes.values()]
        heaps = [scheduler._lanes.ready, *scheduler._lanes.parked.values()]
        sizes = [len(heap._records) + len(heap._old) for heap in heaps]
        assert max(sizes) <= 64
        assert sum(sizes) <= 2_000
        assert len(scheduler._lanes.alarms) <= 2
        assert not scheduler._lanes.lanes
        assert not scheduler._lanes.parked
        assert not scheduler._lanes.mailboxes
        assert len(scheduler._lanes.users) <= USERS_REMEMBERED
        assert not any(lock.lanes for lock in locks)
    finally:
        crowd.end()


def test_lanes_that_leave_a_heap_one_after_another_each_cost_the_same() -> None:
    heap, count = LaneHeap(), 2_000
    lanes = [
        Lane(CallLock(str(number)), CallLock(str(number)), Priority.BULK, None, ()) for number in range(count)
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
