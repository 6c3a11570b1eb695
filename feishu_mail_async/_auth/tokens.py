"""The users of a client and their tokens: one interface for every kind of source, with a cache."""

import asyncio
import hashlib
import math
import secrets
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Final
from weakref import WeakValueDictionary

from feishu_mail_async._checks import check_text
from feishu_mail_async._clock import loop_time
from feishu_mail_async._secrecy import Hidden, forget_frames
from feishu_mail_async._tasks import being_cancelled, outcome_of
from feishu_mail_async.errors import ClientClosed, LoginRequired, NotSent, UnknownUser

from .flight import SingleFlight
from .sources import (
    NotAsync,
    TokenSource,
    UserTokens,
    check_takes_user,
    check_token,
    good_token,
    label,
    number_of,
    to_await,
)

__all__ = ["Account", "Tokens", "fingerprint", "tokens_of"]

_FRESH: Final = 60.0
"""Seconds for which a fetched token is taken again without asking its source."""
_USERS_KEPT: Final = 10_000
"""Users whose tokens are remembered though none of their calls waits, at most."""
_SALT: Final = secrets.token_bytes(16)
"""Key of the digests of tokens that name unnamed users; new in each process."""
_UNNAMED: Final = "(unnamed)"


def fingerprint(token: str) -> str:
    """Return the token's fingerprint: it identifies the token in every process, and does not reveal it."""
    return hashlib.blake2b(token.encode(), person=b"feishu-mail", digest_size=16).hexdigest()


class Account:
    """A user of a client, and the token fetched last. A call holds its account from the beginning to the end.

    Attributes:
        user: the user; None: the client's unnamed one.
        key: the name under which the user's calls go one at a time, also across clients.
        token: the token; None before there is one.
        fresh_until: until when, in the loop's time, `Tokens.ready` has nothing to wait for.
    """

    __slots__ = ("__weakref__", "fresh_until", "key", "token", "user")

    def __init__(self, user: str | None, key: str, fresh_until: float) -> None:
        self.user = user
        self.key = key
        self.token: Hidden[str] | None = None
        self.fresh_until = fresh_until


def _nobody(_: str) -> None:
    pass


class Tokens(ABC):
    """The users' tokens.

    `ready` is awaited before a turn is requested; `current` never waits, so that no permit is held while a token
    is fetched.

    Two clients with one unnamed user each may stand for two people. Such a user's key is a digest of the token,
    salted anew in each process, or the number of the token source. A ledger outlives both: there every unnamed
    user of an app is the same.

    Args:
        unnamed: the key of the unnamed user.
        fresh_until: until when a new account has its token at hand, in the loop's time.

    Attributes:
        on_change: called with the key of each user who has a new token.
    """

    def __init__(self, unnamed: str, fresh_until: float) -> None:
        self.on_change: Callable[[str], object] = _nobody
        self._unnamed = unnamed
        self._fresh_until = fresh_until
        # An account is known for as long as a call holds it; of the others only the latest are kept.
        self._accounts: WeakValueDictionary[str | None, Account] = WeakValueDictionary()
        self._recent: deque[Account] = deque(maxlen=_USERS_KEPT)

    def account(self, user: str | None) -> Account:
        """Return the account of the user that is meant.

        Raises:
            UnknownUser: there is no such user; it lists those that are known.
        """
        return self._accounts.get(user) or self._new_account(user)

    def _new_account(self, user: str | None) -> Account:
        account = Account(user, self._unnamed if user is None else user, self._fresh_until)
        self._accounts[user] = account
        self._recent.append(account)
        return account

    @abstractmethod
    def current(self, account: Account) -> Hidden[str]:
        """Return the token to use now, without waiting; `ready` has been awaited before.

        Raises:
            NotSent: there is none, or it cannot be one.
        """

    @abstractmethod
    async def ready(self, account: Account) -> None:
        """Wait until there is a token; one fetched within the last minute is taken again.

        Raises:
            NotSent: the source failed or gave something that cannot be a token; its exception is the cause.
        """

    @abstractmethod
    async def renew(self, account: Account, refused: Hidden[str]) -> bool:
        """Replace a refused token; return whether there is another one.

        Raises:
            NotSent: as for `ready`.
        """

    def outdate(self, account: Account) -> None:
        """Make the next `ready` ask the source again."""
        account.fresh_until = min(account.fresh_until, self._fresh_until)

    @abstractmethod
    async def close(self) -> None:
        """Cancel the fetches under way."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


def tokens_of(source: UserTokens, *, lasting: bool = False) -> Tokens:
    """Return the tokens of a source.

    Args:
        source: the source.
        lasting: whether user keys are stored in a ledger, so that they must be the same in every process.

    Raises:
        TypeError, ValueError: `source` is none of the kinds, or a token in it cannot be one.
    """
    if isinstance(source, type):
        raise TypeError(f"tokens: give an instance of {source.__name__}, not the class itself")
    if isinstance(source, str):
        digest = hashlib.blake2b(check_token(source, label(None)).encode(), key=_SALT, digest_size=4).hexdigest()
        return _FixedTokens({None: source}, _UNNAMED if lasting else f"(token {digest})")
    if isinstance(source, Mapping):
        if not source:
            raise ValueError("tokens: the mapping is empty; give at least one user and token")
        for user, token in source.items():
            check_token(token, label(check_text("tokens: a user's name", user)))
        return _FixedTokens(source, _UNNAMED)  # type: ignore[arg-type]  # str keys serve where str | None may be asked
    fetch: Callable[[str | None], Awaitable[str]]
    if isinstance(source, TokenSource):
        fetch, refused, name = source.token, source.refused, "token"
    elif callable(source):
        fetch, refused, name = source, None, "the callable"
    else:
        raise TypeError(
            f"tokens: give a string, a mapping of users to tokens, an async callable or a TokenSource, "
            f"not {type(source).__name__}"
        )
    check_takes_user(fetch, name)
    unnamed = _UNNAMED if lasting else f"(token source {number_of(source)})"
    return _FetchedTokens(fetch, refused, name, unnamed)


class _FixedTokens(Tokens):
    """Tokens of a mapping, which are always at hand. It is the caller's own, and may change at any time."""

    def __init__(self, given: Mapping[str | None, str], unnamed: str) -> None:
        super().__init__(unnamed, math.inf)
        self._given = given

    def account(self, user: str | None) -> Account:
        user = user if user in self._given else self._meant(user)
        return self._accounts.get(user) or self._new_account(user)

    def _meant(self, user: str | None) -> str:
        """Return the only user, if none was named."""
        known = tuple(sorted(name for name in self._given if name is not None))
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

    def current(self, account: Account) -> Hidden[str]:
        try:
            token = self._given[account.user]
        except Exception as error:
            raise _failed(account.user, error) from error
        if account.token is None or account.token.value is not token:
            account.token = Hidden(good_token(token, account.user))
        return account.token

    async def ready(self, account: Account) -> None:
        self.current(account)

    async def renew(self, account: Account, refused: Hidden[str]) -> bool:
        if self.current(account).value == refused.value:
            return False
        self.on_change(account.key)
        return True

    async def close(self) -> None:
        pass  # nothing is ever under way


