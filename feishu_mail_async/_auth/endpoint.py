"""The token endpoint: what is asked of it, and what its answers grant."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from feishu_mail_async._api.bodies import secret_body
from feishu_mail_async._secrecy import Hidden
from feishu_mail_async._transport import Failure, Transport
from feishu_mail_async.oauth import (
    ASSUMED_LIFETIME,
    TOKEN_PATH,
    Login,
    Refusal,
    TokenGrant,
    code_request,
    read_grant,
    refresh_request,
)

from .sources import check_token
from .store import StoredToken

__all__ = ["TIMEOUT", "TokenEndpoint"]

TIMEOUT: Final = 10.0
"""Seconds for one request."""
_TRIES: Final = 3
"""Requests for one refresh, at most."""
_SECRETS: Final = ("client_secret", "code", "code_verifier", "refresh_token")
"""Fields of a request that are taken out of any text that quotes them."""


class _Passing(Exception):
    """A refusal that may pass: raised for tenacity, which retries on it."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal


class TokenEndpoint:
    """The token endpoint of one app, which gives tokens for a login's code, and for a refresh token.

    Args:
        transport: makes the exchanges.
        app_id: the app's id.
        app_secret: the app's secret.
        clock: a function that returns the seconds since 1970.
    """

    def __init__(
        self, transport: Transport, app_id: str, app_secret: Hidden[str], clock: Callable[[], float]
    ) -> None:
        self._transport = transport
        self._app_id = app_id
        self._app_secret = app_secret
        self._clock = clock

    async def log_in(self, code: Hidden[str], login: Login) -> StoredToken | Refusal:
        """Exchange the authorization code of a login.

        Args:
            code: the code.
            login: the login that it belongs to.
        """
        began = self._clock()
        granted = await self._ask(Hidden(code_request(self._app_id, self._app_secret.value, code.value, login)))
        return granted if isinstance(granted, Refusal) else _stored(granted, began, None)

    async def refresh(self, before: StoredToken, refresh_token: Hidden[str]) -> StoredToken | Refusal:
        """Exchange a refresh token, which works once.

        Args:
            before: the tokens to refresh.
            refresh_token: the refresh token among them.

        Returns:
            the tokens to keep; `before`'s stay in place of those that did not come, or cannot be used.
        """
        began = self._clock()
        granted = await self._ask(
            Hidden(refresh_request(self._app_id, self._app_secret.value, refresh_token.value))
        )
        return granted if isinstance(granted, Refusal) else _stored(granted, began, before)

    async def _ask(self, request: Hidden[dict[str, str]]) -> TokenGrant | Refusal:
        """Send a request; repeat it while its failure may pass."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_Passing),
            wait=wait_random_exponential(multiplier=0.5, max=5.0),
            stop=stop_after_attempt(_TRIES),
            reraise=True,
        )
        try:
            granted: TokenGrant | Refusal = await retrying(self._ask_once, request)
        except _Passing as passing:
            return passing.refusal
        return granted

    async def _ask_once(self, request: Hidden[dict[str, str]]) -> TokenGrant | Refusal:
        answer = await self._transport.exchange("POST", TOKEN_PATH, None, secret_body(request))
        if isinstance(answer, Failure):
            refusal = Refusal(f"the token endpoint did not answer: {answer.reason}", retry=not answer.lasting)
            if answer.lasting:
                return refusal
            raise _Passing(refusal)
        secrets = (request.value.get(name, "") for name in _SECRETS)
        granted = read_grant(answer, secrets)
        if isinstance(granted, Refusal) and granted.retry:
            raise _Passing(granted)
        return granted


def _stored(granted: TokenGrant, since: float, before: StoredToken | None) -> StoredToken:
    """Return the tokens to keep: those granted, completed by those before.

    Args:
        granted: the tokens granted. In place of one that did not come, or cannot be used, the one `before` stays.
        since: the time of the request, in seconds since 1970: lifetimes count from there, so that none ends too
            late.
        before: the tokens that were refreshed; None for a login.
    """
    kept = before or StoredToken("", since, ASSUMED_LIFETIME)
    scope = granted.scope or kept.scope
    renewed = replace(kept, scope=scope)
    if granted.access_token is not None and _usable(granted.access_token):
        lives = granted.expires_in
        renewed = replace(renewed, access_token=granted.access_token, expires=since + lives, lifetime=lives)
    if granted.refresh_token is not None:
        lives_on = granted.refresh_expires_in
        ends = None if lives_on is None else since + lives_on
        renewed = replace(renewed, refresh_token=granted.refresh_token, refresh_expires=ends)
    return renewed


def _usable(access_token: str) -> bool:
    """Return whether an access token can stand in a header."""
    try:
        check_token(access_token, "")
    except ValueError:
        return False
    return True
