"""Records of drafts outside turns: look-ups, and outcomes without a call, many of them in one transaction."""

import asyncio
import functools
import itertools
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

from feishu_mail_async._scheduling.record import DraftKey, Record
from feishu_mail_async.errors import FeishuMailError, LedgerError, RecordRefused
from feishu_mail_async.model import OutcomeStatus

from . import drafts
from .pruning import Pruner
from .session import Session, subjects_of

__all__ = ["Found", "Records", "log_lost", "refusal"]

Found = Mapping[DraftKey, Record | RecordRefused]
"""The records of drafts that have one, and the errors of those that can have none."""

_log: Final = logging.getLogger("feishu_mail_async.ledger")

_LOOKED_UP: Final = 1000
"""Drafts that are looked up in one transaction; the last request that is added may exceed it."""
_NOTED: Final = 200
"""Outcomes that are written in one transaction."""


class Records:
    """The records of drafts outside turns.

    Args:
        session: the session.
        pruner: drops old records.
    """

    def __init__(self, session: Session, pruner: Pruner) -> None:
        self._session = session
        self._pruner = pruner
        self._gathering: tuple[list[DraftKey], asyncio.Task[Found]] | None = None
        # Ordered, because the first ones are taken out again and again: a dict would pass over the gaps each time.
        self._notes: OrderedDict[DraftKey, drafts.Note] = OrderedDict()
        self._writing: asyncio.Task[None] | None = None

    def look_up(self, keys: Sequence[DraftKey]) -> asyncio.Task[Found]:
        """Look up records; requests that come before the transaction begins share it, and get the whole result."""
        gathering = self._gathering
        if gathering is None or gathering[1].done() or len(gathering[0]) >= _LOOKED_UP:
            wanted: list[DraftKey] = []
            gathering = self._gathering = wanted, self._session.start(self._look_up(wanted))
        gathering[0].extend(keys)
        return gathering[1]

    async def _look_up(self, wanted: list[DraftKey]) -> Found:
        found: dict[DraftKey, Record | RecordRefused] = {}

        async def look_up(keys: Sequence[DraftKey]) -> None:
            records, _ = await self._session.transact(functools.partial(drafts.read, keys=keys), subjects_of(keys))
            found.update(records)

        if self._writing is not None and not self._writing.done():
            await asyncio.wait([self._writing])  # outcomes from before have to be on record first
        await self._session.idle()
        if self._gathering is not None and self._gathering[0] is wanted:
            self._gathering = None
        for key, error in await self._session.apart(wanted, look_up):
            found[key] = refusal(key.draft_id, error)
        self._pruner.soon()
        return found

    def note(self, key: DraftKey, status: OutcomeStatus, error: FeishuMailError) -> None:
        """Write the outcome of a draft soon, with those of others that end with it."""
        if self._writing is None or self._writing.done():
            self._writing = self._session.start(self._write_notes())
        self._notes[key] = status, error

    async def _write_notes(self) -> None:
        await asyncio.sleep(0)  # so that drafts that end together are written together
        while self._notes:
            some = dict(itertools.islice(self._notes.items(), _NOTED))
            try:
                for (key, _), refused in await self._session.apart(list(some.items()), self._write):
                    log_lost(refused, key.draft_id)
            except LedgerError as failed:
                _log.error("%s; %d outcomes are not on record", failed, len(self._notes))
                self._notes.clear()
            for key, note in some.items():
                if self._notes.get(key) is note:
                    del self._notes[key]
        self._pruner.soon()

    async def _write(self, notes: Sequence[tuple[DraftKey, drafts.Note]]) -> None:
        await self._session.transact(functools.partial(drafts.write_notes, notes=dict(notes)))


def refusal(draft_id: str | None, error: RecordRefused) -> RecordRefused:
    """Return the error for a draft, or a call that sends none, whose values the database refuses."""
    what, values = ("the call: not made", "") if draft_id is None else (f"draft {draft_id}: not sent", "id, ")
    why = f"{what}, because no record of it can be made: {error}"
    refused = RecordRefused(f"{why}; check its {values}mailbox and user")
    refused.__cause__ = error.__cause__
    return refused


def log_lost(error: FeishuMailError, draft_id: str | None) -> None:
    """Log that the end of a draft, or of a call that sends none, is not on record."""
    what = "the end of a call" if draft_id is None else f"what became of draft {draft_id}"
    _log.error("%s; %s is not on record", error, what)
