"""The command line, which needs the extra `cli`. Importing this module needs nothing but the standard library."""

import sys
from typing import NoReturn

from feishu_mail_async._signals import end_at_once

__all__ = ["main"]

_EXTRAS = ("rich", "typer")


def main() -> NoReturn:
    """Run the command line and exit: 0 all sent, 1 some not, 2 wrong usage, 3 cannot start, 130 interrupted."""
    end_at_once()
    try:
        from .app import run  # noqa: PLC0415 - what it imports may be missing
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRAS:
            raise
        sys.stderr.write("error: the command line needs two more packages: pip install 'feishu-mail-async[cli]'\n")
        sys.exit(3)
    sys.exit(run())
