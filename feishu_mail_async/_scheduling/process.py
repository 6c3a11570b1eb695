"""Memory's ledger: what an app's calls have used up and locked, kept by the process and not by a loop.

Theory of operation. A `ProcessStore` is one budget of one app: its `EndpointState`, the locks of its users and
mailboxes, and its *flights*, which are the calls that have a turn. The process has one of each
(`memory.memory_store`), whichever loops come and go. A loop reaches it through a store of its own, a *member*;
queues and dispatchers stay with the loop.

    take     under the mutex: nothing is in the way? then permit, locks and flight at once  --> the call
    settle   under the mutex: the flight ends, permit and locks come back or are timed      --> the others are told

    lock     free -- take --> held by a flight -- settle --> free, or shut until `open_at` --> free
    flight   -- take --> under way -- settle, give_back --> gone
                                   -- its loop has ended --> lost: permit and locks come back `grace` later

- Who may call what. A member is its loop's: only `ended`, `stands_still`, `to_be_told` and `tell` are for others.
  What is shared is read and changed under `mutex`, which is the process's. It is held for microseconds, never
  across an await, and never while a subscriber, a taker or other code of a user's is called. A fork waits for it,
  so that the child finds everything whole; there the parent's calls are lost.
- A look is a hint, taking is the truth. Between a dispatcher's look at the standing and its `take` another thread
  may have taken the permit or the lock: `take` looks again, and says what is in the way.
- Endpoints take turns. One that finds a lock held by a call of another is promised it, and the others leave it the
  next turn while it has a permit: a user whose drafts are created as fast as they go has sends, too.
- Nobody waits in vain. Whoever changes something tells all other members, in their loops, after the change;
  several changes before they look are told once. Only a loop that has ended tells nothing: while calls of other
  loops are under way, a member that waits looks after those loops.
- Time. A store has one time: the clock of the first loop that comes. For ordinary loops that is `time.monotonic`,
  and so it is for all ordinary loops after it. A loop with another clock, a virtual one, gets an offset when it
  comes: the time goes on from where it stood, later by what has passed in the process. It never goes back, and
  what cannot be known counts as just used.
"""

import itertools
import math
import weakref
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from feishu_mail_async._api.endpoints import Endpoint
from feishu_mail_async._clock import monotonic
from feishu_mail_async.model import Priority, RateLimit

from .state import EndpointState
from .store import SLACK
from .suspensions import Suspensions

if TYPE_CHECKING:
    from .lanes import Waiter

__all__ = ["Member", "ProcessStore"]

_BEHIND: Final = 1.0
"""Seconds by which an ordinary loop's clock may be read late: uvloop reads it once in each of its passes."""
_RESOLUTION: Final = 0.02
"""Seconds by which an ordinary loop's time may be ahead of the clock: its timers ring that early."""
_SWEPT: Final = 64
"""Locks that are not worth sweeping."""
_STRUCK: Final = 10_000
"""Users at rest of whom refusals in a row are remembered."""

_PROMISE: Final = 0.5
"""Seconds for which a free lock is left to the member that was promised it."""
_WRITING: Final = ""
"""The kind of the locks that all endpoints share that write."""

_turns: Final = itertools.count(1)


