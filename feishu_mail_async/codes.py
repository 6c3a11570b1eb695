"""The table of all answer codes that the platform gives.

Exceptions, retries, the scheduler, the sandbox and the documentation read this table; no code number stands
anywhere else in the package. A reply is classified by the code in its body, never by its HTTP status: a 429 alone
means seven different things here.

Three questions decide what happens after an answer, and each row answers them: the `verdict` (done, retry or
fatal), the `subject` (the draft, user, mailbox or app that waits or is suspended) and `conclusive` (whether the
answer settles if the attempt sent the mail).

What follows from a row: RETRY of a draft means its own backoff (`_calls.retry`); of a user, a backoff of the user's
calls; of the app, a pause of the endpoint (both in `_scheduling.state`). FATAL with `until` means a suspension
(`_scheduling.suspensions`); without, the draft ends alone. How often: `RetryPolicy`.

Sources: the endpoint's table of error codes ("发送草稿", 错误码) for the 17 codes of sending a draft; the
platform's generic codes for those of the gateway, of tokens and of scopes; the OAuth endpoint's own for `OAUTH`.
"""

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

__all__ = [
    "CODES",
    "OAUTH",
    "Code",
    "Reach",
    "ResumeWhen",
    "Subject",
    "Verdict",
    "lookup",
    "named",
]


class Verdict(StrEnum):
    """The meaning of a reply for the draft that was sent."""

    SENT = "sent"
    ALREADY_SENT = "already sent"
    RETRY = "retry"
    FATAL = "fatal"


class Subject(StrEnum):
    """The draft, user, mailbox or app concerned: it waits after a RETRY, and is suspended after a FATAL."""

    DRAFT = "draft"
    USER = "user"
    MAILBOX = "mailbox"
    APP = "app"


class Reach(StrEnum):
    """The endpoints for which a suspension holds."""

    ENDPOINT = "this endpoint"
    SCOPE = "endpoints of the same OAuth scope"
    ALL = "all endpoints"


class ResumeWhen(StrEnum):
    """The condition that ends a suspension after a FATAL verdict."""

    HOUR = "an hour, then one probe"
    TOKEN = "the token changes"  # noqa: S105 - a condition, not a secret
    RESUMED = "resumed by the caller"


@dataclass(frozen=True, slots=True)
class Code:
    """A row of the table.

    Attributes:
        number: the `code` of the reply's body.
        name: a name of its own, which the sandbox and the tests use.
        error: the name of the exception class in `errors`; empty where the draft was sent.
        http_status: the HTTP status the platform sends with it.
        message: the English message the platform sends with it.
        verdict: the meaning for the draft.
        subject: the draft, user, mailbox or app concerned.
        conclusive: true if this answer settles whether the attempt sent the mail; false only for server errors.
        until: the condition that ends the suspension, where a FATAL verdict suspends more than its draft.
        reach: the endpoints for which that suspension holds.
        advice: the remedy, in English.
        advice_zh: the remedy, in Chinese.
    """

    number: int
    name: str
    error: str
    http_status: int
    message: str
    verdict: Verdict
    subject: Subject
    conclusive: bool
    advice: str
    advice_zh: str
    until: ResumeWhen | None = None
    reach: Reach = Reach.ALL


_SENT, _ALREADY, _RETRY, _FATAL = Verdict.SENT, Verdict.ALREADY_SENT, Verdict.RETRY, Verdict.FATAL
_DRAFT, _USER, _MAILBOX, _APP = Subject.DRAFT, Subject.USER, Subject.MAILBOX, Subject.APP

