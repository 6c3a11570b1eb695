"""Token sources, and the cache in front of them."""

import asyncio
import hashlib
import inspect
import itertools
import math
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Final, Protocol, TypeVar, runtime_checkable
from weakref import WeakKeyDictionary, WeakValueDictionary

from feishu_mail_async._secrecy import Hidden, forget_frames
from feishu_mail_async._tasks import being_cancelled, outcome_of
from feishu_mail_async.errors import ClientClosed, LoginRequired, NotSent, UnknownUser
from feishu_mail_async.model import check_text

from .flight import SingleFlight

__all__ = ["TokenSource", "Tokens", "UserTokens", "check_token"]

T = TypeVar("T")

_LONGEST: Final = 4096
"""Characters of a user_access_token, at most."""
_FRESH: Final = 60.0
"""Seconds for which a fetched token is taken again without asking its source."""
_USERS_KEPT: Final = 10_000
"""Users whose tokens are remembered though none of their calls waits, at most."""
_SALT: Final = secrets.token_bytes(16)
"""Key of the digests of tokens that name unnamed users; new in each process."""
_UNNAMED: Final = "(unnamed)"
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


class _NotAsync(TypeError):
    """A result that a source returned at once and that cannot be awaited."""


def _to_await(result: Awaitable[T], name: str) -> Awaitable[T]:
    """Return the result of a source if it can be awaited; for a lambda this is not known before the call."""
    if inspect.isawaitable(result):
        return result
    raise _NotAsync(f"{name} returned {type(result).__name__}, which cannot be awaited; give an async callable")


def _check_takes_user(source: Callable[..., object], name: str) -> None:
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


def _number(source: object) -> int:
    """Return a number for a token source, the same for as long as it lives."""
    # A bound method is a new object at each access; the object it belongs to stays the same.
    anchor = getattr(source, "__self__", source)
    try:
        return _known.setdefault(anchor, next(_numbers))
    except TypeError:  # not hashable, or no weak references: then each client's source counts as another one
        return next(_numbers)


def _good(token: object, user: str | None) -> str:
    try:
        return check_token(token, _label(user))
    except (TypeError, ValueError) as error:
        raise NotSent(str(error)) from error


def _nobody(_: str) -> None:
    pass


def _label(user: str | None) -> str:
    return "the only user" if user is None else f"user {user!r}"


class _Known:
    """The token of one user that was fetched last. It is known for as long as somebody holds this object.

    Attributes:
        token: the token; None before there is one.
        fetched: when it was fetched, in the loop's time.
    """

    __slots__ = ("__weakref__", "fetched", "token")

    def __init__(self) -> None:
        self.token: str | None = None
        self.fetched = -math.inf


