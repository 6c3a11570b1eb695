"""How long it takes: reckoned from the limit and the calls made, never from how fast it went so far."""

import math
from collections import deque
from typing import Final

from feishu_mail_async._scheduling.scheduler import Snapshot
from feishu_mail_async.model import RateLimit

from .wording import count

__all__ = ["Pace", "duration", "name_limit"]

_MINUTE: Final = 60.0


def name_limit(limit: RateLimit) -> str:
    """The limit as a person says it: "20 calls a minute"."""
    window = " a minute" if limit.per == _MINUTE else f" in {limit.per:g} s"
    return f"{count(limit.calls, 'call')}{window}"


def duration(calls: int, limit: RateLimit) -> float:
    """Seconds for so many calls: those of a window at once, then the next window's."""
    windows, rest = divmod(max(0, calls - 1), limit.calls)
    return windows * (limit.per + limit.margin) + rest * limit.spacing


class Pace:
    """How the calls of a run stand in the limit's window.

    Args:
        limit: the limit that is kept.
    """

    def __init__(self, limit: RateLimit) -> None:
        self._window = limit.per + limit.margin
        self._ends: deque[float] = deque()

    def ended(self, now: float) -> None:
        """A call has ended."""
        self._ends.append(now)
        while self._ends and self._ends[0] <= now - max(self._window, _MINUTE):
            self._ends.popleft()

    def last_minute(self, now: float) -> int:
        """Calls that ended within the minute before `now`."""
        return sum(end > now - _MINUTE for end in self._ends)

    def left(self, snapshot: Snapshot, calls: int, now: float) -> float:
        """Seconds until the last of so many calls can be made.

        Each permit goes to one of them when it is free: now, or a window after the end of the call that has it;
        and after that once in each window.
        """
        start = snapshot.paused or 0.0
        limit, free = snapshot.limit, snapshot.permits
        if calls <= free:
            return start + max(0, calls - 1) * limit.spacing
        windows, place = divmod(calls - free - 1, limit.calls)
        return max(start, self._returns(snapshot, now)[place]) + windows * self._window

    def _returns(self, snapshot: Snapshot, now: float) -> list[float]:
        """In how many seconds each permit comes back, the free ones after they have been used once more."""
        taken = max(0, snapshot.limit.calls - snapshot.permits - snapshot.in_flight)
        ends = list(self._ends)[-taken:] if taken else []
        back = [max(0.0, end + self._window - now) for end in ends]
        # Calls of other processes that share the limit are not among the ends.
        first = snapshot.next_permit if snapshot.next_permit and math.isfinite(snapshot.next_permit) else 0.0
        back += [first] * (taken - len(back))
        back += [self._window] * (snapshot.limit.calls - len(back))
        return sorted(back)
