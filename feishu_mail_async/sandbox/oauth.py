"""Access tokens: authentication of callers, authorization by a user, and refresh of a login.

It decides and stores, and does no I/O. Times are seconds of the loop's clock, passed in by the caller.
"""

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any, Final
from urllib.parse import parse_qs, parse_qsl, unquote_plus, urlencode, urlsplit, urlunsplit

from feishu_mail_async import codes

from .faults import HTML, Reply, json_reply
from .world import ALL_SCOPES, OFFLINE, World

__all__ = ["CODE_LIFETIME", "REFRESH_LIFETIME", "Grant", "OAuth", "read_form", "refuse"]

CODE_LIFETIME: Final = 300.0
"""The lifetime of an authorization code in seconds, as the documents say."""

REFRESH_LIFETIME: Final = 604_800.0
"""The lifetime of a refresh token in seconds: a week."""

_BEARER: Final = "Bearer "
_TOKEN_STARTS: Final = ("u-", "t-", "eyJ")


@dataclass(slots=True)
class Grant:
    """The meaning of an access token or refresh token. It does not contain the token, nor does its repr.

    Attributes:
        user: the user's name.
        scopes: the OAuth scopes that the user allowed.
        expires: the end of its life, in seconds of the loop's clock; None for no end.
        revoked: True if it was revoked.
        used: True if it was spent; only refresh tokens are.
    """

    user: str
    scopes: frozenset[str]
    expires: float | None = None
    revoked: bool = False
    used: bool = False

    def expired(self, now: float) -> bool:
        """Return whether the token has expired.

        Args:
            now: the time, in seconds of the loop's clock.
        """
        return self.expires is not None and now >= self.expires


@dataclass(slots=True)
class _AuthorizationCode:
    user: str
    scopes: frozenset[str]
    redirect_uri: str
    challenge: str | None
    expires: float
    used: bool = False


