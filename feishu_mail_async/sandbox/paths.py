"""From a request line to the call that it means.

It reads the raw target itself: an id may hold a slash, a dot or a question mark, percent-encoded into one
segment, and a router that tidies paths would look up another draft than the one meant.
"""

from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from feishu_mail_async.model import check_text

__all__ = ["Call", "read_call"]

_PREFIX: Final = "/open-apis/mail/v1/user_mailboxes/"


@dataclass(frozen=True, slots=True)
class Call:
    """A call of one of the mail endpoints.

    Attributes:
        endpoint: as `Arrival.endpoint`.
        mailbox: the mailbox segment, decoded once.
        draft_id: the draft segment, decoded once; None where the endpoint has none.
        query: the query, raw.
        readable: both segments can stand for an id.
    """

    endpoint: str
    mailbox: str
    draft_id: str | None
    query: str
    readable: bool


def read_call(method: str, target: str) -> Call | None:
    """The call that a request line means; None if it is none of the mail endpoints."""
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
    """A segment decoded exactly once, and whether it can stand for an id."""
    try:
        return check_text("segment", unquote(segment, errors="strict")), True
    except ValueError:
        return unquote(segment), False
