"""Ctrl-C: the first asks to stop, the second ends at once. SIGTERM counts as one."""

import asyncio
import signal
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

__all__ = ["STOPPING", "Interrupts"]

STOPPING: Final = "stopping: no new calls, those under way are finished (again: stop at once)"
"""What people are told at the first one."""

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_ENOUGH: Final = 2


class Interrupts:
    """While it is open, signals are counted instead of ending the program; a third one ends it after all.

    Args:
        hear: called with the count, in the loop.
    """

    def __init__(self, hear: Callable[[int], None]) -> None:
        self.count = 0
        self._hear = hear
        self._loop = asyncio.get_running_loop()
        self._handled: list[signal.Signals] = []
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            try:
                self._loop.add_signal_handler(number, self._signalled)
                self._handled.append(number)
            except NotImplementedError:
                # Windows: the handler runs in between, and has to wake the loop.
                self._before[number] = signal.signal(
                    number, lambda *_: self._loop.call_soon_threadsafe(self._signalled)
                )
            except (RuntimeError, ValueError):
                pass  # not the main thread, where signals do not come
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        while self._handled:
            self._loop.remove_signal_handler(self._handled.pop())
        while self._before:
            signal.signal(*self._before.popitem())

    def _signalled(self) -> None:
        self.count += 1
        if self.count == _ENOUGH:
            self._restore()
        self._hear(self.count)
