"""The store in memory: one scheduler's part in the store of its process; see `process` for the theory."""

import asyncio
import contextlib
import contextvars
import math
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from feishu_mail_async._api.endpoints import SEND, Endpoint
from feishu_mail_async._api.protocol import Judgement
from feishu_mail_async._clock import loop_time
from feishu_mail_async.codes import ResumeWhen
from feishu_mail_async.errors import FeishuMailError, RecordRefused
from feishu_mail_async.model import OutcomeStatus, RateLimit

from .process import Member, ProcessStore
from .record import DraftKey, Record
from .state import Delays, Permit, Settled
from .store import Offer, Shut, mutex
from .suspensions import EVERYWHERE, SuspensionKey
from .waiters import Turn, Waiter

__all__ = ["MemoryStore", "StoreKey", "forget_all", "memory_store"]

_LOOK: Final = 1.0
"""Seconds after which a waiting member checks whether the loops of the other members' calls still run."""


class MemoryStore:
    """A member of a process's store, for one scheduler in one loop; see `SchedulerStore` for its methods.

    It keeps no records of drafts: the server itself answers that a draft has been sent before.

    Args:
        store: the store.
        limit: the limit to begin with, if the endpoint was not in use.
        endpoint: the endpoint.

    Attributes:
        state: the endpoint's state, which all its members share.
        flying: the number of its calls in flight.
        offset: the seconds by which the store's time is ahead of its loop's.
    """

    shared = False
    most = 1

    def __init__(self, store: ProcessStore, limit: RateLimit, endpoint: Endpoint[Any] = SEND) -> None:
        self.state = store.state(endpoint, limit)
        self.flying = 0
        self._store = store
        self._loop: weakref.ref[asyncio.AbstractEventLoop] | None = None
        self.offset = 0.0
        self._changed: weakref.WeakMethod[Callable[[], None]] | None = None
        self._told = False  # it was notified of changes, and has not looked at them yet
        self._look_at = math.inf  # when to look again at a lock that was promised to another member

    def join(self, loop: asyncio.AbstractEventLoop, changed: Callable[[], None]) -> float:
        self._loop, self._changed = weakref.ref(loop), weakref.WeakMethod(changed)
        with mutex:
            self._store.add(self)
            self.offset = self._store.offset(loop)
        return self.offset

    # -- for members in other threads ------------------------------------------------------------------

    def ended(self) -> bool:
        """Return whether its loop has ended."""
        if self._loop is None:
            return False  # it has not joined yet
        loop = self._loop()
        return loop is None or loop.is_closed()

    def stands_still(self) -> bool:
        """Return whether its loop does not run now; it may never do so again."""
        loop = None if self._loop is None else self._loop()
        return loop is None or not loop.is_running()

    def to_be_told(self) -> bool:
        """Return whether it has to be notified of a change; from now on it counts as notified."""
        if self._told or self._loop is None:
            return False  # one that has not joined yet looks when it joins
        self._told = True
        return True

    def tell(self) -> None:
        """Have it look at the store anew, in its own loop."""
        loop = None if self._loop is None else self._loop()
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # closed meanwhile
                # An empty context: this thread's has nothing to do with that loop.
                loop.call_soon_threadsafe(self._look, context=contextvars.Context())

    def _look(self) -> None:
        self._told = False
        changed = None if self._changed is None else self._changed()
        if changed is not None:
            changed()

    def look_again(self, now: float) -> float:
        with mutex:
            if self._look_at <= now:
                self._look_at = math.inf
                told: list[Member] = [self]
            elif len(self._store.flights) == self.flying:
                return self._look_at
            else:
                told = self._store.listeners(None) if self._store.lose_ended(now) else []
        _tell(told)
        return min(now + _LOOK, self._look_at)

    # -- turns -----------------------------------------------------------------------------------------

    def take(self, waiters: Sequence[Waiter], now: float) -> Offer:
        # The scheduler has seen that the first one may go, but a loop in another thread may have been quicker.
        waiter, store, shut = waiters[0], self._store, list[Shut]()
        with mutex:
            locks = store.locks(self.state.endpoint, waiter.user, waiter.mailbox, now)
            for kind, lock in zip(("user", "mailbox"), locks, strict=True):
                until = lock.open_at
                if lock.turn is not None:
                    if store.flights[lock.turn].state is not self.state:
                        lock.promise(self)
                    until = math.inf
                elif until <= now and lock.promised is not None and (ends := lock.promised_until(self, now)) > now:
                    self._look_at = min(self._look_at, ends)
                    until = math.inf
                if until > now:
                    shut.append(Shut(kind, lock.key, until, lock.backoff_until))
            if shut or (len(store.members) > 1 and not store.allows(self.state, waiter, now)):
                return Offer(shut=shut)
            return Offer((waiter, store.begin(self, waiter, locks, now)))

    def settle(self, turn: Turn, judgement: Judgement, delays: Delays, now: float, *, renewing: bool) -> Settled:
        store, state = self._store, self.state
        told: list[Member] = []
        with mutex:
            store.latest = max(store.latest, now)
            flight = store.land(turn.permit.turn)
            if flight is not None:
                user, mailbox = flight.user, flight.mailbox
            else:
                # It counts as lost already, because its loop stood still; but the loop has gone on, and the server
                # may count the call up to now. So it takes another permit, which comes back after now.
                user, mailbox = store.locks(state.endpoint, turn.user.key, turn.mailbox.key, now)
                state.budget.in_flight += 1
            settled = state.settle(turn.permit, judgement, delays, now, user, mailbox, renewing=renewing)
            if len(store.members) > 1:
                told = store.listeners(self)
        for mine, lock in (turn.user, user), (turn.mailbox, mailbox):
            mine.open_at, mine.backoff_until = lock.open_at, lock.backoff_until
            mine.consecutive_refusals = lock.consecutive_refusals
        if told:
            _tell(told)
        return settled

    def give_back(self, permit: Permit) -> None:
        with mutex:
            if self._store.land(permit.turn) is not None:
                self.state.budget.end(None)
                self.state.give_back(permit.turn)
            told = self._store.listeners(self)
        _tell(told)

    # -- suspensions and the limit ------------------------------------------------------------------------

    def suspend_user(self, user: str, error: FeishuMailError, fingerprint: str | None, now: float) -> None:
        with mutex:
            key = SuspensionKey(f"user:{user}", EVERYWHERE)
            self._store.suspensions.suspend(key, error, ResumeWhen.TOKEN, now, fingerprint)
            told = self._store.listeners(self)
        _tell(told)

    def suspended(self, user: str, mailbox: str, now: float) -> SuspensionKey | None:
        with mutex:
            return self.state.suspended(self.state.keys_of(user, mailbox), now)

    def resume(self, subject: str, when: ResumeWhen | None = None) -> None:
        with mutex:
            self._store.suspensions.resume(subject, when)
            told = self._store.listeners(self)
        _tell(told)

    def set_limit(self, limit: RateLimit) -> None:
        with mutex:
            self.state.budget.limit = limit
            told = self._store.listeners(self)
        _tell(told)

    # -- drafts ----------------------------------------------------------------------------------------

    def records(self, keys: Sequence[DraftKey]) -> Mapping[DraftKey, Record | RecordRefused]:  # noqa: ARG002
        return {}

    def note(self, key: DraftKey, status: OutcomeStatus, error: FeishuMailError) -> None:
        pass

    def unschedule(self, user: str, mailbox: str, mail: str, *, cancelled: bool) -> None:
        pass

    async def written(self) -> None:
        """Advance the store's time; there is nothing else to write."""
        with mutex:
            self._store.latest = max(self._store.latest, loop_time() + self.offset)


