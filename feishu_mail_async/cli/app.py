"""The program: its commands, and the conversion of every error to one line and an exit code."""

import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Final

import typer

from feishu_mail_async._signals import heard
from feishu_mail_async._text import escape_lines

from .commands.bulk import bulk
from .commands.cancel import cancel
from .commands.delete import delete
from .commands.demo import demo
from .commands.doctor import doctor
from .commands.enqueue import enqueue
from .commands.listing import list_drafts
from .commands.login import login
from .commands.sandbox import sandbox
from .commands.send import send
from .commands.status import status
from .commands.whoami import logout, whoami
from .commands.worker import worker
from .interrupts import stop_seconds
from .logs import print_traceback
from .options import spread
from .problems import INTERRUPTED, SOME_NOT, Problem

__all__ = ["app", "run"]

_NAME: Final = "feishu-mail-async"
_EXIT_CODES: Final = (
    "Exit codes: 0 all is sent; 1 some drafts are not; 2 the command line is wrong, and nothing was sent; "
    "3 cannot start (no token, no free port, packages missing); 4 all is sent, and not all output could be "
    "written; 130 stopped by a second Ctrl-C, or because the stop took too long."
)
_LOGIN_EXIT_CODES: Final = (
    "Exit codes: 0 done; 1 refused, failed, or something is missing; 2 the command line is wrong; 3 cannot start "
    "(no app id or secret, no free port, no ledger); 4 done, and not all output could be written; "
    "130 stopped by Ctrl-C."
)

app = typer.Typer(
    name=_NAME,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _flowing(text: str | None) -> str:
    """Join each paragraph of a docstring to one line, so that the help text fills the terminal's width."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in (text or "").split("\n\n"))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{_NAME} {version(_NAME)}")
        raise typer.Exit


@app.callback(epilog=_EXIT_CODES)
def _program(
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            show_default=False,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    """Send Feishu and Lark mail drafts: within the rate limit, nothing lost, nothing sent twice.

    No account at hand? Try: feishu-mail-async demo
    """


_COMMANDS: Final[dict[str, Callable[..., int]]] = {
    "send": send,
    "bulk": bulk,
    "list": list_drafts,
    "cancel": cancel,
    "delete": delete,
    "enqueue": enqueue,
    "worker": worker,
    "status": status,
    "login": login,
    "logout": logout,
    "whoami": whoami,
    "doctor": doctor,
    "demo": demo,
    "sandbox": sandbox,
}
for _command_name, _command in _COMMANDS.items():
    _codes = _LOGIN_EXIT_CODES if _command in {login, logout, whoami, doctor} else _EXIT_CODES
    app.command(_command_name, help=_flowing(_command.__doc__), epilog=_codes)(spread(_command))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: the arguments after the program's name; None for those of the process.
    """
    try:
        with heard(stop_seconds()):
            code = app(arguments, prog_name=_NAME, standalone_mode=False)
    except Problem as problem:
        _say(str(problem))
        return problem.exit_code
    except typer.TyperException as error:
        return _wrong(error)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the one place where unexpected errors become a line
        if "--verbose" in (sys.argv[1:] if arguments is None else arguments):
            print_traceback(error)
        _say(f"a mistake of this program: {type(error).__name__} (--verbose prints the traceback)")
        return SOME_NOT
    return code if isinstance(code, int) else 0


def _wrong(error: typer.TyperException) -> int:
    context = getattr(error, "ctx", None)
    if context is not None and type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(f"{error.format_message()}\n")
        return error.exit_code
    said = " ".join(error.format_message().split())
    _say(said[:1].lower() + said[1:])
    if context is not None:
        sys.stderr.write(f"Help: {context.command_path} --help\n")
    return error.exit_code


def _say(text: str) -> None:
    sys.stderr.write(f"error: {escape_lines(text)}\n")
