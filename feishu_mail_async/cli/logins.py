"""Logins stored in a ledger, and the client that sends with their tokens."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from feishu_mail_async._auth.refresh import RefreshingTokens
from feishu_mail_async._auth.store import StoredToken
from feishu_mail_async.client import FeishuMailClient
from feishu_mail_async.errors import LedgerError
from feishu_mail_async.ledger import Ledger, open_ledger

from .app_secret import find_secret, kept_apps, named_app_id
from .logs import hide
from .loop import run_loop
from .problems import CannotStart, WrongUsage
from .state_dir import ledger_url, may_be_there

__all__ = ["LoginClient", "Logins", "choose_app", "find_logins", "read_logins"]

_REMEDY = "; or give another one with --ledger"


@dataclass(frozen=True, slots=True)
class Logins:
    """The users of an app who have logged in.

    Attributes:
        ledger: the URL of the ledger with their tokens.
        base_url: the API's base URL.
        app: the app's id.
        users: the names of the users.
        secret: the app's secret; None if there is none, and then their tokens are not refreshed.
    """

    ledger: str
    base_url: str
    app: str
    users: tuple[str, ...]
    secret: str | None = field(repr=False)

    def tokens(self, home: Ledger, margin: float = 300.0) -> RefreshingTokens:
        """Return the users' tokens, refreshed before they expire.

        Args:
            home: the opened ledger.
            margin: the time before expiry at which a token is refreshed, in seconds.
        """
        store = home.tokens(self.base_url, self.app)
        return _HiddenTokens(self.app, self.secret, store, base_url=self.base_url, margin=margin)


class _HiddenTokens(RefreshingTokens):
    """Refreshing tokens that are registered with `hide`, because a refresh makes new secrets during a run."""

    async def token(self, user: str | None) -> str:
        token = await super().token(user)
        hide(token)
        return token


class LoginClient(FeishuMailClient):
    """A client that owns its source of tokens, and closes it with itself.

    Args:
        logins: the users who have logged in.
        **settings: the arguments of `FeishuMailClient`.
    """

    def __init__(self, logins: Logins, **settings: Any) -> None:
        self._home = open_ledger(logins.ledger)
        self._logins = logins.tokens(self._home)
        self._closing: asyncio.Task[None] | None = None
        super().__init__(self._logins, **settings)

    async def close(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - a promised name
        """Close the client (see `FeishuMailClient`), then its tokens and their ledger.

        A refresh in flight is finished: a refresh token is spent by the call, so cancelling could lose a login.
        """
        try:
            await super().close(timeout)
        finally:
            # A shared, shielded task: the tokens are closed once, even if this call is one of several or is
            # cancelled.
            if self._closing is None:
                self._closing = asyncio.create_task(self._close_logins(), name="feishu-mail-logins")
            await asyncio.shield(self._closing)

    async def _close_logins(self) -> None:
        try:
            await self._logins.close()
        finally:
            await self._home.close()


def read_logins(ledger: str) -> dict[tuple[str, str], Mapping[str, StoredToken]]:
    """Read the logins in a ledger. A SQLite file that does not exist is not created.

    Args:
        ledger: the ledger's URL.

    Returns:
        (base_url, app) -> user -> stored token.

    Raises:
        CannotStart: the ledger cannot be used.
    """
    if not may_be_there(ledger):
        return {}
    try:
        return run_loop(_read_logins(ledger))
    except LedgerError as error:
        raise CannotStart(f"{error}{_REMEDY}") from None


async def _read_logins(ledger: str) -> dict[tuple[str, str], Mapping[str, StoredToken]]:
    found: dict[tuple[str, str], Mapping[str, StoredToken]] = {}
    home = open_ledger(ledger)
    try:
        for key in await home.apps():
            store = home.tokens(*key)
            tokens = {user: await store.load(user) for user in await store.users()}
            found[key] = {user: token for user, token in tokens.items() if token is not None}
    finally:
        await home.close()
    return {key: tokens for key, tokens in sorted(found.items()) if tokens}


def choose_app(app: str | None, base_url: str, known: Mapping[tuple[str, str], object]) -> str | None:
    """Choose the app: that of `--app`, else of FEISHU_APP_ID, else the only one known.

    Args:
        app: the value of `--app`.
        base_url: the API's base URL.
        known: the known logins; the keys are (base_url, app). Without any at this host, apps with a stored secret
            count as known.

    Returns:
        the app's id; None if none is named and none is known.

    Raises:
        WrongUsage: several are known, and none is named.
    """
    app = app or named_app_id()
    if app is not None:
        return app
    apps = sorted({name for host, name in known if host == base_url} or kept_apps(base_url))
    if len(apps) > 1:
        raise WrongUsage("--app", f"there are logins of {', '.join(apps)}; name one of them")
    return apps[0] if apps else None


def find_logins(ledger: str | None, base_url: str, app: str | None) -> Logins | None:
    """Find the users who have logged in to an app.

    Args:
        ledger: the value of `--ledger`.
        base_url: the API's base URL.
        app: the value of `--app`.

    Returns:
        the logins; None if there are none.

    Raises:
        WrongUsage: there are several apps and none is named, or `--ledger` is not a ledger's URL or path.
        CannotStart: the ledger or the stored secret cannot be used.
    """
    url = ledger_url(ledger)  # logins are stored even if drafts are not (`--no-ledger`)
    known = read_logins(url)
    named = choose_app(app, base_url, known)
    users = known.get((base_url, named or ""))
    if named is None or not users:
        return None
    return Logins(url, base_url, named, tuple(users), find_secret(base_url, named)[0])
