"""Errors that end a command, each with one line of text and an exit code."""

import re
from typing import Final

from feishu_mail_async._signals import INTERRUPTED
from feishu_mail_async._streams import UNSAID

__all__ = [
    "CANNOT_START",
    "INTERRUPTED",
    "SOME_NOT",
    "UNSAID",
    "USAGE",
    "CannotStart",
    "Incomplete",
    "Problem",
    "WrongUsage",
    "unreadable",
]

SOME_NOT: Final = 1
USAGE: Final = 2
CANNOT_START: Final = 3

_PARAMETER: Final = re.compile(r"\A\w+: ")


class Problem(Exception):
    """An error that ends the command; its message is printed as one line."""

    exit_code: int = SOME_NOT


class Incomplete(Problem):
    """The work is done, but not all results could be written.

    Args:
        why: a sentence for the user.
        exit_code: the exit code of the work; 0 becomes 4.
    """

    def __init__(self, why: str, exit_code: int) -> None:
        super().__init__(why)
        self.exit_code = exit_code or UNSAID


class WrongUsage(Problem):
    """A value of the command line is wrong.

    Args:
        option: the option as it is typed, or the variable's or the file's name.
        why: a sentence; a leading parameter name, as the library puts it there, is removed.
    """

    exit_code = USAGE

    def __init__(self, option: str, why: object) -> None:
        super().__init__(f"{option}: {_PARAMETER.sub('', str(why), count=1)}")


class CannotStart(Problem):
    """Something that the command needs is missing or unusable."""

    exit_code = CANNOT_START


def unreadable(error: Exception) -> str:
    """Return the reason why a file cannot be read, as part of a sentence.

    Args:
        error: the error of opening, reading or decoding it.
    """
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"it cannot be read ({said[:1].lower()}{said[1:]})"
