"""The gauges, which are read from a snapshot of an app when a reader collects.

They are no sums of what events add and take away, because permits come back with time, without an event.
"""

import asyncio
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from opentelemetry.metrics import CallbackOptions, CallbackT, Meter, MeterProvider, Observation

from feishu_mail_async._scheduling.snapshot import Snapshot

from .attributes import Attributes, priority_name

__all__ = ["Observed", "create_gauges"]

_PATIENCE: Final = 0.5
"""The longest time that a thread collecting metrics waits for the loop's snapshot, in seconds."""


class Observed:
    """An app whose state the gauges show, until `close`. It is made in the app's loop.

    Args:
        snapshot: returns the state of the app's calls, in its loop; None if there is none.
        provider: returns the provider whose readers see it, or the current global one.
        app: attributes that distinguish the app from others of the process.

    Attributes:
        provider: as given.
        app: as given.
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot | None],
        provider: Callable[[], MeterProvider | None],
        app: Attributes,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._snapshot = snapshot
        self.provider = provider
        self.app = app
        _observed.append(self)

    def close(self) -> None:
        """Show its state no longer."""
        _observed.remove(self)

    def read(self, patience: float) -> Snapshot | None:
        """Return a snapshot, from any thread; None if the loop or the app cannot give one.

        Metric readers collect in threads of their own, and the scheduler's state belongs to the loop. So the
        snapshot is taken in the loop.

        Args:
            patience: the longest time that another thread waits for a busy loop, in seconds.
        """
        if not self._loop.is_running():
            return None
        try:
            if asyncio.get_running_loop() is self._loop:
                return self._snapshot()
        except RuntimeError:
            pass  # the calling thread has no loop
        found: concurrent.futures.Future[Snapshot | None] = concurrent.futures.Future()
        try:
            self._loop.call_soon_threadsafe(lambda: found.set_result(self._snapshot()))
            return found.result(patience)
        except (RuntimeError, TimeoutError):  # the loop was closed meanwhile, or is busy
            return None


_observed: Final[list[Observed]] = []


def create_gauges(meter: Meter, provider: Callable[[], MeterProvider | None]) -> None:
    """Create the gauges of a provider, once: their callbacks cannot be unregistered.

    Args:
        meter: the provider's meter.
        provider: returns the provider, or the current global one.
    """

    def callback(values: Callable[[Snapshot], Iterable[tuple[int, Attributes]]]) -> CallbackT:
        def observe(options: CallbackOptions) -> Iterator[Observation]:
            # A copy, because readers collect in threads of their own while the loop changes the list.
            for one in tuple(_observed):
                if one.provider() is provider():
                    now = one.read(min(_PATIENCE, options.timeout_millis / 1000))
                    for value, attributes in () if now is None else values(now):
                        yield Observation(value, attributes | one.app)

        return observe

    meter.create_observable_gauge(
        "feishu_mail.queue.length", [callback(_queued)], "{draft}", "Drafts that wait for a turn."
    )
    meter.create_observable_gauge(
        "feishu_mail.permits.used", [callback(_used)], "{permit}", "Permits of the window that are taken."
    )
    meter.create_observable_gauge(
        "feishu_mail.permits.limit", [callback(_limit)], "{permit}", "Permits that the window has."
    )


def _queued(now: Snapshot) -> Iterator[tuple[int, Attributes]]:
    for priority, number in now.waiting.items():
        yield number, {"feishu_mail.priority": priority_name(priority)}


def _used(now: Snapshot) -> Iterator[tuple[int, Attributes]]:
    yield now.limit.calls - now.permits, {}


def _limit(now: Snapshot) -> Iterator[tuple[int, Attributes]]:
    yield now.limit.calls, {}
