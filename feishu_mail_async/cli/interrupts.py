"""Ctrl-C: the first asks to stop, the second ends what it can, the third ends at once.

SIGTERM counts as one, and SIGHUP as the first.
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
"""What people are told at the first one."""

UNDER_WAY: Final = "a draft whose call was under way has no outcome; the same command again settles it"
"""What people are told when a run of drafts is broken off."""

_STOP_SECONDS: Final = "FEISHU_MAIL_STOP_SECONDS"
_LONGEST_STOP: Final = 50.0
"""Seconds for a stop: ten less than containers are commonly given before they are killed."""
_MOST: Final = 2


def stop_seconds() -> float:
    """Seconds that a stop may take, as the environment gives them.

    Raises:
        WrongUsage: it gives none.
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
    """While it is open, signals are counted in the running loop.

    Args:
        hear: called with the count, once or twice.
        left: a sentence about what remains to be done if the process is ended meanwhile.
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
