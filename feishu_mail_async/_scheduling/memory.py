"""The book that memory keeps of an app, and the stores of the process beneath: see `process`."""

import asyncio
import contextlib
import contextvars
import math
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from feishu_mail_async._api.protocol import Judgement
from feishu_mail_async.codes import Until
from feishu_mail_async.errors import FeishuMailError, RecordRefused
from feishu_mail_async.model import OutcomeStatus, RateLimit

from .process import Member, Store
from .record import DraftKey, Record
from .state import Delays, Grant, Settled
from .store import SLACK, Shut, Taken, mutex

if TYPE_CHECKING:
    from .lanes import Ask, Turn

__all__ = ["MemoryBook", "StoreKey", "forget_all", "memory_book"]

_LOOK: Final = 1.0
"""Seconds after which a member that waits looks whether the loops of the others' calls still run."""


class MemoryBook:
    """A member of a store: the book of one scheduler in one loop; see `Book` for what its methods do.

    Drafts are not remembered in it: the server says of one that was sent that it was.

    Args:
        store: the store.

    Attributes:
        flying: its calls under way.
    """

    shared = False
    most = 1

    def __init__(self, store: Store) -> None:
        self.standing = store.standing
        self.flying = 0
        self._store = store
        self._loop: weakref.ref[asyncio.AbstractEventLoop] | None = None
        self._offset = 0.0
        self._changed: weakref.WeakMethod[Callable[[], None]] | None = None
        self._told = False  # of changes that it has not looked at yet
        with mutex:
            store.add(self)

    def join(self, loop: asyncio.AbstractEventLoop, changed: Callable[[], None]) -> float:
        self._loop, self._changed = weakref.ref(loop), weakref.WeakMethod(changed)
        with mutex:
            self._offset = self._store.offset(loop.time())
        return self._offset

    # -- its loop, as other threads ask for it ---------------------------------------------------------

    def ended(self) -> bool:
        """Whether its loop has ended."""
        if self._loop is None:
            return False  # it has not come yet
        loop = self._loop()
        return loop is None or loop.is_closed()

    def stands_still(self) -> bool:
        """Whether its loop does not run now; it may never do so again."""
        loop = None if self._loop is None else self._loop()
        return loop is None or not loop.is_running()

    def to_be_told(self) -> bool:
        """Whether it has to be told of a change; from now on it counts as told."""
        if self._told or self._loop is None:
            return False  # it has not come yet, and looks when it comes
        self._told = True
        return True

    def tell(self) -> None:
        """Have it look anew, in its own loop."""
        loop = None if self._loop is None else self._loop()
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # closed meanwhile
                loop.call_soon_threadsafe(self._look, context=contextvars.Context())

    def _look(self) -> None:
        self._told = False
        changed = None if self._changed is None else self._changed()
        if changed is not None:
            changed()

    def look_again(self, now: float) -> float:
        with mutex:
            if len(self._store.flights) == self.flying:
                return math.inf
            told = self._store.listeners(None) if self._store.lose_ended(now) else []
        _tell(told)
        return now + _LOOK

    # -- turns -----------------------------------------------------------------------------------------

    def take(self, asks: "Sequence[Ask]", now: float) -> Taken:
        # The scheduler has looked whether the first one may go; a loop in another thread may have been quicker.
        ask, store, shut = asks[0], self._store, list[Shut]()
        with mutex:
            user, mailbox = store.locks(ask.user, ask.mailbox, now)
            for kind, lock in ("user", user), ("mailbox", mailbox):
                if lock.turn is not None or lock.open_at > now:
                    until = lock.open_at if lock.turn is None else math.inf
                    shut.append(Shut(kind, lock.key, until, lock.cooling))
            if shut or (len(store.members) > 1 and not store.allows(ask, now)):
                return Taken(shut=shut)
            turn = store.begin(self, ask, user, mailbox, now)
            grant = self.standing.grant(turn, now, now - self._offset + SLACK)
        return Taken((ask, grant))

    def settle(self, turn: "Turn", judgement: Judgement, delays: Delays, now: float, *, renewing: bool) -> Settled:
        store, standing = self._store, self.standing
        told: list[Member] = []
        with mutex:
            store.advance(now)
            flight = store.land(turn.grant.turn)
            if flight is not None:
                user, mailbox = flight.user, flight.mailbox
            else:  # it counts as lost already: as its loop goes on, it counts once more
                user, mailbox = store.locks(turn.user.key, turn.mailbox.key, now)
                standing.budget.take()
            settled = standing.end(turn.grant, judgement, delays, now, user, mailbox, renewing=renewing)
            if len(store.members) > 1:
                told = store.listeners(self)
        for gate, lock in (turn.user, user), (turn.mailbox, mailbox):
            gate.open_at, gate.cooling, gate.strikes = lock.open_at, lock.cooling, lock.strikes
        if told:
            _tell(told)
        return settled

    def give_back(self, grant: Grant) -> None:
        with mutex:
            if self._store.land(grant.turn) is not None:
                self.standing.refund(grant)
            told = self._store.listeners(self)
        _tell(told)

    # -- closures and the limit ------------------------------------------------------------------------

    def close_user(self, user: str, error: FeishuMailError, mark: str | None, now: float) -> None:
        with mutex:
            self.standing.close(f"user:{user}", error, Until.TOKEN, now, mark)
            told = self._store.listeners(self)
        _tell(told)

    def closed(self, names: Sequence[str], now: float) -> str | None:
        with mutex:
            self.standing.lapse(names, now)
            return self.standing.closed_of(names, now)

    def reopen(self, scope: str) -> None:
        with mutex:
            self.standing.reopen(scope)
            told = self._store.listeners(self)
        _tell(told)

    def set_limit(self, limit: RateLimit) -> None:
        with mutex:
            self.standing.budget.limit = limit
            told = self._store.listeners(self)
        _tell(told)

    # -- drafts ----------------------------------------------------------------------------------------

    def recall(self, keys: Sequence[DraftKey]) -> Mapping[DraftKey, Record | RecordRefused]:  # noqa: ARG002
        return {}

    def note(self, key: DraftKey, status: OutcomeStatus, error: FeishuMailError) -> None:
        pass

    async def written(self) -> None:
        """There is nothing to write but how late it is."""
        with mutex:
            self._store.advance(asyncio.get_running_loop().time() + self._offset)


def _tell(members: Iterable[Member]) -> None:
    for member in members:
        member.tell()


# --- the stores of the process ------------------------------------------------------------------------------

StoreKey = tuple[str, str | None, str]
"""What a store is kept by: base_url, app and endpoint."""

_stores: Final[dict[StoreKey, Store]] = {}


def memory_book(key: StoreKey, limit: RateLimit) -> MemoryBook:
    """A new member of the process's store of this key.

    Args:
        key: the key.
        limit: the limit to keep, if there was no such store.
    """
    with mutex:
        store = _stores.get(key)
        if store is None:
            for other in [other for other, one in _stores.items() if one.at_rest()]:
                del _stores[other]
            store = _stores[key] = Store(limit)
        return MemoryBook(store)


def forget_all() -> None:
    """Forget all stores; whoever uses one goes on with it."""
    with mutex:
        _stores.clear()


def _after_fork() -> None:
    for store in _stores.values():
        store.lose_all()
    mutex.release()


if sys.platform != "win32":
    os.register_at_fork(before=mutex.acquire, after_in_parent=mutex.release, after_in_child=_after_fork)
