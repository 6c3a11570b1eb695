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

    Those who look at the same time share what it reads: one reads at a time, and a list that is begun after
    somebody has asked is recent enough for them.

    Args:
        ids: returns the ids of the mailbox's drafts.
        message_id: returns the Message-ID of a draft; None if there is no such draft, or the server does not say.
        created: ids of drafts whose creation was answered: they are never what is looked for.
    """

    def __init__(
        self,
        ids: Callable[[], AsyncIterator[str]],
        message_id: Callable[[str], Awaitable[str | None]],
        created: Collection[str],
    ) -> None:
        self._ids = ids
        self._message_id = message_id
        self._created = created
        self._known: dict[str, str | None] = {}
        self._unread: list[str] = []
        self._asked = 0
        self._listed = 0
        self._alone = asyncio.Lock()

    async def find(self, message_id: str) -> str | None:
        """Return the id of a draft with this Message-ID whose creation was not answered; None: there is none."""
        self._asked += 1
        asked = self._asked
        async with self._alone:
            if self._listed < asked:
                await self._list()
            while (found := self._look_up(message_id)) is None and self._unread:
                # Each to its end: the one that cannot be read may be another, and no read goes on after this.
                some = self._unread[:_AT_ONCE]
                read = await asyncio.gather(*map(self._read, some), return_exceptions=True)
                failed = [said for said in read if isinstance(said, BaseException)]
                if failed and (found := self._look_up(message_id)) is None:
                    raise failed[0]
            return found

    async def _list(self) -> None:
        asked = self._asked
        ids = [one async for one in self._ids()]
        self._known = {one: self._known[one] for one in ids if one in self._known}
        # The order of the list is not documented: what is new may stand at either end.
        self._unread = _from_both_ends([one for one in ids if one not in self._known and one not in self._created])
        self._listed = asked

    async def _read(self, draft_id: str) -> None:
        said = await self._message_id(draft_id)
        self._known[draft_id] = said and said.strip("<> ")
        self._unread.remove(draft_id)

    def _look_up(self, message_id: str) -> str | None:
        known = self._known.items()
        return next((one for one, said in known if said == message_id and one not in self._created), None)


def _from_both_ends(ids: list[str]) -> list[str]:
    half = (len(ids) + 1) // 2
    paired = zip(ids[:half], reversed(ids[half:] or ids[:1]), strict=False)
    return list(dict.fromkeys([one for pair in paired for one in pair] + ids))