class _Lock:
    """A user or a mailbox: `turn` holds it, and after that it is shut until `open_at`."""

    __slots__ = ("_promise_ends", "_promised", "backoff_until", "consecutive_refusals", "key", "open_at", "turn")

    def __init__(self, key: str) -> None:
        self.key = key
        self.turn: str | None = None
        self.open_at = -math.inf
        self.backoff_until = -math.inf
        self.consecutive_refusals = 0
        self._promised: weakref.ref[Member] | None = None
        self._promise_ends = math.inf

    def at_rest(self, now: float) -> bool:
        return self.turn is None and self.open_at <= now

    def promise(self, member: "Member") -> None:
        """Leave the next turn to a member that found it locked, unless another one came before."""
        if self._promised is None or self._promised() is None:
            self._promised, self._promise_ends = weakref.ref(member), math.inf

    def promised_until(self, member: "Member", now: float) -> float:
        """Return until when a member leaves this free lock to another one; in the past if it need not.

        A promise ends when it is kept, when its endpoint has no permit, or a while after the lock was found free:
        the waiter for which it was given may have gone.
        """
        other = None if self._promised is None else self._promised()
        if other is None or other.state is member.state or other.ended() or other.state.not_before(now) > now:
            self._promised = None
            return -math.inf
        self._promise_ends = min(self._promise_ends, now + _PROMISE)
        if self._promise_ends <= now:
            self._promised = None
        return self._promise_ends


class _Locks(dict[str, _Lock]):
    """The locks of the users or of the mailboxes, by key; those at rest are swept out when there are many."""

    __slots__ = ("_sweep_at",)

    def __init__(self) -> None:
        super().__init__()
        self._sweep_at = _SWEPT

    def add(self, key: str, now: float) -> _Lock:
        """The lock of a key that has none."""
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
    """An endpoint's part of a store in one loop. Its methods may be called in any thread, under the mutex.

    Attributes:
        state: that of its endpoint.
        flying: its calls under way.
    """

    state: EndpointState
    flying: int

    def ended(self) -> bool:
        """Tell whether its loop has ended."""

    def stands_still(self) -> bool:
        """Tell whether its loop does not run now; it may never do so again."""

    def to_be_told(self) -> bool:
        """Tell whether it has to be told of a change; from now on it counts as told."""

    def tell(self) -> None:
        """Have it look anew, in its own loop."""


class _Flight(NamedTuple):
    """A call that has a turn.

    Attributes:
        member: the part in which it was made.
        state: that of its endpoint.
        user: its user's lock.
        mailbox: its mailbox's lock.
        lapses: when it has ended at the latest, if its loop stands still.
    """

    member: Member
    state: EndpointState
    user: _Lock
    mailbox: _Lock
    lapses: float


