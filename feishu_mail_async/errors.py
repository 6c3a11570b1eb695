"""The exceptions, each tied to its codes in the table of `codes`.

Every error says what happened and, where it can, what to do; none holds a token. All of them pickle.
"""

import copy
import pickle
from dataclasses import replace
from typing import Any, ClassVar, Final, Self

from ._text import escape
from .codes import CODES, Code
from .model import Draft, OutcomeStatus

__all__ = [
    "AccessDenied",
    "ApiError",
    "AppQuotaSpent",
    "AutomatedSendDisabled",
    "BadReply",
    "ClientClosed",
    "ConcurrentWrite",
    "ContentRisk",
    "DraftNotFound",
    "DraftRejected",
    "FeishuMailError",
    "FrequencyLimited",
    "InvalidRequest",
    "InvalidToken",
    "LedgerError",
    "LoginRequired",
    "MailThrottled",
    "MailboxNotFound",
    "Misconfigured",
    "NotSent",
    "OutcomeUnknown",
    "PermissionDenied",
    "QuotaSpent",
    "ReceiverCheckFailed",
    "RecordRefused",
    "ScopeMissing",
    "SenderCheckFailed",
    "ServerError",
    "Suspended",
    "TenantExternalQuota",
    "TenantStorageFull",
    "Throttled",
    "TooManyAttachments",
    "TooManyRecipients",
    "TransportError",
    "UnknownUser",
    "UserDailyQuota",
    "UserExternalQuota",
    "api_error",
    "root_cause",
    "sentence",
    "without_traceback",
]


def sentence(text: object) -> str:
    """The text with a full stop at its end, so that another sentence can follow."""
    said = str(text)
    return said if said.endswith((".", "!", "?", "。")) else f"{said}."


def root_cause(error: "FeishuMailError") -> "FeishuMailError":
    """Return the root cause: the error behind an `OutcomeUnknown` or a `Suspended`, or else the error itself."""
    while isinstance(error, OutcomeUnknown | Suspended) and isinstance(error.__cause__, FeishuMailError):
        error = error.__cause__
    return error


def without_traceback(error: "FeishuMailError") -> "FeishuMailError":
    """A copy that can be kept: without the traceback, and so without its caller's frames."""
    kept = copy.copy(error)
    cause = kept.__cause__
    kept.__cause__ = without_traceback(cause) if isinstance(cause, FeishuMailError) else None
    return kept


def _rebuild(
    cls: type["FeishuMailError"], args: tuple[Any, ...], state: dict[str, Any], cause: BaseException | None
) -> "FeishuMailError":
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    error.__cause__ = cause
    return error


class FeishuMailError(Exception):
    """Base of everything this package raises for a send that did not end well.

    Attributes:
        draft: the draft concerned, where there is one.
        log_id: the `X-Tt-Logid` of the last answer, which support asks for; None without one.
        attempts: calls made for the draft before this.
    """

    status: ClassVar[OutcomeStatus] = OutcomeStatus.FAILED

    def __init__(
        self, message: str, *, draft: Draft | None = None, log_id: str | None = None, attempts: int = 0
    ) -> None:
        # Whoever has said it: a server, a proxy, a database, a caller's source of tokens.
        super().__init__(escape(message))
        self.draft = draft
        self.log_id = log_id
        self.attempts = attempts

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls the class with `args`, which keyword-only parameters do not survive; the cause
        # is kept where it is one of ours, because it says why (Suspended, OutcomeUnknown).
        cause = self.__cause__ if isinstance(self.__cause__, FeishuMailError) else None
        state = dict(self.__dict__)
        if self.draft is not None:
            try:
                pickle.dumps(self.draft.tag)
            except Exception:  # noqa: BLE001 - the tag is anything of the caller's; the error pickles all the same
                state["draft"] = replace(self.draft, tag=None)
        return _rebuild, (type(self), self.args, state, cause)

    def __copy__(self) -> Self:
        error = _rebuild(type(self), self.args, self.__dict__, self.__cause__)
        assert isinstance(error, type(self))
        return error


