"""Estimates of the time left, computed from the limit and the calls made, never from the speed so far.

Calls may go in bursts: fast while permits are free, then not at all. An average would be wrong in both phases.
"""

import math
from collections import deque
from typing import Final

from feishu_mail_async._scheduling.snapshot import Snapshot
from feishu_mail_async.model import RateLimit

from .wording import count

__all__ = ["Pace", "duration", "fit_into", "name_limit"]

_MINUTE: Final = 60.0


def name_limit(limit: RateLimit) -> str:
    """Return the limit in words: "20 calls a minute".

    Args:
        limit: the limit.
    """
    window = " a minute" if limit.per == _MINUTE else f" in {limit.per:g} s"
    return f"{count(limit.calls, 'call')}{window}"


def duration(calls: int, limit: RateLimit) -> float:
    """Return the duration of a number of calls in seconds: those of a window at once, then those of the next.

    Args:
        calls: the number of calls.
        limit: the limit.
    """
    windows, rest = divmod(max(0, calls - 1), limit.calls)
    return windows * (limit.per + limit.margin) + rest * limit.spacing


def fit_into(seconds: float, limit: RateLimit) -> int:
    """Return the number of calls that can begin within so many seconds: the opposite of `duration`.

    Args:
        seconds: the time, in seconds.
        limit: the limit.
    """
    if seconds < 0:
        return 0
    windows, rest = divmod(seconds, limit.per + limit.margin)
    in_last = limit.calls if not limit.spacing else int(min(limit.calls - 1, rest / limit.spacing)) + 1
    return int(windows) * limit.calls + in_last


class Pace:
    """The calls of a run in the limit's window.

    Args:
        limit: the limit.
    """

    def __init__(self, limit: RateLimit) -> None:
        self._window = limit.per + limit.margin
        self._ends: deque[float] = deque()

    def ended(self, now: float) -> None:
        """Record the end of a call.

        Args:
            now: the time, in seconds of the loop's clock.
        """
        # Kept for the longer of the two: `left` needs a window's calls, `last_minute` a minute's.
        self._ends.append(now)
        while self._ends and self._ends[0] <= now - max(self._window, _MINUTE):
            self._ends.popleft()

    def last_minute(self, now: float) -> int:
        """Return the number of calls that ended within the last minute.

        Args:
            now: the time, in seconds of the loop's clock.
        """
        return sum(end > now - _MINUTE for end in self._ends)

    def left(self, snapshot: Snapshot, calls: int, now: float) -> float:
        """Return the seconds until the last of a number of calls can be made.

        Each permit serves one of them when it is free: now, or one window after the end of the call that holds it.
        After that it serves one in each window.

        Args:
            snapshot: the scheduler's state.
            calls: the number of calls still to be made.
            now: the time, in seconds of the loop's clock.
        """
        start = snapshot.paused or 0.0
        limit, free = snapshot.limit, snapshot.permits
        if calls <= free:
            return start + max(0, calls - 1) * limit.spacing
        windows, place = divmod(calls - free - 1, limit.calls)
        return max(start, self._returns(snapshot, now)[place]) + windows * self._window

    def _returns(self, snapshot: Snapshot, now: float) -> list[float]:
        """Return the seconds until each permit returns, sorted; free permits count as used once more from now."""
        taken = max(0, snapshot.limit.calls - snapshot.permits - snapshot.in_flight)
        ends = list(self._ends)[-taken:] if taken else []
        back = [max(0.0, end + self._window - now) for end in ends]
        # Permits held by other processes that share the limit have no recorded end.
        first = snapshot.next_permit if snapshot.next_permit and math.isfinite(snapshot.next_permit) else 0.0
        back += [first] * (taken - len(back))
        back += [self._window] * (snapshot.limit.calls - len(back))
        return sorted(back)
