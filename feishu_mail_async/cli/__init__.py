"""The command line, which needs the extra `cli`. Importing this module needs nothing but the standard library."""

import sys
from typing import NoReturn

from feishu_mail_async._signals import end_at_once
from feishu_mail_async._streams import run_program

__all__ = ["main"]

_EXTRAS = ("rich", "typer")


def main() -> NoReturn:
    """Run the command line and exit.

    0 all sent, 1 some not, 2 wrong usage, 3 cannot start, 4 not all was said, 130 interrupted.
    """
    end_at_once()
    run_program(_run)


def _run() -> int:
    try:
        from .app import run  # noqa: PLC0415 - what it imports may be missing
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRAS:
            raise
        sys.stderr.write("error: the command line needs two more packages: pip install 'feishu-mail-async[cli]'\n")
        return 3
    return run()
