"""The errors of answers with a code: one class for each group of codes."""

from feishu_mail_async.codes import Verdict, lookup
from feishu_mail_async.model import Draft

from .base import FeishuMailError

__all__ = [
    "AccessDenied",
    "ApiError",
    "AppQuotaSpent",
    "AttachmentBlocked",
    "ConcurrentWrite",
    "ContentRisk",
    "DraftNotFound",
    "DraftRejected",
    "FrequencyLimited",
    "InlineImageRejected",
    "InvalidRequest",
    "InvalidToken",
    "MailThrottled",
    "MailboxNotFound",
    "MessageMalformed",
    "MessageTooLarge",
    "NotScheduled",
    "PermissionDenied",
    "QuotaSpent",
    "ReceiverCheckFailed",
    "ScopeMissing",
    "SenderCheckFailed",
    "ServerError",
    "TenantExternalQuota",
    "TenantStorageFull",
    "Throttled",
    "TooManyAttachments",
    "TooManyRecipients",
    "UserDailyQuota",
    "UserExternalQuota",
]


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
        row = lookup(code, http_status)
        self.retryable = row.verdict is Verdict.RETRY or isinstance(self, QuotaSpent)
        self.certainly_not_sent = row.conclusive


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
    """A draft, or a mail, that is not in this mailbox."""


class MessageTooLarge(DraftRejected):
    """A message with more bytes than allowed."""


class MessageMalformed(DraftRejected):
    """A message that the server cannot read as MIME."""


class AttachmentBlocked(DraftRejected):
    """A message with an attachment whose kind of file is not accepted."""


class InlineImageRejected(DraftRejected):
    """A message with an image within its text whose kind is not accepted."""


class NotScheduled(ApiError):
    """A mail that is not scheduled, or not any more, so that there is nothing to cancel."""


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
