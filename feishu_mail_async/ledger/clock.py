"""The clock of a ledger that the processes of one host share: it never runs ahead, whatever the wall clock does.

It stands in the file, and is moved on by what the host's monotonic clock has moved on since it was last looked
at. That clock is the same for all processes, and nobody sets it; where a time namespace moves it for the processes
of a container, the offset is taken off again. After a restart of the host it begins anew: then
the ledger's clock goes on from where it stood, as if no time had passed in between. It may so fall behind the true
time, which keeps a permit a little longer; it never opens a window too early.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["HostClock", "Reading"]

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_OFFSETS: Final = Path("/proc/self/timens_offsets")
"""What the time namespace of this process adds to the host's clocks: a line each, in seconds and nanoseconds."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What stands in the file: the ledger's time, the host's at that moment, and which start of the host."""

    time: float
    monotonic: float
    boot: str


class HostClock:
    """Tells a ledger's time.

    Args:
        monotonic: seconds of a clock that all processes of the host share, but for their time namespaces.
        boot: what names this start of the host; empty where nothing does.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic, boot: str | None = None) -> None:
        self._monotonic = monotonic
        self._offset = _offset()
        self._boot = _boot() if boot is None else boot

    def first(self) -> Reading:
        """The reading of a new ledger."""
        return Reading(0.0, self._monotonic() - self._offset, self._boot)

    def read(self, last: Reading) -> Reading:
        """The reading now, after the last one.

        Where nothing names the host's start, a restart shows in a clock that has gone back. One that has not has
        run for less than has passed, since it began anew in between: too little is counted, never too much.
        """
        now = self._monotonic() - self._offset
        passed = now - last.monotonic if last.boot == self._boot else 0.0
        return Reading(last.time + max(0.0, passed), now, self._boot)


def _boot() -> str:
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError):
        return ""


def _offset() -> float:
    try:
        lines = [line.split() for line in _OFFSETS.read_text(encoding="ascii").splitlines()]
        return sum(int(line[1]) + int(line[2]) / 1e9 for line in lines if line[0] == "monotonic")
    except (OSError, ValueError, IndexError):  # a system without time namespaces
        return 0.0
