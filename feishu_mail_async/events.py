"""What happened, for logs, progress bars and metrics.

Everything that happens to an app's calls is told once, as it happens, by a frozen `Event`: to the log
(`feishu_mail_async.events`), and to whoever has subscribed. Subscribers are called synchronously, so they see the
order in which things happened; one that wants to take its time reads `FeishuMailClient.events`, whose buffer is
bounded.
"""

import asyncio
import contextlib
import contextvars
import functools
import inspect
import logging
import re
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, ClassVar, Final, Self

from ._api.protocol import CallEnd
from ._forks import Origin
from ._text import escape
from .codes import ResumeWhen, Subject, Verdict
from .errors import ApiError, FeishuMailError, root_cause
from .model import Draft, OutcomeStatus, Priority, SendResult

__all__ = [
    "AppPaused",
    "AppResumed",
    "AttemptEnded",
    "AttemptStarted",
    "DraftDone",
    "DraftEvent",
    "DraftQueued",
    "Event",
    "EventHub",
    "EventReader",
    "EventsLost",
    "RetryPlanned",
    "Subscription",
    "SuspensionEnded",
    "SuspensionStarted",
    "TokenRefreshed",
    "TurnGranted",
    "UserCooled",
]

_log: Final = logging.getLogger("feishu_mail_async.events")
# Quiet unless the program sets up logging: without a handler Python prints warnings by itself.
logging.getLogger("feishu_mail_async").addHandler(logging.NullHandler())


