"""Questions at the terminal, and lines typed or pasted while the event loop does something else."""

import asyncio
import getpass
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Final

__all__ = ["agrees", "ask", "can_be_asked", "hear_lines"]

_MOST: Final = 4096
_YES: Final = frozenset({"y", "yes"})


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


def agrees(question: str) -> bool:
    """Ask a question, and return whether the answer is yes; any unclear answer, and none, is a no.

    Args:
        question: the question.
    """
    answer = ""
    try:
        answer = _ask(question)
    finally:
        if not answer.endswith("\n"):
            sys.stderr.write("\n")
    return answer.strip().lower() in _YES


def ask(question: str, *, hidden: bool = False) -> str:
    """Ask for a value, and return it without blanks at its ends; empty if the terminal is gone.

    Args:
        question: the question.
        hidden: True for a secret, which is not shown as it is typed.
    """
    try:
        return (getpass.getpass(question) if hidden else _ask(question)).strip()
    except (EOFError, OSError):
        return ""


def _ask(question: str) -> str:
    """Ask for a line, and return it with its end; without one if the terminal is gone."""
    try:
        sys.stderr.write(question)
        sys.stderr.flush()
        _await_line()
        return sys.stdin.readline()
    except OSError:
        return ""


def _await_line() -> None:
    """Wait until there is a line to read, or until Ctrl-C.

    A bare read would sleep through a signal that arrives just before it. Here the signal leaves a byte in a socket
    (`signal.set_wakeup_fd`), which `select` waits for too.
    """
    if os.name != "posix" or threading.current_thread() is not threading.main_thread():
        return
    try:
        lines = sys.stdin.fileno()
    except ValueError:  # standard input is not a file
        return
    ours, waker = socket.socketpair()
    with ours, waker:
        waker.setblocking(False)
        before = signal.set_wakeup_fd(waker.fileno())
        try:
            select.select([lines, ours], [], [])
        finally:
            signal.set_wakeup_fd(before)


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