_ROWS: Final = (
    Code(
        0, "Success", "", 200, "success", _SENT, _DRAFT, True,
        "Sent; nothing to do.",
        "已发送，无需处理。",
    ),
    # The endpoint's own table.
    Code(
        1234008, "InvalidRequest", "InvalidRequest", 400, "request parameter error", _FATAL, _DRAFT, True,
        "Check the draft id and the mailbox address: the server cannot read one of them.",
        "请检查草稿 ID 和邮箱地址的类型、格式与取值是否符合接口要求。",
    ),
    Code(
        1236003, "TooManyRecipients", "TooManyRecipients", 400, "the number of recipients exceeds the limit",
        _FATAL, _DRAFT, True,
        "Take recipients out of the draft (the limit is 500) or split it, then send it again.",
        "收件人数量超过限制（上限为 500），请减少收件人或拆分邮件后重试。",
    ),
    Code(
        1236004, "TooManyAttachments", "TooManyAttachments", 400, "the number of attachments exceeds the limit",
        _FATAL, _DRAFT, True,
        "Take attachments out of the draft, then send it again.",
        "附件数量超过限制，请减少附件后重试。",
    ),
    Code(
        1236014, "ContentRisk", "ContentRisk", 400, "content risk", _FATAL, _DRAFT, True,
        "The content was judged risky. Remove what may break the rules from the draft, then send it again.",
        "草稿存在风险内容，请检查是否包含敏感词或违规信息，修改后重新提交。",
    ),
    Code(
        1236017, "SenderCheckFailed", "SenderCheckFailed", 400, "sender check fail", _FATAL, _DRAFT, True,
        "Check the draft's sender: the address must exist, be active and belong to this mailbox.",
        "发件人检查失败，请确认发件人地址存在、状态正常，并属于该邮箱。",
    ),
    Code(
        1236018, "ReceiverCheckFailed", "ReceiverCheckFailed", 400, "receiver check fail", _FATAL, _DRAFT, True,
        "Check the draft's recipients: at least one address cannot be delivered to.",
        "收件人检查失败，至少有一个地址无法投递，请检查收件人信息。",
    ),
    Code(
        1234017, "PermissionDenied", "PermissionDenied", 403, "permission deny", _FATAL, _DRAFT, True,
        "Make sure that the app and this user may use the mailbox of this draft.",
        "无权限访问，请确认应用和当前用户具备访问该邮箱的权限。",
    ),
    Code(
        1234050, "DraftNotFound", "DraftNotFound", 404, "draft not found", _FATAL, _DRAFT, True,
        "Check the draft id and its mailbox, or create the draft again.",
        "草稿不存在，请核对草稿 ID 及所属邮箱，或重新创建草稿。",
    ),
    Code(
        1234013, "MailboxNotFound", "MailboxNotFound", 404, "user mailbox not found or user mailbox not active",
        _FATAL, _MAILBOX, True,
        "Check the mailbox address, and that the mailbox is active.",
        "邮箱不存在或未启用，请检查邮箱地址，并确认邮箱状态正常。",
        ResumeWhen.RESUMED,
    ),
    Code(
        1236005, "AlreadySent", "", 409, "send mail repeatedly", _ALREADY, _DRAFT, True,
        "The mail went out with an earlier call; nothing to do.",
        "邮件此前已发送成功，无需重复发送。",
    ),
    Code(
        1236006, "ConcurrentWrite", "ConcurrentWrite", 429, "Concurrent write conflict. Please retry later",
        _RETRY, _USER, True,
        "Another program writes to this user's mailbox at the same time. Let one program do it.",
        "同一用户存在并发写操作，请避免多个程序同时操作该用户的邮箱。",
    ),
    Code(
        1236007, "UserDailyQuota", "UserDailyQuota", 429,
        "the daily number of emails sent by the user exceeds the limit", _FATAL, _USER, True,
        "The user has sent all the mail a day allows. Go on tomorrow, or ask the administrator for more.",
        "用户每日发信数量已达上限，请次日再试或联系管理员提升限额。",
        ResumeWhen.HOUR,
        Reach.ENDPOINT,
    ),
    Code(
        1236008, "UserExternalQuota", "UserExternalQuota", 429,
        "the number of external recipients the user sends messages to each day exceeds the limit",
        _FATAL, _DRAFT, True,
        "The user has reached all the external recipients a day allows. Go on tomorrow, or ask the administrator.",
        "用户每天的外部收件人数量已达上限，请次日再试或联系管理员提升限额。",
    ),
    Code(
        1236009, "TenantExternalQuota", "TenantExternalQuota", 429,
        "the number of external recipients the tenant sends messages to each day exceeds the limit",
        _FATAL, _DRAFT, True,
        "The company has reached all the external recipients a day allows. Go on tomorrow, or ask the administrator.",
        "企业每天的外部收件人数量已达上限，请次日再试或联系管理员提升限额。",
    ),
    Code(
        1236010, "MailThrottled", "MailThrottled", 429, "mail quota limit", _RETRY, _USER, True,
        "The system slows this user's mail down. Send it later, or more slowly.",
        "用户的发信请求被系统限流，请稍后或降低频率重试。",
    ),
    Code(
        1236013, "TenantStorageFull", "TenantStorageFull", 429, "tenant storage limit", _FATAL, _APP, True,
        "The company's storage is full. Ask the administrator to make room.",
        "租户存储空间已满，请联系管理员扩容。",
        ResumeWhen.HOUR,
        Reach.ENDPOINT,
    ),
    Code(
        1236019, "InternalError", "ServerError", 500, "internal server error", _RETRY, _DRAFT, False,
        "The server failed. Send the draft again later: if it went out after all, that says so.",
        "服务内部错误，请稍后重试；若邮件其实已发出，重试会返回“已发送”。",
    ),
    # The gateway's.
    Code(
        99991400, "FrequencyLimited", "FrequencyLimited", 429, "request trigger frequency limit", _RETRY, _APP, True,
        "The app calls more often than it may. Look for another process that uses the same app.",
        "应用调用频率超限，请检查是否有其他进程使用同一应用。",
    ),
    Code(
        99991403, "AppQuotaSpent", "AppQuotaSpent", 400, "this month's API call quota has been exceeded",
        _FATAL, _APP, True,
        "The app has used up its API calls of this month. Ask the administrator to raise the plan.",
        "应用本月 API 调用额度已用完，请联系管理员升级套餐。",
        ResumeWhen.HOUR,
    ),
    # Tokens and scopes.
    Code(
        99991661, "TokenMissing", "InvalidToken", 400, "missing access token for authorization",
        _FATAL, _USER, True,
        "Give a user_access_token.",
        "请提供 user_access_token。",
        ResumeWhen.TOKEN,
    ),
    Code(
        99991671, "TokenMalformed", "InvalidToken", 400, "invalid access token, must start with t- or u-",
        _FATAL, _USER, True,
        "This is no access token. Give a user_access_token (it starts with u-, or is a JWT).",
        "这不是有效的访问凭证，请提供 user_access_token（以 u- 开头或为 JWT）。",
        ResumeWhen.TOKEN,
    ),
    Code(
        99991663, "TokenInvalid", "InvalidToken", 400, "invalid access token for authorization", _FATAL, _USER, True,
        "The token is wrong or has expired. Get a new user_access_token for this user.",
        "凭证无效或已过期，请为该用户重新获取 user_access_token。",
        ResumeWhen.TOKEN,
    ),
    Code(
        99991668, "UserTokenInvalid", "InvalidToken", 401, "invalid user access token", _FATAL, _USER, True,
        "The token is wrong or has expired. Get a new user_access_token for this user.",
        "凭证无效或已过期，请为该用户重新获取 user_access_token。",
        ResumeWhen.TOKEN,
    ),
    Code(
        99991677, "TokenExpired", "InvalidToken", 401, "user access token expired", _FATAL, _USER, True,
        "The token has expired. Get a new user_access_token for this user.",
        "凭证已过期，请为该用户重新获取 user_access_token。",
        ResumeWhen.TOKEN,
    ),
    Code(
        99991672, "AppScopeMissing", "ScopeMissing", 400, "the app has not been granted the required scope",
        _FATAL, _USER, True,
        "Add the scope to the app (mail:user_mailbox.message:send to send drafts, mail:user_mailbox.message:readonly "
        "to list them), publish it, and let the user authorize again.",
        "请为应用开通权限（发送：mail:user_mailbox.message:send，获取草稿列表：mail:user_mailbox.message:readonly）并发布版本，然后让用户重新授权。",
        ResumeWhen.RESUMED,
        Reach.SCOPE,
    ),
    Code(
        99991679, "UserScopeMissing", "ScopeMissing", 401, "the user has not granted the required scope",
        _FATAL, _USER, True,
        "Let the user authorize the app again, with the scope (mail:user_mailbox.message:send to send drafts, "
        "mail:user_mailbox.message:readonly to list them).",
        "请让用户重新授权，并包含权限（发送：mail:user_mailbox.message:send，获取草稿列表：mail:user_mailbox.message:readonly）。",
        ResumeWhen.RESUMED,
        Reach.SCOPE,
    ),
)  # fmt: skip

