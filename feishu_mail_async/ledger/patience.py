"""The retries of a failed transaction: for how long, and at which intervals."""

import asyncio
import random
from typing import Final

from tenacity import RetryCallState, wait_random_exponential

from .errors import is_locked

__all__ = ["LONGEST", "LONG_LOCKED", "Patience", "backoff"]

LONGEST: Final = 20.0
"""Seconds after which a transaction on a remote database counts as hanging."""
LONG_LOCKED: Final = 5.0
"""Seconds after which a SQLite file counts as kept locked, not just as in use by other processes."""
_LONGEST_PAUSE: Final = 2.0
"""Seconds between two tries, at most."""


class Patience:
    """The stop condition of the retries: after so many seconds in which this process could have tried.

    Time in which the process was stopped, or its loop was blocked, does not count: it has not tried meanwhile.

    Args:
        seconds: the time for all tries together.
    """

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._clock = asyncio.get_running_loop().time
        self._last = self._clock()

    def __call__(self, _: RetryCallState) -> bool:
        """Count the time since the last try, and return whether to stop."""
        now = self._clock()
        self._left -= min(now - self._last, LONGEST + _LONGEST_PAUSE)
        self._last = now
        return self._left <= 0.0


_exponential: Final = wait_random_exponential(multiplier=0.1, max=_LONGEST_PAUSE)


def backoff(state: RetryCallState) -> float:
    """Return the seconds to the next try: short and random for a locked SQLite file, else growing with each try.

    SQLite's own busy handler waits longer with each try, so that new processes overtake those that wait long.
    """
    error = state.outcome.exception() if state.outcome is not None else None
    if error is not None and is_locked(error) and (state.seconds_since_start or 0.0) <= LONG_LOCKED:
        return random.uniform(0.001, 0.008)
    return _exponential(state)
