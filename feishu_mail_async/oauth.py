"""How a user lets the app act, and how a login is renewed: what goes to the server and what its answers mean.

Pure: no I/O, no clock. Source: the platform's "get user_access_token", "refresh user_access_token" and
"authorization code" pages, which are OAuth 2.0 (RFC 6749) with PKCE (RFC 7636).
"""

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from .codes import OAUTH, Verdict
from .protocol import FEISHU, LARK, Reply

__all__ = [
    "SCOPES",
    "TOKEN_PATH",
    "Grant",
    "Login",
    "Refusal",
    "WrongState",
    "code_request",
    "read_grant",
    "refresh_request",
]

TOKEN_PATH: Final = "/open-apis/authen/v2/oauth/token"  # noqa: S105 - a path, not a secret
SCOPES: Final = (
    "mail:user_mailbox.message:send",
    "mail:user_mailbox.message:readonly",
    "mail:user_mailbox.message:modify",
    "offline_access",
)
"""For sending, listing and creating drafts, and for a refresh token."""

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
_BY_NUMBER: Final = {row.number: row for row in OAUTH.values()}
_SERVER_ERROR: Final = 500
_LONGEST_TEXT: Final = 200


@dataclass(frozen=True, slots=True)
class Grant:
    """What the token endpoint granted. No token is in its repr.

    Attributes:
        access_token: the user_access_token.
        expires_in: seconds it lives.
        refresh_token: brings the next one, once; None without offline_access.
        refresh_expires_in: seconds that one lives; None if the server did not say.
        scope: the scopes granted, with spaces between them.
    """

    access_token: str = field(repr=False)
    expires_in: float
    refresh_token: str | None = field(default=None, repr=False)
    refresh_expires_in: float | None = None
    scope: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the token endpoint granted nothing.

    Attributes:
        text: what it said, without a token.
        code: its code; None where the answer is not its own.
        again: the user must authorize again.
        retry: asking once more may help.
    """

    text: str
    code: int | None = None
    again: bool = False
    retry: bool = False


class WrongState(ValueError):
    """An answer belongs to another login, or to none."""


@dataclass(frozen=True, slots=True)
class Login:
    """One user's way to the page where they agree, and back. The verifier is not in its repr.

    Attributes:
        redirect_uri: where the page sends the user back to.
        state: comes back with the user: it proves that the answer belongs to this login.
        verifier: proves to the token endpoint that the code was asked for here (PKCE).
    """

    redirect_uri: str
    state: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    verifier: str = field(default_factory=lambda: secrets.token_urlsafe(48), repr=False)

    def url(self, base_url: str, app_id: str, scopes: Iterable[str] = SCOPES) -> str:
        """The page's address.

        Args:
            base_url: the API's host; a host of neither Feishu nor Lark has the page itself.
            app_id: the app's id.
            scopes: what the app asks for.
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
        """The authorization code in what came back.

        Args:
            answer: the address the user was sent back to, or its query.

        Raises:
            WrongState: it belongs to another login.
            ValueError: the user refused, or there is no code in it.
        """
        query = urlsplit(answer).query if "?" in answer else answer
        told = dict(parse_qsl(query))
        if not hmac.compare_digest(told.get("state", "").encode(), self.state.encode()):
            raise WrongState("the answer does not belong to this login: its state is another one; start again")
        if "error" in told:
            refused = told["error"] == "access_denied"
            raise ValueError(
                "the user refused" if refused else f"the page answered {told['error'][:_LONGEST_TEXT]}"
            )
        if not told.get("code"):
            raise ValueError("there is no code in the answer")
        return told["code"]


def code_request(app_id: str, app_secret: str, code: str, login: Login) -> dict[str, str]:
    """The body that turns an authorization code into tokens."""
    return {
        "grant_type": "authorization_code",
        "client_id": app_id,
        "client_secret": app_secret,
        "code": code,
        "redirect_uri": login.redirect_uri,
        "code_verifier": login.verifier,
    }


def refresh_request(app_id: str, app_secret: str, refresh_token: str) -> dict[str, str]:
    """The body that turns a refresh token into the next tokens."""
    return {
        "grant_type": "refresh_token",
        "client_id": app_id,
        "client_secret": app_secret,
        "refresh_token": refresh_token,
    }


def read_grant(reply: Reply) -> Grant | Refusal:
    """What an answer of the token endpoint means."""
    told = _parse(reply.body)
    code = told.get("code")
    if code == 0 and isinstance(told.get("access_token"), str) and told["access_token"]:
        expires_in = _seconds(told.get("expires_in"))
        if expires_in is not None:
            return Grant(
                told["access_token"],
                expires_in,
                _text(told.get("refresh_token")),
                _seconds(told.get("refresh_token_expires_in")),
                _text(told.get("scope")) or "",
            )
        return Refusal("the answer does not say how long the token lives", retry=False)
    row = _BY_NUMBER.get(code) if isinstance(code, int) else None
    if row is not None:
        text = f"{row.number}: {row.description}"
        return Refusal(text, row.number, again=row.name in _AGAIN, retry=row.verdict is Verdict.RETRY)
    if isinstance(code, int) and code:
        return Refusal(f"{code}: {_text(told.get('error')) or 'no reason given'}"[:_LONGEST_TEXT], code)
    retry = reply.status >= _SERVER_ERROR or reply.body is None
    return Refusal(f"HTTP {reply.status}: the answer is not the token endpoint's", retry=retry)


def _parse(body: bytes | None) -> Mapping[str, Any]:
    try:
        parsed = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _seconds(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:  # noqa: PLR2004
        return None
    return float(value)
