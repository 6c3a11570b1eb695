"""Public value types: a draft, the settings of the client, and the result of a send. No I/O, no asyncio.

They check their values when they are made, so that a mistake is found where it was made and not in the middle of
a run. Times are durations in seconds.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any, Self

from ._checks import check_count, check_id, check_number, check_text

__all__ = [
    "Draft",
    "OutcomeStatus",
    "Priority",
    "RateLimit",
    "RetryPolicy",
    "SendResult",
]


def _positive(value: float) -> bool:
    return value > 0


def _not_negative(value: float) -> bool:
    return value >= 0


class Priority(IntEnum):
    """The order among waiting sends: INTERACTIVE first, BULK last. Within one priority users take turns."""

    INTERACTIVE = 0
    NORMAL = 1
    BULK = 2


@dataclass(frozen=True, slots=True)
class Draft:
    """A draft to send.

    Args:
        draft_id: the draft's id, as creating or listing drafts returned it (1 to 512 characters).
        mailbox: the address of the mailbox that holds the draft; `me` is the user's own.
        user: the user whose token sends it; None where the client knows one user only.
        tag: any object of the caller's. It is neither compared nor shown, and comes back in the outcome.
        link: where a person can look at the draft, if the server has said so. It is not compared.

    Raises:
        TypeError: a value is not a string.
        ValueError: a value is empty, too long, or holds control characters; or the id or the mailbox holds other
            characters that cannot be seen.

    Source: "发送草稿", path parameters `draft_id` and `user_mailbox_id`.
    """

    draft_id: str
    mailbox: str = "me"
    user: str | None = None
    tag: Any = field(default=None, compare=False, repr=False)
    link: str | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_id("draft_id", self.draft_id)
        check_id("mailbox", self.mailbox)
        if self.user is not None:
            check_text("user", self.user)


def draft_of(draft: str | Draft, mailbox: str = "me", user: str | None = None) -> Draft:
    """Return the draft that a caller means; a `Draft` brings its mailbox and user.

    Args:
        draft: its id, or itself.
        mailbox: the address of the mailbox that holds it; `me` is the user's own.
        user: the user whose token is used; None: the client's only user.

    Raises:
        TypeError, ValueError: a value is wrong; the message names it.
    """
    if not isinstance(draft, Draft):
        try:
            return Draft(draft, mailbox, user)
        except (TypeError, ValueError):
            check_id("draft", draft)  # the name under which it was given
            raise
    if mailbox not in {"me", draft.mailbox} or user not in {None, draft.user}:
        raise ValueError("mailbox, user: the Draft brings its own; leave them out")
    return draft


@dataclass(frozen=True, slots=True)
class RateLimit:
    """The server's limit, and how carefully it is kept.

    A permit comes back `per + margin` seconds after its call has ended, because only then the server has certainly
    counted it; after a call without an answer it comes back `grace` seconds later still.

    Args:
        calls: the most calls in one window of `per` seconds.
        per: the window, in seconds.
        spacing: the least seconds between two dispatches (0: none).
        grace: seconds for which a call without an answer may still be on its way to the server.
        margin: seconds added to `per`, for clocks that run at different speeds.
        reserve: permits that only INTERACTIVE sends may take.

    Raises:
        TypeError, ValueError: a value is wrong; the message names it.

    Source: "发送草稿", 接口频率限制 (20 calls a minute, all users of one app together).
    """

    calls: int = 20
    per: float = 60.0
    spacing: float = 0.2
    grace: float = 10.0
    margin: float = 0.1
    reserve: int = 0

    def __post_init__(self) -> None:
        check_count("calls", self.calls, 1, "a whole number of calls, 1 or more")
        check_number("per", self.per, _positive, "seconds above 0")
        check_number("spacing", self.spacing, _not_negative, "seconds, 0 or more")
        check_number("grace", self.grace, _not_negative, "seconds, 0 or more")
        check_number("margin", self.margin, _not_negative, "seconds, 0 or more")
        check_count("reserve", self.reserve, 0, "a whole number of permits, 0 or more")
        if self.reserve >= self.calls:
            raise ValueError(f"reserve: {self.reserve} of {self.calls} calls leaves none; give less than calls")

    @classmethod
    def smooth(
        cls,
        calls: int = 20,
        per: float = 60.0,
        *,
        grace: float = 10.0,
        margin: float = 0.1,
        reserve: int = 0,
    ) -> Self:
        """Return the same limit spread evenly: one call every `per / calls` seconds, never a burst.

        Args:
            calls: the most calls in one window.
            per: the window, in seconds.
            grace: as in the class.
            margin: as in the class.
            reserve: as in the class.

        Raises:
            TypeError, ValueError: a value is wrong; the message names it.
        """
        # Made first to check the values, before one of them is divided by another.
        plain = cls(calls, per, grace=grace, margin=margin, reserve=reserve)
        return cls(calls, per, plain.per / plain.calls, grace, margin, reserve)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The rules for retrying: how often, after which waits, and when to give up.

    Args:
        attempts: calls that a draft may use up through failures of its own: server errors, lost replies. The draft
            ends with the last of them.
        refusals: refusals on account of the app or the user that a draft survives: too many calls, busy mailbox.
            The draft ends with the next one.
        initial: seconds before the first retry; each further wait is twice as long, with jitter.
        maximum: the longest of these waits, in seconds.
        outage: seconds for which the server may be unreachable before waiting sends end in TransportError (None:
            no limit).

    Raises:
        TypeError, ValueError: a value is wrong; the message names it.
    """

    attempts: int = 6
    refusals: int = 20
    initial: float = 1.0
    maximum: float = 60.0
    outage: float | None = 600.0

    def __post_init__(self) -> None:
        check_count("attempts", self.attempts, 1, "a whole number of attempts, 1 or more")
        check_count("refusals", self.refusals, 0, "a whole number of refusals, 0 or more")
        check_number("initial", self.initial, _not_negative, "seconds, 0 or more")
        check_number("maximum", self.maximum, _not_negative, "seconds, 0 or more")
        if self.outage is not None:
            check_number("outage", self.outage, _not_negative, "seconds, 0 or more, or None")


