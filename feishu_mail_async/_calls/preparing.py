"""What has to be known of a draft before its sending is scheduled: the id of the mail that it will be.

The answer to a scheduled send has no message id, and afterwards the draft cannot be read any more. But the id is
needed to cancel the sending, and to follow the mail up. So the draft is read first. Whatever goes wrong there
stops nothing: the send itself will say what is the matter with the draft.
"""

import asyncio
from collections import deque
from typing import Final

from feishu_mail_async._api.endpoints import READ
from feishu_mail_async._scheduling.record import DraftKey
from feishu_mail_async._tasks import start_task
from feishu_mail_async.errors import FeishuMailError

from .call import Call
from .caller import request
from .entry import Entry
from .intake import Intake

__all__ = ["Preparation"]

_AT_ONCE: Final = 10
"""Drafts that are read at the same time. Reading is far quicker than sending, whose limit is 20 a minute."""


class Preparation:
    """The entries of scheduled sends whose drafts are read first, in their order.

    Args:
        sending: the intake that they go on to.
        reading: the intake of the reads.
    """

    def __init__(self, sending: Intake, reading: Intake) -> None:
        self._sending = sending
        self._reading = reading
        self._waiting: deque[Entry] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    def admit(self, entry: Entry) -> None:
        """Take an entry whose record is known; `Intake.prepared` gets it back."""
        self._waiting.append(entry)
        if len(self._tasks) < _AT_ONCE:
            start_task(self._work(), "feishu-mail-prepare-schedule", self._tasks)

    async def ended(self) -> None:
        """Wait until no entry is here any more; the intakes have been closed, so nothing is read for them."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _work(self) -> None:
        while self._waiting:
            entry = self._waiting.popleft()
            if entry.wanted and entry.wants_calls:
                schedule = entry.call.schedule
                assert schedule is not None
                known = schedule._replace(message_id=await self._message_id(entry))
                entry.call = entry.call._replace(schedule=known)
            self._sending.prepared(entry)
            await asyncio.sleep(0)  # of many that are not wanted any more nothing above suspends

    async def _message_id(self, entry: Entry) -> str | None:
        sent, draft = entry.call, entry.call.draft
        assert draft is not None
        path = READ.url({"format": "metadata"}, mailbox=draft.mailbox, draft_id=draft.draft_id)
        call = Call(READ, path, DraftKey(sent.key.user, sent.key.mailbox, path), sent.account)
        try:
            job = await request(self._reading, call, entry.priority)
            return job.value(READ.what, READ.read).message_id
        except FeishuMailError:
            return None
