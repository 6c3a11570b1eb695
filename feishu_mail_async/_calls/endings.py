"""The errors with which a call ends: each says whether what it asked for may have been done."""

from typing import Any, Final

from feishu_mail_async._api.endpoints import SEND, Endpoint, LostReply
from feishu_mail_async._scheduling.record import Record
from feishu_mail_async._text import sentence
from feishu_mail_async.errors import ClientClosed, FeishuMailError, NotSent, OutcomeUnknown

from .call import Call

__all__ = ["SESSION_CLOSED", "client_closed", "early", "given_up", "late", "settled"]

SESSION_CLOSED: Final = "session: it was closed; give the client an open one"


def client_closed(endpoint: Endpoint[Any]) -> ClientClosed:
    """Return the error of a call that ends with its client."""
    what = "the draft" if endpoint is SEND else "it"
    return ClientClosed(f"the client was closed before {what} was {endpoint.did}")


def given_up(endpoint: Endpoint[Any], reason: str, *, closing: bool, conclusive: bool) -> NotSent:
    """Return the error of a call that was stopped.

    Args:
        endpoint: its endpoint.
        reason: the reason, in words.
        closing: its client is being closed.
        conclusive: it is certain that no attempt has done what was asked for.
    """
    if closing:
        return client_closed(endpoint)
    return NotSent(f"not {endpoint.did}: {reason}" if conclusive else reason)


def early(error: FeishuMailError, call: Call, record: Record | None) -> FeishuMailError:
    """Return the error to report for a call that ended before there was a job for it.

    Args:
        error: the error that ended it.
        call: the call.
        record: its draft's record. If that is in doubt, or not read yet, an earlier call may have sent the draft.
    """
    return settled(error, call, 0, conclusive=record is None or not record.maybe_sent)


def settled(error: FeishuMailError, call: Call, attempts: int, *, conclusive: bool) -> FeishuMailError:
    """Return the error to report: an OutcomeUnknown in its place if an attempt may have done what was asked for.

    Args:
        error: the error that ended the call.
        call: the call.
        attempts: attempts made for it.
        conclusive: it is certain that none of them has done it.
    """
    error.draft, error.attempts = call.draft, attempts
    if conclusive or isinstance(error, OutcomeUnknown):
        return error
    did = call.endpoint.did
    doubt = f"it may have been {did}: an attempt had no clear answer, and then"
    if not attempts:
        doubt = f"an earlier call may have {did} it, and this one made none"
    unknown = OutcomeUnknown(
        f"{doubt}: {sentence(str(error))} {_next_step(call.endpoint)}",
        draft=call.draft,
        log_id=error.log_id,
        attempts=attempts,
    )
    unknown.__cause__ = error
    return unknown


def late(deadline: float, reason: str, call: Call, attempts: int, *, in_doubt: bool) -> FeishuMailError:
    """Return the error of a caller whose deadline has passed, while its call goes on or is given up.

    Args:
        deadline: the caller's deadline, in seconds.
        reason: what it waited for, in words.
        call: the call.
        attempts: attempts made for it so far.
        in_doubt: one may have done what was asked for, and no answer has settled it.
    """
    did = call.endpoint.did
    if not in_doubt:
        return NotSent(f"not {did}: {reason}", draft=call.draft, attempts=attempts)
    return OutcomeUnknown(
        f"it may have been {did}: the deadline of {deadline:g} s passed before a clear answer came. "
        f"{_next_step(call.endpoint)}",
        draft=call.draft,
        attempts=attempts,
    )


def _next_step(endpoint: Endpoint[Any]) -> str:
    """Return what the caller of a call in doubt can do."""
    if endpoint is SEND:
        return "Sending it again is safe: a mail that went out is not sent twice."
    if endpoint.lost_reply is LostReply.LOOK:
        return f"Look whether it was {endpoint.did} before doing it again."
    return "Doing it again is safe."
