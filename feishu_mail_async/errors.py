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

import pickle
from dataclasses import replace
from typing import Any, ClassVar, Self

from ._text import escape
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
]


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
    """A malformed draft id or mailbox."""


class TooManyRecipients(DraftRejected):
    """A draft with more recipients than allowed."""


class TooManyAttachments(DraftRejected):
    """A draft with more attachments than allowed."""


class ContentRisk(DraftRejected):
    """A draft whose content was judged risky."""


class SenderCheckFailed(DraftRejected):
    """A draft whose sender is not acceptable."""


class ReceiverCheckFailed(DraftRejected):
    """A draft with a recipient that is not acceptable."""


class DraftNotFound(DraftRejected):
    """A draft that is not in this mailbox."""


class AccessDenied(ApiError):
    """A call that the app or the user may not make. Base of the errors of permissions, scopes and tokens."""


class PermissionDenied(AccessDenied):
    """A mailbox that the app or the user has no right to use."""


class MailboxNotFound(AccessDenied):
    """A mailbox that does not exist or is not active."""


class ScopeMissing(AccessDenied):
    """An OAuth scope that the app lacks or the user did not grant."""


class InvalidToken(AccessDenied):
    """A user_access_token that is missing, malformed, wrong or expired."""


class QuotaSpent(ApiError):
    """A quota that is used up. Base of the errors for which retrying soon is useless."""


class UserDailyQuota(QuotaSpent):
    """The user's daily quota of sent mails, used up."""


class UserExternalQuota(QuotaSpent):
    """The user's daily quota of external recipients, used up."""


class TenantExternalQuota(QuotaSpent):
    """The tenant's daily quota of external recipients, used up."""


class TenantStorageFull(QuotaSpent):
    """A tenant whose storage is full."""


class AppQuotaSpent(QuotaSpent):
    """The app's monthly quota of API calls, used up."""


class Throttled(ApiError):
    """A refusal for the time being, which lasted until the retries were used up."""


class ConcurrentWrite(Throttled):
    """A conflict with another program that was writing to the mailbox."""


class MailThrottled(Throttled):
    """A refusal because the system slows down this user's mail."""


class FrequencyLimited(Throttled):
    """A refusal because the app calls more often than it may."""


class ServerError(ApiError):
    """A failure of the server."""


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
    """A draft in doubt: it may have been sent, and no answer, or no readable record, settles it.

    `__cause__` is the last error. Where `attempts` is 0, it is an earlier call that may have sent the draft.
    Sending it again is safe: a draft that went out is answered with "already sent".
    """

    status = OutcomeStatus.UNKNOWN


class NotSent(FeishuMailError):
    """A draft that was certainly not sent: the deadline or a cancellation came first, or there was no token.

    With a ledger, the draft's record was read before, and it says that no earlier call may have sent the draft.
    """

    status = OutcomeStatus.SKIPPED


class ClientClosed(NotSent):
    """A client that is closed, or was closed before the draft had its turn."""


class LoginRequired(NotSent):
    """A user whose tokens cannot be refreshed any more: a person has to log in again."""


class LedgerError(NotSent):
    """A ledger that cannot be used; without a record no call is made. The message gives the remedy.

    If the draft's own record could not be read, this is the cause of an `OutcomeUnknown`.
    """


class RecordRefused(LedgerError):
    """A draft of which the ledger's database takes no record, so no call is made. Other drafts go on."""

    status = OutcomeStatus.FAILED


class TransportError(FeishuMailError):
    """A server that could not be reached: the name did not resolve, or no connection came about."""


class Misconfigured(TransportError):
    """A server that will not be reached until a setting is changed; the message names the setting.

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
    """A draft that was not attempted: its user, mailbox or app is suspended. `__cause__` says why.

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
