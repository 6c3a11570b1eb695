"""What a draft of a run costs, in operations, does not depend on how many there are."""

import asyncio
import collections
import gc
import heapq
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import scale
from common import LIFTED

from feishu_mail_async import ClientClosed, Draft, FeishuMailClient, NotSent, Priority, RateLimit
from feishu_mail_async import client as client_module
from feishu_mail_async._scheduling import budget, lanes
from tests.helpers.clock import run_virtual
from tests.helpers.samples import PACKAGE


class Operations:
    """Counts the package's lines as they run, and its work on heaps: a scan of whatever waits shows in these."""

    def __init__(self) -> None:
        self.lines = 0
        self.heaps: collections.Counter[str] = collections.Counter()

    def reset(self) -> None:
        self.lines = 0
        self.heaps.clear()

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:
        return self._line if frame.f_code.co_filename.startswith(str(PACKAGE)) else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any]:
        self.lines += event == "line"
        return self._line

    def _counting(self, name: str) -> Callable[..., Any]:
        plain = getattr(heapq, name)

        def counting(heap: list[Any], *rest: Any) -> Any:
            # heapify looks at all that is there.
            self.heaps[name] += len(heap) if name == "heapify" else 1
            return plain(heap, *rest)

        return counting

    @contextmanager
    def counted(self) -> Iterator[None]:
        names = ("heappush", "heappop", "heapify")
        fake = SimpleNamespace(**{name: self._counting(name) for name in names})
        before = sys.gettrace()
        with mock.patch.object(lanes, "heapq", fake), mock.patch.object(budget, "heapq", fake):
            sys.settrace(self._enter)
            try:
                yield
            finally:
                sys.settrace(before)


def streamed(count: int, **settings: Any) -> tuple[float, float]:
    """Lines run and records moved on heaps, per draft, when `count` drafts are streamed."""
    operations = Operations()
    with operations.counted():
        assert run_virtual(scale.stream(count, **settings), noop_cycles=2) == count
    return operations.lines / count, operations.heaps.total() / count


@pytest.mark.parametrize("read_ahead", [50, pytest.param(10_000, marks=pytest.mark.soak)])
def test_a_stream_ten_times_as_long_costs_the_same_per_draft(read_ahead: int) -> None:
    few, many = streamed(200, read_ahead=read_ahead), streamed(2000, read_ahead=read_ahead)
    assert many[0] <= 1.1 * few[0]
    assert many[1] <= 1.1 * few[1]
    # Enough to notice when a draft is taken in hand twice.
    assert many[0] <= 850
    assert many[1] <= 7


async def between(
    waiting: int, users: int, operations: Operations, *, pause: float, urgent: bool
) -> tuple[int, int]:
    """What the outcomes 50 to 150 of a run cost, in lines and on heaps, while `waiting` drafts of `users` wait."""
    tokens = {f"user{number}": f"u-token-{number}" for number in range(users)}
    drafts = [Draft(f"draft-{number}", user=f"user{number % users}") for number in range(waiting)]
    with mock.patch.object(client_module, "Transport", scale.StubTransport):
        client = FeishuMailClient(tokens, rate_limit=RateLimit())
        async with client, client.send_drafts(drafts, read_ahead=waiting) as run:
            number = 0
            if pause:
                await asyncio.sleep(100_000)  # the backlog is full, and the run held
            async for _ in run:
                number += 1
                if number == 50:
                    operations.reset()
                if number == 150:
                    return operations.lines, operations.heaps.total()
                if urgent:
                    await client.send_draft(f"urgent-{number}", user="user0", priority=Priority.INTERACTIVE)
                await asyncio.sleep(pause)
    raise AssertionError("the run ended early")


