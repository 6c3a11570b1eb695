"""Secrets kept out of what an error carries along.

Tools that print the values of variables look into every frame of a traceback, and a frame lives as long as its
exception. So secrets pass between frames as `Hidden` where an error may come up, and errors that come out of the
depths of this package lose its frames.
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


class Hidden(Generic[T]):
    """Something that holds a secret, and does not show it.

    Args:
        value: what holds it.
    """

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "***"

    def read(self, reader: Callable[[T], R]) -> R:
        """Return what a function makes of the value; an error that it raises has not the function's frames."""
        try:
            return reader(self.value)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is raised from here
            failed = forget_frames(error)
        raise failed


def forget_frames(error: E) -> E:
    """Take the frames of this package away from an error and from all that hangs on it, and return it.

    Frames of a caller's own code that this package has called stay: they tell where it failed.
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
    """Note in an error, as text without the values of variables, which frames it has come through."""
    error.add_note("".join(traceback.format_tb(error.__traceback__)).rstrip())


def _after_ours(trace: TracebackType | None) -> TracebackType | None:
    found = trace
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.startswith(_PACKAGE):
            found = trace.tb_next
        trace = trace.tb_next
    return found
