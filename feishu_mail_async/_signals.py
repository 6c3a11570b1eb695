"""SIGINT and SIGTERM, handled from a program's first line to its last, with a bound on the time of every stop.

    from the first line   end at once: nothing has begun
    within `heard`        call the innermost `Hearer`; without one, raise KeyboardInterrupt
    from then on          end at once: all is done

Within `heard` a thread watches. A hanging part of the program cannot hold it up: not the event loop, not a call of
the main thread, not a thread that the interpreter waits for at its exit. When four fifths of the time for a stop
have passed, it acts as if a second signal had come; when all of it has passed, it ends the process.
"""

import contextlib
import math
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

__all__ = ["INTERRUPTED", "Hearer", "end_at_once", "heard"]

INTERRUPTED: Final = 130
"""Exit code of a process that was ended by signals."""

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_HANGUP: Final = getattr(signal, "SIGHUP", None)
"""The signal of a terminal that has gone.

The kernel and the shell may both send it: it counts as the first signal and as no other.
"""
_LAST: Final = 0.2
"""The part of the time for a stop that is left from the second signal on."""
_PATIENCE: Final = 1.0
"""Seconds for a line to be written: its reader may have stopped."""


class Hearer:
    """A handler of signals. While it is open, it gets them instead of those that were opened before.

    Args:
        hear: called with each signal, in any thread.
        left: a sentence about the work that remains if the process is ended meanwhile.
        hung_up: called instead when the terminal has gone; None: `hear` is.
    """

    def __init__(
        self, hear: Callable[[], object], left: str = "", *, hung_up: Callable[[], object] | None = None
    ) -> None:
        self.hear = hear
        self.left = left
        self.hung_up = hung_up or hear

    def open(self) -> None:
        """Begin to receive signals."""
        _hearers.append(self)

    def close(self) -> None:
        """Receive no more signals."""
        _hearers.remove(self)


_hearers: Final[list[Hearer]] = []
"""The open handlers; the last one gets the signals."""


def end_at_once() -> None:
    """Make the next signal end the process, silently. A program calls this first of all."""
    _install(lambda *_: os._exit(INTERRUPTED))


@contextlib.contextmanager
def heard(limit: float) -> Iterator[None]:
    """Receive signals, and end the process when a stop takes too long. Outside of the main thread it does nothing.

    Args:
        limit: seconds from the first signal to the end of the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    woken, waking = socket.socketpair()  # no pipe, because on Windows `select` takes sockets only
    waking.setblocking(False)
    _Watch(woken, limit).start()
    with waking:
        before = _install(_signalled)
        # Under `nohup` the signal is ignored, and must stay so.
        if _HANGUP is not None and signal.getsignal(_HANGUP) is not signal.SIG_IGN:
            before[_HANGUP] = signal.signal(_HANGUP, _hung_up)
        woken_before = signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(woken_before)


def _install(handler: Callable[..., object]) -> dict[signal.Signals, Any]:
    """Install a handler of the signals; return those that were there before."""
    return {number: signal.signal(number, handler) for number in _SIGNALS}


def _signalled(*_: object) -> None:
    if not _hearers:
        raise KeyboardInterrupt
    _hearers[-1].hear()


def _hung_up(*_: object) -> None:
    if not _hearers:
        raise KeyboardInterrupt
    _hearers[-1].hung_up()


class _Watch(threading.Thread):
    """The thread that watches the time of a stop.

    Args:
        woken: receives the number of each signal as a byte; its end means that there will be no more.
        limit: seconds from the first signal to the end of the process.
    """

    def __init__(self, woken: socket.socket, limit: float) -> None:
        super().__init__(name="feishu-mail-stop", daemon=True)
        self._woken = woken
        self._limit = limit
        self._times = (limit, limit * _LAST, 0.0)
        self._count = 0
        self._end = math.inf
        self._within = f"{limit:g} s of being asked to"

    def run(self) -> None:
        """Count the signals, and end the process in the end if there were any."""
        with self._woken:
            while self._count < len(self._times) and self._wait():
                pass
        if self._count:
            time.sleep(max(0.0, self._end - time.monotonic()))
            self._end_process()

    def _wait(self) -> bool:
        """Wait for the next signal or the time to act without one; return whether there is more to wait for."""
        due = self._end - (self._limit * _LAST if self._count == 1 else 0.0)
        wait = max(0.0, due - time.monotonic()) if self._count else None
        if select.select([self._woken], [], [], wait)[0]:
            numbers = self._woken.recv(64)
            for number in numbers:
                if number in _SIGNALS or (number == _HANGUP and not self._count):
                    self._take()
                    if self._count > 1:
                        self._within = f"{self._limit * _LAST:g} s of the second signal"
            return bool(numbers)
        if self._count > 1:
            return False
        _tell(f"note: stopping has taken {self._limit * (1 - _LAST):g} s: what is under way is broken off\n")
        self._take()
        for hearer in _hearers[-1:]:
            hearer.hear()
        return True

    def _take(self) -> None:
        self._end = min(self._end, time.monotonic() + self._times[min(self._count, len(self._times) - 1)])
        self._count += 1

    def _end_process(self) -> None:
        why = "stopped at once"
        if self._count < len(self._times):
            why = f"it did not end within {self._within}, so it was broken off"
        left = next((f"; {hearer.left}" for hearer in reversed(_hearers) if hearer.left), "")
        _tell(f"error: {why}{left}\n")
        os._exit(INTERRUPTED)


def _tell(line: str) -> None:
    """Write a line, and flush the output; do not wait for long if it is not read."""

    def write() -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.write(2, line.encode())
            sys.stdout.flush()

    writing = threading.Thread(target=write, daemon=True)
    writing.start()
    writing.join(_PATIENCE)
