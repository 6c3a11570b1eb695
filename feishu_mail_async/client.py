"""The public client: validates arguments, and hands each call to the intake of its endpoint.

Sending is here; the other calls on drafts and on sent mails are in `_client`, by what they are about.

Clients do not own the rate limit. All clients of one event loop with the same base_url, app and ledger share
one `Engine`: the schedulers, the events and the ledger (`_binding` has the picture). Beneath it lies a store of
permits and locks, kept by the process or by a database, so calls still count after their loop has ended.
"""

import asyncio
import itertools
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from datetime import datetime
from typing import Final, Self, TypeVar

import aiohttp

from ._api.base_url import FEISHU, check_base_url
from ._api.endpoints import SEND
from ._auth.sources import UserTokens
from ._auth.tokens import tokens_of
from ._binding import Binding, check_endpoint, check_ledger, check_limits
from ._calls.bulk import BulkRun, DraftSource
from ._calls.call import Call
from ._calls.caller import request
from ._checks import check_count, check_number, check_text, check_type
from ._client.arguments import check_deadline, schedule_of
from ._client.drafts import DraftMethods
from ._client.mails import MailMethods
from ._hub import Subscription
from ._scheduling.snapshot import Snapshot
from ._scheduling.waiters import mailbox_key
from ._secrecy import Hidden
from ._transport import Transport
from .events import Event
from .ledger import Ledger, Record
from .model import Draft, Priority, RateLimit, RetryPolicy, SendResult, draft_of

__all__ = ["FeishuMailClient"]

T = TypeVar("T")

_LOOKED_UP: Final = 1000
"""Drafts per query of the ledger in `records`."""


