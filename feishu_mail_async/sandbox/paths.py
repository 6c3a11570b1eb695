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


@dataclass(frozen=True, slots=True)
class Call:
    """A call of one of the mail endpoints.

    Attributes:
        endpoint: the same names as `Arrival.endpoint`.
        mailbox: the mailbox segment, decoded once.
        draft_id: the draft segment, decoded once; None if the endpoint has none.
        query: the query, not decoded.
        readable: True if both segments are valid ids.
    """

    endpoint: str
    mailbox: str
    draft_id: str | None
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
    draft: str | None = None
    match method, path[len(_PREFIX) :].split("/"):
        case "POST", [mailbox, "drafts", draft, "send"]:
            endpoint = "send"
        case "POST", [mailbox, "drafts", draft, "cancel_scheduled_send"]:
            endpoint = "cancel"
        case "GET", [mailbox, "drafts"]:
            endpoint = "list"
        case "POST", [mailbox, "drafts"]:
            endpoint = "create"
        case "GET", [mailbox, "drafts", draft]:
            endpoint = "read"
        case "DELETE", [mailbox, "drafts", draft]:
            endpoint = "delete"
        case _:
            return None
    address, fine = _decode(mailbox)
    draft_id, draft_fine = (None, True) if draft is None else _decode(draft)
    return Call(endpoint, address, draft_id, query, fine and draft_fine)


def _decode(segment: str) -> tuple[str, bool]:
    """Return a segment decoded exactly once, and whether it is a valid id."""
    try:
        return check_text("segment", unquote(segment, errors="strict")), True
    except ValueError:
        return unquote(segment), False
