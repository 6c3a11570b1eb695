"""Work on any number of waiters, a few in each pass of the loop, so that the loop is never blocked."""

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

from feishu_mail_async.errors import FeishuMailError

from .waiters import CallLock, Waiter

__all__ = ["SLICE", "Condemned", "Sweep", "Sweeper", "drain", "each"]

T = TypeVar("T")

SLICE: Final = 50
"""Steps of work on many items that are taken in one pass of the loop, before its other tasks have their chance."""
_MOST_PLACES: Final = 50
"""Lanes, locks and waiters that a sweep passes over in one step."""


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


class Condemned:
    """The waiters that an error is to end, one after another. Waiters that come later are not among them.

    Nothing is copied: membership is computed, and iteration goes over the lanes as they are, because to list
    100,000 waiters would block the event loop.

    Args:
        error: the error.
        lock: the user's or the mailbox's lock that all of them wait for; None if they have none in common.
        lasted: seconds that an outage has lasted: only the waiters whose `outage` is at most this are among them.
        before: the number in the order of arrival (`Lanes.mark`) that tells them from those who come later.
        users: the locks of all users.

    Attributes:
        error: as above.
    """

    __slots__ = ("_before", "_lasted", "_lock", "_locks", "error")

    def __init__(
        self, error: FeishuMailError, lock: CallLock | None, lasted: float, before: int, users: Iterable[CallLock]
    ) -> None:
        self.error = error
        self._lock = lock
        self._lasted = lasted
        self._before = before
        self._locks = drain(users if lock is None else (lock,))

    def __contains__(self, waiter: Waiter) -> bool:
        lane = waiter.lane
        return (
            lane is not None
            and waiter.seq < self._before
            and waiter.outage <= self._lasted
            and (self._lock is None or self._lock in lane.locks)
        )

    def __iter__(self) -> Iterator[Waiter | None]:
        """Yield the waiters, and None now and then, so that the caller can pause where many places hold none."""
        for number, place in enumerate(self._places(), 1):  # empty places cost time, too
            if place is not None and place in self:
                yield place
            elif number % _MOST_PLACES == 0:
                yield None

    def _places(self) -> Iterator[Waiter | None]:
        for lock in self._locks:
            yield None
            for lane in drain(lock.lanes):
                yield None
                yield from drain(lane.waiters)
