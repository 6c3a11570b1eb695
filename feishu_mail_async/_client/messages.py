"""Messages written for the server without holding up the loop, and drafts found again by their Message-ID."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from email.message import EmailMessage
from typing import Final

from feishu_mail_async._api.message import write_message

__all__ = ["Finder", "written"]

_SMALL: Final = 64 * 1024
"""Characters of content that are written at once: about a millisecond's work."""
_AT_ONCE: Final = 10
"""Drafts that are read at the same time."""


async def written(message: EmailMessage | bytes, marker: str | None = None) -> bytes:
    """Return the message as the server reads it; a large one is written in a thread.

    Args:
        message: the message, which must not be changed meanwhile.
        marker: the Message-ID that it gets if it has none.

    Raises:
        TypeError, ValueError: it is no message that could be sent; the sentence names the remedy.
    """
    if _size(message) <= _SMALL:
        return write_message(message, marker=marker)
    return await asyncio.to_thread(write_message, message, marker=marker)


def _size(message: object) -> int:
    if not isinstance(message, EmailMessage):
        return len(message) if isinstance(message, bytes) else 0
    payloads = (part.get_payload() for part in message.walk())
    return sum(len(payload) for payload in payloads if isinstance(payload, str | bytes))


class Finder:
    """Finds drafts of one mailbox by their Message-ID.

    No document says that the server keeps the Message-ID of a draft. If it does not, nothing is ever found.

    Args:
        ids: returns the ids of the mailbox's drafts.
        message_id: returns the Message-ID of a draft; None if there is no such draft, or the server does not say.
    """

    def __init__(
        self, ids: Callable[[], AsyncIterator[str]], message_id: Callable[[str], Awaitable[str | None]]
    ) -> None:
        self._ids = ids
        self._message_id = message_id
        self._known: dict[str, str | None] = {}

    async def find(self, message_id: str, but: Collection[str]) -> str | None:
        """Return the id of the draft with this Message-ID, other than those of `but`; None if there is none."""
        ids = [one async for one in self._ids()]
        known = self._known = {one: self._known[one] for one in ids if one in self._known}
        # The order of the list is not documented: what is new may stand at either end.
        unknown = _from_both_ends([one for one in ids if one not in known])
        for start in range(0, len(unknown), _AT_ONCE):
            if found := _among(known, message_id, but):
                return found
            some = unknown[start : start + _AT_ONCE]
            known.update(zip(some, await asyncio.gather(*map(self._read, some)), strict=True))
        return _among(known, message_id, but)

    async def _read(self, draft_id: str) -> str | None:
        said = await self._message_id(draft_id)
        return said and said.strip("<> ")


def _among(known: dict[str, str | None], message_id: str, but: Collection[str]) -> str | None:
    return next((one for one, said in known.items() if said == message_id and one not in but), None)


def _from_both_ends(ids: list[str]) -> list[str]:
    half = (len(ids) + 1) // 2
    paired = zip(ids[:half], reversed(ids[half:] or ids[:1]), strict=False)
    return list(dict.fromkeys([one for pair in paired for one in pair] + ids))
