"""The exceptions, each tied to its codes in the table of `codes`.

Every message says what happened and, where possible, how to fix it; none contains a token. All of them pickle.

    FeishuMailError
      ApiError               the API answered with an error code: one class for each group of codes
      AutomatedSendDisabled  code 0, and still nothing was sent
      BadReply               a call was made, and no answer of the API came back
      TransportError         the server could not be reached (Misconfigured: nor will it be, as things are set)
      OutcomeUnknown         in doubt: the mail may have gone out
      NotSent                certainly not sent: deadline, cancellation, no token, client closed, ledger
      Suspended              not attempted: its user, mailbox or app is suspended
      UnknownUser            not attempted: the client has no token for its user

The class attribute `status` is the outcome that a draft gets when it ends with the error.
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
    """Return the text with a full stop at its end, so that another sentence can follow.

    Args:
        text: the text; an exception is taken by its message.
    """
    said = str(text)
    return said if said.endswith((".", "!", "?", "。")) else f"{said}."


def root_cause(error: "FeishuMailError") -> "FeishuMailError":
    """Return the root cause: the error behind an `OutcomeUnknown` or a `Suspended`, or else the error itself.

    Args:
        error: the error that a draft ended with.
    """
    while isinstance(error, OutcomeUnknown | Suspended) and isinstance(error.__cause__, FeishuMailError):
        error = error.__cause__
    return error


def without_traceback(error: "FeishuMailError") -> "FeishuMailError":
    """Return a copy that can be kept: without the traceback, which would keep the caller's frames alive.

    Args:
        error: the error; its causes of this package are copied in the same way.
    """
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
    """Base of all errors that this package raises for a send that did not end well.

    Attributes:
        draft: the draft concerned, where there is one.
        log_id: the `X-Tt-Logid` of the last answer, which support asks for; None without one.
        attempts: calls made for the draft before the error.
        status: the outcome of a draft that ends with this error (set by class).
    """

    status: ClassVar[OutcomeStatus] = OutcomeStatus.FAILED

    def __init__(
        self, message: str, *, draft: Draft | None = None, log_id: str | None = None, attempts: int = 0
    ) -> None:
        # Escaped because it may quote a stranger: a server, a proxy, a database, a caller's source of tokens.
        super().__init__(escape(message))
        self.draft = draft
        self.log_id = log_id
        self.attempts = attempts

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls the class with `args`, which fails for keyword-only parameters. The cause is kept if it
        # is an error of this package, because it says why (Suspended, OutcomeUnknown); any other may not pickle.
        cause = self.__cause__ if isinstance(self.__cause__, FeishuMailError) else None
        state = dict(self.__dict__)
        if self.draft is not None:
            try:
                pickle.dumps(self.draft.tag)
            except Exception:  # noqa: BLE001 - the tag may be any object; without it the error pickles
                state["draft"] = replace(self.draft, tag=None)
        return _rebuild, (type(self), self.args, state, cause)

    def __copy__(self) -> Self:
        error = _rebuild(type(self), self.args, self.__dict__, self.__cause__)
        assert isinstance(error, type(self))
        return error


class ApiError(FeishuMailError):
    """An error code in the API's answer.

    Attributes:
        code: the `code` of the body.
        msg: the `msg` of the body.
        http_status: the HTTP status.
        advice: the remedy, in English.
        advice_zh: the remedy, in Chinese.

    Source: the table `codes.CODES`.
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
    """A draft that cannot be sent as it is. Base of the errors that only a change of the draft can cure."""


class InvalidRequest(DraftRejected):
    """A malformed draft id or mailbox (1234008)."""


class TooManyRecipients(DraftRejected):
    """A draft with more recipients than allowed (1236003)."""


class TooManyAttachments(DraftRejected):
    """A draft with more attachments than allowed (1236004)."""


class ContentRisk(DraftRejected):
    """Content that was judged risky (1236014)."""


class SenderCheckFailed(DraftRejected):
    """A sender that is not acceptable (1236017)."""


class ReceiverCheckFailed(DraftRejected):
    """A recipient that is not acceptable (1236018)."""


class DraftNotFound(DraftRejected):
    """A draft that is not in this mailbox (1234050)."""


class AccessDenied(ApiError):
    """A call that the app or the user may not make. Base of the errors of permissions, scopes and tokens."""


class PermissionDenied(AccessDenied):
    """A mailbox that the app or the user has no right to use (1234017)."""


class MailboxNotFound(AccessDenied):
    """A mailbox that does not exist or is not active (1234013)."""


