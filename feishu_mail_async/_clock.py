"""The clocks. All code counts by the loop's, except where there is no loop, or where processes share a time."""

import asyncio
import time

__all__ = ["loop_time", "monotonic", "wall_clock"]


def loop_time() -> float:
    """Return the running loop's time, in seconds."""
    return asyncio.get_running_loop().time()


def monotonic() -> float:
    """Return the seconds of the clock by which ordinary event loops count."""
    return time.monotonic()


def wall_clock() -> float:
    """Return the seconds since 1970, for times shared by processes or shown to people; it decides nothing."""
    return time.time()
