"""The exceptions, each tied to its codes in the table of `codes`.

Every message says what happened and, where possible, how to fix it; none contains a token. All of them pickle.

    FeishuMailError
      ApiError               the API answered with an error code: one class for each group of codes
      AutomatedSendDisabled  code 0, and still nothing was sent
      BadReply               a call was made, and no answer of the API came back
      TransportError         the server could not be reached (Misconfigured: nor will it be, as things are set)
      OutcomeUnknown         in doubt: the mail may have gone out
      NotSent                certainly not sent: deadline, cancellation, no token, client closed, ledger, too late
      Suspended              not attempted: its user, mailbox or app is suspended
      UnknownUser            not attempted: the client has no token for its user

The class attribute `status` is the outcome that a draft gets when it ends with the error. `retryable` says whether
the same call may succeed later, `certainly_not_sent` whether nothing went out.
"""

from .api import (
    AccessDenied,
    ApiError,
    AppQuotaSpent,
    AttachmentBlocked,
    ConcurrentWrite,
    ContentRisk,
    DraftNotFound,
    DraftRejected,
    FrequencyLimited,
    InlineImageRejected,
    InvalidRequest,
    InvalidToken,
    MailboxNotFound,
    MailThrottled,
    MessageMalformed,
    MessageTooLarge,
    NotScheduled,
    PermissionDenied,
    QuotaSpent,
    ReceiverCheckFailed,
    ScopeMissing,
    SenderCheckFailed,
    ServerError,
    TenantExternalQuota,
    TenantStorageFull,
    Throttled,
    TooManyAttachments,
    TooManyRecipients,
    UserDailyQuota,
    UserExternalQuota,
)
from .base import FeishuMailError
from .ends import (
    AutomatedSendDisabled,
    BadReply,
    ClientClosed,
    LedgerError,
    LoginRequired,
    Misconfigured,
    NotSent,
    OutcomeUnknown,
    RecordRefused,
    ScheduleMissed,
    Suspended,
    TransportError,
    UnknownUser,
)

__all__ = [
    "AccessDenied",
    "ApiError",
    "AppQuotaSpent",
    "AttachmentBlocked",
    "AutomatedSendDisabled",
    "BadReply",
    "ClientClosed",
    "ConcurrentWrite",
    "ContentRisk",
    "DraftNotFound",
    "DraftRejected",
    "FeishuMailError",
    "FrequencyLimited",
    "InlineImageRejected",
    "InvalidRequest",
    "InvalidToken",
    "LedgerError",
    "LoginRequired",
    "MailThrottled",
    "MailboxNotFound",
    "MessageMalformed",
    "MessageTooLarge",
    "Misconfigured",
    "NotScheduled",
    "NotSent",
    "OutcomeUnknown",
    "PermissionDenied",
    "QuotaSpent",
    "ReceiverCheckFailed",
    "RecordRefused",
    "ScheduleMissed",
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