@dataclass(slots=True)
class OAuth:
    """The token endpoint, the authorization page, and all tokens issued.

    Attributes:
        world: the users.
        client_id: the app's id.
        client_secret: the app's secret.
        expires_in: the lifetime of an access token, in seconds.
        refreshes: user -> number of refresh tokens spent; the call log's own counter.
        auto_approve: True if the authorization page agrees without showing itself.
    """

    world: World
    client_id: str
    client_secret: str = field(repr=False)
    expires_in: float
    refreshes: Counter[str]
    auto_approve: bool = False
    _access: dict[str, Grant] = field(default_factory=dict, repr=False)
    _refresh: dict[str, Grant] = field(default_factory=dict, repr=False)
    _codes: dict[str, _AuthorizationCode] = field(default_factory=dict, repr=False)

    def new_access(
        self, user: str, scopes: frozenset[str], expires: float | None, token: str | None = None
    ) -> str:
        """Issue an access token and return it.

        Args:
            user: the user's name.
            scopes: the OAuth scopes that it allows.
            expires: the end of its life, in seconds of the loop's clock; None for no end.
            token: the text to use instead of a random one.
        """
        token = token or f"u-{secrets.token_urlsafe(24)}"
        self._access[token] = Grant(user, scopes, expires)
        return token

    def check(self, authorization: str | None, now: float) -> Grant | codes.Code:
        """Authenticate a call by its Authorization header.

        Args:
            authorization: the header; None if there is none.
            now: the time, in seconds of the loop's clock.

        Returns:
            the token's grant, or the code that refuses the call.
        """
        if not authorization or not authorization.startswith(_BEARER):
            return codes.named("TokenMissing")
        token = authorization[len(_BEARER) :].strip()
        if not token.startswith(_TOKEN_STARTS):
            return codes.named("TokenMalformed")
        grant = self._access.get(token)
        if grant is None:
            return codes.named("TokenInvalid")
        if grant.revoked:
            return codes.named("UserTokenInvalid")
        if grant.expired(now):
            return codes.named("TokenExpired")
        return grant

    def expire(self, user: str, now: float) -> None:
        """Let every access token of a user expire.

        Args:
            user: the user's name.
            now: the time, in seconds of the loop's clock.
        """
        for grant in self._access.values():
            if grant.user == user:
                grant.expires = now

    def revoke(self, user: str) -> None:
        """Revoke every access token and every refresh token of a user.

        Args:
            user: the user's name.
        """
        for grant in (*self._access.values(), *self._refresh.values()):
            if grant.user == user:
                grant.revoked = True

    def issue(self, user: str, scopes: frozenset[str], now: float) -> dict[str, Any]:
        """Issue a pair of tokens and return it as the JSON body of the token endpoint's answer.

        Args:
            user: the user's name.
            scopes: the OAuth scopes; a refresh token is issued only with `offline_access` among them.
            now: the time, in seconds of the loop's clock.
        """
        pair: dict[str, Any] = {
            "code": codes.named("Success").number,
            "access_token": self.new_access(user, scopes, now + self.expires_in),
            "expires_in": _whole(self.expires_in),
            "token_type": "Bearer",
            "scope": " ".join(sorted(scopes)),
        }
        if OFFLINE in scopes:
            refresh = f"ur-{secrets.token_urlsafe(32)}"
            self._refresh[refresh] = Grant(user, scopes, now + REFRESH_LIFETIME)
            pair["refresh_token"] = refresh
            pair["refresh_token_expires_in"] = int(REFRESH_LIFETIME)
        return pair

    def token(self, form: Mapping[str, str] | None, now: float) -> Reply:
        """Answer a call of the token endpoint.

        Args:
            form: the request's parameters; None if they are unreadable.
            now: the time, in seconds of the loop's clock.
        """
        # RFC 6749, section 5.2. The table of codes lacks the platform's numbers for `invalid_request` and
        # `unsupported_grant_type`.
        if form is None:
            return json_reply(400, {"error": "invalid_request", "error_description": "the body is unreadable"})
        known = hmac.compare_digest(form.get("client_id", "").encode(), self.client_id.encode())
        proven = hmac.compare_digest(form.get("client_secret", "").encode(), self.client_secret.encode())
        if not (known and proven):
            return refuse("ClientSecretWrong")
        match form.get("grant_type"):
            case "authorization_code":
                return self._redeem(form, now)
            case "refresh_token":
                return self._renew(form, now)
            case _:
                return json_reply(400, {"error": "unsupported_grant_type", "error_description": "grant_type"})

    def _redeem(self, form: Mapping[str, str], now: float) -> Reply:
        code = self._codes.get(form.get("code", ""))
        if code is None:
            return refuse("AuthorizationCodeNotFound")
        if code.used:
            return refuse("AuthorizationCodeUsed")
        if now >= code.expires:
            return refuse("AuthorizationCodeExpired")
        if form.get("redirect_uri", "") != code.redirect_uri:
            return refuse("RedirectMismatch")
        verifier = form.get("code_verifier", "")
        if code.challenge is not None and not hmac.compare_digest(
            _challenge(verifier).encode(), code.challenge.encode()
        ):
            return refuse("PkceFailed")
        code.used = True
        return json_reply(200, self.issue(code.user, code.scopes, now), codes.named("Success").number)

    def _renew(self, form: Mapping[str, str], now: float) -> Reply:
        grant = self._refresh.get(form.get("refresh_token", ""))
        if grant is None:
            return refuse("RefreshTokenMalformed")
        if grant.revoked:
            return refuse("RefreshTokenRevoked")
        if grant.used:
            return refuse("RefreshTokenUsed")
        if grant.expired(now):
            return refuse("RefreshTokenExpired")
        # Spent even if the answer is lost. The previous access token stays valid until it expires.
        grant.used = True
        self.refreshes[grant.user] += 1
        # A refresh may narrow the scopes, never widen them (RFC 6749, section 6).
        scopes = grant.scopes
        if wanted := frozenset(form.get("scope", "").split()):
            scopes &= wanted
        return json_reply(200, self.issue(grant.user, scopes, now), codes.named("Success").number)

    def authorize(self, target: str, now: float) -> Reply:
        """Answer a browser that opens the authorization page.

        Args:
            target: the request's path and query. Beyond the documented parameters, `user` names the user who
                authorizes, and `decision` ("allow" or "deny") answers without showing the page.
            now: the time, in seconds of the loop's clock.
        """
        path, _, query = target.partition("?")
        asked = dict(parse_qsl(query, keep_blank_values=True))
        if wrong := self._wrong(asked):
            return Reply(400, f"<!doctype html><p>{escape(wrong)}</p>".encode(), content_type=HTML)
        users = [asked["user"]] if "user" in asked else list(self.world.users)
        decision = asked.get("decision", "allow" if self.auto_approve else None)
        if decision == "deny":
            return _redirect(asked, {"error": "access_denied"})
        if decision == "allow":
            code = secrets.token_urlsafe(24)
            self._codes[code] = _AuthorizationCode(
                user=users[0],
                scopes=frozenset(asked.get("scope", "").split()),
                redirect_uri=asked["redirect_uri"],
                challenge=asked.get("code_challenge"),
                expires=now + CODE_LIFETIME,
            )
            return _redirect(asked, {"code": code})
        return Reply(200, _page(path, asked, users).encode(), content_type=HTML)

    def _wrong(self, asked: Mapping[str, str]) -> str | None:
        """Return a sentence about the first error of an authorization request; None if there is none."""
        users = self.world.users
        unknown = set(asked.get("scope", "").split()) - ALL_SCOPES
        checks = (
            (asked.get("client_id") == self.client_id, "client_id: this is not the sandbox's app"),
            (asked.get("response_type") == "code", "response_type: only code is supported"),
            (bool(urlsplit(asked.get("redirect_uri", "")).scheme), "redirect_uri: give the whole address"),
            (
                "code_challenge" not in asked or asked.get("code_challenge_method") == "S256",
                "code_challenge_method: only S256 is supported",
            ),
            (asked.get("decision", "allow") in {"allow", "deny"}, "decision: give allow or deny"),
            (not unknown, f"scope: the app does not have {' '.join(sorted(unknown))}"),
            (bool(users), "user: there is nobody in the sandbox yet"),
            ("user" not in asked or asked["user"] in users, "user: there is no such user in the sandbox"),
        )
        return next((sentence for fine, sentence in checks if not fine), None)


