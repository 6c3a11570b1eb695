"""Who has logged in, as a ledger keeps it, and the client that sends with their tokens."""

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
from .options import read_ledger
from .problems import CannotStart, WrongUsage
from .state_dir import default_ledger, may_be_there

__all__ = ["LoginClient", "Logins", "choose_app", "find_logins", "ledger_of_logins", "read_logins"]

_REMEDY = "; or give another one with --ledger"


@dataclass(frozen=True, slots=True)
class Logins:
    """The users of an app who have logged in.

    Attributes:
        ledger: the URL of the ledger that keeps their tokens.
        base_url: the API's host.
        app: the app's id.
        users: their names.
        secret: the app's secret; None: their tokens are not renewed.
    """

    ledger: str
    base_url: str
    app: str
    users: tuple[str, ...]
    secret: str | None = field(repr=False)

    def tokens(self, home: Ledger, margin: float = 300.0) -> RefreshingTokens:
        """Their tokens, renewed `margin` seconds before they end.

        Args:
            home: the ledger, opened.
            margin: as `RefreshingTokens` takes it.
        """
        store = home.tokens(self.base_url, self.app)
        return _HiddenTokens(self.app, self.secret, store, base_url=self.base_url, margin=margin)


class _HiddenTokens(RefreshingTokens):
    async def token(self, user: str | None) -> str:
        token = await super().token(user)
        hide(token)
        return token


class LoginClient(FeishuMailClient):
    """A client that closes where its tokens come from with itself.

    Args:
        logins: whose tokens it sends with.
        settings: as `FeishuMailClient` takes them.
    """

    def __init__(self, logins: Logins, **settings: Any) -> None:
        self._home = open_ledger(logins.ledger)
        self._logins = logins.tokens(self._home)
        self._closing: asyncio.Task[None] | None = None
        super().__init__(self._logins, **settings)

    async def close(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - a promised name
        """See `FeishuMailClient`. A refresh that is under way is finished: broken off, it may lose a login."""
        try:
            await super().close(timeout)
        finally:
            # Once, however often it is asked for: whoever leaves first must not leave this to the others.
            if self._closing is None:
                self._closing = asyncio.create_task(self._close_logins(), name="feishu-mail-logins")
            await asyncio.shield(self._closing)

    async def _close_logins(self) -> None:
        try:
            await self._logins.close()
        finally:
            await self._home.close()


def ledger_of_logins(ledger: str | None) -> str:
    """The URL of the ledger that keeps logins, also where drafts are kept in none.

    Args:
        ledger: what `--ledger` gives.

    Raises:
        WrongUsage: it gives none.
    """
    return read_ledger(ledger) or default_ledger()


def read_logins(ledger: str) -> dict[tuple[str, str], Mapping[str, StoredToken]]:
    """The logins in a ledger, by base_url and app; a SQLite file that is not there is not made.

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
    """The app that is meant: that of `--app` or of the environment, or else the only one there is.

    Args:
        app: what `--app` gives.
        base_url: the API's host.
        known: what is known of apps, by base_url and app.

    Returns:
        its id; None if none is meant and none is known.

    Raises:
        WrongUsage: there are several.
    """
    app = app or named_app_id()
    if app is not None:
        return app
    apps = sorted({name for host, name in known if host == base_url} or kept_apps(base_url))
    if len(apps) > 1:
        raise WrongUsage("--app", f"there are logins of {', '.join(apps)}; name one of them")
    return apps[0] if apps else None


def find_logins(ledger: str | None, base_url: str, app: str | None) -> Logins | None:
    """The users who have logged in to an app; None if nobody has.

    Args:
        ledger: what `--ledger` gives.
        base_url: the API's host.
        app: what `--app` gives.

    Raises:
        WrongUsage: there are several apps, or `--ledger` gives no ledger.
        CannotStart: the ledger or the kept secret cannot be used.
    """
    url = ledger_of_logins(ledger)
    known = read_logins(url)
    named = choose_app(app, base_url, known)
    users = known.get((base_url, named or ""))
    if named is None or not users:
        return None
    return Logins(url, base_url, named, tuple(users), find_secret(base_url, named)[0])
