"""Fork safety: resources belong to the process that opened them, and not to a process forked from it.

A forked child would use the same connections together with its parent, and would wait for ever for threads that
only the parent has. So everything that holds such a resource has an `Origin`, and refuses to be used elsewhere.
"""

import os
from typing import Final

__all__ = ["NOT_THIS_CLIENT", "PROCESS", "Origin", "forked"]


class _Process:
    """The running process.

    Attributes:
        current: its identity; a forked one gets another.
    """

    __slots__ = ("current",)

    def __init__(self) -> None:
        self.current = object()

    def forked(self) -> None:
        self.current = object()


PROCESS: Final = _Process()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=PROCESS.forked)


class Origin:
    """The process that has opened a resource.

    Attributes:
        process: its identity; None until it has.
    """

    __slots__ = ("process",)

    def __init__(self) -> None:
        self.process: object | None = None

    def opened(self) -> None:
        """Note that the resource is opened in this process, unless it was opened before."""
        if self.process is None:
            self.process = PROCESS.current

    @property
    def elsewhere(self) -> bool:
        """True if it was opened by the process from which this one was forked."""
        return self.process is not None and self.process is not PROCESS.current


def forked(what: str, remedy: str) -> str:
    """Return the message that a resource of another process cannot be used here.

    Args:
        what: the resource.
        remedy: the remedy.
    """
    return f"this process was forked from the one that opened {what}, which only that one can use: {remedy}"


NOT_THIS_CLIENT: Final = forked("the client", "open a new client here")
"""The message for a client."""