class OutcomeStatus(StrEnum):
    """The outcome of a draft."""

    SENT = "sent"
    SCHEDULED = "scheduled"
    ALREADY_SENT = "already_sent"
    FAILED = "failed"
    UNKNOWN = "unknown"
    SKIPPED = "skipped"

    @property
    def good(self) -> bool:
        """True if the mail went out, by this call or an earlier one."""
        return self in {OutcomeStatus.SENT, OutcomeStatus.ALREADY_SENT}

    @property
    def done(self) -> bool:
        """True if nothing more has to be done for it: the mail went out, or the server will send it in time."""
        return self.good or self is OutcomeStatus.SCHEDULED


@dataclass(frozen=True, slots=True)
class SendResult:
    """The result of a draft that was sent, or scheduled.

    Attributes:
        draft: the draft, as it was given.
        message_id: the sent mail's id; None where the server gave none (as with `already_sent`).
        thread_id: the conversation's id; None where the server gave none.
        already_sent: an earlier call had sent it (its reply may have been lost).
        scheduled_for: when the server will send it; None: it was sent. Scheduled is not sent.
        attempts: calls made for this draft.
        log_id: the `X-Tt-Logid` of the answer, which support asks for.
    """

    draft: Draft
    message_id: str | None
    thread_id: str | None
    already_sent: bool
    scheduled_for: datetime | None = field(default=None, kw_only=True)
    attempts: int
    log_id: str | None

    @property
    def status(self) -> OutcomeStatus:
        """SENT, SCHEDULED or ALREADY_SENT."""
        if self.scheduled_for is not None:
            return OutcomeStatus.SCHEDULED
        return OutcomeStatus.ALREADY_SENT if self.already_sent else OutcomeStatus.SENT
