"""The client's table of endpoints, a row each: its code takes paths, scopes, limits and sources from nowhere else.

To add one that reads: a row, listed in `ENDPOINTS` too; its reader in `payloads`; a method of the client over
`Binding.ask`; scopes in the advice of `codes`, if they are new. Scheduler, ledger, login, events and telemetry
read the row. The sandbox has tables of its own (`paths`, `judge`, `endpoints`), so that a mistake here is not
repeated by the server that tests it; a test compares the two.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar
from urllib.parse import quote, urlencode

from feishu_mail_async.model import RateLimit

from .payloads import DraftContent, Page, read_content, read_page

__all__ = ["ENDPOINTS", "LIST", "READ", "SEND", "Endpoint", "LostReply"]

T = TypeVar("T")

_DRAFTS: Final = "/open-apis/mail/v1/user_mailboxes/{mailbox}/drafts"


class LostReply(StrEnum):
    """The way to continue after a call that ended without a readable answer."""

    SAFE = "repeat it"
    CONFIRM = "repeat it; one code says that it was done before"


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
        lost_reply: the way to continue after a lost reply; stated for readers and tests, no code asks for it yet.
        what: the object of a call, as sentences name it.
        read: reads the `data` of a success; raises KeyError, TypeError or ValueError if it has another form.
        source: the document's title on the platform.
    """

    name: str
    method: str
    path: str
    scope: str
    limit: RateLimit
    writes: bool
    lost_reply: LostReply
    what: str
    read: Callable[[Mapping[str, Any]], T]
    source: str

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


SEND: Final[Endpoint[dict[str, Any]]] = Endpoint(
    "send",
    "POST",
    _DRAFTS + "/{draft_id}/send",
    "mail:user_mailbox.message:send",
    RateLimit(calls=20, per=60.0),
    writes=True,
    lost_reply=LostReply.CONFIRM,
    what="a draft",
    read=dict,
    source="发送草稿",
)

LIST: Final[Endpoint[Page]] = Endpoint(
    "list",
    "GET",
    _DRAFTS,
    "mail:user_mailbox.message:readonly",
    RateLimit(calls=10, per=1.0, spacing=0.0),
    writes=False,
    lost_reply=LostReply.SAFE,
    what="a list of drafts",
    read=read_page,
    source="列出草稿",
)

READ: Final[Endpoint[DraftContent]] = Endpoint(
    "read",
    "GET",
    _DRAFTS + "/{draft_id}",
    "mail:user_mailbox.message:readonly",
    RateLimit(calls=10, per=1.0, spacing=0.0),
    writes=False,
    lost_reply=LostReply.SAFE,
    what="the content of a draft",
    read=read_content,
    source="获取草稿详情",
)

ENDPOINTS: Final[Mapping[str, Endpoint[Any]]] = {endpoint.name: endpoint for endpoint in (SEND, LIST, READ)}
"""The endpoints by their names."""
