"""Ctrl-C handling: the first requests a stop, the second cancels the calls in flight, the third ends the process.

SIGTERM counts like Ctrl-C. SIGHUP counts as the first one only, because the kernel and the shell may both send it
for one lost terminal.
"""

import asyncio
import math
import os
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from feishu_mail_async._signals import Hearer

from .problems import WrongUsage

__all__ = ["STOPPING", "UNDER_WAY", "Interrupts", "stop_seconds"]

STOPPING: Final = "stopping: no new calls, those under way are finished (again: stop at once)"
"""The message at the first Ctrl-C."""

UNDER_WAY: Final = "a draft whose call was under way has no outcome; the same command again settles it"
"""The message when a run of drafts is cancelled with calls in flight."""

_STOP_SECONDS: Final = "FEISHU_MAIL_STOP_SECONDS"
_LONGEST_STOP: Final = 50.0
"""The default time limit of a stop, in seconds: ten less than containers commonly get before they are killed."""
_MOST: Final = 2


def stop_seconds() -> float:
    """Return the time limit of a stop in seconds, from FEISHU_MAIL_STOP_SECONDS or the default.

    Raises:
        WrongUsage: the variable is not a positive, finite number.
    """
    text = os.environ.get(_STOP_SECONDS, "").strip() or str(_LONGEST_STOP)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise WrongUsage(_STOP_SECONDS, f"give the seconds that a stop may take, such as 50, not {text!r}")
    return seconds


class Interrupts:
    """A context in which signals are counted and delivered in the running loop.

    Args:
        hear: a function called with the count, at the first and at the second signal.
        left: a sentence about the work that remains if the process is ended meanwhile.

    Attributes:
        count: the number of signals so far.
    """

    def __init__(self, hear: Callable[[int], None], left: str = "") -> None:
        self.count = 0
        self._hear = hear
        self._loop = asyncio.get_running_loop()
        self._hearer = Hearer(
            lambda: self._loop.call_soon_threadsafe(self._signalled),
            left,
            hung_up=lambda: self._loop.call_soon_threadsafe(self._hung_up),
        )

    def __enter__(self) -> Self:
        self._hearer.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hearer.close()

    def _hung_up(self) -> None:
        if not self.count:
            self._signalled()

    def _signalled(self) -> None:
        self.count += 1
        if self.count <= _MOST:
            self._hear(self.count)
