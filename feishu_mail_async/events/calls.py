"""The events of a draft on its way, and of calls that send none."""

import logging
from dataclasses import dataclass
from typing import Any, ClassVar

from feishu_mail_async._api.endpoints import ENDPOINTS
from feishu_mail_async._api.protocol import CallEnd
from feishu_mail_async._causes import root_cause
from feishu_mail_async._text import escape
from feishu_mail_async.codes import Subject, Verdict
from feishu_mail_async.errors import ApiError, FeishuMailError
from feishu_mail_async.model import Draft, OutcomeStatus, Priority, SendResult

from .event import Event

__all__ = [
    "AttemptEnded",
    "AttemptStarted",
    "DraftDone",
    "DraftEvent",
    "DraftQueued",
    "RetryPlanned",
    "TurnGranted",
]


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
