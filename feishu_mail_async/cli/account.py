"""Whose mail it is, and at which host: the tokens' way from the environment or a file into a client."""

import codecs
import json
import os
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from feishu_mail_async._auth.tokens import Tokens
from feishu_mail_async._rights import too_open
from feishu_mail_async._text import escape
from feishu_mail_async.client import FeishuMailClient
from feishu_mail_async.model import RateLimit, RetryPolicy, check_text

from .app_secret import named_app_id
from .decoding import marked_encoding
from .logins import LoginClient, Logins, find_logins
from .logs import hide
from .options import DEFAULT_RATE, read_base_url, read_rate
from .problems import CannotStart, WrongUsage

__all__ = ["ENVIRONMENT", "UNNAMED", "Account", "read_account", "reason"]

ENVIRONMENT: Final = "FEISHU_USER_ACCESS_TOKEN"

UNNAMED: Final = "(unnamed)"
"""Names the budget in a ledger where nothing else does."""

_MOST_READ: Final = 16 * 1024 * 1024
_MOST_NAMED: Final = 10
_WANTED: Final = 'give one token, or JSON such as {"alice": "u-…", "bob": "u-…"}'


@dataclass(frozen=True, slots=True)
class Account:
    """A user at a host, or several.

    Attributes:
        base_url: the API's host.
        app: names the budget.
        user: whose mail it is where nothing else says so; None: the only user's, or nobody's if there are several.
        rate_limit: what the app may do.
        tokens: the user_access_tokens by user; a token of no named user goes by None. Empty: others send.
        source: where they came from, for messages.
        logins: where there are no such tokens, the users who have logged in.
    """

    base_url: str
    app: str | None
    user: str | None
    rate_limit: RateLimit
    tokens: Mapping[str | None, str] = field(repr=False)
    source: str = ENVIRONMENT
    logins: Logins | None = None

    @property
    def budget(self) -> str:
        """What names the budget in a ledger."""
        return self.app or UNNAMED

    @property
    def users(self) -> Collection[str | None]:
        """Those of whom there are tokens; None for one without a name."""
        return self.tokens if self.logins is None else self.logins.users

    def client(
        self,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
        ledger: str | None = None,
        attempt_timeout: float = 30.0,
    ) -> FeishuMailClient:
        """A client of this account.

        Args:
            retry: when to try again.
            ledger: the URL of the ledger; None: the memory of this process.
            attempt_timeout: seconds for one call.

        Raises:
            CannotStart: it cannot be made here and now; the sentence names what is wrong.
        """
        settings: dict[str, Any] = {
            "app": self.app if ledger is None else self.budget,
            "base_url": self.base_url,
            "rate_limit": self.rate_limit,
            "retry": retry,
            "attempt_timeout": attempt_timeout,
            "ledger": ledger,
        }
        named = {user: token for user, token in self.tokens.items() if user is not None}
        try:
            if self.logins is not None:
                return LoginClient(self.logins, **settings)
            return FeishuMailClient(self.tokens.get(None) or named, **settings)
        except ValueError as error:
            # What a user has given was looked at before; left is what stands in the environment, by its name.
            raise CannotStart(str(error)) from None

    def user_of(self, named: str | None) -> str | None:
        """The user that a draft is sent for, of which the input says this.

        Raises:
            ValueError: there is no token for such a user; the sentence says which there are.
        """
        user = self.user if named is None else named
        if user in self.users or not self.users:
            return user
        if user is None:
            raise ValueError(f"it names no user, and there are tokens for {self._names()}")
        if None in self.users:
            raise ValueError(f"there is no token for user {user!r}, only one of no named user")
        raise ValueError(f"there is no token for user {user!r}, only for {self._names()}")

    def only(self) -> Self:
        """This account, if it is clear whose mail it is.

        Raises:
            WrongUsage: there are several users, and none was named.
        """
        if self.user is None and None not in self.users:
            raise WrongUsage("--user", f"there are tokens for {self._names()}; name one of them")
        return self

    def _names(self) -> str:
        names = sorted(user for user in self.users if user is not None)
        return ", ".join(names[:_MOST_NAMED]) + (", …" if len(names) > _MOST_NAMED else "")


def read_account(
    *,
    user: str | None,
    app: str | None,
    base_url: str | None,
    lark: bool,
    token_file: str | None,
    rate: str = DEFAULT_RATE,
    sends: bool = True,
    ledger: str | None = None,
) -> Account:
    """The account that the common options give, of one user or of several.

    Without `sends` no token is needed, and none is looked for but in a token file. With neither a token file nor a
    token in the environment, the logins in the ledger serve, which lie in the user's own unless `ledger` is given.

    Raises:
        WrongUsage: an option is wrong.
        CannotStart: there is no token.
    """
    limit, host = read_rate(rate), read_base_url(base_url, lark=lark)
    _check_names(("--user", user), ("--app", app))
    app = app or named_app_id()
    if not sends and token_file is None:
        return Account(host, app, user, limit, {})
    if token_file is not None:
        tokens, source = _read_tokens(token_file), f"--token-file {escape(token_file)}"
    elif token := os.environ.get(ENVIRONMENT, "").strip():
        tokens, source = {None: token}, ENVIRONMENT
    else:
        return _logged_in(find_logins(ledger, host, app), host, app, user, limit)
    for token in tokens.values():
        hide(token)
    _check_tokens(tokens, source)
    if None in tokens:
        tokens = {user: tokens[None]}
    elif user is None and len(tokens) == 1:
        (user,) = tokens
    elif user not in {None, *tokens}:
        raise WrongUsage("--user", f"there is no token for {user!r} in {source}")
    return Account(host, app, user, limit, tokens, source)