CODES: Final = MappingProxyType({row.number: row for row in _ROWS})
"""Code number -> row."""

_NAMED: Final = MappingProxyType({row.name: row for row in _ROWS})


def named(name: str) -> Code:
    """Return the row of that name.

    Args:
        name: the row's `name`.

    Raises:
        KeyError: there is none.
    """
    return _NAMED[name]


def lookup(number: int, http_status: int, message: str = "") -> Code:
    """Return the row for an answer, also for a code that the table does not know.

    Args:
        number: the `code` of the body.
        http_status: the reply's HTTP status. It decides only for a code that the table does not know: 429 slows
            the user down, 5xx is the server's failure, anything else ends the draft alone.
        message: the `msg` of the body, kept in a row made up for an unknown code.
    """
    row = CODES.get(number)
    if row is not None:
        return row
    # A 4xx refuses before anything is done, so an unknown one is taken as proof that nothing was sent; 5xx is not.
    verdict, subject, conclusive = _FATAL, _DRAFT, True
    advice = "The platform's list of error codes may explain it; otherwise ask support, with the log id."
    advice_zh = "请查阅开放平台通用错误码，或携带 log id 联系技术支持。"
    if http_status == 429:  # noqa: PLR2004 - HTTP's own number
        verdict, subject = _RETRY, _USER
    elif http_status >= 500:  # noqa: PLR2004
        verdict, conclusive = _RETRY, False
    return Code(
        number,
        f"Code{number}",
        "ApiError",
        http_status,
        message,
        verdict,
        subject,
        conclusive,
        advice,
        advice_zh,
    )


