"""The budget of calls in a window, and the spacing between calls. No other module decides either.

A permit is taken at the dispatch of a call and comes back `per + margin` seconds after the call has ENDED. The
server counts a call at some moment between its dispatch and its answer. With dispatch d, arrival s and answer r,
d <= s <= r: the call that reuses the permit starts after r + per, so the two arrivals are at least `per` apart
however the server lays its window. Counted from the dispatch, the second call could arrive while the server still
counts the first.
"""

import heapq
import math
from collections.abc import Iterable
from typing import Any, Final

from aiolimiter import AsyncLimiter

from feishu_mail_async.model import RateLimit

__all__ = ["Budget", "Spacing"]

_LONGEST: Final = 2.0**20
"""Seconds of spacing that are kept at most: twelve days."""
_TICKS: Final = 2**20
"""Parts of a second by which spacing is counted: their sums are exact, so nothing goes a rounding error early."""


class Budget:
    """The permits of one endpoint. All times are seconds of the store's clock, passed in.

    Args:
        limit: the limit to begin with.

    Attributes:
        limit: the limit in force; the calls made so far count against a new one, too.
        in_flight: permits taken by calls that have not ended.
    """

    __slots__ = ("_ended", "in_flight", "limit")

    def __init__(self, limit: RateLimit) -> None:
        self.limit = limit
        self.in_flight = 0
        # A heap of the ends of calls that still count. Kept as ends, not as the times at which the permits come
        # back, so that a changed `per` applies to them too.
        self._ended: list[float] = []

    def free(self, now: float) -> int:
        """Return the number of free permits; 0 or less while there is none."""
        ended, limit = self._ended, self.limit
        while ended and ended[0] + limit.per + limit.margin <= now:
            heapq.heappop(ended)
        return limit.calls - self.in_flight - len(ended)

    def next_at(self, now: float, reserve: int = 0) -> float:
        """Return when more than `reserve` permits are free; infinity while that depends on calls in flight."""
        missing = reserve + 1 - self.free(now)
        if missing <= 0:
            return now
        if missing > len(self._ended):
            return math.inf
        # More than one is missing only after the limit was lowered, or behind a reserve.
        ended = self._ended[0] if missing == 1 else heapq.nsmallest(missing, self._ended)[-1]
        return ended + self.limit.per + self.limit.margin

    def load(self, in_flight: int, ended: Iterable[float]) -> None:
        """Replace the calls by those on record in a ledger: the number in flight, and the ends of the others."""
        self.in_flight = in_flight
        self._ended = sorted(ended)

    def end(self, at: float | None) -> None:
        """Count a call as ended: its permit comes back `per + margin` after `at`; None: at once, it never left."""
        self.in_flight -= 1
        if at is not None:
            heapq.heappush(self._ended, at)


class Spacing(AsyncLimiter):
    """The least time between two dispatches of a process: aiolimiter's leaky bucket, which one dispatch fills.

    The bucket leaks one unit a second. So `seconds` after a dispatch it has capacity for as many units, whatever
    the spacing is by then: it grows after a pause, and a changed limit holds at once. Its size allows no burst,
    because a dispatch fills it to the brim however much room there was.

    All loops of the process share it. So the time is passed in, and no loop waits in it.
    """

    __slots__ = ("_now",)

    def __init__(self) -> None:
        super().__init__(_LONGEST, _LONGEST)
        self._now = 0.0

    @property
    def _loop(self) -> Any:
        # aiolimiter counts by the clock of the loop that used it first, and warns of any other.
        return self

    def time(self) -> float:
        """Return the time that was passed in."""
        return self._now

    def ready_at(self, now: float, seconds: float) -> float:
        """Return when the next dispatch may go.

        Args:
            now: the time.
            seconds: the spacing in force.
        """
        if seconds <= 0.0:
            return now
        self._now = math.floor(now * _TICKS) / _TICKS
        seconds = math.ceil(min(seconds, _LONGEST) * _TICKS) / _TICKS
        if self.has_capacity(seconds):
            return now
        return self._now + (self._level + seconds - _LONGEST)

    def take(self, now: float) -> None:
        """Fill the bucket for a dispatch at this moment."""
        # Not earlier, as in a wait for a permit: it would leak meanwhile, and the next dispatch follow at once.
        self._level, self._last_check = _LONGEST, math.ceil(now * _TICKS) / _TICKS
