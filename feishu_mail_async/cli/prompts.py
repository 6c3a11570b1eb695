"""Lines typed or pasted at the terminal while the event loop does something else."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from typing import Final

__all__ = ["can_be_asked", "hear_lines"]

_MOST: Final = 4096


def can_be_asked() -> bool:
    """Return whether standard input is a terminal that this program may read.

    A program in the background would be stopped by the kernel if it read there (SIGTTIN).
    """
    if sys.stdin is None or not sys.stdin.isatty():
        return False
    if os.name != "posix":
        return True
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:
        return True  # a terminal without job control


def hear_lines(hear: Callable[[str], None]) -> bool:
    """Start a thread that passes on each line typed from now on.

    The thread cannot be stopped while it reads, so it outlives its purpose and the loop, and ends with the
    program. It does not delay the exit: it reads the file descriptor, without the lock that a reader of
    `sys.stdin` would hold.

    Args:
        hear: a function called in the running loop with each line, without blanks at its ends.

    Returns:
        whether there is a terminal to read (otherwise nothing is started).
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
    except OSError:  # the terminal is gone
        return b""
