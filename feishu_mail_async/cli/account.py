"""The account of a command: host, app, users, and their tokens from the environment, a file or logins."""

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
from .options import AccountOptions
from .problems import CannotStart, WrongUsage

__all__ = ["ENVIRONMENT", "UNNAMED", "Account", "read_account", "reason"]

ENVIRONMENT: Final = "FEISHU_USER_ACCESS_TOKEN"

UNNAMED: Final = "(unnamed)"
"""The name of the budget in a ledger if no app is named."""

_MOST_READ: Final = 16 * 1024 * 1024
_MOST_NAMED: Final = 10
_WANTED: Final = 'give one token, or JSON such as {"alice": "u-…", "bob": "u-…"}'


@dataclass(frozen=True, slots=True)
class Account:
    """One or several users at a host, with their tokens.

    Attributes:
        base_url: the API's base URL.
        app: the app's id, which names the budget; None if not given.
        user: the user of drafts that name none. None means the only user, or no default if there are several.
        rate_limit: the app's rate limit.
        tokens: the user_access_tokens by user, with the key None for an unnamed user. Empty if this program does
            not send (other programs do).
        source: the origin of the tokens, for messages.
        logins: the users who have logged in, if there are no such tokens.
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
        """The name of the budget in a ledger."""
        return self.app or UNNAMED

    @property
    def users(self) -> Collection[str | None]:
        """The users with tokens; None stands for an unnamed user."""
        return self.tokens if self.logins is None else self.logins.users

    def client(
        self,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
        ledger: str | None = None,
        attempt_timeout: float = 30.0,
    ) -> FeishuMailClient:
        """Make a client of this account.

        Args:
            retry: the retry policy.
            ledger: the URL of the ledger; None for the memory of this process.
            attempt_timeout: the time-out of one call, in seconds.

        Raises:
            CannotStart: the client cannot be made. The message names the value that is wrong.
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
            # Options were checked before, so the wrong value is an environment variable, which the error names.
            raise CannotStart(str(error)) from None

    def user_of(self, named: str | None) -> str | None:
        """Return the user that sends a draft.

        Args:
            named: the user that the input names for the draft; None if it names none.

        Raises:
            ValueError: there is no token for this user. The message lists the users with tokens.
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
        """Return this account if its user is unambiguous.

        Raises:
            WrongUsage: there are several users, and none was named.
        """
        if self.user is None and None not in self.users:
            raise WrongUsage("--user", f"there are tokens for {self._names()}; name one of them")
        return self

    def _names(self) -> str:
        names = sorted(user for user in self.users if user is not None)
        return ", ".join(names[:_MOST_NAMED]) + (", …" if len(names) > _MOST_NAMED else "")


def read_account(options: AccountOptions, *, sends: bool = True) -> Account:
    """Read the account of one or several users from the options.

    Tokens come from the token file, else from FEISHU_USER_ACCESS_TOKEN, else from the logins in the ledger.

    Args:
        options: the options of the command line.
        sends: False if the command needs no token; then only a token file is read.

    Raises:
        WrongUsage: an option is wrong.
        CannotStart: there is no token, or it cannot be read.
    """
    limit, host, user, path = options.rate_limit, options.host, options.user, options.token_file
    _check_names(("--user", user), ("--app", options.app))
    app = options.app or named_app_id()
    if not sends and path is None:
        return Account(host, app, user, limit, {})
    if path is not None:
        tokens, source = _read_tokens(path), f"--token-file {escape(path)}"
    elif token := os.environ.get(ENVIRONMENT, "").strip():
        tokens, source = {None: token}, ENVIRONMENT
    else:
        return _logged_in(find_logins(options.ledger, host, app), host, app, user, limit)
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
        # The messages of Tokens never quote a token.
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
        # Checked on the open file: the path may name another file a moment later.
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
    """Find the tokens in a file's content: JSON, or one token in its first line (the other lines are ignored)."""
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
    """Return whether more is to be read: to the end for JSON and UTF-16, else to the end of the first line."""
    whole = _is_json(content) or marked_encoding(content) is not None
    return len(content) < _MOST_READ and (whole or b"\n" not in content)


def _parse_tokens(text: str, name: str) -> dict[str | None, str]:
    """Parse a JSON object of user -> token; the messages quote no token."""
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
    """Return the reason why a file cannot be read, as part of a sentence.

    Args:
        error: the error of opening, reading or decoding it.
    """
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"it cannot be read ({said[:1].lower()}{said[1:]})"
