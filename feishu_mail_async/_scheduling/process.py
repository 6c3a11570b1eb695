"""Memory's ledger: what an app's calls have used up and locked, kept by the process and not by a loop.

Theory of operation. A `ProcessStore` is one budget of one app: its `AppState`, the locks of its users and
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
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from feishu_mail_async._clock import monotonic
from feishu_mail_async.model import Priority, RateLimit

from .state import AppState, subjects
from .store import SLACK

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

_turns: Final = itertools.count(1)


class _Lock:
    """A user or a mailbox: `turn` holds it, and after that it is shut until `open_at`."""

    __slots__ = ("backoff_until", "consecutive_refusals", "key", "open_at", "turn")

    def __init__(self, key: str) -> None:
        self.key = key
        self.turn: str | None = None
        self.open_at = -math.inf
        self.backoff_until = -math.inf
        self.consecutive_refusals = 0

    def at_rest(self, now: float) -> bool:
        return self.turn is None and self.open_at <= now


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
    """A loop's part in a store. Its methods may be called in any thread, under the mutex.

    Attributes:
        flying: its calls under way.
    """

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
        member: whose call it is.
        user: its user's lock.
        mailbox: its mailbox's lock.
        lapses: when it has ended at the latest, if its loop stands still.
    """

    member: Member
    user: _Lock
    mailbox: _Lock
    lapses: float


class ProcessStore:
    """One budget of one app, for all loops of the process. Whoever calls its methods holds the mutex.

    Args:
        limit: the rate limit to keep.
    """

    def __init__(self, limit: RateLimit) -> None:
        self.app_state = AppState(limit)
        self.users = _Locks()
        self.mailboxes = _Locks()
        self.flights: dict[str, _Flight] = {}
        self.members: list[weakref.ref[Member]] = []
        self._ahead: float | None = None  # the time less `time.monotonic`; None: no loop has come yet
        self._real = -math.inf  # `time.monotonic` when it was last looked at

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

    def allows(self, waiter: "Waiter", now: float) -> bool:
        """Whether an ask could go now, as far as its user's and its mailbox's locks go."""
        app_state, budget = self.app_state, self.app_state.budget
        return (
            app_state.not_before(now) <= now
            and (waiter.priority is Priority.INTERACTIVE or budget.free(now) > budget.limit.reserve)
            and (
                not app_state.suspended
                or app_state.suspended_of(subjects(waiter.user, waiter.mailbox), now) is None
            )
        )

    def locks(self, user: str, mailbox: str, now: float) -> tuple[_Lock, _Lock]:
        """The locks of a user and a mailbox."""
        return (
            self.users.get(user) or self.users.add(user, now),
            self.mailboxes.get(mailbox) or self.mailboxes.add(mailbox, now),
        )

    def begin(self, member: Member, waiter: "Waiter", user: _Lock, mailbox: _Lock, now: float) -> str:
        """Lock the user and the mailbox of an ask for a call; its permit is counted elsewhere."""
        turn = str(next(_turns))
        user.turn = mailbox.turn = turn
        self.flights[turn] = _Flight(member, user, mailbox, now + waiter.timeout + SLACK)
        member.flying += 1
        return turn

    def land(self, turn: str) -> _Flight | None:
        """A call has ended or was never made: its locks are free. None if it counts as lost already."""
        flight = self.flights.pop(turn, None)
        if flight is not None:
            flight.user.turn = flight.mailbox.turn = None
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
        self.app_state.give_back(turn)
        self.app_state.budget.ended(self.app_state.lost(at, flight.user, flight.mailbox))

    # -- the whole -------------------------------------------------------------------------------------

    def at_rest(self) -> bool:
        """Whether nothing would be lost with it."""
        now = monotonic() + (self._ahead or 0.0)
        return (
            all((member := ref()) is None or member.ended() for ref in self.members)
            and self.app_state.at_rest(now)
            and all(lock.at_rest(now) for locks in (self.users, self.mailboxes) for lock in locks.values())
        )
