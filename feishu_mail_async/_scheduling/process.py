"""The store in memory of one app: used permits and held locks, kept by the process and not by an event loop.

Theory of operation. A `ProcessStore` belongs to one app. It holds an `EndpointState` for each endpoint, the locks
of the app's users and mailboxes, and the *flights*: the calls that have a turn. The process has one store for each
app (`memory.memory_store`), whichever loops come and go, because calls still count when their loop has ended. A
loop reaches it through a *member* for each endpoint; queues and dispatchers stay with the loop.

    take     under the mutex: no obstacle? then permit, locks and flight at once           --> the call
    settle   under the mutex: the flight ends, permit and locks come back now or later     --> members are notified

    lock     free -- take --> held by a flight -- settle --> free, or shut until `open_at` --> free
    flight   -- take --> under way -- settle, give_back --> gone
                                   -- its loop has ended --> lost: permit and locks come back `grace` later

- Threads. A member belongs to its loop's thread: other threads may call only `ended`, `stands_still`, `to_be_told`
  and `tell`. Shared state is read and changed under the process's `mutex`. It is held for microseconds, never
  across an await, and never while a subscriber, a callback of a waiter or other user code runs. A fork waits for
  it, so that the child finds consistent state; in the child the parent's calls are lost.
- Looking is a hint, taking decides. Between a dispatcher's look at the state and its `take`, another thread may
  have taken the permit or the lock: `take` looks again, and reports the locks that are shut.
- Endpoints alternate. An endpoint that finds a lock held by another endpoint's call is promised that lock, and the
  others leave it the next turn while it has a permit. Otherwise a user whose drafts are created as fast as the
  limit allows would have no sends.
- No lost wake-ups. A member that changes something notifies all other members, in their loops, after the change;
  several changes before they look are one notification. Only a loop that has ended can notify no one: so while
  calls of other loops are in flight, a waiting member checks those loops now and then.
- Time. A store has one clock, that of the first loop. For ordinary loops that is `time.monotonic`, the same for
  all of them. A loop with another clock (a virtual one) gets an offset when it joins: the store's time continues
  from that of the process, or from the latest end of a call, if a virtual clock has been faster. It never goes
  back; where the age of a call cannot be known, the call counts as just ended.
"""

import itertools
import math
import weakref
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from feishu_mail_async._api.endpoints import Endpoint
from feishu_mail_async._clock import monotonic
from feishu_mail_async.model import RateLimit

from .state import EndpointState, Permit
from .store import SLACK
from .suspensions import Suspensions
from .waiters import Waiter

if TYPE_CHECKING:
    import asyncio

__all__ = ["Member", "ProcessStore"]

_BEHIND: Final = 1.0
"""Seconds by which an ordinary loop's time may lag behind the clock: uvloop reads the clock once in each pass."""
_RESOLUTION: Final = 0.02
"""Seconds by which an ordinary loop's time may be ahead of the clock: its timers fire that early."""
_SWEPT: Final = 64
"""The number of locks up to which idle ones are not looked for."""
_STRUCK: Final = 10_000
"""Idle users whose consecutive refusals are remembered."""

_PROMISE: Final = 0.5
"""Seconds for which a free lock is left to the member that was promised it."""
_WRITING: Final = ""
"""The kind of the locks that all writing endpoints share."""

_turns: Final = itertools.count(1)


class _Lock:
    """The lock of a user or a mailbox: `turn` holds it, and after that it is shut until `open_at`.

    The next turn may be promised to a member.
    """

    __slots__ = ("_promise_ends", "backoff_until", "consecutive_refusals", "key", "open_at", "promised", "turn")

    def __init__(self, key: str) -> None:
        self.key = key
        self.turn: str | None = None
        self.open_at = -math.inf
        self.backoff_until = -math.inf
        self.consecutive_refusals = 0
        self.promised: weakref.ref[Member] | None = None
        self._promise_ends = math.inf

    def at_rest(self, now: float) -> bool:
        return self.turn is None and self.open_at <= now

    def promise(self, member: "Member") -> None:
        """Leave the next turn to a member that found it held, unless it is promised to another one."""
        if self.promised is None or self.promised() is None:
            self.promised, self._promise_ends = weakref.ref(member), math.inf

    def promised_until(self, member: "Member", now: float) -> float:
        """Return the time until which a member leaves this free lock to another one; in the past if it need not.

        A promise ends when it is kept, when its endpoint has no permit, or a while after the lock was found free:
        the waiter for which it was given may have gone.
        """
        other = None if self.promised is None else self.promised()
        if other is None or other.state is member.state or other.ended() or other.state.not_before(now) > now:
            self.promised = None
            return -math.inf
        self._promise_ends = min(self._promise_ends, now + _PROMISE)
        if self._promise_ends <= now:
            self.promised = None
        return self._promise_ends


