"""Forks: what a process has opened is its own, and not that of a process forked from it.

The child would use the same connections together with the parent, and would wait for ever for threads that only
the parent has.
"""

import os
from typing import Final

__all__ = ["NOT_THIS_CLIENT", "Origin", "forked"]


class _Process:
    """The running process; a forked one has another."""


_here = _Process()


def _forked() -> None:
    global _here  # noqa: PLW0603 - there is one process
    _here = _Process()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class Origin:
    """The process that has opened something; unknown until it has."""

    __slots__ = ("_process",)

    def __init__(self) -> None:
        self._process: _Process | None = None

    def opened(self) -> None:
        """It is opened here and now, unless it was before."""
        if self._process is None:
            self._process = _here

    @property
    def elsewhere(self) -> bool:
        """Whether that was the process from which this one was forked."""
        return self._process is not None and self._process is not _here


def forked(what: str, remedy: str) -> str:
    """Say that what was opened elsewhere cannot be used here."""
    return f"this process was forked from the one that opened {what}, which only that one can use: {remedy}"


NOT_THIS_CLIENT: Final = forked("the client", "open a new client here")
