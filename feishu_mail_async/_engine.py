"""The engine that all clients of one app in an event loop share: a scheduler for each endpoint, and the events.

There is one engine for each loop, base URL, app and ledger. Permits and locks are kept beneath it, by the process
or by a database, because calls still count when their loop has ended.
"""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet

from ._api.endpoints import ENDPOINTS, SEND
from ._clock import loop_time
from ._hub import EventHub
from ._scheduling.memory import memory_store
from ._scheduling.notices import Notices
from ._scheduling.scheduler import Scheduler
from ._scheduling.snapshot import Snapshot
from ._scheduling.store import SchedulerStore, mutex
from .events import TokenRefreshed
from .ledger.opening import StoringLedger, open_stores
from .model import RateLimit

__all__ = ["Engine", "EngineKey", "engine_of", "engine_of_client", "forget_engine", "is_open"]

EngineKey = tuple[str, str | None, "str | StoringLedger | None"]
"""The identity of an engine within a loop: base_url, app and ledger."""


@dataclass(slots=True)
class Engine:
    """The schedulers of one app in one event loop.

    Attributes:
        key: its identity within the loop.
        events: delivers events to subscribers.
        schedulers: the schedulers, by the endpoint's name.
        ledger: a ledger that was opened for this engine, and is closed with the last client; else None.
        clients: the open clients.
    """

    key: EngineKey
    events: EventHub
    schedulers: Mapping[str, Scheduler]
    ledger: StoringLedger | None
    clients: WeakSet[Any] = field(default_factory=WeakSet)

    def token_changed(self, user: str) -> None:
        """Publish that a user has another token."""
        self.events.publish(TokenRefreshed(loop_time(), user))

    def at_rest(self) -> bool:
        """Return whether nothing would be lost if it were forgotten."""
        return (
            not self.clients
            and self.ledger is None
            and all(scheduler.at_rest() for scheduler in self.schedulers.values())
        )

    def resume(self, subject: str) -> None:
        """Resume a subject on all endpoints, whichever one's answer has suspended it."""
        for scheduler in self.schedulers.values():
            scheduler.resume(subject)

    async def written(self) -> None:
        """Wait until the end of every call that has ended so far is on record."""
        for scheduler in self.schedulers.values():
            await scheduler.written()

    def snapshot(self) -> Snapshot:
        """Return the state of the sends, and the suspensions of all endpoints."""
        shots = {name: scheduler.snapshot() for name, scheduler in self.schedulers.items()}
        suspended = {(one.subject, one.reach): one for shot in shots.values() for one in shot.suspended}
        return replace(shots[SEND.name], suspended=tuple(suspended.values()))


_engines: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, dict[EngineKey, Engine]]] = WeakKeyDictionary()
_inherited: Final[list[object]] = []


def _leave_to_parent() -> None:
    """Begin anew in a forked process. The parent's engines are kept: freed, they would close its connections."""
    _inherited.append(dict(_engines))
    _engines.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def engine_of(loop: asyncio.AbstractEventLoop, key: EngineKey, limits: Mapping[str, RateLimit]) -> Engine:
    """Return the engine of a key in a loop; a new one begins with these limits of endpoints."""
    engines = _engines_in(loop)
    if key not in engines:
        for other in [other for other, engine in engines.items() if engine.at_rest()]:
            del engines[other]
        engines[key] = _new_engine(key, limits)
    return engines[key]


def engine_of_client(client: object) -> Engine:
    """Return the engine that a client shares, which is bound to the running loop."""
    return next(one for one in _engines_in(asyncio.get_running_loop()).values() if client in one.clients)


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
    del ended  # not under the mutex: to free it may run finalizers in the user's code
    return engines


def _new_engine(key: EngineKey, limits: Mapping[str, RateLimit]) -> Engine:
    base_url, app, ledger = key
    own = open_stores(ledger) if isinstance(ledger, str) else None
    kept = own if isinstance(ledger, str) else ledger
    assert kept is None or app is not None
    events, notices = EventHub(), Notices()
    schedulers = {}
    for name, endpoint in ENDPOINTS.items():
        if kept is None or app is None:
            store: SchedulerStore = memory_store((base_url, app), limits[name], endpoint)
        else:
            store = kept.store(base_url, app, limits[name], endpoint)
        schedulers[name] = Scheduler(store, events, notices)
    return Engine(key, events, schedulers, own)
