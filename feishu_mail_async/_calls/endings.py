"""The errors with which a call ends: each says whether the mail may have gone out."""

from typing import Final

from feishu_mail_async._scheduling.record import Record
from feishu_mail_async._text import sentence
from feishu_mail_async.errors import ClientClosed, FeishuMailError, NotSent, OutcomeUnknown
from feishu_mail_async.model import Draft

__all__ = ["SESSION_CLOSED", "client_closed", "early", "late", "settled"]

SESSION_CLOSED: Final = "session: it was closed; give the client an open one"
_SAFE: Final = "Sending it again is safe: a mail that went out is not sent twice."


def client_closed() -> ClientClosed:
    """Return the error of a draft that ends with its client."""
    return ClientClosed("the client was closed before the draft was sent")


def early(error: FeishuMailError, draft: Draft | None, record: Record | None) -> FeishuMailError:
    """Return the error to report for a draft that ended before there was a job for it.

    Args:
        error: the error that ended it.
        draft: the draft; None for a call that sends none.
        record: its record. If that is in doubt, or not read yet, an earlier call may have sent the draft.
    """
    return settled(error, draft, 0, conclusive=record is None or not record.maybe_sent)


def settled(error: FeishuMailError, draft: Draft | None, attempts: int, *, conclusive: bool) -> FeishuMailError:
    """Return the error to report: an OutcomeUnknown in its place if a call may have sent the mail.

    Args:
        error: the error that ended the draft.
        draft: the draft; None for a call that sends none.
        attempts: calls made for it.
        conclusive: it is certain that no call has sent the mail.
    """
    error.draft, error.attempts = draft, attempts
    if conclusive or isinstance(error, OutcomeUnknown):
        return error
    doubt = "it may have been sent: an attempt had no clear answer, and then"
    if not attempts:
        doubt = "an earlier call may have sent it, and this one made none"
    unknown = OutcomeUnknown(
        f"{doubt}: {sentence(str(error))} {_SAFE}", draft=draft, log_id=error.log_id, attempts=attempts
    )
    unknown.__cause__ = error
    return unknown


def late(deadline: float, reason: str, draft: Draft | None, attempts: int, *, in_doubt: bool) -> FeishuMailError:
    """Return the error of a caller whose deadline has passed, while its call goes on or is given up.

    Args:
        deadline: the caller's deadline, in seconds.
        reason: what it waited for, in words.
        draft: the draft; None for a call that sends none.
        attempts: calls made for it so far.
        in_doubt: a call may have sent it, and no answer has settled it.
    """
    if not in_doubt:
        return NotSent(f"not sent: {reason}", draft=draft, attempts=attempts)
    return OutcomeUnknown(
        f"it may have been sent: the deadline of {deadline:g} s passed before a clear answer came. {_SAFE}",
        draft=draft,
        attempts=attempts,
    )
