"""Pages of a list: what a query asks for, and what is shown."""

import base64
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import parse_qs

__all__ = ["read_page", "show_page"]

_PAGE_SIZE: Final = 20


def read_page(query: str, largest: int) -> tuple[int, int] | None:
    """Return the position and the size of the page that a query asks for; None if it asks for no possible one.

    Args:
        query: the query, not decoded.
        largest: the largest size allowed.
    """
    asked = parse_qs(query)
    try:
        size = int(asked.get("page_size", [str(_PAGE_SIZE)])[0])
        token = asked.get("page_token", [""])[0]
        start = int(base64.urlsafe_b64decode(token)) if token else 0
    except ValueError:
        return None
    return (start, size) if 1 <= size <= largest and start >= 0 else None


def show_page(items: Sequence[Any], following: int | None) -> dict[str, Any]:
    """Return the `data` of an answer with one page.

    Args:
        items: the page's items.
        following: the position of the next page; None at the end.
    """
    data: dict[str, Any] = {"items": list(items), "has_more": following is not None}
    if following is not None:
        data["page_token"] = base64.urlsafe_b64encode(str(following).encode()).decode()
    return data