def _check_tokens(tokens: Mapping[str | None, str], source: str) -> None:
    try:
        Tokens(tokens.get(None) or {user: token for user, token in tokens.items() if user is not None})
    except ValueError as error:
        # What is said of a token never quotes it.
        raise CannotStart(f"{source}: {str(error).removeprefix('tokens: ')}") from None


def _check_names(*options: tuple[str, str | None]) -> None:
    for option, value in options:
        if value is not None:
            try:
                check_text(option, value)
            except ValueError as error:
                raise WrongUsage(option, str(error).removeprefix(f"{option}: ")) from None


def _logged_in(logins: Logins | None, host: str, app: str | None, user: str | None, limit: RateLimit) -> Account:
    if logins is None:
        whose = f"to app {app} at {host}" if app is not None else f"at {host}"
        raise CannotStart(
            f"nobody has logged in {whose}: feishu-mail-async login, or put a user_access_token into "
            f"{ENVIRONMENT}, or give --token-file PATH"
        )
    if user is None and len(logins.users) == 1:
        (user,) = logins.users
    elif user not in {None, *logins.users}:
        names = ", ".join(logins.users[:_MOST_NAMED])
        raise WrongUsage(
            "--user", f"{user!r} has not logged in, only {names}: feishu-mail-async login --user NAME"
        )
    return Account(host, logins.app, user, limit, {}, f"logins to {logins.app}", logins)


def _read_tokens(path: str) -> dict[str | None, str]:
    name = f"--token-file {escape(path)}"
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError) as error:
        raise CannotStart(f"{name}: {reason(error)}") from None
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise CannotStart(f"{name}: it is a directory; give a file")
        # Of the file that was opened, not of whatever stands under that name a moment later.
        if (wrong := too_open(handle, path)) is not None:
            raise CannotStart(f"{name}: {wrong}")
        content = b""
        while _is_unfinished(content) and (piece := os.read(handle, 65_536)):
            content += piece
    except OSError as error:
        raise CannotStart(f"{name}: {reason(error)}") from None
    finally:
        os.close(handle)
    return _find_tokens(content, name)


def _find_tokens(content: bytes, name: str) -> dict[str | None, str]:
    """Find the tokens in a file's content: JSON, or one token in its first line; the rest may be anything."""
    encoding = marked_encoding(content) or "utf-8-sig"
    whole = _is_json(content) or encoding != "utf-8-sig"
    try:
        text = (content if whole else content.partition(b"\n")[0]).decode(encoding).strip()
    except UnicodeDecodeError:
        raise CannotStart(f"{name}: its first line is no text; put the user_access_token there") from None
    if "\0" in text:
        raise CannotStart(f"{name}: it is in UTF-16; save it as UTF-8")
    if text.startswith("{"):
        return _parse_tokens(text, name)
    if text.startswith(("[", '"', "'")):
        raise CannotStart(f"{name}: it is JSON of another shape; {_WANTED}")
    token = text.partition("\n")[0].strip()
    if not token:
        raise CannotStart(f"{name}: its first line is empty; put the user_access_token there")
    return {None: token}


def _is_json(content: bytes) -> bool:
    return content.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{")


def _is_unfinished(content: bytes) -> bool:
    """Whether more is to be read: of a token its line, of JSON and of what is no UTF-8 everything."""
    whole = _is_json(content) or marked_encoding(content) is not None
    return len(content) < _MOST_READ and (whole or b"\n" not in content)


def _parse_tokens(text: str, name: str) -> dict[str | None, str]:
    """The tokens of a JSON object of users; what is said of it quotes none of them."""
    try:
        pairs = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        where = f", line {error.lineno} column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise CannotStart(f"{name}: it is no readable JSON{where}; {_WANTED}") from None
    if not pairs:
        raise CannotStart(f"{name}: it names no user; {_WANTED}")
    if any(user == "access_token" for user, _ in pairs):
        raise CannotStart(f"{name}: it is a login's answer, with an access_token in it; {_WANTED}")
    tokens: dict[str | None, str] = {}
    for user, token in pairs:
        try:
            check_text("a user's name", user)
        except ValueError as error:
            raise CannotStart(f"{name}: {error}") from None
        if not isinstance(token, str):
            raise CannotStart(f"{name}: what stands there for {user!r} is no text; {_WANTED}")
        if user in tokens:
            raise CannotStart(f"{name}: it names {user!r} twice; keep one of the two")
        tokens[user] = token.strip()
    return tokens


def reason(error: Exception) -> str:
    """Why a file cannot be read, for a sentence."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"it cannot be read ({said[:1].lower()}{said[1:]})"
