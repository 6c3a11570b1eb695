"""The command line. It needs the extra `cli`; importing this module needs nothing but the standard library.

Theory of operation. Every command has the same three steps, and one way out:

    options, files, environment --read--> values --call--> FeishuMailClient --show--> standard output and error
                |                           |                                          |
                +-- Problem: one line on standard error, with an exit code of its own -+--> exit code

- `commands/` has one file a command. The modules beside this one read: options, account, rows, state_dir.
  `render/` has all output.
- Options that belong together are the fields of a class (`options`); the program spreads them for typer.
- `send`, `bulk` and `demo` have one runner (`runner`), which shows outcomes on a board and counts them in a tally.
  An outcome has the fields of `results.make_row`, in JSON and CSV alike; `render.wording.say` words errors.
- Errors in options, tokens and files are found before the first send, so exit code 2 means that nothing was sent.
- The first Ctrl-C stops new calls and finishes those in flight, the second cancels those in flight, the third ends
  the process at once; so does a stop that takes longer than FEISHU_MAIL_STOP_SECONDS.
- No token or secret of an account is ever printed: each is registered with `logs.hide` as soon as it is read. Text
  from outside (ids, server messages) is escaped before it goes to a terminal.
- With a ledger, the same command again is safe: it skips drafts already sent and settles those in doubt.
"""

import sys
from typing import NoReturn

from feishu_mail_async._signals import end_at_once
from feishu_mail_async._streams import run_program

__all__ = ["main"]

_EXTRAS = ("rich", "typer")


def main() -> NoReturn:
    """Run the command line and exit.

    Exit codes: 0 all sent, 1 some not sent, 2 wrong usage, 3 cannot start, 4 output incomplete, 130 interrupted.
    """
    end_at_once()
    run_program(_run)


def _run() -> int:
    try:
        from .app import run  # noqa: PLC0415 - its imports may be missing
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRAS:
            raise
        sys.stderr.write("error: the command line needs two more packages: pip install 'feishu-mail-async[cli]'\n")
        return 3
    return run()