class ApiError(FeishuMailError):
    """The API answered with an error code.

    Attributes:
        code: the `code` of the body.
        msg: the `msg` of the body.
        http_status: the HTTP status.
        advice: what to do about it, in English.
        advice_zh: the same in Chinese.
    """

    def __init__(
        self,
        code: int,
        msg: str,
        *,
        http_status: int,
        advice: str,
        advice_zh: str,
        draft: Draft | None = None,
        log_id: str | None = None,
        attempts: int = 0,
    ) -> None:
        where = f" (log id {log_id})" if log_id else ""
        super().__init__(f"{code}: {msg}{where}. {advice}", draft=draft, log_id=log_id, attempts=attempts)
        self.code = code
        self.msg = msg
        self.http_status = http_status
        self.advice = advice
        self.advice_zh = advice_zh


class DraftRejected(ApiError):
    """The draft itself cannot be sent as it is."""


class InvalidRequest(DraftRejected):
    """The draft id or the mailbox is malformed."""


class TooManyRecipients(DraftRejected):
    """The draft has more recipients than allowed."""


class TooManyAttachments(DraftRejected):
    """The draft has more attachments than allowed."""


class ContentRisk(DraftRejected):
    """The content was judged risky."""


class SenderCheckFailed(DraftRejected):
    """The sender is not acceptable."""


class ReceiverCheckFailed(DraftRejected):
    """A recipient is not acceptable."""


class DraftNotFound(DraftRejected):
    """There is no such draft in this mailbox."""


class AccessDenied(ApiError):
    """The app or the user may not do this."""


class PermissionDenied(AccessDenied):
    """No right to use this mailbox."""


class MailboxNotFound(AccessDenied):
    """The mailbox does not exist or is not active."""


class ScopeMissing(AccessDenied):
    """The app lacks the scope, or the user did not grant it."""


class InvalidToken(AccessDenied):
    """The user_access_token is missing, malformed, wrong or expired."""


class QuotaSpent(ApiError):
    """A quota is used up; trying again soon is useless."""


class UserDailyQuota(QuotaSpent):
    """The user has sent all the mail a day allows."""


class UserExternalQuota(QuotaSpent):
    """The user has reached all the external recipients a day allows."""


class TenantExternalQuota(QuotaSpent):
    """The tenant has reached all the external recipients a day allows."""


class TenantStorageFull(QuotaSpent):
    """The tenant's storage is full."""


class AppQuotaSpent(QuotaSpent):
    """The app has used up its API calls of the month."""


class Throttled(ApiError):
    """Refused for now, and still refused when the retries were used up."""


class ConcurrentWrite(Throttled):
    """Something else was writing to the mailbox."""


class MailThrottled(Throttled):
    """The system slows this user's mail down."""


class FrequencyLimited(Throttled):
    """The app calls more often than it may."""


class ServerError(ApiError):
    """The server failed."""


class AutomatedSendDisabled(FeishuMailError):
    """The reply said code 0, and nothing was sent: the mailbox's own setting blocks automated sending.

    Attributes:
        reason: why, in the server's words.
        reference: a link where a person can open the draft and send it.
    """

    def __init__(
        self,
        reason: str,
        reference: str | None,
        *,
        draft: Draft | None = None,
        log_id: str | None = None,
        attempts: int = 0,
    ) -> None:
        link = f" Open the draft at {reference} and send it there," if reference else " Send it by hand,"
        super().__init__(
            f"nothing was sent: the mailbox does not allow automated sending ({reason or 'no reason given'})."
            f"{link} or change the mailbox's setting.",
            draft=draft,
            log_id=log_id,
            attempts=attempts,
        )
        self.reason = reason
        self.reference = reference


class OutcomeUnknown(FeishuMailError):
    """The draft may have been sent: an attempt got no answer that settles it, or its record could not be read.

    `__cause__` says what came last. Where `attempts` is 0, it is an earlier call that may have sent it.
    Sending it again is safe: a draft that went out is answered with "already sent".
    """

    status = OutcomeStatus.UNKNOWN


