"""The endpoints of the API, a row each. No path, scope, limit or source stands anywhere else in the package.

The sandbox has a table of its own, because a judge does not read the defendant's papers; a test compares the two.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import quote

from feishu_mail_async.model import RateLimit

__all__ = ["ENDPOINTS", "LIST", "SEND", "Endpoint", "LostReply"]

_DRAFTS: Final = "/open-apis/mail/v1/user_mailboxes/{mailbox}/drafts"


class LostReply(StrEnum):
    """The way on after a call that ended without a readable answer."""

    SAFE = "repeat it"
    CONFIRM = "repeat it; one code says that it was done before"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint.

    Attributes:
        name: its name in events, metrics and a ledger.
        method: the HTTP method.
        path: its path; each name in braces stands for one segment.
        scope: the OAuth scope that a token needs.
        limit: the calls that the platform allows an app.
        writes: whether a call needs its user and its mailbox for itself.
        lost_reply: the way on after a lost reply.
        source: the document's title on the platform.
    """

    name: str
    method: str
    path: str
    scope: str
    limit: RateLimit
    writes: bool
    lost_reply: LostReply
    source: str

    def url(self, **segments: str) -> str:
        """Return the path of a call; each value becomes one percent-encoded segment."""
        return self.path.format_map({name: _segment(value) for name, value in segments.items()})


def _segment(value: str) -> str:
    """Percent-encode one path segment whole: nothing in it can start another segment or a query."""
    # Dots are "unreserved", but a segment of dots alone is taken for a step within the path.
    return quote(value, safe="") if value.strip(".") else value.replace(".", "%2E")


SEND: Final = Endpoint(
    "send",
    "POST",
    _DRAFTS + "/{draft_id}/send",
    "mail:user_mailbox.message:send",
    RateLimit(calls=20, per=60.0),
    writes=True,
    lost_reply=LostReply.CONFIRM,
    source="发送草稿",
)

LIST: Final = Endpoint(
    "list",
    "GET",
    _DRAFTS,
    "mail:user_mailbox.message:readonly",
    RateLimit(calls=10, per=1.0, spacing=0.0),
    writes=False,
    lost_reply=LostReply.SAFE,
    source="列出草稿",
)

ENDPOINTS: Final = {endpoint.name: endpoint for endpoint in (SEND, LIST)}
"""The endpoints by their names."""