def _tell(members: Iterable[Member]) -> None:
    for member in members:
        member.tell()


# --- the stores of the process ------------------------------------------------------------------------------

StoreKey = tuple[str, str | None]
"""The identity of a store: base_url and app."""

_stores: Final[dict[StoreKey, ProcessStore]] = {}


def memory_store(key: StoreKey, limit: RateLimit, endpoint: Endpoint[Any] = SEND) -> MemoryStore:
    """Return a new member of the process's store of this key, which is made if there is none.

    Args:
        key: the key.
        limit: the limit to begin with, if the endpoint was not in use.
        endpoint: the endpoint.
    """
    with mutex:
        store = _stores.get(key)
        if store is None:
            for other in [other for other, one in _stores.items() if one.at_rest()]:
                del _stores[other]
            store = _stores[key] = ProcessStore()
        return MemoryStore(store, limit, endpoint)


def forget_all() -> None:
    """Forget all stores; their present members keep using them."""
    with mutex:
        _stores.clear()


def _after_fork() -> None:
    for store in _stores.values():
        store.lose_all()
    mutex.release()


# The fork waits for the mutex, so that the child finds every store in a consistent state.
if sys.platform != "win32":
    os.register_at_fork(before=mutex.acquire, after_in_parent=mutex.release, after_in_child=_after_fork)
