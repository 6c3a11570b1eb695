"""Options common to several commands, and the functions that read their values."""

import math
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import unquote, urlsplit

import typer

from feishu_mail_async._api.protocol import FEISHU, LARK, check_base_url
from feishu_mail_async._rights import SHARED_FILES
from feishu_mail_async.ledger import check_url
from feishu_mail_async.model import RateLimit

from .logs import hide
from .problems import WrongUsage

__all__ = [
    "DEFAULT_RATE",
    "AppOption",
    "BaseUrlOption",
    "JsonOption",
    "LarkOption",
    "LedgerOption",
    "MailboxOption",
    "NoLedgerOption",
    "RateOption",
    "TokenFileOption",
    "UserOption",
    "VerboseOption",
    "choose_host",
    "read_base_url",
    "read_database",
    "read_ledger",
    "read_rate",
]

LEDGER_VARIABLE: Final = "FEISHU_MAIL_LEDGER"

_ACCOUNT: Final = "Account"
_OUTPUT: Final = "Output"

UserOption = Annotated[
    str | None,
    typer.Option(
        "--user",
        metavar="NAME",
        help="Which user who has logged in, or of the token file; with a single token, a name for its user.",
        rich_help_panel=_ACCOUNT,
    ),
]
AppOption = Annotated[
    str | None,
    typer.Option(
        "--app",
        metavar="ID",
        help="The app's id, which names its limit and its logins. Without it: FEISHU_APP_ID.",
        rich_help_panel=_ACCOUNT,
    ),
]
BaseUrlOption = Annotated[
    str | None,
    typer.Option(
        "--base-url",
        metavar="URL",
        help=f"The API's host, if it is not {FEISHU}: https, or http on this machine.",
        rich_help_panel=_ACCOUNT,
    ),
]
LarkOption = Annotated[
    bool, typer.Option("--lark", help=f"Use Lark: {LARK}.", show_default=False, rich_help_panel=_ACCOUNT)
]
TokenFileOption = Annotated[
    str | None,
    typer.Option(
        "--token-file",
        metavar="PATH",
        help="A file that only you may read, with a user_access_token in its first line, or with JSON of users: "
        '{"alice": "u-…", "bob": "u-…"}. One that others may read is accepted on a read-only mount, as containers '
        f"have it, and with {SHARED_FILES}=allow. Without it: FEISHU_USER_ACCESS_TOKEN, or who has logged in.",
        rich_help_panel=_ACCOUNT,
    ),
]
RateOption = Annotated[
    str,
    typer.Option("--rate", metavar="CALLS/SECONDS", help="Send calls that the app may make in so many seconds."),
]
LedgerOption = Annotated[
    str | None,
    typer.Option(
        "--ledger",
        metavar="URL",
        envvar=LEDGER_VARIABLE,
        help="Where permits, locks and drafts are kept: a path, or sqlite:///PATH, for the programs of this "
        "machine; postgresql://… for those of many. A password is safer in the environment than here.",
        show_default=False,
        rich_help_panel=_ACCOUNT,
    ),
]
NoLedgerOption = Annotated[
    bool,
    typer.Option(
        "--no-ledger",
        help="Keep no ledger: what was sent is not remembered, and the limit holds for this run alone.",
        show_default=False,
        rich_help_panel=_ACCOUNT,
    ),
]
MailboxOption = Annotated[
    str,
    typer.Option("--mailbox", metavar="ADDRESS", help="The mailbox that the drafts lie in; me: the user's own."),
]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", help="JSON on standard output, and nothing else.", show_default=False, rich_help_panel=_OUTPUT
    ),
]
VerboseOption = Annotated[
    bool,
    typer.Option(
        "--verbose",
        help="Log what happens, and print the traceback of an error.",
        show_default=False,
        rich_help_panel=_OUTPUT,
    ),
]

DEFAULT_RATE: Final = "20/60"

_LEDGER: Final = "--ledger"
_LARGEST_SPACING: Final = 0.2


def read_rate(text: str) -> RateLimit:
    """Read the rate limit of `--rate`.

    Args:
        text: calls/seconds: "20/60" is 20 calls in any 60 seconds.

    Raises:
        WrongUsage: the text has another form.
    """
    calls, slash, per = text.partition("/")
    try:
        if not slash or not math.isfinite(float(per)):
            raise ValueError  # noqa: TRY301 - one sentence for all that is no rate
        count, seconds = int(calls), float(per)
    except ValueError:
        raise WrongUsage("--rate", f"give calls/seconds, such as 20/60, not {text!r}") from None
    if count < 1 or seconds <= 0:
        raise WrongUsage("--rate", f"give at least 1 call, and more than 0 seconds, not {text!r}")
    # Spacing must never limit the rate further: half of the even pace cannot.
    return RateLimit(count, seconds, spacing=min(_LARGEST_SPACING, seconds / count / 2))


def read_ledger(text: str | None) -> str | None:
    """Read the ledger's URL from `--ledger`. A password in it is never printed.

    Args:
        text: a URL, or the path of a SQLite file; None gives None.

    Raises:
        WrongUsage: the text is neither.
    """
    if text is None:
        return None
    try:
        password = urlsplit(text).password or ""
    except ValueError:
        raise WrongUsage(_LEDGER, "give a path, sqlite:///PATH or postgresql://USER@HOST/NAME") from None
    hide(password)
    hide(unquote(password))
    try:
        url = text if "://" in text else f"sqlite:///{Path(text).expanduser().absolute()}"
    except (RuntimeError, OSError):  # no home directory for ~, or no working directory
        raise WrongUsage(_LEDGER, f"where {text} is cannot be told here; give a path that begins with /") from None
    try:
        check_url(url)
    except ValueError as error:
        raise WrongUsage(_LEDGER, error) from None
    return url


def read_database(text: str | None) -> str:
    """Read the URL of the database that the machines of a fleet share.

    Args:
        text: the value of `--ledger`.

    Raises:
        WrongUsage: it is missing, or is not a PostgreSQL database.
    """
    url = read_ledger(text)
    if url is None:
        raise WrongUsage(_LEDGER, f"give postgresql://USER@HOST/NAME, here or in {LEDGER_VARIABLE}")
    if check_url(url) != "postgresql":
        raise WrongUsage(_LEDGER, "machines share no file: give postgresql://USER@HOST/NAME")
    return url


def read_base_url(base_url: str | None, *, lark: bool) -> str:
    """Read the API's base URL from `--base-url` and `--lark`; without either it is Feishu's.

    Args:
        base_url: the value of `--base-url`.
        lark: True with `--lark`.

    Raises:
        WrongUsage: the URL is not acceptable, or both are given.
    """
    if base_url is None:
        return LARK if lark else FEISHU
    if lark:
        raise WrongUsage("--lark", "it stands for a base URL of its own; give it or --base-url, not both")
    try:
        return check_base_url(base_url)
    except ValueError as error:
        raise WrongUsage("--base-url", error) from None


def choose_host(base_url: str | None, *, lark: bool) -> str | None:
    """Read the API's base URL as a filter of known hosts; None for all.

    Args:
        base_url: the value of `--base-url`.
        lark: True with `--lark`.

    Raises:
        WrongUsage: the URL is not acceptable, or both are given.
    """
    return read_base_url(base_url, lark=lark) if base_url is not None or lark else None
