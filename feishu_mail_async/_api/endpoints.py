"""The client's table of endpoints, a row each: its code takes paths, scopes, limits and sources from nowhere else.

To add one: a row, listed in `ENDPOINTS` too; its reader in `payloads` or `mails`; a method of the client over
`Binding.call`; scopes in the advice of `codes`, if they are new. Scheduler, ledger, login, events and telemetry
read the row. The sandbox has tables of its own (`paths`, `judge`, `endpoints`), so that a mistake here is not
repeated by the server that tests it; a test compares the two.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar
from urllib.parse import quote, urlencode

from feishu_mail_async.codes import named
from feishu_mail_async.model import RateLimit

from .mails import Delivery, Recall, RecallProgress, read_delivery, read_recall, read_recall_progress
from .payloads import Created, DraftContent, Page, read_content, read_created, read_nothing, read_page

__all__ = [
    "CANCEL",
    "CREATE",
    "DELETE",
    "DELIVERY",
    "ENDPOINTS",
    "LIST",
    "READ",
    "RECALL",
    "RECALL_PROGRESS",
    "SEND",
    "UPDATE",
    "Endpoint",
    "LostReply",
]

T = TypeVar("T")

_MAILBOX: Final = "/open-apis/mail/v1/user_mailboxes/{mailbox}"
_DRAFTS: Final = f"{_MAILBOX}/drafts"
_MAILS: Final = f"{_MAILBOX}/messages"


class LostReply(StrEnum):
    """The way to continue after a call that ended without a readable answer."""

    SAFE = "repeat it"
    CONFIRM = "repeat it; a code in `done` says that it was done before"
    LOOK = "look for what it may have done before repeating it"


@dataclass(frozen=True, slots=True)
class Endpoint(Generic[T]):
    """One endpoint.

    Attributes:
        name: its name in events, metrics and a ledger.
        method: the HTTP method.
        path: its path; each name in braces is replaced by one segment.
        scope: the OAuth scope that a token needs.
        limit: the rate that the platform allows an app.
        writes: a call holds the locks of its user and its mailbox.
        lost_reply: the way to continue after a lost reply.
        what: the object of a call, as sentences name it.
        did: what a call has done to it, as sentences say it.
        read: reads the `data` of a success; raises KeyError, TypeError or ValueError if it has another form.
        source: the document's title on the platform.
        done: the codes with which the server says that an earlier call, whose reply was lost, has done it.
    """

    name: str
    method: str
    path: str
    scope: str
    limit: RateLimit
    writes: bool
    lost_reply: LostReply
    what: str
    did: str
    read: Callable[[Mapping[str, Any]], T]
    source: str
    done: frozenset[int] = frozenset()

    def url(self, query: Mapping[str, str] | None = None, **segments: str) -> str:
        """Return the path and the query of a call; each segment's value becomes one percent-encoded segment.

        Nothing in a value can start another segment or a query.
        """
        path = self.path
        for name, value in segments.items():
            # Dots are "unreserved" in RFC 3986, but a segment of dots alone is resolved as a step within the path.
            segment = quote(value, safe="") if value.strip(".") else value.replace(".", "%2E")
            path = path.replace(f"{{{name}}}", segment)
        return f"{path}?{urlencode(query, quote_via=quote, safe='')}" if query else path


_SEND: Final = "mail:user_mailbox.message:send"
_READ: Final = "mail:user_mailbox.message:readonly"
_MODIFY: Final = "mail:user_mailbox.message:modify"


def _each_second(calls: int) -> RateLimit:
    return RateLimit(calls=calls, per=1.0, spacing=0.0)


SEND: Final[Endpoint[dict[str, Any]]] = Endpoint(
    "send",
    "POST",
    f"{_DRAFTS}/{{draft_id}}/send",
    _SEND,
    RateLimit(calls=20, per=60.0),
    writes=True,
    lost_reply=LostReply.CONFIRM,
    what="a draft",
    did="sent",
    read=dict,
    source="发送草稿",
    done=frozenset({named("AlreadySent").number}),
)

CREATE: Final[Endpoint[Created]] = Endpoint(
    "create",
    "POST",
    _DRAFTS,
    _MODIFY,
    _each_second(5),
    writes=True,
    lost_reply=LostReply.LOOK,
    what="a new draft",
    did="created",
    read=read_created,
    source="创建草稿",
)

UPDATE: Final[Endpoint[None]] = Endpoint(
    "update",
    "PUT",
    f"{_DRAFTS}/{{draft_id}}",
    _MODIFY,
    _each_second(5),  # not documented: that of creating is assumed
    writes=True,
    lost_reply=LostReply.SAFE,
    what="the update of a draft",
    did="updated",
    read=read_nothing,
    source="更新草稿",
)

DELETE: Final[Endpoint[None]] = Endpoint(
    "delete",
    "DELETE",
    f"{_DRAFTS}/{{draft_id}}",
    _MODIFY,
    _each_second(5),
    writes=True,
    lost_reply=LostReply.CONFIRM,
    what="the deletion of a draft",
    did="deleted",
    read=read_nothing,
    source="删除草稿",
    done=frozenset({named("DraftNotFound").number}),
)

LIST: Final[Endpoint[Page]] = Endpoint(
    "list",
    "GET",
    _DRAFTS,
    _READ,
    _each_second(10),
    writes=False,
    lost_reply=LostReply.SAFE,
    what="a list of drafts",
    did="listed",
    read=read_page,
    source="列出草稿",
)

READ: Final[Endpoint[DraftContent]] = Endpoint(
    "read",
    "GET",
    f"{_DRAFTS}/{{draft_id}}",
    _READ,
    _each_second(10),
    writes=False,
    lost_reply=LostReply.SAFE,
    what="the content of a draft",
    did="read",
    read=read_content,
    source="获取草稿详情",
)

CANCEL: Final[Endpoint[None]] = Endpoint(
    "cancel",
    "POST",
    f"{_MAILS}/{{message_id}}/cancel_scheduled_send",
    _SEND,
    _each_second(5),
    writes=True,
    # No code confirms it: a mail that is not scheduled any more may have gone out meanwhile.
    lost_reply=LostReply.SAFE,
    what="the cancellation of a scheduled mail",
    did="cancelled",
    read=read_nothing,
    source="取消定时发送",
)

DELIVERY: Final[Endpoint[Delivery]] = Endpoint(
    "delivery",
    "GET",
    f"{_MAILS}/{{message_id}}/send_status",
    _READ,
    _each_second(10),
    writes=False,
    lost_reply=LostReply.SAFE,
    what="the delivery of a mail",
    did="read",
    read=read_delivery,
    source="查询邮件发送状态",
)

RECALL: Final[Endpoint[Recall]] = Endpoint(
    "recall",
    "POST",
    f"{_MAILS}/{{message_id}}/recall",
    _MODIFY,
    _each_second(10),
    writes=True,
    lost_reply=LostReply.LOOK,
    what="the recall of a mail",
    did="recalled",
    read=read_recall,
    source="撤回邮件",
)

RECALL_PROGRESS: Final[Endpoint[RecallProgress]] = Endpoint(
    "recall_progress",
    "GET",
    f"{_MAILS}/{{message_id}}/recall",
    _READ,
    RateLimit(calls=20, per=60.0),
    writes=False,
    lost_reply=LostReply.SAFE,
    what="the progress of a recall",
    did="read",
    read=read_recall_progress,
    source="查询邮件撤回进度",
)

ENDPOINTS: Final[Mapping[str, Endpoint[Any]]] = {
    endpoint.name: endpoint
    for endpoint in (SEND, LIST, READ, CREATE, UPDATE, DELETE, CANCEL, DELIVERY, RECALL, RECALL_PROGRESS)
}
"""The endpoints by their names."""
