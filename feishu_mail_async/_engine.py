"""What all clients of one app share in an event loop: who may go when, on each endpoint, and who hears of it.

There is one engine for a loop, a base URL, an app and a ledger. The limits are kept beneath it, by the process or
by a database, because calls still count when their loop has ended.
"""

import asyncio
import os
from dataclasses import dataclass, field, replace
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet

from ._api.endpoints import LIST, SEND
from ._scheduling.memory import memory_store
from ._scheduling.scheduler import Notices, Scheduler, Snapshot
from ._scheduling.store import SchedulerStore, mutex
from .events import EventHub, TokenRefreshed
from .ledger.opening import StoringLedger, open_stores
from .model import RateLimit

__all__ = ["Engine", "EngineKey", "engine_of", "forget_engine", "is_open"]

EngineKey = tuple[str, str | None, "str | StoringLedger | None"]
"""What clients share an engine by: base_url, app and ledger."""


@dataclass(slots=True)
class Engine:
    """The schedulers of one app in one event loop.

    Attributes:
        events: delivers what happens.
        scheduler: gives turns to sends.
        listing: gives turns to calls that list drafts.
        ledger: a ledger that was opened for it, and is closed with the last client; else None.
        clients: its open clients.
    """

    events: EventHub
    scheduler: Scheduler
    listing: Scheduler
    ledger: StoringLedger | None
    clients: WeakSet[Any] = field(default_factory=WeakSet)

    def token_changed(self, user: str) -> None:
        """Publish that a user has another token."""
        self.events.publish(TokenRefreshed(asyncio.get_running_loop().time(), user))

    def at_rest(self) -> bool:
        """Return whether nothing would be lost with it."""
        return not self.clients and self.ledger is None and self.scheduler.at_rest() and self.listing.at_rest()

    def resume(self, subject: str) -> None:
        """Resume a subject, whichever endpoint's answer has suspended it."""
        self.scheduler.resume(subject)
        self.listing.resume(subject)

    def snapshot(self) -> Snapshot:
        """Return how the sends stand, and what is suspended, for listing too."""
        sends = self.scheduler.snapshot()
        every = [*self.listing.snapshot().suspended, *sends.suspended]
        suspended = {(one.subject, one.reach): one for one in every}
        return replace(sends, suspended=tuple(suspended.values()))


_engines: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, dict[EngineKey, Engine]]] = WeakKeyDictionary()
_inherited: Final[list[object]] = []


def _leave_to_parent() -> None:
    """Begin anew in a forked process. What is the parent's is kept: dropped, it would be closed for the parent."""
    _inherited.append(dict(_engines))
    _engines.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def engine_of(loop: asyncio.AbstractEventLoop, key: EngineKey, limit: RateLimit) -> Engine:
    """Return the engine of a key in a loop; a new one begins with this limit of sends."""
    engines = _engines_in(loop)
    if key not in engines:
        for other in [other for other, engine in engines.items() if engine.at_rest()]:
            del engines[other]
        engines[key] = _new_engine(key, limit)
    return engines[key]


def forget_engine(loop: asyncio.AbstractEventLoop, key: EngineKey) -> None:
    """Forget an engine whose ledger is closed."""
    _engines[loop].pop(key, None)


def is_open(key: EngineKey) -> bool:
    """Return whether a client of this key is open in any loop."""
    with mutex:
        engines = [found for loop, all_ in _engines.items() if not loop.is_closed() and (found := all_.get(key))]
    return any(engine.clients for engine in engines)


def _engines_in(loop: asyncio.AbstractEventLoop) -> dict[EngineKey, Engine]:
    with mutex:
        ended = [_engines.pop(other) for other in list(_engines) if other.is_closed()]
        engines = _engines.setdefault(loop, {})
    del ended  # not under the mutex: it may hold anything of a user's
    return engines


def _new_engine(key: EngineKey, limit: RateLimit) -> Engine:
    base_url, app, ledger = key
    own = open_stores(ledger) if isinstance(ledger, str) else None
    kept = own if isinstance(ledger, str) else ledger
    assert kept is None or app is not None
    stores: list[SchedulerStore] = []
    for endpoint, its_limit in (SEND, limit), (LIST, LIST.limit):
        if kept is None or app is None:
            stores.append(memory_store((base_url, app), its_limit, endpoint))
        else:
            stores.append(kept.store(base_url, app, its_limit, endpoint))
    events, notices = EventHub(), Notices()
    sends, listing = (Scheduler(store, events, notices) for store in stores)
    return Engine(events, sends, listing, own)
