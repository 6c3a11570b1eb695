"""Whose mail it is, and at which host: the token's way from the environment or a file into a client."""

import os
import shlex
import stat
from dataclasses import dataclass, field
from typing import Final

from feishu_mail_async.client import FeishuMailClient
from feishu_mail_async.model import RateLimit, RetryPolicy, check_text

from .options import read_base_url, read_rate
from .problems import CannotStart, WrongUsage
from .verbose import hide

__all__ = ["ENVIRONMENT", "Account", "read_account"]

ENVIRONMENT: Final = "FEISHU_USER_ACCESS_TOKEN"

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_MOST_READ: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Account:
    """A user at a host.

    Attributes:
        base_url: the API's host.
        app: names the budget.
        user: the user's name, if one was given.
        rate_limit: what the app may do.
        token: the user_access_token.
        source: where it came from, for messages.
    """

    base_url: str
    app: str | None
    user: str | None
    rate_limit: RateLimit
    token: str = field(repr=False)
    source: str = ENVIRONMENT

    def client(self, retry: RetryPolicy = RetryPolicy()) -> FeishuMailClient:  # noqa: B008 - frozen
        """A client of this account.

        Raises:
            CannotStart: what was found is no token.
        """
        try:
            return FeishuMailClient(
                self.token if self.user is None else {self.user: self.token},
                app=self.app,
                base_url=self.base_url,
                rate_limit=self.rate_limit,
                retry=retry,
            )
        except ValueError as error:
            # Everything else was looked at before; what is said of a token never quotes it.
            raise CannotStart(f"{self.source}: {str(error).removeprefix('tokens: ')}") from None


def read_account(
    *, user: str | None, app: str | None, rate: str, base_url: str | None, lark: bool, token_file: str | None
) -> Account:
    """The account that the common options give.

    Raises:
        WrongUsage: an option is wrong.
        CannotStart: there is no token.
    """
    limit, host = read_rate(rate), read_base_url(base_url, lark=lark)
    for option, value in (("--user", user), ("--app", app)):
        if value is not None:
            try:
                check_text(option, value)
            except ValueError as error:
                raise WrongUsage(option, str(error).removeprefix(f"{option}: ")) from None
    if token_file is not None:
        token, source = _read_token(token_file), f"--token-file {token_file}"
    else:
        token, source = _token_of_environment(), ENVIRONMENT
    hide(token)
    return Account(host, app, user, limit, token, source)


def _token_of_environment() -> str:
    token = os.environ.get(ENVIRONMENT, "").strip()
    if not token:
        raise CannotStart(
            f"there is no token: put a user_access_token into {ENVIRONMENT}, or give --token-file PATH"
        )
    return token


def _read_token(path: str) -> str:
    name = f"--token-file {path}"
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError) as error:
        raise CannotStart(f"{name}: {_reason(error)}") from None
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise CannotStart(f"{name}: it is a directory; give a file")
        # Of the file that was opened, not of whatever stands under that name a moment later.
        if os.name == "posix" and stat.S_IMODE(mode) & _OTHERS:
            raise CannotStart(
                f"{name}: others may read it; keep it to yourself with: chmod 600 {shlex.quote(path)}"
            )
        text = b""
        while b"\n" not in text and len(text) < _MOST_READ and (piece := os.read(handle, 4096)):
            text += piece
    except OSError as error:
        raise CannotStart(f"{name}: {_reason(error)}") from None
    finally:
        os.close(handle)
    try:
        token = text.decode("utf-8-sig").partition("\n")[0].strip()
    except UnicodeDecodeError:
        raise CannotStart(f"{name}: its first line is no text; put the user_access_token there") from None
    if not token:
        raise CannotStart(f"{name}: its first line is empty; put the user_access_token there")
    return token


def _reason(error: Exception) -> str:
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"it cannot be read ({said[:1].lower()}{said[1:]})"
