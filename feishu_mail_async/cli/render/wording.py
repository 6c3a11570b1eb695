"""The wording of outcomes and errors, for a person."""

import math
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Final

from feishu_mail_async._causes import root_cause
from feishu_mail_async._text import escape, sentence
from feishu_mail_async.errors import (
    ApiError,
    AppQuotaSpent,
    AutomatedSendDisabled,
    FeishuMailError,
    InvalidToken,
    LedgerError,
    LoginRequired,
    MailboxNotFound,
    NotSent,
    OutcomeUnknown,
    ScopeMissing,
    Suspended,
    TenantStorageFull,
    UserDailyQuota,
)
from feishu_mail_async.model import Draft, OutcomeStatus
from feishu_mail_async.outcomes import Outcome

__all__ = [
    "SENT_BEFORE",
    "Width",
    "advise",
    "count",
    "detail",
    "log_id",
    "moment",
    "name_draft",
    "name_status",
    "name_subject",
    "say",
    "skipping",
    "span",
    "was_stopped",
]

SENT_BEFORE: Final = "an earlier call had sent it; it was not sent twice"
"""The details of a draft that was sent already."""

_SAFE: Final = "Sending it again is safe: a mail that went out is not sent twice."
_NOT_ALLOWED: Final = "the mailbox does not allow automated sending"
_STOPPED: Final = "stopped before its turn came"
_BROKEN_OFF: Final = "a call had no answer when it was stopped"
_EARLIER: Final = "an earlier call may have sent it"
_SHORT: Final[dict[type[FeishuMailError], str]] = {
    AutomatedSendDisabled: "automated sending not allowed",
    AppQuotaSpent: "monthly quota of calls used up",
    InvalidToken: "token refused",
    MailboxNotFound: "mailbox not found",
    ScopeMissing: "scope missing",
    TenantStorageFull: "storage full",
    UserDailyQuota: "daily quota reached",
}
_MINUTE: Final = 60
_HOUR: Final = 3600


def count(number: int, noun: str) -> str:
    """Return a number with its noun, singular or plural: "1 draft", "2 drafts".

    Args:
        number: the number.
        noun: the noun in the singular; its plural must end in s.
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def name_status(status: OutcomeStatus) -> str:
    """Return the status for a person."""
    return status.replace("_", " ")


def name_draft(draft: Draft) -> str:
    """Return the draft's id, with its mailbox if that is not the user's own; escaped."""
    return escape(draft.draft_id if draft.mailbox == "me" else f"{draft.draft_id} in {draft.mailbox}")


class Width(Enum):
    """The room for an error."""

    BAR = auto()
    """Beside a bar: as few words as possible."""
    CELL = auto()
    """In a table: what happened."""
    LINE = auto()
    """In a line of its own: what happened, what to do about it, and the log id, which Feishu's support needs."""


def say(error: BaseException, width: Width = Width.CELL) -> str:
    """Return an error in words, escaped.

    Args:
        error: the error.
        width: the room for it.
    """
    words = _what(error)
    if width is Width.BAR:
        words = next((short for kind, short in _SHORT.items() if isinstance(error, kind)), words)
    elif width is Width.LINE and isinstance(error, FeishuMailError):
        known = log_id(error)
        words = f"{_line(error)} [log id {known}]" if known else _line(error)
    return escape(words)


def skipping(error: Suspended, width: Width = Width.LINE) -> str:
    """Return the sentence that the drafts of a suspended subject are skipped, escaped.

    Args:
        error: the error of one of these drafts.
        width: the room for it; only a line has the advice.
    """
    whose = "All drafts" if error.subject == "app" else "Its drafts"
    return escape(f"{whose} are skipped: {_reason(error, advice=width is Width.LINE)}{_again(error)}")


def _what(error: BaseException, *, full: bool = False) -> str:
    """Return what happened; `full`: with what does not fit into a cell."""
    match error:
        case ApiError():
            words = f"{error.msg} ({error.code})"
        case AutomatedSendDisabled():
            words = f"{_NOT_ALLOWED} ({error.reason})" if full and error.reason else _NOT_ALLOWED
        case Suspended() if full:
            words = "it is suspended"
        case Suspended() if error.__cause__ is not None:
            words = f"{name_subject(error.subject)}: {_what(error.__cause__)}"
        case OutcomeUnknown(attempts=0, __cause__=FeishuMailError() as cause):
            words = f"{_EARLIER}; this one: {_what(cause)}"
        case OutcomeUnknown() if was_stopped(error.__cause__):
            words = _BROKEN_OFF
        case OutcomeUnknown() if error.__cause__ is not None:
            words = f"no clear answer; the last one: {_what(error.__cause__)}"
        case NotSent() if was_stopped(error):
            words = f"{_STOPPED}; it was not sent" if full else _STOPPED
        case NotSent() if isinstance(error.__cause__, FeishuMailError):
            words = str(error.__cause__)  # the reason why there is no token
        case _:
            words = str(error)
    return words


