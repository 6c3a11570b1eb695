"""The account of a command: host, app, users, and their tokens from the environment, a file or logins."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from feishu_mail_async._auth.tokens import tokens_of
from feishu_mail_async._text import escape
from feishu_mail_async.client import FeishuMailClient
from feishu_mail_async.model import RateLimit, RetryPolicy

from .app_secret import named_app_id
from .logins import LoginClient, Logins, find_logins
from .logs import hide
from .options import AccountOptions, check_name
from .problems import CannotStart, WrongUsage
from .token_file import read_token_file

__all__ = ["ENVIRONMENT", "UNNAMED", "Account", "read_account"]

ENVIRONMENT: Final = "FEISHU_USER_ACCESS_TOKEN"

UNNAMED: Final = "(unnamed)"
"""The name of the budget in a ledger if no app is named."""

_MOST_NAMED: Final = 10


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
    for option, value in (("--user", user), ("--app", options.app)):
        if value is not None:
            check_name(option, value)
    app = options.app or named_app_id()
    if not sends and path is None:
        return Account(host, app, user, limit, {})
    if path is not None:
        tokens, source = read_token_file(path), f"--token-file {escape(path)}"
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
        tokens_of(tokens.get(None) or {user: token for user, token in tokens.items() if user is not None})
    except ValueError as error:
        # The messages never quote a token.
        raise CannotStart(f"{source}: {str(error).removeprefix('tokens: ')}") from None


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
