"""Tokens that refresh themselves, over a store that several processes may share.

A refresh token works once: the answer to a refresh brings the next one, and the old one is dead. So only one
process refreshes at a time, under a lease; it looks again whether another has done so, and saves the new tokens
before they are used. The flow is drawn in `_auth/__init__`.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Self

import aiohttp

from feishu_mail_async._api.base_url import FEISHU, check_base_url
from feishu_mail_async._checks import check_number, check_text
from feishu_mail_async._clock import wall_clock
from feishu_mail_async._forks import Origin, forked
from feishu_mail_async._secrecy import Hidden
from feishu_mail_async._tasks import carry_through, outcome_of
from feishu_mail_async._transport import Transport
from feishu_mail_async.errors import ClientClosed, LoginRequired, NotSent, UnknownUser
from feishu_mail_async.oauth import Login, Refusal

from .endpoint import TIMEOUT, TokenEndpoint
from .flight import SingleFlight
from .saving import LEASE, NewTokens, SavedTokens, look_again
from .store import MemoryTokens, StoredToken, TokenStore

__all__ = ["RefreshingTokens"]

_log: Final = logging.getLogger("feishu_mail_async._auth.tokens")

_SAVE_AGAIN: Final = 5.0
"""Seconds after which tokens that could not be saved are saved again, even if no token is requested."""
_ASK_AGAIN: Final = 1.0
"""Least seconds of a refresh that brought no usable access token: it must not be repeated in a busy loop."""
_LONGEST_SHARE: Final = 0.5
"""The part of a token's lifetime that `margin` may take, at most: a short-lived token would always be due."""
_NO_REFRESH_TOKEN: Final = Refusal("there is no refresh token", login_needed=True)
_NO_ACCESS_TOKEN: Final = Refusal("the token endpoint's answer holds no access token that can be used")
_NO_SECRET: Final = Refusal("or set FEISHU_APP_SECRET: without it the token cannot be renewed", login_needed=True)
_ADVICE: Final = "feishu-mail-async login, or your own way to log in"


