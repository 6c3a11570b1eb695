"""The errors of calls that were not made, or to which no answer with a code came."""

from feishu_mail_async.model import Draft, OutcomeStatus

from .base import FeishuMailError

__all__ = [
    "AutomatedSendDisabled",
    "BadReply",
    "ClientClosed",
    "LedgerError",
    "LoginRequired",
    "Misconfigured",
    "NotSent",
    "OutcomeUnknown",
    "RecordRefused",
    "ScheduleMissed",
    "Suspended",
    "TransportError",
    "UnknownUser",
]


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
    retryable = True
    certainly_not_sent = False


class NotSent(FeishuMailError):
    """A draft that was certainly not sent: the deadline or a cancellation came first, or there was no token.

    With a ledger, the draft's record was read before, and it says that no earlier call may have sent the draft.
    """

    status = OutcomeStatus.SKIPPED
    retryable = True


class ScheduleMissed(NotSent):
    """A draft that could not be handed over in time to be sent when it was meant to; it was not sent."""

    status = OutcomeStatus.FAILED
    retryable = False


class ClientClosed(NotSent):
    """A client that is closed, or was closed before the draft had its turn."""

    retryable = False


class LoginRequired(NotSent):
    """A user whose tokens cannot be refreshed any more: a person has to log in again."""

    retryable = False


class LedgerError(NotSent):
    """A ledger that cannot be used; without a record no call is made. The message gives the remedy.

    If the draft's own record could not be read, this is the cause of an `OutcomeUnknown`.
    """


class RecordRefused(LedgerError):
    """A draft of which the ledger's database takes no record, so no call is made. Other drafts go on."""

    status = OutcomeStatus.FAILED
    retryable = False


class TransportError(FeishuMailError):
    """A server that could not be reached: the name did not resolve, or no connection came about."""

    retryable = True


class Misconfigured(TransportError):
    """A server that will not be reached until a setting is changed; the message names the setting.

    Examples: a certificate that is not trusted, a proxy that refuses, an address that is not the API's.
    """

    retryable = False


class BadReply(FeishuMailError):
    """A call that brought no answer of the API: the answer was lost, unreadable, or from something else.

    Attributes:
        http_status: the HTTP status; None where there was no answer at all.
    """

    retryable = True
    certainly_not_sent = False

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
        self.retryable = until is not None
