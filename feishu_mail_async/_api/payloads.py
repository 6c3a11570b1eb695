"""Readers of what a successful answer holds. Pure: what does not have the documented form raises ValueError."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from feishu_mail_async.model import check_id

__all__ = ["Page", "read_page"]


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a mailbox's drafts.

    Attributes:
        draft_ids: the ids of the drafts, in the server's order.
        next_token: the `page_token` of the next page; None on the last one.
    """

    draft_ids: tuple[str, ...]
    next_token: str | None


def read_page(data: Mapping[str, Any]) -> Page:
    """Read a page of drafts ("列出草稿", 响应体).

    Args:
        data: the `data` of the answer.

    Raises:
        KeyError, TypeError, ValueError: it does not have the documented form.
    """
    items = data.get("items") or []
    more = data.get("has_more") is True
    next_token = data.get("page_token") if more else None
    draft_ids = tuple(check_id("id", item["id"]) for item in items)
    if more and not (isinstance(next_token, str) and next_token and next_token.encode()):
        raise ValueError("there is more, but no page_token")
    return Page(draft_ids, next_token)