class ProcessStore:
    """What one app's calls have used up and locked, for all loops of the process. The caller holds the mutex.

    Attributes:
        suspensions: those of the app.
        states: the endpoints that are in use, by name.
        flights: the calls that have a turn, by its name.
        members: the loops' parts in it, one for each endpoint.
    """

    def __init__(self) -> None:
        self.suspensions = Suspensions()
        self.states: dict[str, EndpointState] = {}
        self._locks: dict[str, tuple[_Locks, _Locks]] = {}
        self.flights: dict[str, _Flight] = {}
        self.members: list[weakref.ref[Member]] = []
        self._ahead: float | None = None  # the time less `time.monotonic`; None: no loop has come yet
        self._real = -math.inf  # `time.monotonic` when it was last looked at

    def state(self, endpoint: Endpoint[Any], limit: RateLimit) -> EndpointState:
        """Return the state of an endpoint; a new one begins with this limit."""
        found = self.states.get(endpoint.name)
        if found is None:
            found = self.states[endpoint.name] = EndpointState(endpoint, limit, self.suspensions)
        return found

    # -- members ---------------------------------------------------------------------------------------

    def add(self, member: Member) -> None:
        """Take in a member."""
        self.members = [ref for ref in self.members if (other := ref()) is not None and not other.ended()]
        self.members.append(weakref.ref(member))

    def listeners(self, but: Member | None) -> list[Member]:
        """The members to tell of a change, beside the one that has made it; those told already hear of it then."""
        found = [member for ref in self.members if (member := ref()) is not None and member is not but]
        return [member for member in found if member.to_be_told()]

    # -- time ------------------------------------------------------------------------------------------

    def offset(self, now: float) -> float:
        """What the time is ahead of the clock of a loop that comes now."""
        real = monotonic()
        ordinary = 0 <= real - now < _BEHIND
        if self._ahead is None:
            self._ahead, self._real = 0.0 if ordinary else now - real, real
            return 0.0
        self._ahead += max(0.0, self._real - real)  # somebody has set the clock back, as tests do
        self._real = real
        return self._ahead if ordinary else real + self._ahead - now

    def advance(self, now: float) -> None:
        """It is `now`, by the clock of a loop, which may be virtual and go faster than the real one."""
        real = self._real = monotonic()
        if self._ahead is None or now - real > self._ahead + _RESOLUTION:
            self._ahead = now - real

    # -- flights ---------------------------------------------------------------------------------------

    def allows(self, state: EndpointState, waiter: "Waiter", now: float) -> bool:
        """Return whether a call could be made now, as far as the locks of its user and mailbox do not matter."""
        budget, suspensions = state.budget, self.suspensions
        return (
            state.not_before(now) <= now
            and (waiter.priority is Priority.INTERACTIVE or budget.free(now) > budget.limit.reserve)
            and (
                not suspensions.entries
                or suspensions.find(state.keys_of(waiter.user, waiter.mailbox), now) is None
            )
        )

    def locks(self, endpoint: Endpoint[Any], user: str, mailbox: str, now: float) -> tuple[_Lock, _Lock]:
        """Return the locks of a user and a mailbox: endpoints that write share them, a reading one has its own."""
        kind = _WRITING if endpoint.writes else endpoint.name
        if kind not in self._locks:
            self._locks[kind] = _Locks(), _Locks()
        users, mailboxes = self._locks[kind]
        return users.get(user) or users.add(user, now), mailboxes.get(mailbox) or mailboxes.add(mailbox, now)

    def begin(  # noqa: PLR0917 - one for each thing concerned
        self, member: Member, state: EndpointState, waiter: "Waiter", user: _Lock, mailbox: _Lock, now: float
    ) -> str:
        """Begin a call, which holds its locks if it writes; its permit is counted elsewhere."""
        turn = str(next(_turns))
        if state.endpoint.writes:
            user.turn = mailbox.turn = turn
        self.flights[turn] = _Flight(member, state, user, mailbox, now + waiter.timeout + SLACK)
        member.flying += 1
        return turn

    def land(self, turn: str) -> _Flight | None:
        """A call has ended or was never made: its locks are free. None if it counts as lost already."""
        flight = self.flights.pop(turn, None)
        if flight is not None:
            for lock in (flight.user, flight.mailbox):
                if lock.turn == turn:
                    lock.turn = None
            flight.member.flying -= 1
        return flight

    def lose_ended(self, now: float) -> bool:
        """Let the calls of loops that have ended be lost; whether there were any."""
        lost = [
            (turn, min(now, flight.lapses))
            for turn, flight in self.flights.items()
            if flight.member.ended() or (flight.lapses <= now and flight.member.stands_still())
        ]
        for turn, at in lost:
            self._lose(turn, at)
        return bool(lost)

    def lose_all(self) -> None:
        """Let all calls be lost: this process is a child of the one that makes them, and does not hear of them."""
        for turn, flight in list(self.flights.items()):
            self._lose(turn, flight.lapses)

    def _lose(self, turn: str, at: float) -> None:
        flight = self.land(turn)
        assert flight is not None
        flight.state.give_back(turn)
        flight.state.budget.ended(flight.state.lost(at, flight.user, flight.mailbox))

    # -- the whole -------------------------------------------------------------------------------------

    def at_rest(self) -> bool:
        """Whether nothing would be lost with it."""
        now = monotonic() + (self._ahead or 0.0)
        return (
            all((member := ref()) is None or member.ended() for ref in self.members)
            and self.suspensions.at_rest(now)
            and all(state.at_rest(now) for state in self.states.values())
            and all(
                lock.at_rest(now) for pair in self._locks.values() for locks in pair for lock in locks.values()
            )
        )
