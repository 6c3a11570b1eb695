"""The clocks that are not an event loop's. Everything else counts by the loop's."""

import time

__all__ = ["monotonic", "wall_clock"]


def monotonic() -> float:
    """Return the seconds of the clock by which ordinary event loops count."""
    return time.monotonic()


def wall_clock() -> float:
    """Return the seconds since 1970, for what is told across processes and shown to people; it decides nothing."""
    return time.time()