@functools.cache
def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. `str()` of it is a sentence for people.

    Attributes:
        time: when, in seconds of the running loop's clock.
    """

    level: ClassVar[int] = logging.INFO
    """At which it is logged."""

    time: float

    @property
    def name(self) -> str:
        """What kind of event it is, as logs and metrics name it: "turn_granted"."""
        return _snake_case(type(self).__name__)

    def extra(self) -> dict[str, Any]:
        """Its fields as a log record takes them: plain values, those that are None left out."""
        extra: dict[str, Any] = {"event": self.name, "at": self.time}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Draft):
                extra |= {"draft_id": value.draft_id, "mailbox": value.mailbox}
            elif isinstance(value, FeishuMailError):
                extra |= {"error": str(value), "error_type": type(value).__name__}
            elif isinstance(value, SendResult):
                extra |= {"message_id": value.message_id}
            elif value is not None and one.name != "time":  # which formatters have for the clock on the wall
                extra[one.name] = value.value if isinstance(value, Enum) else value
        return extra


@dataclass(frozen=True, slots=True)
class DraftEvent(Event):
    """Something that happened to a draft, or to a call that lists drafts.

    Attributes:
        job: a number, the same for all events of one draft on its way and for no other in this process.
        endpoint: "send" or "list".
        user: the user's name, as `snapshot` has it.
        draft: the draft; None for a call that lists drafts.
    """

    job: int
    endpoint: str
    user: str
    draft: Draft | None

    @property
    def what(self) -> str:
        """The draft, or the call, as a sentence names it."""
        return "a list of drafts" if self.draft is None else f"draft {escape(self.draft.draft_id)}"


@dataclass(frozen=True, slots=True)
class DraftQueued(DraftEvent):
    """A draft begins to wait for its first turn."""

    level: ClassVar[int] = logging.DEBUG

    def __str__(self) -> str:
        return f"{self.what} waits for its turn"


@dataclass(frozen=True, slots=True)
class TurnGranted(DraftEvent):
    """The scheduler has granted the leave to make one call.

    Attributes:
        attempt: which call of the draft it is for, from 1.
        waited: seconds it waited for this turn.
        probe: the app is paused, and this call finds out whether it still has to be.
        priority: with which it waited in the end; whoever joins a draft may raise it.
    """

    level: ClassVar[int] = logging.DEBUG

    attempt: int
    waited: float
    probe: bool
    priority: Priority

    def __str__(self) -> str:
        probing = ", to probe whether the app can go on" if self.probe else ""
        return f"{self.what} has its turn after {self.waited:.3f} s{probing}"


@dataclass(frozen=True, slots=True)
class AttemptStarted(DraftEvent):
    """A call is made now.

    Attributes:
        attempt: which call of the draft it is, from 1. One that provably never left is not counted: the next has
            its number.
        path: what it asks for, path and query, as it goes behind the client's `base_url`.
    """

    level: ClassVar[int] = logging.DEBUG

    attempt: int
    path: str

    def __str__(self) -> str:
        return f"{self.what}: call {self.attempt}"


@dataclass(frozen=True, slots=True)
class AttemptEnded(DraftEvent):
    """A call has ended, with an answer or without.

    Attributes:
        attempt: as in its `AttemptStarted`.
        seconds: how long it took.
        end: ANSWERED, LOST (no answer: it may have arrived) or NEVER_LEFT.
        verdict: what it means for the draft.
        code: the `code` of the answer; None without one.
        http_status: of the answer; None without one.
        log_id: its `X-Tt-Logid`.
        error: what it would be told as if it were the last word; None for a success.
    """

    level: ClassVar[int] = logging.DEBUG

    attempt: int
    seconds: float
    end: CallEnd
    verdict: Verdict
    code: int | None
    http_status: int | None
    log_id: str | None
    error: FeishuMailError | None

    def __str__(self) -> str:
        said = self.verdict if self.error is None else str(self.error)
        return f"{self.what}: call {self.attempt} ended after {self.seconds:.3f} s: {said}"


@dataclass(frozen=True, slots=True)
class RetryPlanned(DraftEvent):
    """There will be another attempt.

    Attributes:
        attempts: calls made so far.
        delay: seconds that the draft itself waits before it asks for its next turn; 0 where its user or app waits.
        subject: whose fault it was, and so who waits.
        error: why.
    """

    attempts: int
    delay: float
    subject: Subject
    error: FeishuMailError

    def __str__(self) -> str:
        when = f"in {self.delay:.1f} s" if self.delay else f"when its {self.subject} may go on"
        return f"{self.what} is tried again {when}: {self.error}"


@dataclass(frozen=True, slots=True)
class DraftDone(DraftEvent):
    """What became of a draft: told once for each that was given, as far as somebody still wants to know.

    Attributes:
        status: sent, already_sent, failed, unknown or skipped.
        attempts: calls made for it.
        waited: seconds it waited for its turns, all together.
        lasted: seconds from when it was given until now.
        joined: the same draft was under way already: it shared that call, and counts as already sent.
        result: what the server said, if it was sent.
        error: why it was not, or may not have been.
    """

    status: OutcomeStatus
    attempts: int
    waited: float
    lasted: float
    joined: bool
    result: SendResult | None
    error: FeishuMailError | None

    @property
    def code(self) -> int | None:
        """The code of the answer that decided it against the draft; None if no such answer did."""
        decided = None if self.error is None else root_cause(self.error)
        return decided.code if isinstance(decided, ApiError) else None

    @property
    def log_id(self) -> str | None:
        """The `X-Tt-Logid` of the last answer; None without one."""
        told = self.error if self.result is None else self.result
        return None if told is None else told.log_id

    def extra(self) -> dict[str, Any]:
        """Its fields as a log record takes them."""
        answer = {"code": self.code, "log_id": self.log_id}
        known = {name: value for name, value in answer.items() if value is not None}
        return DraftEvent.extra(self) | known  # noqa: S610 - Django is not here

    def __str__(self) -> str:
        calls = f"{self.attempts} call{'' if self.attempts == 1 else 's'}"
        said = f"{self.what}: {self.status.replace('_', ' ')} after {self.lasted:.1f} s"
        return f"{said} ({self.waited:.1f} s waiting, {calls}){'' if self.error is None else f': {self.error}'}"


@dataclass(frozen=True, slots=True)
class UserCooled(Event):
    """The server slows a user down: the user's drafts wait, those of others do not.

    Attributes:
        user: the user's name.
        seconds: how long.
        times: how often in a row this has happened.
    """

    user: str
    seconds: float
    times: int

    def __str__(self) -> str:
        return f"user {escape(self.user)} cools down for {self.seconds:.1f} s (refusal {self.times} in a row)"


@dataclass(frozen=True, slots=True)
class AppPaused(Event):
    """All calls of the app wait, or wait longer than they did; then one call probes.

    Attributes:
        endpoint: "send" or "list": each has a limit of its own.
        seconds: until the probe.
        reason: why.
    """

    level: ClassVar[int] = logging.WARNING

    endpoint: str
    seconds: float
    reason: str

    def __str__(self) -> str:
        return f"all {self.endpoint} calls of the app wait for {self.seconds:.1f} s: {self.reason}"


@dataclass(frozen=True, slots=True)
class AppResumed(Event):
    """The app's calls go on after a pause: a probe was answered.

    Attributes:
        endpoint: "send" or "list".
        lasted: seconds of the pause.
    """

    endpoint: str
    lasted: float

    def __str__(self) -> str:
        return f"the {self.endpoint} calls of the app go on after {self.lasted:.1f} s"


@dataclass(frozen=True, slots=True)
class SuspensionStarted(Event):
    """A user, a mailbox or the app is suspended: its drafts are skipped, and no calls are made for them.

    Attributes:
        endpoint: "send" or "list".
        subject: "app", "user:NAME" or "mailbox:ADDRESS", as `FeishuMailClient.resume` takes it.
        seconds: until one draft may try again; None if it takes a new token or `resume`.
        until: what ends it.
        reason: what suspended it.
    """

    level: ClassVar[int] = logging.WARNING

    endpoint: str
    subject: str
    seconds: float | None
    until: ResumeWhen
    reason: str

    def __str__(self) -> str:
        ends = f"until {self.until}" if self.seconds is None else f"for {self.seconds:.0f} s"
        return f"{escape(self.subject)} is suspended {ends}: {self.reason}"


@dataclass(frozen=True, slots=True)
class SuspensionEnded(Event):
    """A subject is no longer suspended. That a suspension's time is over is noticed when its next draft comes.

    Attributes:
        endpoint: "send" or "list".
        subject: as in its `SuspensionStarted`.
    """

    endpoint: str
    subject: str

    def __str__(self) -> str:
        return f"{escape(self.subject)} is no longer suspended"


@dataclass(frozen=True, slots=True)
class TokenRefreshed(Event):
    """The source of tokens has given another token for a user.

    Attributes:
        user: the user's name.
    """

    user: str

    def __str__(self) -> str:
        return f"user {escape(self.user)} has a new token"


@dataclass(frozen=True, slots=True)
class EventsLost(Event):
    """A reader of `FeishuMailClient.events` fell behind: here it has missed the oldest events.

    Attributes:
        number: how many.
    """

    number: int

    def __str__(self) -> str:
        return f"{self.number} events were lost: they were not read in time"


class Subscription:
    """A subscriber, and whether it has failed before."""

    __slots__ = ("_callback", "_closed", "_failed")

    def __init__(self, callback: Callable[[Event], object], closed: Callable[[], object] | None = None) -> None:
        if not callable(callback):
            raise TypeError(f"callback: give a function that takes an event, not {type(callback).__name__}")
        if inspect.iscoroutinefunction(callback) or inspect.iscoroutinefunction(type(callback).__call__):
            raise TypeError("callback: it is called, not awaited; give a plain function, or use events()")
        if closed is not None and not callable(closed):
            raise TypeError(f"closed: give a function without parameters, or None, not {type(closed).__name__}")
        self._callback = callback
        self._closed = closed
        self._failed = False

    def deliver(self, event: Event) -> None:
        """Call the subscriber. What it raises is logged the first time, and harms nobody."""
        try:
            self._callback(event)
        except (Exception, asyncio.CancelledError):  # noqa: BLE001 - a stranger's code, in the midst of ours
            if not self._failed:
                self._failed = True
                _log.exception("a subscriber failed at %s; it goes on being called", event.name)

    def close(self) -> None:
        """The client is closed: tell the subscriber that it hears no more."""
        if self._closed is not None:
            try:
                self._closed()
            except (Exception, asyncio.CancelledError):  # noqa: BLE001 - as above
                _log.exception("a subscriber failed at the end of its client")


class EventHub:
    """Where an app's events go: to the log and to the subscribers."""

    __slots__ = ("_nested", "_subscriptions", "_telling")

    def __init__(self) -> None:
        self._subscriptions: tuple[Subscription, ...] = ()
        self._telling = False
        self._nested: deque[tuple[Event, contextvars.Context]] = deque()

    @property
    def has_listeners(self) -> bool:
        """Whether anybody hears of the small events, so that it is worth making them."""
        return bool(self._subscriptions) or _log.isEnabledFor(logging.INFO)

    def add(self, subscription: Subscription) -> None:
        """From now on this one is told too."""
        self._subscriptions = *self._subscriptions, subscription

    def remove(self, subscription: Subscription) -> None:
        """From now on this one is told no more. Nothing happens if it was not."""
        self._subscriptions = tuple(one for one in self._subscriptions if one is not subscription)

    def publish(self, event: Event) -> None:
        """Tell everybody.

        What a subscriber brings about while it is told is told afterwards, so that all hear the same order.
        """
        if self._telling:
            self._nested.append((event, contextvars.copy_context()))
            return
        self._telling = True
        try:
            self._tell(event)
            while self._nested:
                nested, context = self._nested.popleft()
                context.run(self._tell, nested)
        finally:
            self._telling = False

    def _tell(self, event: Event) -> None:
        if _log.isEnabledFor(event.level):
            with contextlib.suppress(
                Exception
            ):  # a program's own filter may raise anything, in the midst of a call
                _log.log(event.level, "%s", event, extra=event.extra())
        for subscription in self._subscriptions:
            subscription.deliver(event)


