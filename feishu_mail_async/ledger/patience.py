"""How long and how often a transaction that failed is tried again."""

import asyncio
import random
from typing import Final

from tenacity import RetryCallState, wait_random_exponential

from .errors import busy

__all__ = ["LONGEST", "LONG_LOCKED", "Patience", "pause"]

LONGEST: Final = 20.0
"""Seconds after which a transaction on a database far away is taken to hang."""
LONG_LOCKED: Final = 5.0
"""Seconds after which a SQLite file is not just in use by others, but kept locked."""
_LONGEST_PAUSE: Final = 2.0
"""Seconds between two tries, at most."""


class Patience:
    """Tells when to stop trying: after so many seconds in which this process could have tried.

    A process that was stopped, or whose loop stood still, has not tried meanwhile.

    Args:
        seconds: how many.
    """

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._clock = asyncio.get_running_loop().time
        self._last = self._clock()

    def __call__(self, _: RetryCallState) -> bool:
        """Count the time since the last try, and say whether to stop."""
        now = self._clock()
        self._left -= min(now - self._last, LONGEST + _LONGEST_PAUSE)
        self._last = now
        return self._left <= 0.0


_exponential: Final = wait_random_exponential(multiplier=0.1, max=_LONGEST_PAUSE)


def pause(state: RetryCallState) -> float:
    """Seconds to the next try. SQLite's own waiting grows with each try, and leaves whoever waits long behind."""
    error = state.outcome.exception() if state.outcome is not None else None
    if error is not None and busy(error) and (state.seconds_since_start or 0.0) <= LONG_LOCKED:
        return random.uniform(0.001, 0.008)
    return _exponential(state)