class _FetchedTokens(Tokens):
    """Tokens that a source is asked for, one user at a time.

    Args:
        fetch: returns a token of a user.
        refused: is told of a refused token; None: the source does not want to know.
        name: the name of `fetch` in messages.
        unnamed: as in the base class.
    """

    def __init__(
        self,
        fetch: Callable[[str | None], Awaitable[str]],
        refused: Callable[[str | None, str], Awaitable[None]] | None,
        name: str,
        unnamed: str,
    ) -> None:
        super().__init__(unnamed, -math.inf)
        self._fetch = fetch
        self._refused = refused
        self._name = name
        self._closed = False
        self._flights: SingleFlight[Account, Hidden[str]] = SingleFlight("feishu-mail-token")

    def current(self, account: Account) -> Hidden[str]:
        """Return the token to use now.

        A source whose token is more than a minute old is asked again in the background: so it can renew a token
        before it expires, also for drafts that have waited for hours.
        """
        if account.token is None:
            raise NotSent(f"tokens: there is none for {label(account.user)}")
        if account.fresh_until <= loop_time():
            self._flights.begin(account, lambda: self._ask(account))
        return account.token

    async def ready(self, account: Account) -> None:
        if account.fresh_until <= loop_time():
            await self._shared(self._flights.begin(account, lambda: self._ask(account)))

    async def renew(self, account: Account, refused: Hidden[str]) -> bool:
        # A fetch under way may have been requested before the refusal: then it may bring the refused token again.
        flight = self._flights.tasks.get(account)
        token = self.current(account) if flight is None else await self._shared(flight)
        if token.value == refused.value:
            token = await self._shared(self._flights.begin(account, lambda: self._replace(account, refused)))
        if token.value == refused.value:
            self.outdate(account)  # the next draft fetches anew
            return False
        return True

    async def _shared(self, flight: asyncio.Task[Hidden[str]]) -> Hidden[str]:
        """Wait for a fetch that others may wait for, too. Cancelling one waiter must not cancel the fetch.

        A refresh that is cancelled between the server's answer and the save may lose the login.
        """
        return await outcome_of(flight, self._broken_off)

    def _broken_off(self) -> NotSent:
        """Return the error of a fetch that was cancelled."""
        if self._closed:
            return ClientClosed("the client was closed while a token was fetched; nothing was sent")
        return NotSent("tokens: fetching one was cancelled, with tasks of the event loop; nothing was sent")

    async def _replace(self, account: Account, refused: Hidden[str]) -> Hidden[str]:
        """Report a token to the source as refused, and fetch the next one."""
        failed = None
        if self._refused is not None:
            try:
                await to_await(self._refused(account.user, refused.value), "refused")
            except Exception as error:  # noqa: BLE001 - of the caller's own source
                failed = _failed(account.user, error)
                failed.__cause__ = error
        if failed is not None:
            raise forget_frames(failed)
        return await self._ask(account)

    async def _ask(self, account: Account) -> Hidden[str]:
        """Fetch a token and keep it, hidden: asyncio shows a task's result, and an error shows its frames."""
        try:
            return self._keep(account, await self._fetched(account.user))
        except NotSent as error:
            failed = forget_frames(error)
        raise failed

    async def _fetched(self, user: str | None) -> str:
        try:
            return await to_await(self._fetch(user), self._name)
        except LoginRequired:
            raise
        except asyncio.CancelledError as error:
            if being_cancelled():
                raise
            raise _failed(user, error) from error  # a task inside the source was cancelled, and not this one
        except Exception as error:
            raise _failed(user, error) from error

    def _keep(self, account: Account, token: str) -> Hidden[str]:
        before, account.token = account.token, Hidden(good_token(token, account.user))
        account.fresh_until = loop_time() + _FRESH
        if before is not None and before.value != token:
            self.on_change(account.key)
        return account.token

    async def close(self) -> None:
        self._closed = True
        tasks = list(self._flights.tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _failed(user: str | None, error: BaseException) -> NotSent:
    # The source's own message may quote a token: it stays in the cause, and is not repeated here.
    said = error if isinstance(error, NotAsync) else type(error).__name__
    return NotSent(f"tokens: there is none for {label(user)} ({said})")
