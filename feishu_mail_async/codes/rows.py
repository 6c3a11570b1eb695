"""The rows of the table `CODES`.

Sources: the table of error codes of "发送草稿" for the 17 codes of sending a draft; "取消定时发送" for 1234051 and
1235000; the SDK and the command line of the platform for the others of its own; its generic codes for those of the
gateway, of tokens and of scopes.
"""

from typing import Final

from .meanings import Code, Reach, ResumeWhen, Subject, Verdict

__all__ = ["ROWS"]

_DONE, _ALREADY, _RETRY, _FATAL = Verdict.DONE, Verdict.ALREADY_DONE, Verdict.RETRY, Verdict.FATAL
_DRAFT, _USER, _MAILBOX, _APP = Subject.DRAFT, Subject.USER, Subject.MAILBOX, Subject.APP

ROWS: Final = (
    Code(
        0, "Success", "", 200, "success", _DONE, _DRAFT, True,
        "Done; nothing to do.",
        "已完成，无需处理。",
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
    # The codes of other endpoints, of which sending has none.
    Code(
        1236001, "MessageTooLarge", "MessageTooLarge", 400, "the size of the mail exceeds the limit",
        _FATAL, _DRAFT, True,
        "Make the message smaller: the whole of it may have 37.5 MB, attachments as they are encoded included.",
        "邮件大小超过限制（整封邮件含编码后的附件上限为 37.5 MB），请减小邮件后重试。",
    ),
    Code(
        1236002, "MessageMalformed", "MessageMalformed", 400, "the mail content is invalid", _FATAL, _DRAFT, True,
        "The server cannot read the message as MIME. Pass an EmailMessage, which is written the way it reads them.",
        "服务端无法解析该邮件的 MIME 内容，请传入 EmailMessage，由客户端按要求的格式生成。",
    ),
    Code(
        1236020, "AttachmentBlocked", "AttachmentBlocked", 400, "the attachment type is not allowed",
        _FATAL, _DRAFT, True,
        "Take the attachment out, or pack it: files of its extension are not accepted.",
        "附件的扩展名不被允许，请移除该附件或打包后重试。",
    ),
    Code(
        1236021, "InlineImageRejected", "InlineImageRejected", 400, "the inline image type is not allowed",
        _FATAL, _DRAFT, True,
        "Use JPEG, PNG, GIF or WebP for images within the text; the content has to match, too.",
        "正文内嵌图片仅支持 JPEG、PNG、GIF、WebP，且内容须与类型一致。",
    ),
    Code(
        1234051, "NotScheduled", "NotScheduled", 400, "the message is not in scheduled state", _FATAL, _DRAFT, True,
        "There is nothing to cancel: the mail went out already, was cancelled before, or was never scheduled.",
        "该邮件不处于定时发送状态：可能已发出、已取消，或从未设置定时发送。",
    ),
    Code(
        1235000, "ServiceFailed", "ServerError", 500, "internal error", _RETRY, _DRAFT, False,
        "The server failed. Repeat the call later.",
        "服务内部错误，请稍后重试。",
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
        "to list and read them, mail:user_mailbox.message:modify to create and change them), publish it, and let the "
        "user authorize again.",
        "请为应用开通权限（发送：mail:user_mailbox.message:send，查看草稿：mail:user_mailbox.message:readonly，创建和修改草稿：mail:user_mailbox.message:modify）并发布版本，然后让用户重新授权。",
        ResumeWhen.RESUMED,
        Reach.SCOPE,
    ),
    Code(
        99991679, "UserScopeMissing", "ScopeMissing", 401, "the user has not granted the required scope",
        _FATAL, _USER, True,
        "Let the user authorize the app again, with the scope (mail:user_mailbox.message:send to send drafts, "
        "mail:user_mailbox.message:readonly to list and read them, mail:user_mailbox.message:modify to create and "
        "change them).",
        "请让用户重新授权，并包含权限（发送：mail:user_mailbox.message:send，查看草稿：mail:user_mailbox.message:readonly，创建和修改草稿：mail:user_mailbox.message:modify）。",
        ResumeWhen.RESUMED,
        Reach.SCOPE,
    ),
)  # fmt: skip
