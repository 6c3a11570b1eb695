"""Fork safety: resources belong to the process that opened them, and not to a process forked from it.

A forked child would use the same connections together with its parent, and would wait for ever for threads that
only the parent has. So everything that holds such a resource has an `Origin`, and refuses to be used elsewhere.
"""

import os
from typing import Final

__all__ = ["NOT_THIS_CLIENT", "Origin", "forked"]


class _Process:
    """The identity of the running process; a forked one gets another."""


_here = _Process()


def _forked() -> None:
    global _here  # noqa: PLW0603 - there is one process
    _here = _Process()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class Origin:
    """The process that has opened a resource; unknown until it has."""

    __slots__ = ("_process",)

    def __init__(self) -> None:
        self._process: _Process | None = None

    def opened(self) -> None:
        """Note that the resource is opened in this process, unless it was opened before."""
        if self._process is None:
            self._process = _here

    @property
    def elsewhere(self) -> bool:
        """True if it was opened by the process from which this one was forked."""
        return self._process is not None and self._process is not _here


def forked(what: str, remedy: str) -> str:
    """Return the message that a resource of another process cannot be used here.

    Args:
        what: the resource.
        remedy: the remedy.
    """
    return f"this process was forked from the one that opened {what}, which only that one can use: {remedy}"


NOT_THIS_CLIENT: Final = forked("the client", "open a new client here")
"""The message for a client."""
