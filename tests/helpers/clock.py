"""Virtual time for a whole coroutine, and how much chance there is in a test."""

import asyncio
import os
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import looptime

__all__ = ["SEEDED", "VirtualLoop", "now", "run_virtual"]

T = TypeVar("T")

SEEDED: Final = not os.environ.get("SOAK_RANDOM")
"""Whether the long runs take the same examples every time, so that what fails is the change, not the draw."""


def now() -> float:
    """The running loop's time."""
    return asyncio.get_running_loop().time()


class VirtualLoop(looptime.LoopTimeEventLoop, asyncio.SelectorEventLoop):
    """An event loop whose time passes at once."""


def run_virtual(coroutine: Coroutine[Any, Any, T], *, noop_cycles: int = 42) -> T:
    """Run a coroutine to its end in a loop of its own whose clock starts at 0 and is virtual.

    Args:
        coroutine: what to run.
        noop_cycles: how often the loop looks for input before it lets time pass; fewer are faster.
    """
    loop = VirtualLoop(start=0, noop_cycles=noop_cycles)
    try:
        result = loop.run_until_complete(coroutine)
        loop.run_until_complete(loop.shutdown_asyncgens())
        return result
    finally:
        loop.close()
