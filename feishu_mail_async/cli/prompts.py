"""What somebody types or pastes while something else is awaited."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from typing import Final

__all__ = ["can_be_asked", "hear_lines"]

_MOST: Final = 4096


def can_be_asked() -> bool:
    """Whether there is somebody at a terminal: a program in the background would be stopped if it read there."""
    if sys.stdin is None or not sys.stdin.isatty():
        return False
    if os.name != "posix":
        return True
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:
        return True  # a terminal that controls nobody


def hear_lines(hear: Callable[[str], None]) -> bool:
    """Have each line that is typed from now on handed over, in the running loop; whether there is a terminal.

    The thread that reads waits past the end of what it is for, and past the loop's. It ends with the program,
    whose exit it does not hold up: it holds no lock, as a reader of `sys.stdin` would.
    """
    if not can_be_asked():
        return False
    loop = asyncio.get_running_loop()
    typed = sys.stdin.fileno()

    def read() -> None:
        line = b""
        while piece := _read(typed):
            *lines, line = (line + piece).split(b"\n")
            for each in lines:
                try:
                    loop.call_soon_threadsafe(hear, each.decode(errors="replace").strip())
                except RuntimeError:  # the loop is closed
                    return

    threading.Thread(target=read, name="feishu-mail-pasting", daemon=True).start()
    return True


def _read(typed: int) -> bytes:
    try:
        return os.read(typed, _MOST)
    except OSError:  # the terminal has gone
        return b""
