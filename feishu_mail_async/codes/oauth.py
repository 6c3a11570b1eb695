"""The token endpoint's codes, which are numbered apart from the API's. Source: the OAuth endpoint's own list."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from .meanings import Verdict

__all__ = ["OAUTH", "OAuthCode"]

_RETRY, _FATAL = Verdict.RETRY, Verdict.FATAL


@dataclass(frozen=True, slots=True)
class OAuthCode:
    """A row of the token endpoint's codes, which are numbered apart from the API's.

    Attributes:
        number: the `code` of the answer's body.
        name: a name of its own.
        http_status: the HTTP status sent with it.
        error: the `error` of the body (RFC 6749, section 5.2).
        description: the meaning, in English.
        verdict: RETRY if asking once more may help, else FATAL.
    """

    number: int
    name: str
    http_status: int
    error: str
    description: str
    verdict: Verdict


_ROWS: Final = (
    OAuthCode(20002, "ClientSecretWrong", 400, "invalid_client", "the client secret is invalid", _FATAL),
    OAuthCode(
        20003, "AuthorizationCodeNotFound", 400, "invalid_grant", "the authorization code is unknown", _FATAL
    ),
    OAuthCode(
        20004, "AuthorizationCodeExpired", 400, "invalid_grant", "the authorization code has expired", _FATAL
    ),
    OAuthCode(20026, "RefreshTokenMalformed", 400, "invalid_grant", "the refresh token is invalid", _FATAL),
    OAuthCode(20037, "RefreshTokenExpired", 400, "invalid_grant", "the refresh token has expired", _FATAL),
    OAuthCode(20049, "PkceFailed", 400, "invalid_grant", "the code verifier does not match", _FATAL),
    OAuthCode(20050, "Unexpected", 500, "server_error", "an unexpected server error occurred", _RETRY),
    OAuthCode(20064, "RefreshTokenRevoked", 400, "invalid_grant", "the refresh token was revoked", _FATAL),
    OAuthCode(
        20065, "AuthorizationCodeUsed", 400, "invalid_grant", "the authorization code was used before", _FATAL
    ),
    OAuthCode(20071, "RedirectMismatch", 400, "invalid_grant", "the redirect_uri does not match", _FATAL),
    OAuthCode(20072, "Unavailable", 503, "temporarily_unavailable", "the server is unavailable", _RETRY),
    OAuthCode(20073, "RefreshTokenUsed", 400, "invalid_grant", "the refresh token was used before", _FATAL),
    OAuthCode(20074, "RefreshDisabled", 400, "invalid_grant", "refreshing is not enabled for the app", _FATAL),
)

OAUTH: Final = MappingProxyType({row.name: row for row in _ROWS})
"""Name -> row of the token endpoint's codes."""
