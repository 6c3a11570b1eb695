"""Routing: the call that a request line means.

The raw target is parsed here, without a router: an id may contain a slash, a dot or a question mark,
percent-encoded into one segment, and a router that normalizes paths would find another draft than the one meant.
"""

from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from feishu_mail_async._checks import check_text

__all__ = ["Call", "read_call"]

_PREFIX: Final = "/open-apis/mail/v1/user_mailboxes/"
_ROUTES: Final = {
    ("POST", "drafts/*/send"): "send",
    ("GET", "drafts"): "list",
    ("POST", "drafts"): "create",
    ("GET", "drafts/*"): "read",
    ("PUT", "drafts/*"): "update",
    ("DELETE", "drafts/*"): "delete",
    ("POST", "messages/*/cancel_scheduled_send"): "cancel",
    ("GET", "messages"): "mails",
    ("GET", "messages/*/send_status"): "delivery",
    ("POST", "messages/*/recall"): "recall",
    ("GET", "messages/*/recall"): "recall_progress",
}
"""Method and path below the mailbox, with a star for the id -> endpoint."""
_ID: Final = 1
"""The place of the id in that path."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call of one of the mail endpoints.

    Attributes:
        endpoint: the same names as `Arrival.endpoint`.
        mailbox: the mailbox segment, decoded once.
        draft_id: the draft segment, decoded once; None if the endpoint has none.
        message_id: the message segment, decoded once; None if the endpoint has none.
        query: the query, not decoded.
        readable: True if all segments are valid ids.
    """

    endpoint: str
    mailbox: str
    draft_id: str | None
    message_id: str | None
    query: str
    readable: bool


def read_call(method: str, target: str) -> Call | None:
    """Return the call that a request line means; None if it is not one of the mail endpoints.

    Args:
        method: the HTTP method.
        target: the raw request target: path and query, percent-encoded.
    """
    path, _, query = target.partition("?")
    if not path.startswith(_PREFIX):
        return None
    mailbox, *segments = path[len(_PREFIX) :].split("/")
    named = segments[_ID] if len(segments) > _ID else None
    if named is not None:
        segments[_ID] = "*"
    endpoint = _ROUTES.get((method, "/".join(segments)))
    if endpoint is None:
        return None
    address, fine = _decode(mailbox)
    item, item_fine = (None, True) if named is None else _decode(named)
    of_draft = segments[0] == "drafts"
    return Call(
        endpoint,
        address,
        draft_id=item if of_draft else None,
        message_id=None if of_draft else item,
        query=query,
        readable=fine and item_fine,
    )


def _decode(segment: str) -> tuple[str, bool]:
    """Return a segment decoded exactly once, and whether it is a valid id."""
    try:
        return check_text("segment", unquote(segment, errors="strict")), True
    except ValueError:
        return unquote(segment), False