class NotSent(FeishuMailError):
    """Certainly not sent: the deadline or a stop came first, or no token was to be had.

    With a ledger: and its record, read before that, says that no earlier call may have sent it.
    """

    status = OutcomeStatus.SKIPPED


class ClientClosed(NotSent):
    """The client is closed, or was closed before the draft had its turn."""


class LoginRequired(NotSent):
    """The user's tokens cannot be refreshed any more: a person has to log in again."""


class LedgerError(NotSent):
    """The ledger cannot be used, and without a record no call is made. The message says what to do.

    If the draft's own record could not be read, it is the cause of an `OutcomeUnknown`.
    """


class RecordRefused(LedgerError):
    """The ledger's database takes no record of this draft, so no call is made for it. Other drafts go on."""

    status = OutcomeStatus.FAILED


class TransportError(FeishuMailError):
    """Nothing reached the server: the name did not resolve, or no connection came about."""


class Misconfigured(TransportError):
    """Nothing reached the API, and nothing will until a setting is changed; the message names which.

    A certificate that is not trusted, a proxy that refuses, an address that is not the API's.
    """


class BadReply(FeishuMailError):
    """The call was made, and no answer of the API's came back: lost, unreadable, or somebody else's.

    Attributes:
        http_status: the HTTP status; None where there was no answer at all.
    """

    def __init__(
        self,
        message: str,
        *,
        http_status: int | None = None,
        draft: Draft | None = None,
        log_id: str | None = None,
        attempts: int = 0,
    ) -> None:
        super().__init__(message, draft=draft, log_id=log_id, attempts=attempts)
        self.http_status = http_status


class UnknownUser(FeishuMailError):
    """The draft names a user that the client has no token for, or none where there are several.

    Attributes:
        users: those that are known.
    """

    status = OutcomeStatus.SKIPPED

    def __init__(self, message: str, *, users: tuple[str, ...] = (), draft: Draft | None = None) -> None:
        super().__init__(message, draft=draft)
        self.users = users


class Suspended(FeishuMailError):
    """Not attempted: the draft's user, mailbox or app is suspended. `__cause__` is what suspended it.

    Attributes:
        subject: what is suspended, as `resume` takes it: "app", "user:NAME" or "mailbox:ADDRESS".
        until: seconds from now until one draft may try again; None if `resume` or a new token is needed.
    """

    status = OutcomeStatus.SKIPPED

    def __init__(
        self,
        message: str,
        *,
        subject: str,
        until: float | None,
        draft: Draft | None = None,
        attempts: int = 0,
    ) -> None:
        super().__init__(message, draft=draft, attempts=attempts)
        self.subject = subject
        self.until = until


_CLASSES: Final[dict[str, type[ApiError]]] = {
    cls.__name__: cls
    for cls in (
        ApiError,
        AppQuotaSpent,
        ConcurrentWrite,
        ContentRisk,
        DraftNotFound,
        FrequencyLimited,
        InvalidRequest,
        InvalidToken,
        MailThrottled,
        MailboxNotFound,
        PermissionDenied,
        ReceiverCheckFailed,
        ScopeMissing,
        SenderCheckFailed,
        ServerError,
        TenantExternalQuota,
        TenantStorageFull,
        TooManyAttachments,
        TooManyRecipients,
        UserDailyQuota,
        UserExternalQuota,
    )
}
# A row whose class is missing here must fail at import, not in the middle of a run.
assert all(row.error in _CLASSES for row in CODES.values() if row.error)


def api_error(row: Code, msg: str, *, http_status: int, log_id: str | None) -> ApiError:
    """The exception for a row of the table and the answer that named it."""
    return _CLASSES[row.error](
        row.number,
        msg or row.message or "no message",
        http_status=http_status,
        advice=row.advice,
        advice_zh=row.advice_zh,
        log_id=log_id,
    )
