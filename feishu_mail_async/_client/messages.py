"""Messages written for the server without holding up the loop, and drafts found again by their Message-ID."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from datetime import datetime
from email.message import EmailMessage
from typing import Final, NamedTuple

from feishu_mail_async._api.message import write_message
from feishu_mail_async._api.payloads import DraftContent

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


class _Seen(NamedTuple):
    """What was read of a draft: its Message-ID, and the time that the server shows of it."""

    message_id: str | None
    dated: datetime | None


class Finder:
    """Finds drafts of one mailbox by their Message-ID.

    No document says that the server keeps the Message-ID of a draft. If it does not, nothing is ever found.

    Those who look at the same time share what it reads: one reads at a time, and a list that is begun after
    somebody has asked is recent enough for them.

    Args:
        ids: returns the ids of the mailbox's drafts.
        read: reads a draft; None if there is no such draft any more.
        created: ids of drafts whose creation was answered: they are never what is looked for.
    """

    def __init__(
        self,
        ids: Callable[[], AsyncIterator[str]],
        read: Callable[[str], Awaitable[DraftContent | None]],
        created: Collection[str],
    ) -> None:
        self._ids = ids
        self._read_one = read
        self._created = created
        self._known: dict[str, _Seen] = {}
        self._unread: list[str] = []
        self._asked = 0
        self._listed = 0
        self._alone = asyncio.Lock()

    async def find(self, message_id: str, since: datetime | None = None) -> str | None:
        """Return the id of a draft with this Message-ID whose creation was not answered; None: there is none.

        Args:
            message_id: the Message-ID.
            since: the draft is not dated before this; None: the Message-ID alone tells it.
        """
        self._asked += 1
        asked = self._asked
        async with self._alone:
            if self._listed < asked:
                await self._list()
            while (found := self._look_up(message_id, since)) is None and self._unread:
                # Each to its end: the one that cannot be read may be another, and no read goes on after this.
                some = self._unread[:_AT_ONCE]
                read = await asyncio.gather(*map(self._read, some), return_exceptions=True)
                failed = [said for said in read if isinstance(said, BaseException)]
                if failed and (found := self._look_up(message_id, since)) is None:
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
        content, seen = await self._read_one(draft_id), _Seen(None, None)
        if content is not None and content.smtp_message_id is not None:
            seen = _Seen(content.smtp_message_id.strip("<> "), content.dated)
        self._known[draft_id] = seen
        self._unread.remove(draft_id)

    def _look_up(self, message_id: str, since: datetime | None) -> str | None:
        for one, seen in self._known.items():
            too_old = since is not None and seen.dated is not None and seen.dated < since
            if seen.message_id == message_id and one not in self._created and not too_old:
                return one
        return None


def _from_both_ends(ids: list[str]) -> list[str]:
    half = (len(ids) + 1) // 2
    paired = zip(ids[:half], reversed(ids[half:] or ids[:1]), strict=False)
    return list(dict.fromkeys([one for pair in paired for one in pair] + ids))