class Tokens:
    """One interface for every kind of token source.

    `ready` is awaited before a turn is requested; `current` never waits, so that no permit is held while a token
    is fetched.

    Args:
        source: the source.
        lasting: whether user keys are stored in a ledger, so that they must be the same in every process.

    Attributes:
        lasting: as given.
        on_change: called with the key of each user who has a new token.

    Raises:
        TypeError, ValueError: `source` is none of the kinds, or a token in it cannot be one.
    """

    def __init__(self, source: UserTokens, *, lasting: bool = False) -> None:
        self.lasting = lasting
        self.on_change: Callable[[str], object] = _nobody
        self._fixed: Mapping[str | None, str] | None = None
        self._fetch: Callable[[str | None], Awaitable[str]] | None = None
        self._refused: Callable[[str | None, str], Awaitable[None]] | None = None
        self._unnamed = _UNNAMED
        self._closed = False
        self._looked_at: dict[str | None, str] = {}  # tokens of a mapping that have been checked
        self._known: WeakValueDictionary[str | None, _Known] = WeakValueDictionary()
        self._recent: deque[_Known] = deque(maxlen=_USERS_KEPT)
        self._fetching: SingleFlight[str | None, Hidden[str]] = SingleFlight("feishu-mail-token")
        self._name = "the callable"
        if isinstance(source, type):
            raise TypeError(f"tokens: give an instance of {source.__name__}, not the class itself")
        if isinstance(source, str):
            self._fixed = {None: check_token(source, _label(None))}
            digest = hashlib.blake2b(source.encode(), key=_SALT, digest_size=4).hexdigest()
            self._unnamed = f"(token {digest})"
        elif isinstance(source, Mapping):
            if not source:
                raise ValueError("tokens: the mapping is empty; give at least one user and token")
            for user, token in source.items():
                check_token(token, _label(check_text("tokens: a user's name", user)))
            self._fixed = source  # type: ignore[assignment]  # str keys serve where str | None may be asked
        elif isinstance(source, TokenSource):
            self._fetch, self._refused, self._name = source.token, source.refused, "token"
            _check_takes_user(self._fetch, self._name)
            self._unnamed = f"(token source {_number(source)})"
        elif callable(source):
            self._fetch = source
            _check_takes_user(source, self._name)
            self._unnamed = f"(token source {_number(source)})"
        else:
            raise TypeError(
                f"tokens: give a string, a mapping of users to tokens, an async callable or a TokenSource, "
                f"not {type(source).__name__}"
            )
        if lasting:
            self._unnamed = _UNNAMED

    def resolve(self, user: str | None) -> str | None:
        """Return the user that is meant; UnknownUser lists those that are known."""
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
        """Return the name under which a (resolved) user's calls go one at a time, also across clients.

        Two clients with one unnamed user each may stand for two people. Such a user's key is a digest of the
        token, salted anew in each process, or the number of the token source. A ledger outlives both: there every
        unnamed user of an app is the same.
        """
        return self._unnamed if user is None else user

    @staticmethod
    def fingerprint(token: str) -> str:
        """Return the token's fingerprint: it identifies the token in every process, and does not reveal it."""
        return hashlib.blake2b(token.encode(), person=b"feishu-mail", digest_size=16).hexdigest()

    def hold(self, user: str | None) -> object:
        """Return an object that a call holds as long as it waits: until then its user's token is not forgotten."""
        if self._fetch is None:
            return None
        return self._of(user)

    def _of(self, user: str | None) -> _Known:
        known = self._known.get(user)
        if known is None:
            known = self._known[user] = _Known()
        return known

    def current(self, user: str | None) -> str:
        """Return the token to use now, without waiting; `ready` has been awaited before.

        A source whose token is more than a minute old is asked again in the background: so it can renew a token
        before it expires, also for drafts that have waited for hours.

        Raises:
            NotSent: the mapping has lost its token, or holds one that cannot be one.
        """
        if self._fixed is None:
            known = self._known.get(user)
            if known is None or known.token is None:
                raise NotSent(f"tokens: there is none for {_label(user)}")
            if self._fetch is not None and not self.at_hand(user):
                self._begin(user, self._fetch)
            return known.token
        try:
            # A mapping is the caller's own, and may have changed since it was given.
            token = self._fixed[user]
        except Exception as error:
            raise self._failed(user, error) from error
        if self._looked_at.get(user) is not token:
            if len(self._looked_at) > _USERS_KEPT:
                self._looked_at.clear()
            self._looked_at[user] = _good(token, user)
        return token

    def at_hand(self, user: str | None) -> bool:
        """Return whether `ready` has nothing to wait for."""
        if self._fetch is None:
            return True
        known = self._known.get(user)
        return known is not None and asyncio.get_running_loop().time() - known.fetched < _FRESH

    def outdate(self, user: str | None) -> None:
        """Make the next `ready` ask the source again."""
        if user in self._known:
            self._known[user].fetched = -math.inf

    async def ready(self, user: str | None) -> str:
        """Return a token for this user; one fetched within the last minute is taken again.

        Raises:
            NotSent: the source failed or gave something that cannot be a token; its exception is the cause.
        """
        if self._fetch is None or self.at_hand(user):
            return self.current(user)
        return await self._shared(self._begin(user, self._fetch))

    async def renew(self, user: str | None, refused: str) -> str | None:
        """Return another token in place of a refused one; None if there is none.

        Raises:
            NotSent: as for `ready`.
        """
        fetch = self._fetch
        if fetch is None:
            token = self.current(user)
            if token == refused:
                return None
            self.on_change(self.key(user))
            return token
        # A fetch under way may have been requested before the refusal: then it may bring the refused token again.
        task = self._fetching.tasks.get(user)
        token = await self._shared(task) if task is not None else self.current(user)
        if token == refused:
            renewal = self._fetching.begin(user, lambda: self._hidden(self._replace(user, refused, fetch)))
            token = await self._shared(renewal)
        if token == refused:
            self.outdate(user)  # the next draft fetches anew
            return None
        return token

    def _begin(self, user: str | None, fetch: Callable[[str | None], Awaitable[str]]) -> asyncio.Task[Hidden[str]]:
        return self._fetching.begin(user, lambda: self._hidden(self._ask(user, fetch)))

    @staticmethod
    async def _hidden(fetch: Coroutine[None, None, str]) -> Hidden[str]:
        """Fetch a token, hidden: asyncio shows the result of a task in its repr, and an error shows its frames."""
        try:
            return Hidden(await fetch)
        except NotSent as error:
            failed = forget_frames(error)
        raise failed

    async def _shared(self, task: asyncio.Task[Hidden[str]]) -> str:
        """Wait for a fetch that others may wait for, too. Cancelling one waiter must not cancel the fetch.

        A refresh that is cancelled between the server's answer and the save may lose the login.
        """
        return (await outcome_of(task, self._broken_off)).value

    def _broken_off(self) -> NotSent:
        """Return the error of a fetch that was cancelled."""
        if self._closed:
            return ClientClosed("the client was closed while a token was fetched; nothing was sent")
        return NotSent("tokens: fetching one was cancelled, with tasks of the event loop; nothing was sent")

    async def _replace(self, user: str | None, refused: str, fetch: Callable[[str | None], Awaitable[str]]) -> str:
        """Report a token to the source as refused, and fetch the next one."""
        if self._refused is not None:
            try:
                await _to_await(self._refused(user, refused), "refused")
            except Exception as error:
                raise self._failed(user, error) from error
        return await self._ask(user, fetch)

    async def _ask(self, user: str | None, fetch: Callable[[str | None], Awaitable[str]]) -> str:
        """Ask the source for a token, and remember it."""
        try:
            token = await _to_await(fetch(user), self._name)
        except LoginRequired:
            raise
        except asyncio.CancelledError as error:
            if being_cancelled():
                raise
            raise self._failed(user, error) from error  # a task inside the source was cancelled, and not this one
        except Exception as error:
            raise self._failed(user, error) from error
        known = self._of(user)
        before, known.token = known.token, _good(token, user)
        known.fetched = asyncio.get_running_loop().time()
        if before is None:
            self._recent.append(known)
        elif before != token:
            self.on_change(self.key(user))
        return token

    @staticmethod
    def _failed(user: str | None, error: BaseException) -> NotSent:
        # The source's own message may quote a token: it stays in the cause, and is not repeated here.
        said = error if isinstance(error, _NotAsync) else type(error).__name__
        return NotSent(f"tokens: there is none for {_label(user)} ({said})")

    async def close(self) -> None:
        """Cancel the fetches under way."""
        self._closed = True
        tasks = list(self._fetching.tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"
