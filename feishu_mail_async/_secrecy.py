"""Protection of secrets from error reports.

Tools that print the values of variables look into every frame of a traceback, and a frame lives as long as its
exception. So secrets pass between frames as `Hidden` where an error may come up, and errors that leave this
package lose its frames.
"""

import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Generic, TypeVar

__all__ = ["Hidden", "forget_frames", "note_frames"]

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)
R = TypeVar("R")

_PACKAGE: Final = f"{Path(__file__).parent}/"
"""The directory of this package: frames of files below it are dropped."""


class Hidden(Generic[T]):
    """A container for a secret, whose repr does not show it.

    Args:
        value: the secret, or an object that holds it.
    """

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "***"

    def read(self, reader: Callable[[T], R]) -> R:
        """Return the result of a function on the value; an error that it raises loses our frames."""
        try:
            return reader(self.value)
        except Exception as error:  # noqa: BLE001 - any error is raised again below
            failed = forget_frames(error)
        raise failed


def forget_frames(error: E) -> E:
    """Remove the frames of this package from an error and from its causes and contexts, and return it.

    Frames of a caller's own code that this package has called stay: they show where it failed.
    """
    todo: list[BaseException | None] = [error]
    seen: set[int] = set()
    while todo:
        one = todo.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = _after_ours(one.__traceback__)
            todo += [one.__cause__, one.__context__]
    return error


def note_frames(error: BaseException) -> None:
    """Add the traceback to an error as a note: text, without the values of variables."""
    error.add_note("".join(traceback.format_tb(error.__traceback__)).rstrip())


def _after_ours(trace: TracebackType | None) -> TracebackType | None:
    """Return the traceback behind the last frame of this package."""
    found = trace
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.startswith(_PACKAGE):
            found = trace.tb_next
        trace = trace.tb_next
    return found
