"""The OAuth login of a user and its renewal: requests to the server, and the meaning of its answers.

Pure: no I/O, no clock. Source: the platform's "get user_access_token", "refresh user_access_token" and
"authorization code" pages, which are OAuth 2.0 (RFC 6749) with PKCE (RFC 7636).
"""

import base64
import hashlib
import hmac
import json
import math
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

from ._api.base_url import FEISHU, LARK
from ._api.endpoints import ENDPOINTS
from ._api.protocol import REDACTED, Reply, redact
from ._text import escape
from .codes import OAUTH, Verdict

__all__ = [
    "ASSUMED_LIFETIME",
    "OFFLINE",
    "SCOPES",
    "TOKEN_PATH",
    "Login",
    "Refusal",
    "TokenGrant",
    "WrongState",
    "code_request",
    "read_grant",
    "refresh_request",
]

TOKEN_PATH: Final = "/open-apis/authen/v2/oauth/token"  # noqa: S105 - a path, not a secret
"""The path of the token endpoint."""
"""The OAuth scope for creating drafts."""
OFFLINE: Final = "offline_access"
"""The OAuth scope for a refresh token."""
SCOPES: Final = tuple(dict.fromkeys([*(row.scope for row in ENDPOINTS.values()), OFFLINE]))
"""The OAuth scopes of all endpoints, the one for creating drafts, and the one for a refresh token."""

ASSUMED_LIFETIME: Final = 600.0
"""Lifetime in seconds of an access token for which the server gives none that is usable, or one that has ended.

It is short, because a token that is renewed too early costs one call, and one that is used too long is refused;
and long enough that tokens are not renewed all the time.
"""

T = TypeVar("T")

_LONGEST_LIFETIME: Final = 366 * 24 * 3600
"""Seconds of a lifetime, at most; a larger number is a point in time or a mistake."""
_AUTHORIZE_PATH: Final = "/open-apis/authen/v1/authorize"
_ACCOUNTS: Final = {FEISHU: "https://accounts.feishu.cn", LARK: "https://accounts.larksuite.com"}
_AGAIN: Final = frozenset(
    {
        "RefreshTokenMalformed",
        "RefreshTokenExpired",
        "RefreshTokenRevoked",
        "RefreshTokenUsed",
        "RefreshDisabled",
    }
)
"""Codes after which the user must authorize again, because the refresh token is of no use any more."""
_BY_NUMBER: Final = {row.number: row for row in OAUTH.values()}
_SERVER_ERROR: Final = 500
_LONGEST_TEXT: Final = 200
"""Characters of a refusal's text, at most."""
_SECRET: Final = re.compile(r"(?=[A-Za-z_~+/=.-]*[0-9])[\w~+/=.-]{20,}")
"""Pattern of a possible token or code, known or not: long, in one piece, and with a digit in it."""


