"""What keeps a command from doing its work, told in one line and an exit code."""

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
]

SOME_NOT: Final = 1
USAGE: Final = 2
CANNOT_START: Final = 3

_PARAMETER: Final = re.compile(r"\A\w+: ")


class Problem(Exception):
    """Ends the command, told in one line."""

    exit_code: int = SOME_NOT


class Incomplete(Problem):
    """The work is done, and its results could not all be written.

    Args:
        why: a sentence.
        exit_code: that of the work.
    """

    def __init__(self, why: str, exit_code: int) -> None:
        super().__init__(why)
        self.exit_code = exit_code or UNSAID


class WrongUsage(Problem):
    """The command line says something that cannot be.

    Args:
        option: what is wrong, as it is typed.
        why: a sentence; a parameter's name at its head (as the library puts it there) is left out.
    """

    exit_code = USAGE

    def __init__(self, option: str, why: object) -> None:
        super().__init__(f"{option}: {_PARAMETER.sub('', str(why), count=1)}")


class CannotStart(Problem):
    """What the command needs is not there."""

    exit_code = CANNOT_START