def _line(error: FeishuMailError) -> str:
    match error:
        case Suspended():
            return f"not tried, because of {name_subject(error.subject)}: {_reason(error)}{_again(error)}"
        case OutcomeUnknown(attempts=0, __cause__=FeishuMailError() as cause):
            return f"{_EARLIER}. This one made none: {sentence(_what(cause))} {advise(error)}"
        case OutcomeUnknown() if was_stopped(error.__cause__):
            return f"it may have been sent: {_BROKEN_OFF}. {_SAFE}"
        case OutcomeUnknown() if isinstance(error.__cause__, FeishuMailError):
            return f"it may have been sent. Last: {_reason(error)}"
        case _:
            return _reason(error)


def _reason(error: FeishuMailError, *, advice: bool = True) -> str:
    """Return the root cause as a sentence, and the advice as another."""
    return f"{sentence(_what(root_cause(error), full=True))} {advise(error) if advice else ''}".strip()


def was_stopped(error: BaseException | None) -> bool:
    """Return whether a draft was not sent because of a stop (the command line sets no deadlines).

    Args:
        error: the draft's error.
    """
    other = isinstance(error, LoginRequired | LedgerError)
    return isinstance(error, NotSent) and not other and not isinstance(error.__cause__, FeishuMailError)


def advise(error: BaseException | None) -> str:
    """Return advice for a user of the command line, escaped; empty if there is none.

    Args:
        error: the error.
    """
    match error:
        case ApiError():
            words = error.advice
        case AutomatedSendDisabled() if error.reference:
            words = f"Open the draft at {error.reference} and send it there, or change the mailbox's setting."
        case AutomatedSendDisabled():
            words = "Send it by hand, or change the mailbox's setting."
        case Suspended(__cause__=AutomatedSendDisabled()):
            words = advise(AutomatedSendDisabled("", None))  # without the link, which is that of another draft
        case Suspended():
            words = advise(error.__cause__)
        case OutcomeUnknown() if error.__cause__ is not None:
            words = f"{advise(error.__cause__)} {_SAFE}".strip()
        case _:
            words = ""
    return escape(words)


def log_id(error: FeishuMailError) -> str | None:
    """Return the log id that Feishu's support needs; None if there is none."""
    return error.log_id or root_cause(error).log_id


def name_subject(subject: str) -> str:
    """Return a suspended subject in words, escaped.

    Args:
        subject: "app", "user:NAME" or "mailbox:ADDRESS".
    """
    kind, _, name = escape(subject).partition(":")
    if kind == "app":
        return "the whole app"
    owner = name.removeprefix("me/")
    if "(" in name:
        return f"this {kind}"  # an unnamed user: the token fingerprint in its place means nothing to a person
    return f"{kind} {name}" if owner == name else f"the own mailbox of {owner}"


def _again(error: Suspended) -> str:
    return "" if error.until is None else f" It may go again in {_minutes(error.until)}."


def _minutes(seconds: float) -> str:
    return count(round(seconds / 60), "minute") if seconds >= 90 else f"{seconds:.0f} s"  # noqa: PLR2004


def span(seconds: float) -> str:
    """Return a duration for a person, rounded up: "42 s", "7 min", "4 h 10 min".

    Args:
        seconds: the duration, in seconds.
    """
    if seconds <= 2 * _MINUTE:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / _MINUTE)
    if seconds <= 2 * _HOUR:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"


def moment(seconds: float) -> str:
    """Return a point in time for a person, in the local time zone.

    Args:
        seconds: the Unix time, in seconds.
    """
    try:
        return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError, OSError):
        return "a time without end"


def detail(outcome: Outcome) -> str:
    """Return the details of an outcome, to be shown beside its status and draft; escaped.

    Args:
        outcome: the outcome.
    """
    if outcome.error is not None:
        return say(outcome.error, Width.LINE)
    assert outcome.result is not None
    if outcome.result.already_sent:
        return SENT_BEFORE
    if outcome.result.scheduled_for is not None:
        return f"for {moment(outcome.result.scheduled_for.timestamp())}"
    calls = f"  ({outcome.result.attempts} calls)" if outcome.result.attempts > 1 else ""
    message = f"message_id {outcome.result.message_id}" if outcome.result.message_id else ""
    return escape(message + calls).strip()