class FeishuMailClient(DraftMethods, MailMethods):
    """A client that sends mail drafts within the app's rate limit, one call at a time for each user.

    Args:
        tokens: the source of user_access_tokens: a string (one user), a mapping of users to tokens, an async
            callable that takes the user, or a `TokenSource`.
        app: a name for the budget, for example the app id. All clients of one `base_url` and `app` in this process
            share one limit, in all event loops and threads. Required with a ledger on a database.
        base_url: the API's host; https, or http on a loopback host.
        rate_limit: the limit that the server sets for sends.
        limits: limits of other endpoints, by their names, such as {"list": RateLimit(10, 1)}, where the server
            sets others than its documents say.
        retry: the retry policy.
        attempt_timeout: seconds for one call.
        ledger: the place where permits, locks and drafts are kept. None: in memory, for this process alone;
            "sqlite:///PATH": for the processes of one host; "postgresql://…": for many hosts; or a ledger that
            `open_ledger` returned, which the caller closes.
        session: an aiohttp session of the caller's own, which the client does not close; None: it opens one.

    Raises:
        ValueError, TypeError: a parameter is wrong; the message names it.

    Source: "发送草稿".
    """

    def __init__(
        self,
        tokens: UserTokens,
        *,
        app: str | None = None,
        base_url: str = FEISHU,
        rate_limit: RateLimit = RateLimit(),  # noqa: B008 - frozen
        limits: Mapping[str, RateLimit] | None = None,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
        attempt_timeout: float = 30.0,
        ledger: str | Ledger | None = None,
        session: aiohttp.ClientSession | None = None,
    ) -> None:
        super().__init__()
        source = Hidden(tokens)
        del tokens
        self._tokens = source.read(lambda given: tokens_of(given, lasting=ledger is not None))
        if app is not None:
            check_text("app", app)
        self._key = check_base_url(base_url), app, check_ledger(ledger, app)
        found = check_limits(rate_limit, limits)
        check_type("retry", retry, RetryPolicy)
        check_number("attempt_timeout", attempt_timeout, lambda value: value > 0, "seconds above 0")
        if session is not None:
            check_type("session", session, aiohttp.ClientSession)
            if session.closed:
                raise ValueError("session: it is closed; give an open one, or none")
        transport = Transport(self._key[0], attempt_timeout, session)
        self._binding = Binding(self, self._key, found, retry, self._tokens, transport)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return  # built outside a loop: it is bound on first use
        self._binding.intake()

    async def send_draft(
        self,
        draft: str | Draft,
        *,
        mailbox: str = "me",
        user: str | None = None,
        priority: Priority = Priority.NORMAL,
        deadline: float | None = None,
        at: datetime | None = None,
    ) -> SendResult:
        """Send one draft, and wait until it is sent or is certain not to be.

        The same draft sent twice at once is one send: the second caller waits for the first one's call. Cancelling
        a send that is waiting for its turn costs nothing. Cancelling one whose call is in flight returns at once,
        and the client finishes the call in the background.

        Args:
            draft: the draft's id, or a Draft, which then brings its own mailbox and user.
            mailbox: the address of the mailbox that holds the draft; `me` is the user's own.
            user: the user whose token sends it; None: the client's only user.
            priority: the order among waiting sends.
            deadline: seconds for the whole send, waiting included (0 or less: it has passed already); None: no
                limit.
            at: when the server is to send it, with a time zone, five minutes ahead at least; None: now. A draft
                that is scheduled is not sent: it can be cancelled (`cancel_scheduled`). It is read before, for the
                id of the mail that it will be.

        Returns:
            the server's answer; `already_sent` if an earlier call had sent the draft, `scheduled_for` if it is
            scheduled.

        Raises:
            ApiError: the server refused it; the class says why.
            AutomatedSendDisabled: the mailbox does not allow automated sending; nothing was sent.
            OutcomeUnknown: it may have been sent, and no answer settled it; or an earlier call may have sent it,
                and its record in the ledger could not be read in time.
            NotSent: certainly not sent: the deadline passed first, or there is no token.
            ScheduleMissed: certainly not sent: its turn came less than five minutes before `at`.
            TransportError: the server could not be reached for `RetryPolicy.outage` seconds.
            Misconfigured: the server will not be reachable before a setting is changed; the message names it.
            Suspended: not attempted: its user, mailbox or app is suspended.
            UnknownUser: there is no such user.
            ClientClosed: the client is closed.
            ValueError, TypeError: a parameter is wrong; nothing was sent.

        Source: "发送草稿".
        """
        wanted = draft_of(draft, mailbox, user)
        check_type("priority", priority, Priority)
        if deadline is not None:
            check_deadline(deadline)
        intake = self._binding.intake()
        schedule = None if at is None else schedule_of(at)
        job = await request(intake, self._binding.sending(wanted, schedule), priority, deadline)
        return job.sent(wanted)

    def send_drafts(
        self,
        drafts: DraftSource,
        *,
        priority: Priority = Priority.BULK,
        read_ahead: int = 10_000,
        at: datetime | None = None,
    ) -> BulkRun:
        """Send many drafts; the run yields the outcome of each as soon as it is known.

        A draft that fails does not stop the others. Nothing is read or sent before the run is iterated or entered.

        Args:
            drafts: an iterable or async iterable of ids or Drafts. An exception that it raises is raised by the
                run, after the outcomes of all drafts that were read before.
            priority: the order among waiting sends.
            read_ahead: the most drafts that are read and not yet fetched as outcomes. Fairness among users holds
                for these, and memory grows with them.
            at: when the server is to send them all, as for `send_draft`. A draft whose turn comes too late for
                that ends as failed, with ScheduleMissed, and is not sent.

        Returns:
            the run: an async iterator of Outcome and an async context manager.

        Raises:
            TypeError, ValueError: a parameter is wrong; nothing was sent.
            ClientClosed: the client is closed.

        Source: "发送草稿".
        """
        intake = self._binding.intake()
        if isinstance(drafts, str | bytes | Draft) or not isinstance(drafts, Iterable | AsyncIterable):
            raise TypeError(
                f"drafts: give an iterable of ids or Drafts, not {type(drafts).__name__}; for one draft there "
                f"is send_draft"
            )
        check_type("priority", priority, Priority)
        check_count("read_ahead", read_ahead, 1, "a whole number of drafts, 1 or more")
        schedule = None if at is None else schedule_of(at)

        def sending(item: str | Draft) -> Call:
            return self._binding.sending(draft_of(item), schedule)

        run = BulkRun(intake, drafts, sending, priority, read_ahead)
        self._binding.add_run(run)
        return run

    async def records(self, drafts: Iterable[str | Draft]) -> list[Record | None]:
        """Return the ledger's records of drafts, without a call.

        Args:
            drafts: ids or Drafts, as `send_drafts` takes them.

        Returns:
            one record for each draft; None for a draft of which nothing is known or can be known. Without a ledger
            all are None.

        Raises:
            LedgerError: the ledger cannot be read.
            UnknownUser, ClientClosed, TypeError, ValueError: as for `send_draft`.
        """
        intake = self._binding.intake()
        items = iter(drafts)
        found: list[Record | None] = []
        while some := [self._sending(item) for item in itertools.islice(items, _LOOKED_UP)]:
            records = await intake.records(some)
            await asyncio.sleep(0)  # without a ledger nothing above suspends, and the loop would be blocked
            known = [records.get(call.key) for call in some]
            found += [record if isinstance(record, Record) else None for record in known]
        return found

    def snapshot(self) -> Snapshot:
        """Return the state of the app's calls: waiters, free permits, pauses and suspensions.

        Raises:
            ClientClosed: the client is closed.
        """
        return self._binding.engine.snapshot()

    def subscribe(
        self, callback: Callable[[Event], object], *, closed: Callable[[], object] | None = None
    ) -> Callable[[], None]:
        """Call a function at each event of the app, until the client is closed.

        It receives the events of all clients of the app in this loop, as `snapshot` does. It is called
        synchronously, in the order in which things happen, and must be quick: the next call is made after it has
        returned. An exception that it raises is logged once and affects nothing else. The events of a draft are
        delivered in the contextvars context of the code that submitted the draft.

        Args:
            callback: a plain function that takes an event (see `feishu_mail_async.events`).
            closed: a function called when the client has been closed: there will be no more events.

        Returns:
            a function that ends the subscription.

        Raises:
            TypeError: it cannot be called, or has to be awaited.
            ClientClosed: the client is closed.
        """
        return self._binding.subscribe(Subscription(callback, closed))

    def events(self, *, buffer: int = 10_000) -> AsyncIterator[Event]:
        """Return an iterator over the app's events from now on, for consumers that may be slow.

        Args:
            buffer: the most events that wait to be read. Beyond that the oldest are dropped, and an `EventsLost`
                that counts them is read in their place.

        Returns:
            an async iterator of events; it ends when the client is closed and all have been read. Dropping the
            iterator ends its subscription.

        Raises:
            ValueError, TypeError: `buffer` is no whole number of 1 or more.
            ClientClosed: the client is closed.
        """
        check_count("buffer", buffer, 1, "a whole number of events, 1 or more")
        return self._binding.read_events(buffer)

    def resume(self, subject: str) -> None:
        """Let the drafts of a suspended subject go again.

        Args:
            subject: "app", "user:NAME" or "mailbox:ADDRESS", as in `Suspended.subject` and `snapshot`;
                "mailbox:me" is the own mailbox of the client's only user. Resuming a subject that is not suspended
                does nothing.

        Raises:
            ValueError: it is none of the three forms.
            ClientClosed: the client is closed.
        """
        check_text("subject", subject, longest=2048)
        engine = self._binding.engine
        if subject == "mailbox:me":
            subject = f"mailbox:{mailbox_key(self._tokens.account(None).key, 'me')}"
        engine.resume(subject)

    def set_rate_limit(self, rate_limit: RateLimit, endpoint: str = SEND.name) -> None:
        """Change the limit at once, for all clients of the app; calls already made count against it.

        Args:
            rate_limit: the new limit.
            endpoint: the endpoint's name, such as "send" or "list".

        Raises:
            TypeError: it is no RateLimit.
            ValueError: there is no such endpoint.
            ClientClosed: the client is closed.
        """
        limit = check_type("rate_limit", rate_limit, RateLimit)
        check_endpoint("endpoint", endpoint)
        self._binding.set_limit(endpoint, limit)

    async def close(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - a promised name
        """Close the client: waiting sends end with ClientClosed, calls in flight are finished.

        Cancelling `close` does not undo it: the clean-up goes on in the background, and hurries.

        Args:
            timeout: seconds to wait for the calls in flight, which are cancelled then; None: until they end.

        Raises:
            ValueError, TypeError: `timeout` is not a number of seconds, 0 or more.
        """
        if timeout is not None:
            check_number("timeout", timeout, lambda value: value >= 0, "seconds, 0 or more, or None")
        await self._binding.close(timeout)

    async def __aenter__(self) -> Self:
        self._binding.intake()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        base_url, app, _ = self._key
        return f"<{type(self).__name__} {base_url} app={app!r}{' closed' if self._binding.closed else ''}>"

    def _sending(self, item: str | Draft) -> Call:
        return self._binding.sending(draft_of(item))
