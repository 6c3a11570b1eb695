"""The face: checks what it is given, and wires the rooms together."""

import asyncio
import itertools
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Any, Final, Self
from weakref import WeakSet

import aiohttp

from ._api.protocol import FEISHU, check_base_url
from ._auth.tokens import Tokens, UserTokens
from ._calls.bulk import BulkRun, DraftSource
from ._calls.sending import Sender
from ._engine import Engine, engine_of, forget_engine, is_open
from ._forks import NOT_THIS_CLIENT, Origin
from ._scheduling.lanes import mailbox_key
from ._scheduling.scheduler import Snapshot
from ._secrecy import Hidden
from ._tasks import carry_through, start_task
from ._transport import Transport
from .errors import BadReply, ClientClosed, UnknownUser
from .events import Event, EventReader, Subscription
from .ledger import Ledger, Record, check_url
from .ledger.opening import StoringLedger
from .model import (
    Draft,
    Priority,
    RateLimit,
    RetryPolicy,
    SendResult,
    check_count,
    check_id,
    check_number,
    check_text,
)

__all__ = ["FeishuMailClient"]


_CLOSED: Final = "the client is closed; open a new one"

_LEAST_WRITING: Final = 2.0
"""Seconds that a client which closes at once gives its ledger to write down what has ended."""

_LOOKED_UP: Final = 1000
"""Drafts that are looked up in the ledger in one go."""