class _Locks(dict[str, _Lock]):
    """The locks of the users or of the mailboxes, by key. When there are many, idle ones are dropped."""

    __slots__ = ("_sweep_at",)

    def __init__(self) -> None:
        super().__init__()
        self._sweep_at = _SWEPT

    def add(self, key: str, now: float) -> _Lock:
        """Make the lock of a key that has none."""
        if len(self) >= self._sweep_at:
            self._sweep(now)
        lock = self[key] = _Lock(key)
        return lock

    def _sweep(self, now: float) -> None:
        at_rest = [lock for lock in self.values() if lock.at_rest(now)]
        struck = [lock for lock in at_rest if lock.consecutive_refusals]
        for lock in itertools.chain(
            (lock for lock in at_rest if not lock.consecutive_refusals), struck[:-_STRUCK]
        ):
            del self[lock.key]
        self._sweep_at = 2 * len(self) + _SWEPT


class Member(Protocol):
    """The part of a store that belongs to one endpoint in one loop.

    Its methods may be called in any thread; all but `tell` are called under the mutex.

    Attributes:
        state: the endpoint's state.
        flying: the number of its calls in flight.
        offset: the seconds by which the store's time is ahead of its loop's.
    """

    state: EndpointState
    flying: int
    offset: float

    def ended(self) -> bool:
        """Return whether its loop has ended."""

    def stands_still(self) -> bool:
        """Return whether its loop does not run now; it may never do so again."""

    def to_be_told(self) -> bool:
        """Return whether it has to be notified of a change; from now on it counts as notified."""

    def tell(self) -> None:
        """Have it look at the store anew, in its own loop."""


class _Flight(NamedTuple):
    """A call that has a turn.

    Attributes:
        member: the member that made it.
        state: its endpoint's state.
        user: its user's lock.
        mailbox: its mailbox's lock.
        lapses: when it counts as ended, if its loop stands still.
    """

    member: Member
    state: EndpointState
    user: _Lock
    mailbox: _Lock
    lapses: float


