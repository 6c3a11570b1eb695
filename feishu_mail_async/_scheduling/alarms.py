"""The times at which locks open that only time keeps shut: after a lost call, or at the end of a backoff.

There is no timer for each lock: the dispatcher sleeps until the first of these times at the latest.
"""

import heapq
import itertools
import math

from .waiters import CallLock

__all__ = ["Alarms"]


class Alarms:
    """The alarms of an endpoint's locks.

    Attributes:
        next_at: the time of the next one; infinity if there is none.
    """

    __slots__ = ("_count", "_heap", "next_at")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, CallLock]] = []
        self._count = itertools.count()
        self.next_at = math.inf

    def __len__(self) -> int:
        return len(self._heap)

    def set(self, lock: CallLock, now: float) -> None:
        """Set an alarm for a lock that opens by time."""
        # Not for one that a call or a renewal keeps shut: when that ends, the lock is looked at again.
        if not lock.busy and not lock.held and now < lock.open_at < lock.alarm:
            lock.alarm = lock.open_at
            heapq.heappush(self._heap, (lock.open_at, next(self._count), lock))
            self.next_at = self._heap[0][0]

    def ring(self, now: float) -> list[CallLock]:
        """Return the locks whose time has come, and forget their alarms."""
        rung = []
        while self._heap and self._heap[0][0] <= now:
            lock = heapq.heappop(self._heap)[2]
            lock.alarm = math.inf
            rung.append(lock)
        self.next_at = self._heap[0][0] if self._heap else math.inf
        return rung
