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
from typing import Final

from aiolimiter import AsyncLimiter

from feishu_mail_async.model import RateLimit

__all__ = ["Budget", "Spacing"]

_ROUNDING: Final = 1e-5


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
        while self._ended and self._back(self._ended[0]) <= now:
            heapq.heappop(self._ended)
        return self.limit.calls - self.in_flight - len(self._ended)

    def next_at(self, now: float, reserve: int = 0) -> float:
        """Return when more than `reserve` permits are free; infinity while that depends on calls in flight."""
        missing = reserve + 1 - self.free(now)
        if missing <= 0:
            return now
        if missing > len(self._ended):
            return math.inf
        # More than one is missing only after the limit was lowered, or behind a reserve.
        return self._back(self._ended[0] if missing == 1 else heapq.nsmallest(missing, self._ended)[-1])

    def load(self, in_flight: int, ended: Iterable[float]) -> None:
        """Replace the calls by those on record in a ledger: the number in flight, and the ends of the others."""
        self.in_flight = in_flight
        self._ended = sorted(ended)

    def take(self) -> None:
        """Take a permit for a call that is dispatched now."""
        self.in_flight += 1

    def ended(self, at: float) -> None:
        """Count a call as ended: its permit comes back `per + margin` after `at`."""
        self.in_flight -= 1
        heapq.heappush(self._ended, at)

    def refund(self) -> None:
        """Give back at once the permit of a call that never left."""
        self.in_flight -= 1

    def _back(self, ended: float) -> float:
        return ended + self.limit.per + self.limit.margin


class Spacing:
    """The least time between two dispatches of a process: a token bucket that holds one.

    Its capacity is 1 because a bucket of r lets nearly 2 r through in its first period. A dispatch takes its
    token at the moment it goes: one that was taken earlier and kept while waiting for a permit would have
    been refilled by then, and the next dispatch would follow at once.
    """

    __slots__ = ("_bucket", "_seconds")

    def __init__(self) -> None:
        self._seconds = 0.0
        self._bucket: AsyncLimiter | None = None

    def ready_at(self, at: float, seconds: float) -> float:
        """Return when the next dispatch may go.

        Args:
            at: when it could go as far as all else is concerned; now or earlier.
            seconds: the spacing in force.
        """
        if seconds != self._seconds:
            self._seconds = seconds
            self._bucket = AsyncLimiter(1, seconds) if seconds else None  # AsyncLimiter(1, 0) divides by zero
        if self._bucket is not None and not self._bucket.has_capacity():
            return at + _ROUNDING  # the bucket's own arithmetic is a rounding error behind
        return at

    async def take(self) -> None:
        """Count a dispatch. It does not suspend if `ready_at` has just allowed the dispatch at once."""
        if self._bucket is not None:
            await self._bucket.acquire()