class FeishuMailClient:
    """Sends mail drafts: within the app's rate limit, one call at a time for each user.

    Args:
        tokens: where a user_access_token comes from: a string (one user), a mapping of users to tokens, an
            async callable that takes the user, or a `TokenSource`.
        app: names the budget, for example the app id. All clients of one `base_url` and `app` in this process
            share one limit, in whatever event loops and threads. Required with a ledger on a database.
        base_url: the API's host; https, or http on a loopback host.
        rate_limit: what the server allows.
        retry: when to try again.
        attempt_timeout: seconds for one call.
        ledger: where permits, locks and drafts are kept. None: in memory, for this process alone;
            "sqlite:///PATH": for the processes of one host; "postgresql://…": for many hosts; or what
            `open_ledger` returned, which the caller closes.
        session: an aiohttp session of the caller's own, which the client does not close; None: it opens one.

    Raises:
        ValueError, TypeError: a parameter is wrong; the sentence names it.

    Source: "发送草稿".
    """

    def __init__(
        self,
        tokens: UserTokens,
        *,
        app: str | None = None,
        base_url: str = FEISHU,
        rate_limit: RateLimit = RateLimit(),  # noqa: B008 - frozen
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
        attempt_timeout: float = 30.0,
        ledger: str | Ledger | None = None,
        session: aiohttp.ClientSession | None = None,
    ) -> None:
        source = Hidden(tokens)
        del tokens
        self._tokens = source.read(lambda given: Tokens(given, lasting=ledger is not None))
        if app is not None:
            check_text("app", app)
        self._key = check_base_url(base_url), app, _check_ledger(ledger, app)
        self._limit = _check_type("rate_limit", rate_limit, RateLimit)
        self._retry = _check_type("retry", retry, RetryPolicy)
        check_number("attempt_timeout", attempt_timeout, lambda value: value > 0, "seconds above 0")
        if session is not None:
            _check_type("session", session, aiohttp.ClientSession)
            if session.closed:
                raise ValueError("session: it is closed; give an open one, or none")
        self._transport = Transport(self._key[0], attempt_timeout, session)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._shared: Engine | None = None
        self._sender: Sender | None = None
        self._lister: Sender | None = None
        self._runs: WeakSet[BulkRun] = WeakSet()
        self._subscriptions: list[Subscription] = []
        self._readers: WeakSet[EventReader] = WeakSet()
        self._closed = False
        self._origin = Origin()
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return  # built outside a loop: bound on first use
        self._bound()

    async def send_draft(
        self,
        draft: str | Draft,
        *,
        mailbox: str = "me",
        user: str | None = None,
        priority: Priority = Priority.NORMAL,
        deadline: float | None = None,
    ) -> SendResult:
        """Send one draft and wait until it is sent, or certain not to be.

        The same draft sent twice at once is one send: the second waits for the first. Cancelling a send that
        waits costs nothing; one whose call is under way returns at once, and the client finishes the call.

        Args:
            draft: the draft's id, or a Draft, which then brings its own mailbox and user.
            mailbox: the address of the mailbox it lies in; `me` is the user's own.
            user: whose token sends it; None: the only user there is.
            priority: who goes first among those that wait.
            deadline: seconds for the whole send, waiting included (0 or less: it has passed already); None:
                as long as it takes.

        Returns:
            what the server said; `already_sent` if an earlier call had sent it.

        Raises:
            ApiError: the server refused it; the class tells why.
            AutomatedSendDisabled: the mailbox does not allow automated sending; nothing was sent.
            OutcomeUnknown: it may have been sent, and no answer settled it; or an earlier call may have sent it,
                and its record in the ledger could not be read in time.
            NotSent: certainly not sent: the deadline passed first, or there is no token.
            TransportError: nothing was reachable for `RetryPolicy.outage` seconds.
            Misconfigured: nothing will be reachable before a setting is changed; the message names it.
            Suspended: not attempted: its user, mailbox or app is suspended.
            UnknownUser: there is no such user.
            ClientClosed: the client is closed.
            ValueError, TypeError: a parameter is wrong; nothing was sent.

        Source: "发送草稿".
        """
        sender = self._bound()
        wanted = _draft(draft, mailbox, user)
        _check_type("priority", priority, Priority)
        if deadline is not None:
            check_number("deadline", deadline, lambda _: True, "seconds, or None")
        return await sender.send(wanted, self._user(wanted), priority, deadline)

    def send_drafts(
        self, drafts: DraftSource, *, priority: Priority = Priority.BULK, read_ahead: int = 10_000
    ) -> BulkRun:
        """Send many drafts; the run hands out each one's outcome as soon as it is known.

        A draft that fails does not stop the others. Nothing is read or sent before the run is iterated or
        entered.

        Args:
            drafts: an iterable or async iterable of ids or Drafts. What it raises is raised by the run, after
                the outcomes of all that was read before.
            priority: who goes first among those that wait.
            read_ahead: drafts read, and not fetched as outcomes, at most. Fairness among users holds for
                these, and memory grows with them.

        Returns:
            the run: an async iterator of Outcome and an async context manager.

        Raises:
            TypeError, ValueError: a parameter is wrong; nothing was sent.
            ClientClosed: the client is closed.

        Source: "发送草稿".
        """
        sender = self._bound()
        if isinstance(drafts, str | bytes | Draft) or not isinstance(drafts, Iterable | AsyncIterable):
            raise TypeError(
                f"drafts: give an iterable of ids or Drafts, not {type(drafts).__name__}; for one draft there "
                f"is send_draft"
            )
        _check_type("priority", priority, Priority)
        check_count("read_ahead", read_ahead, 1, "a whole number of drafts, 1 or more")
        run = BulkRun(sender, drafts, self._resolved, priority, read_ahead)
        self._runs.add(run)
        return run

    async def records(self, drafts: Iterable[str | Draft]) -> list[Record | None]:
        """What the ledger knows of drafts, without a call.

        Args:
            drafts: ids or Drafts, as `send_drafts` takes them.

        Returns:
            a record for each; None for one of which nothing is known or can be, and without a ledger for all.

        Raises:
            LedgerError: the ledger cannot be read.
            UnknownUser, ClientClosed, TypeError, ValueError: as for `send_draft`.
        """
        sender = self._bound()
        items = iter(drafts)
        found: list[Record | None] = []
        while some := [sender.sending(*self._resolved(item)) for item in itertools.islice(items, _LOOKED_UP)]:
            records = await sender.records(some)
            await asyncio.sleep(0)  # memory answers at once
            known = [records.get(call.key) for call in some]
            found += [record if isinstance(record, Record) else None for record in known]
        return found

    async def list_drafts(self, *, mailbox: str = "me", user: str | None = None) -> AsyncIterator[Draft]:
        """List the drafts of a mailbox, within the limit of that endpoint (10 calls a second).

        Args:
            mailbox: the address of the mailbox; `me` is the user's own.
            user: whose token lists it; None: the only user there is.

        Yields:
            the drafts, in the server's order, as they can be given to `send_drafts`.

        Raises:
            ApiError: the server refused it; the class tells why.
            BadReply: no readable answer came, also after retries.
            TransportError, Suspended, UnknownUser, ClientClosed, NotSent: as for `send_draft`.

        Source: "列出草稿" (`GET …/user_mailboxes/:id/drafts`).
        """
        self._bound()
        check_id("mailbox", mailbox)
        if user is not None:
            check_text("user", user)
        resolved = self._tokens.resolve(user)
        page_token = None
        seen: set[str] = set()
        while True:
            assert self._lister is not None
            job = await self._lister.request(self._lister.listing(mailbox, page_token, resolved), Priority.NORMAL)
            page = job.page()
            for draft_id in page.draft_ids:
                yield Draft(draft_id, mailbox, user)
            if page.next_token is None:
                return
            if page.next_token in seen:
                raise BadReply("the list of drafts does not end: two pages have the same page_token")
            seen.add(page.next_token)
            page_token = page.next_token
            self._bound()

    def snapshot(self) -> Snapshot:
        """How the app's calls stand: what waits, which permits are free, what is paused or suspended."""
        self._bound()
        return self._engine.snapshot()

    def subscribe(
        self, callback: Callable[[Event], object], *, closed: Callable[[], object] | None = None
    ) -> Callable[[], None]:
        """Have a function called at each event of the app, until the client is closed.

        It hears of all clients of the app in this loop, as `snapshot` does. It is called synchronously, in the
        order in which things happen, and must be quick: the next call is made after it has returned. What it
        raises is logged once and harms nobody. Of a draft it is told in the context (contextvars) of whoever gave
        the draft.

        Args:
            callback: takes an event (see `feishu_mail_async.events`).
            closed: called when the client has been closed: there will be no more events.

        Returns:
            a function that ends the subscription.

        Raises:
            TypeError: it cannot be called, or has to be awaited.
            ClientClosed: the client is closed.
        """
        return self._subscribe(Subscription(callback, closed))

    def events(self, *, buffer: int = 10_000) -> AsyncIterator[Event]:
        """The events of the app from now on, for those who want to take their time.

        Args:
            buffer: events that may wait to be read. Beyond that the oldest are dropped, and an `EventsLost` that
                counts them is read in their place.

        Returns:
            an async iterator of events; it ends when the client is closed and all has been read. An iterator that
            is dropped hears no more.

        Raises:
            ValueError, TypeError: `buffer` is no whole number of 1 or more.
            ClientClosed: the client is closed.
        """
        check_count("buffer", buffer, 1, "a whole number of events, 1 or more")
        reader = EventReader(buffer)
        end = self._subscribe(reader.subscription())
        weakref.finalize(reader, end).atexit = False
        self._readers.add(reader)
        return reader

    def _subscribe(self, subscription: Subscription) -> Callable[[], None]:
        if self._closed:
            raise ClientClosed(_CLOSED)
        self._subscriptions.append(subscription)
        if self._shared is not None:
            self._shared.events.add(subscription)

        def end() -> None:
            if subscription in self._subscriptions:
                self._subscriptions.remove(subscription)
            if self._shared is not None:
                self._shared.events.remove(subscription)

        return end

    def resume(self, subject: str) -> None:
        """Let the drafts of a suspended subject go again.

        Args:
            subject: "app", "user:NAME" or "mailbox:ADDRESS", as `Suspended.subject` and `snapshot` name it;
                "mailbox:me" is the own mailbox of the only user. One that is not suspended stays as it is.

        Raises:
            ValueError: it is none of the three forms.
        """
        check_text("subject", subject, longest=2048)
        self._bound()
        if subject == "mailbox:me":
            user = self._tokens.key(self._tokens.resolve(None))
            subject = f"mailbox:{mailbox_key(user, 'me')}"
        self._engine.resume(subject)

    def set_rate_limit(self, rate_limit: RateLimit) -> None:
        """Change the limit at once, for all clients of the app; calls already made count against it."""
        limit = _check_type("rate_limit", rate_limit, RateLimit)
        self._bound()
        self._limit = limit
        self._engine.scheduler.set_limit(limit)

    async def close(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - a promised name
        """Close the client: what waits ends with ClientClosed, calls in flight are finished.

        Cancelling it does not break it off: it goes on by itself, and soon ends.

        Args:
            timeout: seconds to wait for the calls in flight, which are broken off then; None: until they end.
        """
        if timeout is not None:
            check_number("timeout", timeout, lambda value: value >= 0, "seconds, 0 or more, or None")
        self._closed = True
        if self._origin.elsewhere:
            return
        try:
            await carry_through(self._close(timeout), "feishu-mail-close")
        except asyncio.CancelledError:
            # Whoever closes does not wait any longer: calls in flight have a moment more, and then are broken off.
            hurried = _LEAST_WRITING if timeout is None else min(timeout, _LEAST_WRITING)
            carry_through(self._close(hurried), "feishu-mail-close")
            raise

    async def _close(self, timeout: float | None) -> None:  # noqa: ASYNC109
        """End what waits, let calls in flight finish, and give back all that is held."""
        for run in list(self._runs):
            run.stop()
        for sender in self._senders():
            sender.close()
        try:
            now = asyncio.get_running_loop().time
            began = now()
            for sender in self._senders():
                await sender.wait_closed(None if timeout is None else max(0.0, began + timeout - now()))
            for run in list(self._runs):
                await run.finish(timeout)
            await self._tokens.close()
        finally:
            if self._shared is not None:
                self._shared.clients.discard(self)
                await self._leave(self._shared, timeout)
            await self._transport.close()
            self._unsubscribe()
            await asyncio.sleep(0)  # a dispatcher for which nobody waits any more ends in this step

    def _senders(self) -> list[Sender]:
        return [sender for sender in (self._lister, self._sender) if sender is not None]

    async def _leave(self, engine: Engine, timeout: float | None) -> None:  # noqa: ASYNC109
        """Have on record what has ended; the last client of a ledger of our own closes it."""
        patience = None if timeout is None else max(timeout, _LEAST_WRITING)
        writing = start_task(engine.scheduler.written(), "feishu-mail-written")
        await asyncio.wait([writing], timeout=patience)
        writing.cancel()
        if engine.ledger is not None and not engine.clients:
            assert self._loop is not None
            forget_engine(self._loop, self._key)
            await engine.ledger.close()

    def _unsubscribe(self) -> None:
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            if self._shared is not None:
                self._shared.events.remove(subscription)
            subscription.close()
        for reader in self._readers:
            reader.end()

    async def __aenter__(self) -> Self:
        self._bound()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        base_url, app, _ = self._key
        return f"<{type(self).__name__} {base_url} app={app!r}{' closed' if self._closed else ''}>"

    @property
    def _engine(self) -> Engine:
        assert self._shared is not None
        return self._shared

    def _bound(self) -> Sender:
        """The sends of this client, bound to the running loop."""
        if self._closed:
            raise ClientClosed(_CLOSED)
        if self._origin.elsewhere:
            raise ClientClosed(NOT_THIS_CLIENT)
        loop = asyncio.get_running_loop()
        if self._sender is None:
            self._shared = engine_of(loop, self._key, self._limit)
            self._join(self._shared)
            self._sender = Sender(self._shared.scheduler, self._transport, self._tokens, self._retry)
            self._lister = Sender(self._shared.listing, self._transport, self._tokens, self._retry)
            self._loop = loop
            self._origin.opened()
        elif self._loop is not loop:
            raise RuntimeError(
                "the client belongs to another event loop; from other threads use "
                "asyncio.run_coroutine_threadsafe(client.send_draft(...), loop)"
            )
        return self._sender

    def _join(self, engine: Engine) -> None:
        in_force = engine.scheduler.limit
        if self._limit != in_force:
            if is_open(self._key):
                raise ValueError(
                    f"rate_limit: another client of {self._key[0]} and app {self._key[1]!r} is open with "
                    f"{in_force}; give the same, or change it with set_rate_limit"
                )
            engine.scheduler.set_limit(self._limit)
        engine.clients.add(self)
        for subscription in self._subscriptions:
            engine.events.add(subscription)
        self._tokens.on_change = engine.token_changed

    def _user(self, draft: Draft) -> str | None:
        """The user that is meant; UnknownUser, with the draft, if there is none such."""
        try:
            return self._tokens.resolve(draft.user)
        except UnknownUser as error:
            error.draft = draft
            raise

    def _resolved(self, item: str | Draft) -> tuple[Draft, str | None]:
        draft = _draft(item, "me", None)
        return draft, self._user(draft)


def _check_ledger(ledger: str | Ledger | None, app: str | None) -> str | StoringLedger | None:
    if ledger is None:
        return None
    if app is None:
        raise ValueError("app: a ledger is kept by app; name yours, for example with its app id")
    if isinstance(ledger, str):
        check_url(ledger)
    elif not isinstance(ledger, StoringLedger):
        raise TypeError(f"ledger: give a URL, what open_ledger returned, or None, not {type(ledger).__name__}")
    return ledger


def _check_type(name: str, value: Any, wanted: type[Any]) -> Any:
    if not isinstance(value, wanted):
        raise TypeError(f"{name}: give a {wanted.__name__}, not {type(value).__name__}")
    return value


def _draft(draft: str | Draft, mailbox: str, user: str | None) -> Draft:
    if not isinstance(draft, Draft):
        return Draft(check_id("draft", draft), mailbox, user)
    if mailbox not in {"me", draft.mailbox} or user not in {None, draft.user}:
        raise ValueError("mailbox, user: the Draft brings its own; leave them out")
    return draft