@dataclass(frozen=True, slots=True)
class TokenGrant:
    """The tokens that the token endpoint granted: at least one of the two. Neither is in the repr.

    Attributes:
        access_token: the user_access_token; None if there is none that could be kept.
        expires_in: seconds it lives.
        refresh_token: the token for the next refresh, good for one use; None without offline_access.
        refresh_expires_in: seconds that one lives; None if the server did not say.
        scope: the OAuth scopes granted, with spaces between them.
    """

    access_token: str | None = field(repr=False)
    expires_in: float
    refresh_token: str | None = field(default=None, repr=False)
    refresh_expires_in: float | None = None
    scope: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal of the token endpoint.

    Attributes:
        text: the endpoint's words, without a token.
        code: the endpoint's code; None where the answer is not its own.
        login_needed: true if the user must authorize again.
        retry: true if asking once more may help.
    """

    text: str
    code: int | None = None
    login_needed: bool = False
    retry: bool = False


class WrongState(ValueError):
    """An answer that belongs to another login, or to none."""


@dataclass(frozen=True, slots=True)
class Login:
    """The login of one user: the way to the page where they agree, and back. The verifier is not in the repr.

    Attributes:
        redirect_uri: the address to which the page sends the user back.
        state: a random value that comes back with the user: it proves that the answer belongs to this login.
        verifier: proves to the token endpoint that the code was requested here (PKCE).
    """

    redirect_uri: str
    state: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    verifier: str = field(default_factory=lambda: secrets.token_urlsafe(48), repr=False)

    def url(self, base_url: str, app_id: str, scopes: Iterable[str] = SCOPES) -> str:
        """Return the address of the page where the user agrees.

        Args:
            base_url: the API's host; a host of neither Feishu nor Lark has the page itself.
            app_id: the app's id.
            scopes: the OAuth scopes that the app requests.
        """
        digest = hashlib.sha256(self.verifier.encode()).digest()
        asked = {
            "client_id": app_id,
            "response_type": "code",
            "redirect_uri": self.redirect_uri,
            "scope": " ".join(scopes),
            "state": self.state,
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        return f"{_ACCOUNTS.get(base_url, base_url)}{_AUTHORIZE_PATH}?{urlencode(asked)}"

    def read_answer(self, answer: str) -> str:
        """Return the authorization code in the address the user came back with.

        Args:
            answer: the address the user was sent back to, or its query.

        Raises:
            WrongState: it belongs to another login.
            ValueError: the user refused, or there is no code in it.
        """
        query = urlsplit(answer).query if "?" in answer else answer
        told = dict(parse_qsl(query))
        # First of all: an answer with a foreign state may be forged (CSRF), so nothing else in it is believed.
        if not hmac.compare_digest(told.get("state", "").encode(), self.state.encode()):
            raise WrongState("the answer does not belong to this login: its state is another one; start again")
        if "error" in told:
            refused = told["error"] == "access_denied"
            said = redact(told["error"], (told.get("code", ""), self.state, self.verifier))[:_LONGEST_TEXT]
            raise ValueError("the user refused" if refused else f"the page answered {escape(said)}")
        if not told.get("code"):
            raise ValueError("there is no code in the answer")
        return told["code"]


def code_request(app_id: str, app_secret: str, code: str, login: Login) -> dict[str, str]:
    """Return the body of the request that exchanges an authorization code for tokens.

    Args:
        app_id: the app's id.
        app_secret: the app's secret.
        code: the authorization code.
        login: the login that the code belongs to.

    Source: "get user_access_token".
    """
    return {
        "grant_type": "authorization_code",
        "client_id": app_id,
        "client_secret": app_secret,
        "code": code,
        "redirect_uri": login.redirect_uri,
        "code_verifier": login.verifier,
    }


def refresh_request(app_id: str, app_secret: str, refresh_token: str) -> dict[str, str]:
    """Return the body of the request that exchanges a refresh token for the next tokens.

    Args:
        app_id: the app's id.
        app_secret: the app's secret.
        refresh_token: the refresh token, which the exchange uses up.

    Source: "refresh user_access_token".
    """
    return {
        "grant_type": "refresh_token",
        "client_id": app_id,
        "client_secret": app_secret,
        "refresh_token": refresh_token,
    }


def read_grant(reply: Reply, secrets: Iterable[str] = ()) -> TokenGrant | Refusal:
    """Read an answer of the token endpoint.

    A refresh token works once, and so does a code: tokens that came are a grant, even if the rest of the answer is
    wrong or missing, because they cannot be requested again.

    Args:
        reply: the answer.
        secrets: the request's secrets, which are taken out of a refusal's text where the answer repeats them.
    """
    levels = _levels(reply.body)
    access_token = _first(levels, "access_token", _token)
    refresh_token = _first(levels, "refresh_token", _token)
    if access_token is not None or refresh_token is not None:
        return TokenGrant(
            access_token,
            _first(levels, "expires_in", _seconds) or ASSUMED_LIFETIME,
            refresh_token,
            _first(levels, "refresh_token_expires_in", _seconds),
            _first(levels, "scope", _scope) or "",
        )
    code = _first(levels, "code", _whole_number)
    row = _BY_NUMBER.get(code) if code is not None else None
    if row is not None:
        text = f"{row.number}: {row.description}"
        return Refusal(text, row.number, login_needed=row.name in _AGAIN, retry=row.verdict is Verdict.RETRY)
    if code:
        said = _SECRET.sub(REDACTED, redact(_first(levels, "error", _text) or "no reason given", secrets))
        return Refusal(escape(f"{code}: {said}"[:_LONGEST_TEXT]), code)
    retry = reply.status >= _SERVER_ERROR or reply.body is None
    return Refusal(f"HTTP {reply.status}: the answer is not the token endpoint's", retry=retry)


def _levels(body: bytes | None) -> list[Mapping[str, Any]]:
    """List the JSON object in an answer and those nested in it as its `data`, the outermost first."""
    try:
        # A bad byte, or a number that is too long, must not hide the tokens beside it.
        text = (body or b"").decode("utf-8", "replace").removeprefix("\ufeff")
        level = json.loads(text, parse_int=_int)
    except (ValueError, RecursionError):
        return []
    levels: list[Mapping[str, Any]] = []
    while isinstance(level, dict):
        levels.append(level)
        level = level.get("data")
    return levels


def _first(levels: Iterable[Mapping[str, Any]], name: str, read: Callable[[object], T | None]) -> T | None:
    """Find the first value of that name that can be read."""
    found = (read(level.get(name)) for level in levels)
    return next((value for value in found if value is not None), None)


def _int(digits: str) -> float:
    try:
        return int(digits)
    except ValueError:  # Python refuses integers of more than 4300 digits (sys.set_int_max_str_digits)
        return math.inf


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _token(value: object) -> str | None:
    """Read a token that a store can keep: no database takes NUL or lone surrogates."""
    text = _text(value)
    return None if text is None or "\0" in text or text != text.encode("utf-8", "ignore").decode() else text


def _scope(value: object) -> str | None:
    """Read OAuth scopes from a text or a list; entries that cannot be the name of one are left out."""
    words = value.split() if isinstance(value, str) else value if isinstance(value, list) else []
    named = [word for word in words if isinstance(word, str) and word.isascii() and word.isprintable()]
    return " ".join(named) or None


def _number(value: object) -> float | None:
    """Read a number, or a text that holds one."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _seconds(value: object) -> float | None:
    number = _number(value)
    return float(number) if number is not None and 0 < number <= _LONGEST_LIFETIME else None


def _whole_number(value: object) -> int | None:
    number = _number(value)
    return int(number) if number is not None and math.isfinite(number) else None
