"""A monotonic clock shared by the processes of one host, for ledgers on SQLite.

Its value is stored in the ledger, and advanced by the time that has passed on the host's monotonic clock since it
was last read. The host's monotonic clock is the same for all processes and cannot be set; where a time namespace
shifts it for the processes of a container, the offset is subtracted. After a reboot the host's clock begins anew:
then the ledger's clock resumes from the stored value, as if no time had passed in between. So it may lag behind
the true time, which keeps a permit a little longer; it never leads, so no window opens too early. The wall clock
has no influence on it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["HostClock", "Reading"]

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_OFFSETS: Final = Path("/proc/self/timens_offsets")
"""The offsets of this process's time namespace from the host's clocks: a line each, seconds and nanoseconds."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A reading of the ledger's clock, as it is stored.

    Attributes:
        time: the ledger's time, in seconds.
        monotonic: the host's monotonic clock at that moment, in seconds.
        boot: the id of the host's boot; empty where there is none.
    """

    time: float
    monotonic: float
    boot: str


class HostClock:
    """The clock of a ledger.

    Args:
        monotonic: returns the seconds of a clock that all processes of the host share, apart from the offsets of
            their time namespaces.
        boot: the id of this boot of the host; empty where there is none; None: as the system says.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic, boot: str | None = None) -> None:
        self._monotonic = monotonic
        self._offset = _offset()
        self._boot = _boot() if boot is None else boot

    def first(self) -> Reading:
        """Return the reading of a new ledger."""
        return Reading(0.0, self._monotonic() - self._offset, self._boot)

    def read(self, last: Reading) -> Reading:
        """Return the reading now, after the last one.

        Without a boot id a reboot shows in a monotonic clock that has gone back. If after a reboot it has already
        passed the stored value, the difference is less than the time that has really passed: too little is
        counted, never too much.
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
