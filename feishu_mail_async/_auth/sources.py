"""The kinds of token sources that a client accepts, and the checks of what they give."""

import inspect
import itertools
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol, TypeVar, runtime_checkable
from weakref import WeakKeyDictionary

from feishu_mail_async.errors import NotSent

__all__ = [
    "NotAsync",
    "TokenSource",
    "UserTokens",
    "check_takes_user",
    "check_token",
    "good_token",
    "label",
    "number_of",
    "to_await",
]

T = TypeVar("T")

_LONGEST: Final = 4096
"""Characters of a user_access_token, at most."""
_OTHER_KINDS: Final = {
    "t-": "a tenant_access_token",
    "a-": "an app_access_token",
    "ur-": "a refresh token",
    "cli_": "an app's id",
}
"""Prefixes of other credentials that are easily taken for a user_access_token (`u-`, or a JWT)."""


@runtime_checkable
class TokenSource(Protocol):
    """A source of user_access_tokens, one user at a time."""

    async def token(self, user: str | None) -> str:
        """Return a token for this user that is good now.

        Args:
            user: the user; None where the caller named none.
        """

    async def refused(self, user: str | None, token: str) -> None:
        """Note that the server refused this token: the next call of `token` should return another one.

        Args:
            user: the user; None where the caller named none.
            token: the refused token.
        """


UserTokens = str | Mapping[str, str] | Callable[[str | None], Awaitable[str]] | TokenSource
"""The token sources that `FeishuMailClient(tokens)` accepts."""


def check_token(token: object, whose: str) -> str:
    """Return `token` if it can stand in a header; otherwise raise an error, which never quotes it.

    Args:
        token: the token.
        whose: the user, as a message names it.

    Raises:
        TypeError: it is no string.
        ValueError: it is empty, too long, has a prefix or characters that no user_access_token has.
    """
    name = f"tokens: the token of {whose}"
    if not isinstance(token, str):
        raise TypeError(f"{name} is {type(token).__name__}; give a string")
    if not token.strip():
        raise ValueError(f"{name} is empty; give a user_access_token")
    if len(token) > _LONGEST:
        raise ValueError(f"{name} has {len(token)} characters; a user_access_token has at most {_LONGEST}")
    if token.lower().startswith("bearer "):
        raise ValueError(f"{name} begins with 'Bearer'; give the token alone")
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ValueError(f"{name} holds spaces or characters that no token has; give it as it was issued")
    kind = next((kind for start, kind in _OTHER_KINDS.items() if token.startswith(start)), None)
    if kind is not None:
        raise ValueError(f"{name} is {kind}; give a user_access_token, which a user's login brings")
    return token


class NotAsync(TypeError):
    """A result that a source returned at once and that cannot be awaited."""


def to_await(result: Awaitable[T], name: str) -> Awaitable[T]:
    """Return the result of a source if it can be awaited; for a lambda this is not known before the call."""
    if inspect.isawaitable(result):
        return result
    raise NotAsync(f"{name} returned {type(result).__name__}, which cannot be awaited; give an async callable")


def check_takes_user(source: Callable[..., object], name: str) -> None:
    """Raise TypeError for a callable that cannot take the user, or never returns something to await."""
    if inspect.isgeneratorfunction(source) or inspect.isasyncgenfunction(source):
        raise TypeError(f"tokens: {name} is a generator; give an async callable that returns a token")
    try:
        signature = inspect.signature(source)
    except (TypeError, ValueError):
        return  # some built-ins have no signature; the first call will show
    try:
        signature.bind(None)
    except TypeError:
        raise TypeError(f"tokens: {name} must take the user, and nothing else: async def token(user)") from None


_numbers: Final = itertools.count(1)
_known: Final[WeakKeyDictionary[object, int]] = WeakKeyDictionary()


def number_of(source: object) -> int:
    """Return a number for a token source, the same for as long as it lives."""
    # A bound method is a new object at each access; the object it belongs to stays the same.
    anchor = getattr(source, "__self__", source)
    try:
        return _known.setdefault(anchor, next(_numbers))
    except TypeError:  # not hashable, or no weak references: then each client's source counts as another one
        return next(_numbers)


def good_token(token: object, user: str | None) -> str:
    """Return `token` if it can stand in a header.

    Args:
        token: what a source gave.
        user: the user it is for.

    Raises:
        NotSent: it cannot.
    """
    try:
        return check_token(token, label(user))
    except (TypeError, ValueError) as error:
        raise NotSent(str(error)) from error


def label(user: str | None) -> str:
    """Return the words for a user in a message."""
    return "the only user" if user is None else f"user {user!r}"
