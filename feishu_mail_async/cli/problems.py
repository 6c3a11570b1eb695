"""What keeps a command from doing its work, told in one line and an exit code."""

import re
from typing import ClassVar, Final

from feishu_mail_async._signals import INTERRUPTED
from feishu_mail_async._streams import UNSAID

__all__ = ["CANNOT_START", "INTERRUPTED", "SOME_NOT", "UNSAID", "USAGE", "CannotStart", "Problem", "WrongUsage"]

SOME_NOT: Final = 1
USAGE: Final = 2
CANNOT_START: Final = 3

_PARAMETER: Final = re.compile(r"\A\w+: ")


class Problem(Exception):
    """Ends the command before anything was sent."""

    exit_code: ClassVar[int] = SOME_NOT


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