@pytest.mark.parametrize("kind", ["plain", "held", "urgent"])
@pytest.mark.parametrize("spread", [1, pytest.param(5, marks=pytest.mark.soak)])
def test_a_decision_costs_the_same_however_many_wait(kind: str, spread: int) -> None:
    costs = []
    for waiting in (1200, 4800):
        operations = Operations()
        with operations.counted():
            scene = between(
                waiting,
                waiting // 5 if spread == 5 else 7,
                operations,
                pause=100.0 if kind == "held" else 0.0,
                urgent=kind == "urgent",
            )
            costs.append(run_virtual(scene, noop_cycles=2))
    (few_lines, few_heaps), (many_lines, many_heaps) = costs
    assert many_lines <= 1.1 * few_lines
    assert many_heaps <= 1.1 * few_heaps + 20


def test_memory_does_not_grow_with_what_has_passed() -> None:
    """What is kept of drafts that are done: nothing."""

    async def scene() -> list[int]:
        sizes = []
        with mock.patch.object(client_module, "Transport", scale.StubTransport):
            tokens = {f"user{number}": f"u-token-{number}" for number in range(scale.USERS)}
            async with FeishuMailClient(tokens, rate_limit=LIFTED) as client:
                for count in (500, 5000):
                    async with client.send_drafts(scale.drafts(count), read_ahead=100) as run:
                        async for _ in run:
                            pass
                    sizes.append(reachable(run) + reachable(client))
        return sizes

    few, many = run_virtual(scene(), noop_cycles=2)
    assert many <= 1.1 * few


def garbage_of(end: Callable[[int], Coroutine[Any, Any, object]], count: int) -> int:
    """What only the garbage collector frees after so many drafts have ended."""

    async def scene() -> int:
        gc.collect()
        gc.disable()
        try:
            with mock.patch.object(client_module, "Transport", scale.StubTransport):
                await end(count)
            return gc.collect()
        finally:
            gc.enable()

    return run_virtual(scene(), noop_cycles=2)


async def all_sent(count: int) -> None:
    async with FeishuMailClient("u-token", rate_limit=LIFTED) as client:
        async with client.send_drafts(f"draft-{number}" for number in range(count)) as run:
            async for _ in run:
                pass
        for number in range(count):
            await client.send_draft(f"single-{number}")


async def none_sent(count: int) -> None:
    """All wait until the run is stopped, and the client closed."""
    one_call = RateLimit(calls=1, per=60.0, spacing=0, margin=0)
    async with FeishuMailClient("u-token", rate_limit=one_call) as client:
        run = client.send_drafts([f"draft-{number}" for number in range(count + 1)])
        assert (await anext(run)).error is None
        singles = [asyncio.ensure_future(client.send_draft(f"single-{number}")) for number in range(count)]
        while sum(client.snapshot().waiting.values()) < 2 * count:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.001)
        run.stop()
        errors = [type(outcome.error) async for outcome in run]
    assert errors == [NotSent] * count
    await asyncio.wait(singles)
    assert {type(single.exception()) for single in singles} == {ClientClosed}


@pytest.mark.parametrize("end", [all_sent, none_sent])
def test_a_draft_that_has_ended_goes_without_the_garbage_collector(
    end: Callable[[int], Coroutine[Any, Any, object]],
) -> None:
    """What goes in circles is old by the time that many have ended, and then all that waits is looked through."""
    few, many = (garbage_of(end, count) for count in (10, 110))
    assert many - few < 100


def reachable(top: object) -> int:
    """Objects that the package's own objects hold on to."""
    seen: set[int] = set()
    todo = [top]
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, type | ModuleType | str | int | float | Callable):
            continue
        seen.add(id(one))
        if isinstance(one, dict):
            todo += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset | collections.deque):
            todo += list(one)
        elif type(one).__module__.startswith("feishu_mail_async"):
            todo += list(vars(one).values()) if hasattr(one, "__dict__") else []
            for kind in type(one).__mro__:
                todo += [
                    getattr(one, name, None) for name in getattr(kind, "__slots__", ()) if name != "__weakref__"
                ]
    return len(seen)