class RefreshingTokens:
    """A token source whose tokens are refreshed ahead of their expiry, and once when one is refused.

    Args:
        app_id: the app's id.
        app_secret: the app's secret. It goes to the token endpoint and nowhere else. None: nothing is refreshed,
            and tokens serve as long as they live.
        store: the store of the tokens: `MemoryTokens()` (the default), or `ledger.tokens(base_url, app_id)`, which
            all processes share.
        base_url: the API's host.
        margin: seconds before its expiry from which on a token is refreshed; at most half its lifetime.
        session: an aiohttp session of the caller's own; None: one is opened, and closed by `close`.
        clock: a function that returns the seconds since 1970.

    Raises:
        ValueError, TypeError: a parameter is wrong; the message names it.

    Source: "refresh user_access_token".
    """

    def __init__(
        self,
        app_id: str,
        app_secret: str | None,
        store: TokenStore | None = None,
        *,
        base_url: str = FEISHU,
        margin: float = 300.0,
        session: aiohttp.ClientSession | None = None,
        clock: Callable[[], float] = wall_clock,
    ) -> None:
        secret = Hidden(app_secret)
        del app_secret
        self._app_id = check_text("app_id", app_id)
        secret.read(lambda given: given is None or check_text("app_secret", given))
        check_number("margin", margin, lambda value: value >= 0, "seconds, 0 or more")
        self._margin = margin
        self._clock = clock
        self.store: TokenStore = MemoryTokens() if store is None else store
        self._transport = Transport(check_base_url(base_url), TIMEOUT, session)
        self._endpoint: TokenEndpoint | None = None  # without the app's secret
        if secret.value is not None:
            self._endpoint = TokenEndpoint(self._transport, app_id, Hidden(secret.value), clock)
        self._saved = SavedTokens(self.store)
        self._refused: dict[str, str] = {}
        self._save_timers: dict[str, asyncio.TimerHandle] = {}
        self._finding: SingleFlight[str, StoredToken] = SingleFlight("feishu-mail-refresh")
        self._refreshing: set[str] = set()  # users whose lease is held here, so that `close` waits for them
        self._origin = Origin()

    async def token(self, user: str | None) -> str:
        """Return a token of this user that is good now.

        Args:
            user: the user; None: the only one who has logged in.

        Raises:
            LoginRequired: a person has to log in, or to log in again.
            UnknownUser: no user was named, and several have logged in.
            NotSent: the token endpoint cannot be reached, or refuses; trying again may help.
            LedgerError: the store cannot be used.
            ClientClosed: the process was forked from the one that uses these tokens.
        """
        if self._origin.elsewhere:
            raise ClientClosed(forked("these tokens", "make new RefreshingTokens here"))
        self._origin.opened()
        name = await self._resolve(user)
        known = self._saved.known.get(name)
        if known is not None and self._good(name, known):
            return known.access_token
        return (await outcome_of(self._begin(name), _broken_off)).access_token

    async def refused(self, user: str | None, token: str) -> None:
        """Note that the server refused this token: it is not handed out again.

        Args:
            user: the user; None: the only one who has logged in.
            token: the refused token.
        """
        refused = Hidden(token)
        del token
        self._refused[await self._resolve(user)] = refused.value

    async def log_in(self, user: str, code: str, login: Login) -> StoredToken:
        """Exchange the authorization code of a login for tokens, and keep them.

        Args:
            user: a name for the user.
            code: the code, as `Login.read_answer` found it.
            login: the login that it belongs to.

        Returns:
            the tokens.

        Raises:
            NotSent: the token endpoint refuses; the message says why.
            LedgerError: the store cannot be used.
            ValueError, TypeError: there is no app secret, or `user` cannot be a name.

        Source: "get user_access_token".
        """
        given = Hidden(code)
        del code
        check_text("user", user)
        if self._endpoint is None:
            raise ValueError("app_secret: nobody can log in without it")
        granted = await self._endpoint.log_in(given, login)
        if isinstance(granted, Refusal):
            raise NotSent(f"the login failed: {granted.text}")
        await self._save(user, NewTokens(granted))
        self._refused.pop(user, None)
        return granted

    async def close(self) -> None:
        """Let refreshes under way finish: cancelling one may lose a login.

        Cancelling `close` does not undo it: it goes on in the background.
        """
        if self._origin.elsewhere:
            return
        await carry_through(self._close(), "feishu-mail-close")

    async def _close(self) -> None:
        for again in self._save_timers.values():
            again.cancel()
        for name, finding in self._finding.tasks.items():
            if name not in self._refreshing and name not in self._saved.unsaved:
                finding.cancel()  # it waits for another process, and holds nothing that could be lost
        saving = [self._begin(name) for name in self._saved.unsaved]
        if tasks := {*self._finding.tasks.values(), *saving}:
            await asyncio.wait(tasks)
        for again in self._save_timers.values():
            again.cancel()
        for name in self._saved.unsaved:
            _log.error("the new tokens of user %s could not be saved: the user has to log in again", name)
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._app_id}>"

    # -- finding a token -------------------------------------------------------------------------------

    async def _resolve(self, user: str | None) -> str:
        if user is not None:
            return user
        if len(self._saved.known) == 1:
            return next(iter(self._saved.known))
        users = await self.store.users()
        if len(users) == 1:
            return users[0]
        if not users:
            raise LoginRequired(f"nobody has logged in to app {self._app_id}: {_ADVICE}")
        raise UnknownUser(f"user: {', '.join(users)} have logged in; name one of them", users=tuple(users))

    def _good(self, name: str, token: StoredToken) -> bool:
        margin = min(self._margin, token.lifetime * _LONGEST_SHARE)
        return token.access_token != self._refused.get(name) and self._clock() < token.expires - margin

    def _begin(self, name: str) -> asyncio.Task[StoredToken]:
        """Find the user's token, once for all who want it."""
        return self._finding.begin(name, lambda: self._find(name))

    async def _find(self, name: str) -> StoredToken:
        """Return the user's token: from the store, if another process has refreshed it, or refreshed here."""
        if name in self._saved.unsaved:
            await self._save(name, self._saved.unsaved[name])
        while True:
            kept = await self._load(name)
            if self._good(name, kept):
                return kept
            if kept.refresh_token is None or self._endpoint is None:
                return self._last_resort(name, kept, _NO_SECRET if kept.refresh_token else _NO_REFRESH_TOKEN)
            lease = await self.store.lease(name, LEASE)
            if lease is None:
                await look_again()  # another process refreshes it
                continue
            found = await self._refresh_under(lease, name)
            if found is not None:
                return found

    async def _refresh_under(self, lease: str, name: str) -> StoredToken | None:
        """Refresh a user's tokens; return None if another process has done so, or the lease has lapsed."""
        ended = False
        self._refreshing.add(name)
        try:
            # Loaded again under the lease: another process may have refreshed between the first look and the
            # lease.
            kept = await self._load(name)
            if self._good(name, kept) or kept.refresh_token is None or self._endpoint is None:
                return None
            granted = await self._endpoint.refresh(kept, Hidden(kept.refresh_token))
            if isinstance(granted, Refusal):
                if granted.login_needed:
                    # Dead for good: without it in the store, no process tries in vain again.
                    ended = True
                    dead = StoredToken(kept.access_token, kept.expires, kept.lifetime, scope=kept.scope)
                    await self.store.save(name, dead, lease)
                return self._last_resort(name, kept, granted)
            ended = True
            if not await self._save(name, NewTokens(granted, kept, lease)):
                return None
            _log.info("the token of user %s was refreshed", name)
            if granted.access_token == kept.access_token:
                await asyncio.sleep(_ASK_AGAIN)  # no usable access token came: slow down
                return self._last_resort(name, granted, _NO_ACCESS_TOKEN)
            return granted
        finally:
            self._refreshing.discard(name)
            if not ended:
                await self.store.release(name, lease)

    async def _save(self, name: str, new: NewTokens) -> bool:
        """Save tokens before they are used; return false if others count.

        Where the store fails, the save is repeated: by the next request for a token, by a timer, and by `close`.
        """
        if (again := self._save_timers.pop(name, None)) is not None:
            again.cancel()
        try:
            return await self._saved.save(name, new)
        finally:
            if name in self._saved.unsaved:
                self._save_timers[name] = asyncio.get_running_loop().call_later(_SAVE_AGAIN, self._begin, name)

    async def _load(self, name: str) -> StoredToken:
        kept = await self._saved.load(name)
        if kept is None:
            raise LoginRequired(f"user {name} has not logged in to app {self._app_id}: {_ADVICE}")
        return kept

    def _last_resort(self, name: str, kept: StoredToken, refusal: Refusal) -> StoredToken:
        """Return a token that cannot be refreshed for as long as it lives; raise an error after that."""
        if self._clock() < kept.expires and kept.access_token != self._refused.get(name):
            return kept
        if refusal.login_needed:
            raise LoginRequired(f"user {name} has to log in again ({refusal.text}): {_ADVICE}")
        raise NotSent(f"the token of user {name} cannot be refreshed: {refusal.text}")


def _broken_off() -> NotSent:
    return NotSent("tokens: refreshing one was cancelled, with tasks of the event loop; nothing was sent")
