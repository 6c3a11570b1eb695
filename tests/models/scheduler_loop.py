"""A loop that runs a scheduler under a model's eyes, and waits without chance."""

import asyncio
import contextlib
import math
import selectors
from collections.abc import Callable, Iterator
from typing import Any


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
