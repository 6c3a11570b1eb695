"""Rate-limit windows, in the three shapes that a server may use.

The shape of Feishu's own window is not documented, so there are three. Each counts a call at the instant of its
arrival, in seconds of the caller's clock.
"""

import math
from collections import deque
from enum import StrEnum
from typing import Protocol

__all__ = ["TOLERANCE", "RateWindow", "Window", "make_window"]

TOLERANCE = 1e-9
"""The tolerance for sums of floats, in seconds, so that no call is refused for a rounding error."""


class Window(StrEnum):
    """The shape of a window.

    `FIXED` starts anew at every multiple of `per`. `SLIDING` looks back `per` seconds from each arrival and
    is the strictest of the three. `TOKEN_BUCKET` is the classical one: it holds `calls` tokens and gains
    `calls / per` a second. A client that keeps at most `calls` in any `per` seconds never empties it (over a
    time T it makes at most `calls + calls * T / per`), and no smaller bucket would do, because such a client
    may make all its `calls` at once.
    """

    FIXED = "fixed"
    SLIDING = "sliding"
    TOKEN_BUCKET = "token-bucket"  # noqa: S105 - the name of a shape, not a secret


class RateWindow(Protocol):
    """The interface of a window to the server."""

    def arrive(self, now: float) -> float | None:
        """Count a call, and return None if it fits, else the seconds until a call would fit.

        Args:
            now: the time of arrival, in seconds; never earlier than the call before.
        """


class _Fixed:
    def __init__(self, calls: int, per: float) -> None:
        self._calls = calls
        self._per = per
        self._index = -1
        self._count = 0

    def arrive(self, now: float) -> float | None:
        index = math.floor(now / self._per + TOLERANCE)
        if index != self._index:
            self._index, self._count = index, 0
        # There is no `count_refusals` here: a full window stays full to its end anyway.
        if self._count >= self._calls:
            return (index + 1) * self._per - now
        self._count += 1
        return None


class _Sliding:
    def __init__(self, calls: int, per: float, *, count_refusals: bool) -> None:
        self._calls = calls
        self._per = per
        self._count_refusals = count_refusals
        self._log: deque[float] = deque()

    def arrive(self, now: float) -> float | None:
        log = self._log
        oldest = now - self._per + TOLERANCE
        while log and log[0] <= oldest:
            log.popleft()
        if len(log) < self._calls:
            log.append(now)
            return None
        if self._count_refusals:
            log.append(now)
        # With refusals in the log there may be more than `calls` entries: a call fits when only `calls - 1` are
        # left, so the entry to wait for is the `calls`-th from the end.
        return log[-self._calls] + self._per - now


class _TokenBucket:
    def __init__(self, calls: int, per: float, *, count_refusals: bool) -> None:
        self._capacity = float(calls)
        self._rate = calls / per
        self._count_refusals = count_refusals
        self._tokens = self._capacity
        self._at: float | None = None

    def arrive(self, now: float) -> float | None:
        if self._at is not None:
            self._tokens = min(self._capacity, self._tokens + (now - self._at) * self._rate)
        self._at = now
        fits = self._tokens >= 1 - TOLERANCE
        if fits:
            self._tokens -= 1
            return None
        if self._count_refusals:
            # The debt is limited to one whole bucket; otherwise a client that hammers would be refused for days.
            self._tokens = max(self._tokens - 1, -self._capacity)
        return (1 - self._tokens) / self._rate


def make_window(kind: Window, calls: int, per: float, *, count_refusals: bool = False) -> RateWindow:
    """Return a window of `calls` calls in `per` seconds.

    Args:
        kind: the shape.
        calls: the number of calls that fit, at least 1.
        per: the length, in seconds.
        count_refusals: True if a refused call fills the window too.

    Raises:
        ValueError: `calls` or `per` is out of range.
    """
    if calls < 1:
        raise ValueError(f"calls: give 1 or more, not {calls!r}")
    if not (per > 0 and math.isfinite(per)):
        raise ValueError(f"per: give seconds above 0, not {per!r}")
    match kind:
        case Window.FIXED:
            return _Fixed(calls, per)
        case Window.SLIDING:
            return _Sliding(calls, per, count_refusals=count_refusals)
        case Window.TOKEN_BUCKET:
            return _TokenBucket(calls, per, count_refusals=count_refusals)