def refuse(name: str) -> Reply:
    """Return a refusal of the token endpoint.

    Args:
        name: the name of its row in `codes.OAUTH`.

    Raises:
        KeyError: there is no such row.
    """
    row = codes.OAUTH[name]
    body = {"code": row.number, "error": row.error, "error_description": row.description}
    return json_reply(row.http_status, body, row.number)


def read_form(content_type: str, authorization: str | None, body: bytes) -> dict[str, str] | None:
    """Read the parameters of a token request.

    Args:
        content_type: the Content-Type header, for JSON or a form.
        authorization: the Authorization header; with HTTP Basic it gives client_id and client_secret.
        body: the request's body.

    Returns:
        the parameters; None if they are unreadable.
    """
    try:
        text = body.decode()
        if "json" in content_type:
            value = json.loads(text or "{}")
            if not isinstance(value, dict):
                return None
            form = {str(name): str(item) for name, item in value.items() if item is not None}
        else:
            form = {name: items[-1] for name, items in parse_qs(text).items()}
        if authorization and authorization.startswith("Basic "):
            pair = base64.b64decode(authorization.removeprefix("Basic "), validate=True).decode()
            client, _, secret = pair.partition(":")
            # RFC 6749, section 2.3.1: both are form-encoded before they are joined.
            form |= {"client_id": unquote_plus(client), "client_secret": unquote_plus(secret)}
    except (ValueError, binascii.Error):
        return None
    return form


def _whole(seconds: float) -> float:
    return int(seconds) if seconds == int(seconds) else seconds


def _challenge(verifier: str) -> str:
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _redirect(asked: Mapping[str, str], found: dict[str, str]) -> Reply:
    if "state" in asked:
        found["state"] = asked["state"]
    parts = urlsplit(asked["redirect_uri"])
    query = urlencode([*parse_qsl(parts.query, keep_blank_values=True), *found.items()])
    return Reply(302, b"", None, (("Location", urlunsplit(parts._replace(query=query))),), HTML)


def _page(path: str, asked: Mapping[str, str], users: list[str]) -> str:
    def link(text: str, user: str, decision: str) -> str:
        query = urlencode({**asked, "user": user, "decision": decision})
        return f'<p><a href="{escape(f"{path}?{query}")}">{escape(text)}</a></p>'

    links = [link(f"Allow as {user}", user, "allow") for user in users] + [link("Deny", users[0], "deny")]
    return (
        '<!doctype html><html lang="en"><title>Sandbox</title><h1>Authorize the app</h1>'
        f"<p>It asks for: {escape(asked.get('scope', '') or 'nothing')}</p>{''.join(links)}</html>"
    )
