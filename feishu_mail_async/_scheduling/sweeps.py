"""Work on any number of waiters, a few in each pass of the loop, so that the loop is never blocked."""

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

__all__ = ["SLICE", "Sweep", "Sweeper", "drain", "each"]

T = TypeVar("T")

SLICE: Final = 50
"""Steps of sweeps that are taken in one pass of the loop."""


def each(items: Iterable[T], act: Callable[[T], object]) -> Iterator[None]:
    """Return an iterator of steps: each calls a function with one of the items that there are now."""
    return _done_with(drain(items), act)


def _done_with(items: Iterator[T], act: Callable[[T], object]) -> Iterator[None]:
    for item in items:
        act(item)
        yield


def drain(items: Iterable[T]) -> Iterator[T]:
    """Iterate over the items that there are now, and let go of each: to free many at once would block, too."""
    return _taken_from(deque(items))


def _taken_from(left: deque[T]) -> Iterator[T]:
    while left:
        yield left.popleft()


class Sweep:
    """A piece of work that is done in steps.

    Args:
        steps: an iterator of which each step does a small part.
        done: called when all is done, or a step has failed.
    """

    __slots__ = ("_context", "_done", "_ended", "_steps")

    def __init__(self, steps: Iterator[object], done: Callable[[], object]) -> None:
        self._steps = steps
        self._done: Callable[[], object] | None = done
        self._context = contextvars.copy_context()
        self._ended: asyncio.Future[None] | None = None

    def step(self) -> bool:
        """Do a part, in the context of the caller that began the sweep; return whether there is more to do."""
        try:
            self._context.run(next, self._steps)
        except BaseException as error:
            self._finish()
            if isinstance(error, StopIteration):
                return False
            raise
        return True

    def _finish(self) -> None:
        done, self._done = self._done, None
        assert done is not None
        try:
            self._context.run(done)
        finally:
            if self._ended is not None:
                self._ended.set_result(None)

    async def ended(self) -> None:
        """Wait until all is done. Cancelling the caller does not cancel the work."""
        if self._done is None:
            return
        if self._ended is None:
            self._ended = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._ended])


class Sweeper:
    """The sweeps of one scheduler, one after another: together they take `SLICE` steps in a pass of the loop.

    It runs in callbacks of the loop, not in a task, because a task may be cancelled with all others of the loop,
    and waiters would be left without an end.
    """

    def __init__(self) -> None:
        self._sweeps: deque[Sweep] = deque()
        self._left = SLICE  # steps that may still be taken in this pass of the loop
        self._stepping = False

    def start(self, steps: Iterator[object], done: Callable[[], object]) -> Sweep:
        """Begin a sweep at once, if no other is under way.

        Args:
            steps: an iterator of which each step does a small part.
            done: called when all is done, or a step has failed.

        Returns:
            the sweep.
        """
        sweep = Sweep(steps, done)
        self._sweeps.append(sweep)
        if not self._stepping:
            self._go_on()
        return sweep

    def _next_pass(self) -> None:
        self._left = SLICE
        self._go_on()

    def _go_on(self) -> None:
        if self._left == SLICE and self._sweeps:
            asyncio.get_running_loop().call_soon(self._next_pass)
        self._stepping = True
        try:
            while self._left and self._sweeps:
                self._left -= 1
                self._step()
        finally:
            self._stepping = False

    def _step(self) -> None:
        more = False
        try:
            more = self._sweeps[0].step()
        finally:
            if not more:
                self._sweeps.popleft()
