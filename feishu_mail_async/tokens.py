"""Where a user_access_token comes from."""

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol, runtime_checkable

from .errors import ClientClosed, NotSent, UnknownUser
from .model import check_text

__all__ = ["TokenSource", "Tokens", "UserTokens"]

_LONGEST: Final = 4096
_FRESH: Final = 60.0
_SALT: Final = secrets.token_bytes(16)


@runtime_checkable
class TokenSource(Protocol):
    """Anything that hands out user_access_tokens, one user at a time."""

    async def token(self, user: str | None) -> str:
        """A token for this user that is good now (`user` is None where the caller named none)."""

    async def refused(self, user: str | None, token: str) -> None:
        """The server refused this token: the next call of `token` should return another one."""


UserTokens = str | Mapping[str, str] | Callable[[str | None], Awaitable[str]] | TokenSource
"""What `FeishuMailClient(tokens)` takes."""


def _check(token: object, whose: str) -> str:
    """Return `token` if it can stand in a header. What is said of it never quotes it."""
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
    return token


def _good(token: object, user: str | None) -> str:
    try:
        return _check(token, _label(user))
    except (TypeError, ValueError) as error:
        raise NotSent(str(error)) from error


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _label(user: str | None) -> str:
    return "the only user" if user is None else f"user {user!r}"


class Tokens:
    """One face for every kind of token source.

    `ready` is awaited before a turn is asked for; `current` never waits, so that no permit is held while a
    token is fetched.

    Raises:
        TypeError, ValueError: `source` is none of the kinds, or a token in it cannot be one.
    """

    def __init__(self, source: UserTokens) -> None:
        self._fixed: Mapping[str | None, str] | None = None
        self._fetch: Callable[[str | None], Awaitable[str]] | None = None
        self._refused: Callable[[str | None, str], Awaitable[None]] | None = None
        self._cache: dict[str | None, tuple[str, float]] = {}
        self._fetching: dict[str | None, asyncio.Task[str]] = {}
        self._only: str | None = None
        if isinstance(source, str):
            self._fixed = {None: _check(source, _label(None))}
        elif isinstance(source, Mapping):
            if not source:
                raise ValueError("tokens: the mapping is empty; give at least one user and token")
            for user, token in source.items():
                _check(token, _label(check_text("tokens: a user's name", user)))
            self._fixed = source  # type: ignore[assignment]  # str keys serve where str | None may be asked
        elif isinstance(source, TokenSource):
            self._fetch, self._refused = source.token, source.refused
        elif callable(source):
            self._fetch = source
        else:
            raise TypeError(
                f"tokens: give a string, a mapping of users to tokens, an async callable or a TokenSource, "
                f"not {type(source).__name__}"
            )

    def resolve(self, user: str | None) -> str | None:
        """The user that is meant, or UnknownUser, which lists those that are known."""
        if self._fixed is None:
            return user
        if user in self._fixed:
            return user
        known = tuple(sorted(name for name in self._fixed if name is not None))
        if user is None and len(known) == 1:
            return known[0]
        if not known:
            raise UnknownUser(
                f"user: {user!r} is not known; this client has one unnamed user. Leave user out, or give tokens "
                f"as a mapping of users to tokens"
            )
        listed = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")  # noqa: PLR2004
        what = "name one of them" if user is None else f"{user!r} is not one of them"
        raise UnknownUser(f"user: this client has tokens for {listed}; {what}", users=known)

    def key(self, user: str | None) -> str:
        """The name under which a (resolved) user's calls go one at a time, also across clients.

        Two clients with one unnamed token each may stand for two people, so an unnamed user goes by a digest
        of the token, salted anew in each process.
        """
        if user is not None:
            return user
        if self._fixed is None:
            return "(the only user)"
        return f"(token {self.mark(self._fixed[None])[:8]})"

    @staticmethod
    def mark(token: str) -> str:
        """What identifies a token within this process without being it."""
        return hashlib.blake2b(token.encode(), key=_SALT, digest_size=16).hexdigest()

    def current(self, user: str | None) -> str:
        """The token to use now, without waiting; `ready` has been awaited before.

        Raises:
            NotSent: the mapping has lost its token, or holds one that cannot be one.
        """
        if self._fixed is None:
            return self._cache[user][0]
        try:
            # A mapping is the caller's own, and may have changed since it was given.
            token = self._fixed[user]
        except Exception as error:
            raise self._failed(user, error) from error
        return _good(token, user)

    async def ready(self, user: str | None, *, anew: bool = False) -> str:
        """A token for this user; one fetched within the last minute is taken again unless `anew`.

        Raises:
            NotSent: the source failed or gave what cannot be a token; its exception is the cause.
        """
        if self._fetch is None:
            return self.current(user)
        known = self._cache.get(user)
        if known is not None and not anew and asyncio.get_running_loop().time() - known[1] < _FRESH:
            return known[0]
        task = self._fetching.get(user)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._ask(user, self._fetch))
            self._fetching[user] = task
            task.add_done_callback(lambda done: self._fetched(user, done))
        try:
            # Shielded: several drafts may wait for it, and one of them giving up must not fail the others.
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if _being_cancelled():
                raise
            raise ClientClosed("the client was closed while a token was fetched; nothing was sent") from None

    async def renew(self, user: str | None, refused: str) -> str | None:
        """Another token in place of a refused one; None if there is none.

        Raises:
            NotSent: as for `ready`.
        """
        if self._refused is not None and self.current(user) == refused:
            try:
                await self._refused(user, refused)
            except Exception as error:
                raise self._failed(user, error) from error
        token = await self.ready(user, anew=True)
        return None if token == refused else token

    async def _ask(self, user: str | None, fetch: Callable[[str | None], Awaitable[str]]) -> str:
        try:
            token = await fetch(user)
        except asyncio.CancelledError as error:
            if _being_cancelled():
                raise
            raise self._failed(user, error) from error  # something within the source was cancelled, not we
        except Exception as error:
            raise self._failed(user, error) from error
        self._cache[user] = _good(token, user), asyncio.get_running_loop().time()
        return token

    def _fetched(self, user: str | None, task: asyncio.Task[str]) -> None:
        del self._fetching[user]
        if not task.cancelled():
            task.exception()  # looked at, in case nobody waits for it any more

    @staticmethod
    def _failed(user: str | None, error: BaseException) -> NotSent:
        # What the source says of its failure may quote a token: it is the cause, and not repeated.
        return NotSent(f"tokens: there is none for {_label(user)} ({type(error).__name__})")

    async def close(self) -> None:
        """End what is still being fetched."""
        tasks = list(self._fetching.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"
