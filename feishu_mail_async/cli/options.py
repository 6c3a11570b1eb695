"""Options common to several commands, and the functions that read their values."""

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import unquote, urlsplit

import typer

from feishu_mail_async._api.base_url import FEISHU, LARK, check_base_url
from feishu_mail_async._checks import check_text
from feishu_mail_async._rights import SHARED_FILES
from feishu_mail_async.ledger import check_url
from feishu_mail_async.model import RateLimit

from .logs import hide
from .problems import WrongUsage

__all__ = [
    "DEFAULT_RATE",
    "AccountOptions",
    "AppOptions",
    "JsonOption",
    "MailboxOption",
    "NoLedgerOption",
    "RateOption",
    "SenderOptions",
    "VerboseOption",
    "check_name",
    "read_base_url",
    "read_database",
    "read_ledger",
    "read_rate",
    "spread",
]

LEDGER_VARIABLE: Final = "FEISHU_MAIL_LEDGER"

_ACCOUNT: Final = "Account"
_OUTPUT: Final = "Output"

DEFAULT_RATE: Final = "20/60"

RateOption = Annotated[
    str,
    typer.Option("--rate", metavar="CALLS/SECONDS", help="Send calls that the app may make in so many seconds."),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class AppOptions:
    """The options of a command that looks at an app: at which host, and in which ledger."""

    ledger: Annotated[
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
    ] = None
    app: Annotated[
        str | None,
        typer.Option(
            "--app",
            metavar="ID",
            help="The app's id, which names its limit and its logins. Without it: FEISHU_APP_ID.",
            rich_help_panel=_ACCOUNT,
        ),
    ] = None
    base_url: Annotated[
        str | None,
        typer.Option(
            "--base-url",
            metavar="URL",
            help=f"The API's host, if it is not {FEISHU}: https, or http on this machine.",
            rich_help_panel=_ACCOUNT,
        ),
    ] = None
    lark: Annotated[
        bool, typer.Option("--lark", help=f"Use Lark: {LARK}.", show_default=False, rich_help_panel=_ACCOUNT)
    ] = False

    @property
    def host(self) -> str:
        """The API's base URL; without an option it is Feishu's.

        Raises:
            WrongUsage: the URL is not acceptable, or `--lark` is given, too.
        """
        return read_base_url(self.base_url, lark=self.lark)

    @property
    def only_host(self) -> str | None:
        """The API's base URL as a filter of known hosts; None for all.

        Raises:
            WrongUsage: the URL is not acceptable, or `--lark` is given, too.
        """
        return self.host if self.base_url is not None or self.lark else None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountOptions(AppOptions):
    """The options of a command that makes calls for the users of an app."""

    user: Annotated[
        str | None,
        typer.Option(
            "--user",
            metavar="NAME",
            help="Which user who has logged in, or of the token file; with a single token, a name for its user.",
            rich_help_panel=_ACCOUNT,
        ),
    ] = None
    token_file: Annotated[
        str | None,
        typer.Option(
            "--token-file",
            metavar="PATH",
            help="A file that only you may read, with a user_access_token in its first line, or with JSON of "
            'users: {"alice": "u-…", "bob": "u-…"}. One that others may read is accepted on a read-only mount, as '
            f"containers have it, and with {SHARED_FILES}=allow. Without it: FEISHU_USER_ACCESS_TOKEN, or who has "
            "logged in.",
            rich_help_panel=_ACCOUNT,
        ),
    ] = None

    @property
    def rate_limit(self) -> RateLimit:
        """The app's limit: that of the documents."""
        return RateLimit()


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderOptions(AccountOptions):
    """The options of a command that sends drafts, or has them sent."""

    rate: RateOption = DEFAULT_RATE

    @property
    def rate_limit(self) -> RateLimit:
        """The app's limit.

        Raises:
            WrongUsage: `--rate` is none.
        """
        return read_rate(self.rate)


def spread(command: Callable[..., int]) -> Callable[..., int]:
    """Return a command with one parameter for each option, as typer wants it.

    Args:
        command: a function that takes options which belong together as one parameter, a dataclass.
    """
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        kind = parameter.annotation
        if not (isinstance(kind, type) and is_dataclass(kind)):
            parameters.append(parameter)
            continue
        groups[name] = kind
        parameters += [
            inspect.Parameter(each.name, parameter.kind, default=each.default, annotation=each.type)
            for each in fields(kind)
        ]

    @functools.wraps(command)
    def run(**given: Any) -> int:
        for name, kind in groups.items():
            given[name] = kind(**{each.name: given.pop(each.name) for each in fields(kind)})
        return command(**given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # `inspect` looks for it
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


_LEDGER: Final = "--ledger"
_LARGEST_SPACING: Final = 0.2


def check_name(option: str, value: str) -> None:
    """Check the name of a user, or an app's id.

    Args:
        option: the option.
        value: its value.

    Raises:
        WrongUsage: it cannot be one.
    """
    try:
        check_text("name", value)
    except ValueError as error:
        raise WrongUsage(option, error) from None


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