@dataclass(frozen=True, slots=True)
class OAuthCode:
    """A row of the token endpoint's codes, which are numbered apart from the API's.

    Attributes:
        number: the `code` of the answer's body.
        name: a name of its own.
        http_status: the HTTP status sent with it.
        error: the `error` of the body (RFC 6749, section 5.2).
        description: the meaning, in English.
        verdict: RETRY if asking once more may help, else FATAL.
    """

    number: int
    name: str
    http_status: int
    error: str
    description: str
    verdict: Verdict


_OAUTH_ROWS: Final = (
    OAuthCode(20002, "ClientSecretWrong", 400, "invalid_client", "the client secret is invalid", _FATAL),
    OAuthCode(
        20003, "AuthorizationCodeNotFound", 400, "invalid_grant", "the authorization code is unknown", _FATAL
    ),
    OAuthCode(
        20004, "AuthorizationCodeExpired", 400, "invalid_grant", "the authorization code has expired", _FATAL
    ),
    OAuthCode(20026, "RefreshTokenMalformed", 400, "invalid_grant", "the refresh token is invalid", _FATAL),
    OAuthCode(20037, "RefreshTokenExpired", 400, "invalid_grant", "the refresh token has expired", _FATAL),
    OAuthCode(20049, "PkceFailed", 400, "invalid_grant", "the code verifier does not match", _FATAL),
    OAuthCode(20050, "Unexpected", 500, "server_error", "an unexpected server error occurred", _RETRY),
    OAuthCode(20064, "RefreshTokenRevoked", 400, "invalid_grant", "the refresh token was revoked", _FATAL),
    OAuthCode(
        20065, "AuthorizationCodeUsed", 400, "invalid_grant", "the authorization code was used before", _FATAL
    ),
    OAuthCode(20071, "RedirectMismatch", 400, "invalid_grant", "the redirect_uri does not match", _FATAL),
    OAuthCode(20072, "Unavailable", 503, "temporarily_unavailable", "the server is unavailable", _RETRY),
    OAuthCode(20073, "RefreshTokenUsed", 400, "invalid_grant", "the refresh token was used before", _FATAL),
    OAuthCode(20074, "RefreshDisabled", 400, "invalid_grant", "refreshing is not enabled for the app", _FATAL),
)

OAUTH: Final = MappingProxyType({row.name: row for row in _OAUTH_ROWS})
"""Name -> row of the token endpoint's codes."""