class ScopeMissing(AccessDenied):
    """An OAuth scope that the app lacks (99991672) or the user did not grant (99991679)."""


class InvalidToken(AccessDenied):
    """A user_access_token that is missing, malformed, wrong or expired (99991661, …63, …68, …71, …77)."""


class QuotaSpent(ApiError):
    """A quota that is used up; retrying soon is useless."""


class UserDailyQuota(QuotaSpent):
    """The user has sent as many mails as a day allows (1236007)."""


class UserExternalQuota(QuotaSpent):
    """The user has reached as many external recipients as a day allows (1236008)."""


class TenantExternalQuota(QuotaSpent):
    """The tenant has reached as many external recipients as a day allows (1236009)."""


class TenantStorageFull(QuotaSpent):
    """The storage of the tenant is full (1236013)."""


class AppQuotaSpent(QuotaSpent):
    """The app has used up its API calls of the month (99991403)."""


class Throttled(ApiError):
    """A refusal for now, which lasted until the retries were used up."""


class ConcurrentWrite(Throttled):
    """Another program was writing to the mailbox (1236006)."""


class MailThrottled(Throttled):
    """The system slows down the mail of this user (1236010)."""


class FrequencyLimited(Throttled):
    """The app calls more often than it may (99991400, or a 429 without a JSON body)."""


class ServerError(ApiError):
    """A failure of the server (1236019)."""


class AutomatedSendDisabled(FeishuMailError):
    """A reply with code 0 after which nothing was sent: the mailbox's own setting blocks automated sending.

    Attributes:
        reason: the reason, in the server's words; it may be empty.
        reference: a link where a person can open the draft and send it; None if the server gave none.

    Source: `automation_send_disable` in the reply's `data`.
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

    `__cause__` is the last error. Where `attempts` is 0, it is an earlier call that may have sent the draft.
    Sending it again is safe: a draft that went out is answered with "already sent".
    """

    status = OutcomeStatus.UNKNOWN


class NotSent(FeishuMailError):
    """Certainly not sent: the deadline or a cancellation came first, or no token could be had.

    With a ledger, the draft's record was read before, and it says that no earlier call may have sent the draft.
    """

    status = OutcomeStatus.SKIPPED


class ClientClosed(NotSent):
    """The client is closed, or was closed before the draft had its turn."""


class LoginRequired(NotSent):
    """The user's tokens cannot be refreshed any more: a person has to log in again."""


class LedgerError(NotSent):
    """The ledger cannot be used, and without a record no call is made. The message gives the remedy.

    If the draft's own record could not be read, this is the cause of an `OutcomeUnknown`.
    """


class RecordRefused(LedgerError):
    """The ledger's database refuses a record of this draft, so no call is made for it. Other drafts go on."""

    status = OutcomeStatus.FAILED


class TransportError(FeishuMailError):
    """The server could not be reached: the name did not resolve, or no connection came about."""


class Misconfigured(TransportError):
    """The API cannot be reached, and will not be until a setting is changed; the message names the setting.

    Examples: a certificate that is not trusted, a proxy that refuses, an address that is not the API's.
    """


class BadReply(FeishuMailError):
    """A call that brought no answer of the API: the answer was lost, unreadable, or from something else.

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
    """A user that the client has no token for, or no user named where the client has several.

    Attributes:
        users: the known users.
    """

    status = OutcomeStatus.SKIPPED

    def __init__(self, message: str, *, users: tuple[str, ...] = (), draft: Draft | None = None) -> None:
        super().__init__(message, draft=draft)
        self.users = users


class Suspended(FeishuMailError):
    """Not attempted: the draft's user, mailbox or app is suspended. `__cause__` is the error that suspended it.

    Attributes:
        subject: the suspended subject, as `resume` takes it: "app", "user:NAME" or "mailbox:ADDRESS".
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
"""Name -> class of every exception that a row of the code table can name."""
# A row whose class is missing above must fail at import, not in the middle of a run.
assert all(row.error in _CLASSES for row in CODES.values() if row.error)


def api_error(row: Code, msg: str, *, http_status: int, log_id: str | None) -> ApiError:
    """Return the exception for a row of the code table and the answer that named it.

    Args:
        row: the row.
        msg: the `msg` of the answer's body; if it is empty, the row's own message is used.
        http_status: the HTTP status of the answer.
        log_id: the `X-Tt-Logid` of the answer.
    """
    return _CLASSES[row.error](
        row.number,
        msg or row.message or "no message",
        http_status=http_status,
        advice=row.advice,
        advice_zh=row.advice_zh,
        log_id=log_id,
    )
