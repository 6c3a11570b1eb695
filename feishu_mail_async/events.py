"""Events of an app's calls, for logs, progress bars and metrics.

Each thing that happens is published once, as it happens, as a frozen `Event`: to the log
(`feishu_mail_async.events`) and to all subscribers. Subscribers are called synchronously, so all of them see the
same order. A consumer that may be slow reads `FeishuMailClient.events`, whose buffer is bounded.

One draft on its way, with the events in brackets that may be missing or repeat:

    DraftQueued -> [TurnGranted -> AttemptStarted -> AttemptEnded -> [RetryPlanned -> TurnGranted -> ...]] ->
    DraftDone

A draft that ends early (no token, suspended, on record as sent) has DraftDone alone, or after DraftQueued.
"""

import functools
import logging
import re
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, ClassVar

from ._api.endpoints import ENDPOINTS
from ._api.protocol import CallEnd
from ._causes import root_cause
from ._text import escape
from .codes import ResumeWhen, Subject, Verdict
from .errors import ApiError, FeishuMailError
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
    "EventsLost",
    "RetryPlanned",
    "SuspensionEnded",
    "SuspensionStarted",
    "TokenRefreshed",
    "TurnGranted",
    "UserCooled",
]


@functools.cache
def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. `str()` of it is a sentence for people.

    Attributes:
        time: the moment, in seconds of the running loop's clock.
        level: the level at which it is logged (set by class).
    """

    level: ClassVar[int] = logging.INFO
    """The level at which the event is logged."""

    time: float

    @property
    def name(self) -> str:
        """The kind of the event, as logs and metrics name it: "turn_granted"."""
        return _snake_case(type(self).__name__)

    def extra(self) -> dict[str, Any]:
        """Return the fields as a log record takes them: plain values, without those that are None.

        Returns:
            values by name, with `event` and `at` (the event's name and time) beside the fields; a draft is given
            as its `draft_id` and `mailbox`, an error as its `error` and `error_type`, a result as its
            `message_id`.
        """
        extra: dict[str, Any] = {"event": self.name, "at": self.time}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Draft):
                extra |= {"draft_id": value.draft_id, "mailbox": value.mailbox}
            elif isinstance(value, FeishuMailError):
                extra |= {"error": str(value), "error_type": type(value).__name__}
            elif isinstance(value, SendResult):
                extra |= {"message_id": value.message_id}
            elif value is not None and one.name != "time":  # formatters use that name for the wall clock
                extra[one.name] = value.value if isinstance(value, Enum) else value
        return extra


@dataclass(frozen=True, slots=True)
class DraftEvent(Event):
    """An event of a draft, or of a call that sends none.

    Attributes:
        job: a number, the same for all events of one draft on its way and for no other in this process.
        endpoint: the name of its endpoint, such as "send" or "list".
        user: the user's name, as in `snapshot`.
        draft: the draft; None for a call that sends none.
    """

    job: int
    endpoint: str
    user: str
    draft: Draft | None

    @property
    def what(self) -> str:
        """The draft, or the call, as a sentence names it."""
        return ENDPOINTS[self.endpoint].what if self.draft is None else f"draft {escape(self.draft.draft_id)}"


@dataclass(frozen=True, slots=True)
class DraftQueued(DraftEvent):
    """The start of a draft's wait for its first turn."""

    level: ClassVar[int] = logging.DEBUG

    def __str__(self) -> str:
        return f"{self.what} waits for its turn"


@dataclass(frozen=True, slots=True)
class TurnGranted(DraftEvent):
    """A granted turn: the scheduler's permission to make one call.

    Attributes:
        attempt: the number of the draft's call that the turn is for, from 1.
        waited: seconds it waited for this turn.
        probe: true if the app is paused and this call finds out whether it can go on.
        priority: the priority with which it waited in the end; a caller that joins a draft may raise it.
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
    """The start of a call.

    Attributes:
        attempt: the number of the draft's call, from 1. A call that provably never left is not counted: the next
            one has its number.
        path: the path and query of the request, as appended to the client's `base_url`.
    """

    level: ClassVar[int] = logging.DEBUG

    attempt: int
    path: str

    def __str__(self) -> str:
        return f"{self.what}: call {self.attempt}"


@dataclass(frozen=True, slots=True)
class AttemptEnded(DraftEvent):
    """The end of a call, with an answer or without.

    Attributes:
        attempt: as in its `AttemptStarted`.
        seconds: the duration of the call, in seconds.
        end: ANSWERED, LOST (no answer: the call may have arrived) or NEVER_LEFT.
        verdict: the meaning of the answer for the draft.
        code: the `code` of the answer; None without one.
        http_status: the HTTP status of the answer; None without one.
        log_id: the `X-Tt-Logid` of the answer; None without one.
        error: the exception that this attempt would raise if it were not retried; None on success.
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
    """The decision to make another attempt.

    Attributes:
        attempts: calls made so far.
        delay: seconds that the draft itself waits before it queues for its next turn; 0 where its user or app
            waits.
        subject: the draft, user or app at fault, which is the one that waits.
        error: the reason.
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
    """The outcome of a draft: published once for each caller that submitted it and still waits for the outcome.

    Attributes:
        status: sent, already_sent, failed, unknown or skipped.
        attempts: calls made for it.
        waited: seconds it waited for its turns, all together.
        lasted: seconds from the submission until now.
        joined: true if the same draft was under way already: it shared that call, and counts as already sent.
        result: the server's answer, if it was sent.
        error: the reason why it was not sent, or may not have been.
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
        """Return the fields as a log record takes them, with the deciding `code` and the `log_id`."""
        answer = {"code": self.code, "log_id": self.log_id}
        known = {name: value for name, value in answer.items() if value is not None}
        return DraftEvent.extra(self) | known  # noqa: S610 - Django is not here

    def __str__(self) -> str:
        calls = f"{self.attempts} call{'' if self.attempts == 1 else 's'}"
        said = f"{self.what}: {self.status.replace('_', ' ')} after {self.lasted:.1f} s"
        return f"{said} ({self.waited:.1f} s waiting, {calls}){'' if self.error is None else f': {self.error}'}"


@dataclass(frozen=True, slots=True)
class UserCooled(Event):
    """The start of a user's backoff: the server slows the user down. Drafts of other users go on.

    Attributes:
        user: the user's name.
        seconds: the length of the backoff.
        times: the number of consecutive refusals, this one included.
    """

    user: str
    seconds: float
    times: int

    def __str__(self) -> str:
        return f"user {escape(self.user)} cools down for {self.seconds:.1f} s (refusal {self.times} in a row)"


@dataclass(frozen=True, slots=True)
class AppPaused(Event):
    """The start, or the extension, of a pause of the app's calls to one endpoint; at its end one call probes.

    Attributes:
        endpoint: the name of the endpoint; each has a limit of its own.
        seconds: seconds until the probe.
        reason: the reason.
    """

    level: ClassVar[int] = logging.WARNING

    endpoint: str
    seconds: float
    reason: str

    def __str__(self) -> str:
        return f"all {self.endpoint} calls of the app wait for {self.seconds:.1f} s: {self.reason}"


@dataclass(frozen=True, slots=True)
class AppResumed(Event):
    """The end of a pause of the app's calls to one endpoint: a probe was answered.

    Attributes:
        endpoint: the name of its endpoint, such as "send" or "list".
        lasted: the length of the pause, in seconds.
    """

    endpoint: str
    lasted: float

    def __str__(self) -> str:
        return f"the {self.endpoint} calls of the app go on after {self.lasted:.1f} s"


@dataclass(frozen=True, slots=True)
class SuspensionStarted(Event):
    """The start of a suspension of a user, a mailbox or the app: its drafts are skipped, without calls.

    Attributes:
        endpoint: the name of the endpoint whose answer has suspended it.
        subject: "app", "user:NAME" or "mailbox:ADDRESS", as `FeishuMailClient.resume` takes it.
        seconds: seconds until one draft may try again; None if it takes a new token or `resume`.
        until: the condition that ends the suspension.
        reason: the error that suspended it.
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
    """The end of a suspension.

    The end of a timed one is noticed, and published, when the subject's next draft comes.

    Attributes:
        endpoint: the name of its endpoint, such as "send" or "list".
        subject: as in its `SuspensionStarted`.
    """

    endpoint: str
    subject: str

    def __str__(self) -> str:
        return f"{escape(self.subject)} is no longer suspended"


@dataclass(frozen=True, slots=True)
class TokenRefreshed(Event):
    """A new token for a user, as the token source has returned it.

    Attributes:
        user: the user's name.
    """

    user: str

    def __str__(self) -> str:
        return f"user {escape(self.user)} has a new token"


@dataclass(frozen=True, slots=True)
class EventsLost(Event):
    """A gap: a reader of `FeishuMailClient.events` fell behind, and the oldest events were dropped here.

    Attributes:
        number: the number of events dropped.
    """

    number: int

    def __str__(self) -> str:
        return f"{self.number} events were lost: they were not read in time"