class ProcessStore:
    """The permits, locks and suspensions of one app, for all loops of the process. The caller holds the mutex.

    Attributes:
        suspensions: the app's suspensions.
        states: the states of the endpoints that are in use, by the endpoint's name.
        flights: the calls that have a turn, by the turn's name.
        members: its members, one for each loop and endpoint.
        latest: the latest time at which a call has ended: a loop that joins begins no earlier.
    """

    def __init__(self) -> None:
        self.suspensions = Suspensions()
        self.states: dict[str, EndpointState] = {}
        self._locks: dict[str, tuple[_Locks, _Locks]] = {}
        self.flights: dict[str, _Flight] = {}
        self.members: list[weakref.ref[Member]] = []
        self._ahead: float | None = None  # the store's time minus `time.monotonic`; None: no loop has joined yet
        self._real = -math.inf  # `time.monotonic` when it was last read
        self.latest = -math.inf
        self._offsets: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, float] = weakref.WeakKeyDictionary()

    def state(self, endpoint: Endpoint[Any], limit: RateLimit) -> EndpointState:
        """Return the state of an endpoint; a new one begins with this limit."""
        found = self.states.get(endpoint.name)
        if found is None:
            found = self.states[endpoint.name] = EndpointState(endpoint, limit, self.suspensions)
        return found

    # -- members ---------------------------------------------------------------------------------------

    def add(self, member: Member) -> None:
        """Add a member."""
        self.members = [ref for ref in self.members if (other := ref()) is not None and not other.ended()]
        self.members.append(weakref.ref(member))

    def listeners(self, but: Member | None) -> list[Member]:
        """Return the members to notify of a change: all but the one that made it, and those notified already."""
        found = [member for ref in self.members if (member := ref()) is not None and member is not but]
        return [member for member in found if member.to_be_told()]

    # -- time ------------------------------------------------------------------------------------------

    def offset(self, loop: "asyncio.AbstractEventLoop") -> float:
        """Return the seconds by which the store's time is ahead of a loop's clock, for all endpoints in it."""
        known = self._offsets.get(loop)
        if known is None:
            known = self._offsets[loop] = self._new_offset(loop.time())
        return known

    def _new_offset(self, now: float) -> float:
        real = monotonic()
        ordinary = 0 <= real - now < _BEHIND
        if self._ahead is None:
            self._ahead, self._real = 0.0 if ordinary else now - real, real
            return 0.0
        ahead = self._advance(real)
        return ahead if ordinary else real + ahead - now

    def _advance(self, real: float) -> float:
        """Return by how much the store's time is ahead of `real`, which is `time.monotonic` now."""
        # The clock has been set back, as tests do: the store's time does not go back with it.
        assert self._ahead is not None  # a loop has joined
        ahead = self._ahead + max(0.0, self._real - real)
        if self.latest - real > ahead + _RESOLUTION:  # the clock of a loop was virtual, and faster
            ahead = self.latest - real
        self._ahead, self._real = ahead, real
        return ahead

    # -- flights ---------------------------------------------------------------------------------------

    def allows(self, state: EndpointState, waiter: Waiter, now: float) -> bool:
        """Return whether a call could be made now if the locks of its user and mailbox are free."""
        suspensions = self.suspensions
        return state.may_go(waiter.priority, now) and (
            not suspensions.entries or suspensions.find(state.keys_of(waiter.user, waiter.mailbox), now) is None
        )

    def locks(self, endpoint: Endpoint[Any], user: str, mailbox: str, now: float) -> tuple[_Lock, _Lock]:
        """Return the locks of a user and a mailbox: writing endpoints share them, a reading one has its own."""
        kind = _WRITING if endpoint.writes else endpoint.name
        if kind not in self._locks:
            self._locks[kind] = _Locks(), _Locks()
        users, mailboxes = self._locks[kind]
        return users.get(user) or users.add(user, now), mailboxes.get(mailbox) or mailboxes.add(mailbox, now)

    def begin(self, member: Member, waiter: Waiter, locks: tuple[_Lock, _Lock], now: float) -> Permit:
        """Begin a call: it takes a permit and, if it writes, its locks."""
        state, turn = member.state, str(next(_turns))
        user, mailbox = locks
        if state.endpoint.writes:
            user.turn = mailbox.turn = turn
        self.flights[turn] = _Flight(member, state, user, mailbox, now + waiter.timeout + SLACK)
        member.flying += 1
        state.budget.in_flight += 1
        state.spacing.take(now)
        return state.dispatch(turn, now, good_until=now - member.offset + SLACK)

    def land(self, turn: str) -> _Flight | None:
        """Free the locks of a call that has ended or was never made; None if it counts as lost already."""
        flight = self.flights.pop(turn, None)
        if flight is not None:
            for lock in (flight.user, flight.mailbox):
                if lock.turn == turn:
                    lock.turn = None
            flight.member.flying -= 1
        return flight

    def lose_ended(self, now: float) -> bool:
        """Count the calls of loops that have ended as lost; return whether there were any."""
        lost = [
            (turn, min(now, flight.lapses))
            for turn, flight in self.flights.items()
            if flight.member.ended() or (flight.lapses <= now and flight.member.stands_still())
        ]
        for turn, at in lost:
            self._lose(turn, at)
        return bool(lost)

    def lose_all(self) -> None:
        """Count all calls as lost, in a forked process: its parent makes them, and their ends remain unknown."""
        for turn, flight in list(self.flights.items()):
            self._lose(turn, flight.lapses)

    def _lose(self, turn: str, at: float) -> None:
        flight = self.land(turn)
        assert flight is not None
        flight.state.give_back(turn)
        flight.state.budget.end(flight.state.lost(at, flight.user, flight.mailbox))

    # -- the whole -------------------------------------------------------------------------------------

    def at_rest(self) -> bool:
        """Return whether nothing would be lost if it were forgotten."""
        real = monotonic()
        now = real if self._ahead is None else real + self._advance(real)
        return (
            all((member := ref()) is None or member.ended() for ref in self.members)
            and self.suspensions.at_rest(now)
            and all(state.at_rest(now) for state in self.states.values())
            and all(
                lock.at_rest(now) for pair in self._locks.values() for locks in pair for lock in locks.values()
            )
        )
