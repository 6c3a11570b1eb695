"""What became of a draft, in words for a person and as JSON for a program."""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from feishu_mail_async.errors import (
    ApiError,
    AutomatedSendDisabled,
    ClientClosed,
    FeishuMailError,
    OutcomeUnknown,
    ScopeClosed,
)
from feishu_mail_async.model import Draft, Outcome, OutcomeStatus

__all__ = ["as_json", "brief", "clean", "count", "detail", "explain", "name_draft", "name_status", "summary"]

_SAFE: Final = "Sending it again is safe: a mail that went out is not sent twice."
_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def clean(text: str) -> str:
    """`text` without anything that could steer a terminal: some of it comes from the server."""
    return "".join(" " if unicodedata.category(character) in _HIDDEN else character for character in text)


def count(number: int, noun: str) -> str:
    """The number and what it counts: one draft, two drafts."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def name_status(status: OutcomeStatus) -> str:
    """The status as a person reads it."""
    return status.replace("_", " ")


def name_draft(draft: Draft) -> str:
    """The draft, with its mailbox where that is not the user's own."""
    return draft.draft_id if draft.mailbox == "me" else f"{draft.draft_id} in {draft.mailbox}"


def brief(error: BaseException) -> str:
    """What went wrong, in a few words."""
    match error:
        case ApiError():
            words = f"{error.msg} ({error.code})"
        case AutomatedSendDisabled():
            words = "the mailbox does not allow automated sending"
        case ScopeClosed() if error.__cause__ is not None:
            words = f"{_scope(error)}: {brief(error.__cause__)}"
        case OutcomeUnknown() if error.__cause__ is not None:
            words = f"no clear answer; the last one: {brief(error.__cause__)}"
        case ClientClosed():
            words = "stopped before its turn came"
        case _:
            words = str(error)
    return clean(words)


def explain(error: FeishuMailError) -> str:
    """What went wrong and what to do about it, on one line; with the log id, which support asks for."""
    log_id = error.log_id
    match error:
        case ScopeClosed():
            cause = error.__cause__
            words = f"not tried, because of {_scope(error)}: {_because(cause)}"
            if error.until is not None:
                words += f" It may go again in {_minutes(error.until)}."
            log_id = log_id or getattr(cause, "log_id", None)
        case OutcomeUnknown() if isinstance(error.__cause__, FeishuMailError):
            words = f"it may have been sent. Last: {_because(error.__cause__)} {_SAFE}"
        case _:
            words = _because(error)
    return clean(f"{words} [log id {log_id}]" if log_id else words)


def _because(error: BaseException | None) -> str:
    match error:
        case ApiError():
            return f"{_sentence(f'{error.msg} ({error.code})')} {error.advice}"
        case AutomatedSendDisabled():
            reason = f" ({error.reason})" if error.reason else ""
            way = (
                f"Open the draft at {error.reference} and send it there" if error.reference else "Send it by hand"
            )
            return f"the mailbox does not allow automated sending{reason}. {way}, or change the mailbox's setting."
        case ClientClosed():
            return "stopped before its turn came; it was not sent."
        case None:
            return "it is closed."
        case _:
            return _sentence(str(error))


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?", "。")) else f"{text}."


def _scope(error: ScopeClosed) -> str:
    kind, _, name = error.scope.partition(":")
    if kind == "app":
        return "the whole app"
    # A user without a name goes by a mark of the token, which tells a person nothing.
    return f"this {kind}" if "(" in name or name.startswith("me/") else f"{kind} {name}"


def _minutes(seconds: float) -> str:
    return count(round(seconds / 60), "minute") if seconds >= 90 else f"{seconds:.0f} s"  # noqa: PLR2004


def detail(outcome: Outcome) -> str:
    """What stands beside the status and the draft."""
    if outcome.error is not None:
        return explain(outcome.error)
    assert outcome.result is not None
    if outcome.result.already_sent:
        return "an earlier call had sent it; it was not sent twice"
    calls = f"  ({outcome.result.attempts} calls)" if outcome.result.attempts > 1 else ""
    message = f"message_id {outcome.result.message_id}" if outcome.result.message_id else ""
    return clean(message + calls).strip()


def summary(outcomes: Iterable[Outcome]) -> str:
    """All of them on one line: "12 drafts: 9 sent, 1 already sent, 2 failed"."""
    counts = Counter(outcome.status for outcome in outcomes)
    parts = [f"{counts[status]} {name_status(status)}" for status in OutcomeStatus if counts[status]]
    return f"{count(counts.total(), 'draft')}: {', '.join(parts)}"


def as_json(outcome: Outcome) -> dict[str, Any]:
    """The outcome as `--json` prints it; `code` and `advice` are those of the cause where the error has none."""
    draft, result, error = outcome.draft, outcome.result, outcome.error
    told: dict[str, Any] = {
        "draft_id": draft.draft_id,
        "mailbox": draft.mailbox,
        "user": draft.user,
        "status": outcome.status.value,
        "message_id": result.message_id if result is not None else None,
        "thread_id": result.thread_id if result is not None else None,
        "attempts": 0,
        "log_id": None,
        "error": None,
    }
    if result is not None:
        told |= {"attempts": result.attempts, "log_id": result.log_id}
    if error is not None:
        source = error if isinstance(error, ApiError) else error.__cause__
        api = source if isinstance(source, ApiError) else None
        told |= {"attempts": error.attempts, "log_id": error.log_id or (api.log_id if api is not None else None)}
        told["error"] = {
            "type": type(error).__name__,
            "code": api.code if api is not None else None,
            "message": error.msg if isinstance(error, ApiError) else str(error),
            "advice": api.advice if api is not None else None,
        }
    return told
