"""Stores of every kind, each shared by several: in memory, on SQLite and on PostgreSQL."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

from feishu_mail_async import RateLimit
from feishu_mail_async._api.protocol import Judgement
from feishu_mail_async._scheduling.memory import MemoryStore
from feishu_mail_async._scheduling.process import ProcessStore
from feishu_mail_async._scheduling.state import Settled
from feishu_mail_async._scheduling.store import Offer
from feishu_mail_async._scheduling.waiters import Turn, Waiter
from tests.helpers.ledgers import HOMES, SENT, Clock, Sharer, Waits, fleet

STORES: Final = ["memory", *HOMES]


class Loop(Sharer):
    """What stands for a loop of this process, which shares its store with the other loops."""

    def __init__(self, store: ProcessStore, limit: RateLimit, clock: Clock) -> None:
        self._clock = clock
        self._store = MemoryStore(store, limit)
        self._store.join(asyncio.get_running_loop(), self._changed)

    def _changed(self) -> None:
        """Nothing waits here: a test looks when it wants to."""

    async def take(self, *asks: Waiter) -> Offer:
        return self._store.take(asks, self._clock.now)

    async def settle(self, turn: Turn, judgement: Judgement = SENT, *, renewing: bool = False) -> Settled:
        return self._store.settle(turn, judgement, Waits(), self._clock.now, renewing=renewing)

    async def give_back(self, turn: Turn) -> None:
        self._store.give_back(turn.permit)


class House(Protocol):
    """Where several share a store, and its clock.

    Attributes:
        clock: the store's clock, which stands still unless it is moved.
    """

    clock: Clock

    def start(self) -> Sharer:
        """Let another one share the store."""

    async def nothing_held(self) -> None:
        """See that no turn holds anything."""


class _Memory:
    def __init__(self, limit: RateLimit) -> None:
        self.clock = Clock()
        self._limit = limit
        self._store = ProcessStore()
        self._loops: list[Loop] = []  # the store knows them weakly

    def start(self) -> Loop:
        self._loops.append(Loop(self._store, self._limit, self.clock))
        return self._loops[-1]

    async def nothing_held(self) -> None:
        assert self._store.flights == {}


@contextlib.asynccontextmanager
async def _memory(limit: RateLimit) -> AsyncIterator[House]:
    yield _Memory(limit)


def house_of(url: str, limit: RateLimit) -> AbstractAsyncContextManager[House]:
    """Open a store of the kind that the test is run for."""
    return _memory(limit) if url == "memory" else fleet(url, limit)
