"""Clocks that are not an event loop's. All other code counts by the loop's clock."""

import time

__all__ = ["monotonic", "wall_clock"]


def monotonic() -> float:
    """Return the seconds of the clock by which ordinary event loops count."""
    return time.monotonic()


def wall_clock() -> float:
    """Return the seconds since 1970, for times shared by processes or shown to people; it decides nothing."""
    return time.time()