class EventReader:
    """An async iterator of events; it ends when its client is closed.

    Whatever is not read in time is dropped, the oldest first, and an `EventsLost` stands in its place.

    Args:
        buffer: events that may wait to be read.
    """

    def __init__(self, buffer: int) -> None:
        self._waiting: deque[Event] = deque(maxlen=buffer)
        self._lost = 0
        self._ended = False
        self._news: asyncio.Future[None] | None = None
        self._origin = Origin()
        self._origin.opened()

    def subscription(self) -> Subscription:
        """What brings events here, for as long as somebody holds the reader."""
        reader = weakref.ref(self)

        def put(event: Event) -> None:
            held = reader()
            if held is not None:
                held.put(event)

        return Subscription(put)

    def put(self, event: Event) -> None:
        """One more event."""
        if len(self._waiting) == self._waiting.maxlen:
            self._lost += 1
        self._waiting.append(event)
        self._wake()

    def end(self) -> None:
        """There will be no more."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._waiting:
            if self._ended or self._origin.elsewhere:
                raise StopAsyncIteration
            if self._news is None or self._news.done():
                self._news = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._news)  # another task may read from here too
        if self._lost:
            lost, self._lost = self._lost, 0
            return EventsLost(self._waiting[0].time, lost)
        return self._waiting.popleft()
