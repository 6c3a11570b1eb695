"""The waiters of one endpoint, and the choice of the next one. Pure: time is passed in, nothing is awaited.

Theory of operation. A draft that waits for a call is a `Waiter`. Waiters of one user, mailbox, priority and run
form a `Lane`: first in, first out. A lane needs two or three locks (`CallLock`): its user's, its mailbox's, and in
a run, the run's `Stream`. A lock is *open* or *shut*, and four independent reasons can shut it:

           a call is in flight (`busy`)           a token is renewed, or a run is held back (`held`)
           a sweep ends its waiters (`sweeps`)    a lost call, or a backoff (`open_at`)
    OPEN ----------------------------------------------------------------------------------------> SHUT
      ^                                                                                              |
      +--- release, unhold, swept, or its alarm rings (`ring`): if none of the other reasons is left +

A lane that holds waiters is in exactly one heap, and that is its state:

    add --+-- all its locks are open, none has a better representative --> READY -- serve --> its head leaves
          |                                                                |   ^
          |                a lock has shut since: `offer` notices, parks   |   | its lock opened, and it is the
          |                                                                v   | best lane there
          +-- a lock is shut, or has a better representative -----------> PARKED on that lock
                                                                           |   ^
                           its lock opened, but another one is shut: moved +---+

After `serve` the lane is placed anew, by the same test as in `add`; a lane without waiters is dropped.

- Representative. Of the lanes of an open lock one is ready on behalf of the others, which stay parked on that lock
  until it has left. So one turn of a user changes the key of one ready lane, not of all the lanes of that user.
- Alarm. A lock that only time keeps shut has an entry in `Lanes.alarms`, and `ring` opens it. There is no timer
  for each lock: the dispatcher sleeps until `next_alarm`.
- Held. A lock is held while its user's token is renewed, or while a run's consumer does not keep up. Like any lock
  that shuts, it moves no lane then, and one lane when it opens.
- Sweeps. An error may end 100,000 waiters at once (`condemn`). They are ended a few in each pass of the loop, and
  the lock that they share stays shut until that is done, so that none of them gets a turn meanwhile.
- Lazy heaps. An entry whose lane has left, or whose key has changed, is corrected when it comes up (`LaneHeap`,
  `offer`, `_wake`), not when it becomes wrong.

What may never happen:
- A waiter is served while one of its locks is shut. `offer` tests the locks of a lane again before it returns it.
- An open lock has parked lanes, none of its lanes is ready, and nothing is left to wake one: they would wait for
  ever. So whatever takes a lane out of the ready heap or opens a lock has `_wake` or `_opened` run for the locks
  concerned; for those that the call holds that is when it has ended. A wake-up that has too many lanes to move
  leaves its lock in `_unfinished`, where the next `offer` goes on.
- A decision takes longer because more drafts wait. At most `_MOST_MOVES` lanes are moved in one call; `Lanes.more`
  then says that the caller has to let other tasks run and call again.

Why not one heap of waiters? A user with 100,000 drafts has one call at a time, so nearly every decision would have
to skip all the others. Why not all lanes of open locks in one heap? Each turn would change the keys of many.
"""

import functools
import heapq
import itertools
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from typing import Final, Protocol

from feishu_mail_async.errors import FeishuMailError
from feishu_mail_async.model import Priority

from .record import Record
from .state import Permit
from .sweeps import drain

__all__ = ["OWN", "CallLock", "Condemned", "Lanes", "Stream", "Turn", "TurnCallbacks", "Waiter", "mailbox_key"]

OWN: Final = "me/"
"""The prefix of the key of a user's own mailbox, where its address is not known."""

_MOST_MOVES: Final = 16
"""Lanes that are moved in one call, before other tasks of the event loop have their chance."""

_MOST_PLACES: Final = 50
"""Lanes, locks and waiters that a sweep passes over in one step."""

_MOST_SIFTED: Final = 4
"""Records of a heap that are looked through as one more gets void; as long as that is above 2, there is an end."""

USERS_REMEMBERED: Final = 10_000
"""Idle users whose last turn is remembered, so that the user unserved the longest still goes first."""

_NAMES_KEPT: Final = 1000
_Key = tuple[int, int, int]
_Record = tuple[_Key, int, "Lane"]
_tickets: Final = itertools.count(1)


@functools.lru_cache(_NAMES_KEPT)  # the drafts of a mailbox share its name, and the time to make it
def mailbox_key(user: str, mailbox: str) -> str:
    """Return the key under which a mailbox is locked: addresses compare without case, `me` is the user's own."""
    folded = mailbox.casefold()
    if folded != "me":
        return folded
    return user.casefold() if "@" in user else f"{OWN}{user}"


class TurnCallbacks(Protocol):
    """The callbacks of a waiter: one of them is called, once. They must be quick and must not raise."""

    def granted(self, turn: "Turn") -> None:
        """Make the call now, then settle the turn."""

    def refused(self, error: FeishuMailError) -> None:
        """End without a turn: suspended, nothing reachable for too long, or the ledger fails."""

    def recorded(self, record: Record) -> None:
        """End without a turn: the ledger's record says that the draft was sent."""


@dataclass(slots=True, eq=False)
class Turn:
    """The permission to make one call. It must be passed to the scheduler's `settle` or `give_back`, once.

    Attributes:
        user: the user's lock; no other call of the user is made meanwhile.
        mailbox: the mailbox's lock, likewise.
        waiter: the waiter whose turn it is.
        permit: the permit that the store has granted.
    """

    user: "CallLock"
    mailbox: "CallLock"
    waiter: "Waiter"
    permit: Permit


@dataclass(slots=True, eq=False)
class Waiter:
    """One draft that waits for its turn.

    Attributes:
        user: the user's key; calls of one user go one at a time.
        mailbox: the mailbox's key (see `mailbox_key`).
        priority: its rank; the smallest value goes first.
        callbacks: called when it is granted a turn, or ends without one.
        outage: seconds for which nothing may be reachable before it is refused; infinity: as long as it takes.
        stream: the run it belongs to, which can be held back as a whole.
        draft_id: the draft that its call sends; None for a call that changes nothing at the server.
        timeout: seconds after which its call is cancelled.
        seq: its number in the order of arrival; 0 before it is added.
        lane: the lane in which it waits; None while it does not wait.
    """

    user: str
    mailbox: str
    priority: Priority
    callbacks: TurnCallbacks
    _: KW_ONLY
    outage: float = math.inf
    stream: "Stream | None" = None
    draft_id: str | None = None
    timeout: float = 30.0
    seq: int = field(default=0, init=False)
    lane: "Lane | None" = field(default=None, init=False)


class LaneHeap:
    """A priority queue of lanes by their keys. A lane is in one heap at most.

    A lane that leaves only loses its ticket. Its record stays in the heap, void, and is dropped when it comes up:
    to take a record out of the middle would take time in proportion to the heap's length.

    Many lanes may come and go while nothing is popped. When most records are void, all become the old ones, and
    those that are not void move to a new heap, a few at a time.
    """

    __slots__ = ("_live", "_old", "_records")

    def __init__(self) -> None:
        self._records: list[_Record] = []
        self._old: list[_Record] = []
        self._live = 0

    def push(self, lane: "Lane", key: _Key) -> None:
        lane.ticket = next(_tickets)  # no two records are ever equal, so lanes are never compared
        heapq.heappush(self._records, (key, lane.ticket, lane))
        lane.heap = self
        self._live += 1

    def remove(self, lane: "Lane") -> None:
        lane.heap = None
        lane.ticket = 0
        self._live -= 1
        if not self._old and len(self._records) > 2 * self._live + 64:
            self._old, self._records = self._records, []
        for _ in range(min(_MOST_SIFTED, len(self._old))):
            record = self._old.pop()  # a heap without its last item is a heap
            if record[2].ticket == record[1]:
                heapq.heappush(self._records, record)

    def first(self) -> "tuple[_Key, Lane] | None":
        """Return the lane with the smallest key, and the key it had when it was pushed."""
        best: _Record | None = None
        for heap in (self._records, self._old) if self._old else (self._records,):
            while heap and heap[0][2].ticket != heap[0][1]:
                heapq.heappop(heap)
            if heap and (best is None or heap[0] < best):
                best = heap[0]
        return None if best is None else (best[0], best[2])


@dataclass(slots=True, eq=False)
class CallLock:
    """The lock of a user or a mailbox: at most one call holds it at a time.

    Attributes:
        key: the user's or the mailbox's key.
        busy: a call holds it.
        held: it is shut until `Lanes.unhold`: the user's token is being renewed, or a run is held back.
        sweeps: the sweeps under way that end its waiters.
        open_at: the time until which it stays shut after a lost call or during a backoff.
        backoff_until: the end of the backoff alone, for the snapshot.
        served: the number of the last turn that it had; 0: none so far.
        consecutive_refusals: refusals in a row.
        lanes: all lanes that need it, in the order in which they came.
        parked: the lanes that wait here until it is open, or until its representative has left; None: none so far.
        representative: the ready lane on whose behalf the parked ones wait while it is open.
        alarm: the time of its entry in `Lanes.alarms`; infinity if it has none.
    """

    key: str
    busy: bool = False
    held: bool = False
    sweeps: int = 0
    open_at: float = -math.inf
    backoff_until: float = -math.inf
    served: int = 0
    consecutive_refusals: int = 0
    lanes: "dict[Lane, None]" = field(default_factory=dict)  # a set that keeps its order
    parked: LaneHeap | None = None
    representative: "Lane | None" = None
    alarm: float = math.inf


def first_shut(locks: Iterable[CallLock], now: float) -> CallLock | None:
    """Return the first of these locks that keeps calls from being made now; None: all are open."""
    for lock in locks:
        if lock.busy or lock.held or lock.sweeps or lock.open_at > now:
            return lock
    return None


class Stream(CallLock):
    """The lock of one run, whose waiters can be held back together. Several of them may have a turn at once."""

    __slots__ = ()


class Lane:
    """The queue of the waiters of one user, mailbox, priority and stream; see the theory of operation above."""

    __slots__ = ("heap", "locks", "mailbox", "priority", "stream", "ticket", "user", "waiters")

    def __init__(self, user: CallLock, mailbox: CallLock, waiter: Waiter) -> None:
        self.user = user
        self.mailbox = mailbox
        self.priority = waiter.priority
        self.stream = waiter.stream
        self.locks = (user, mailbox) if waiter.stream is None else (user, mailbox, waiter.stream)
        # A linked list, because any waiter may leave at any time, at the same cost.
        self.waiters: OrderedDict[Waiter, None] = OrderedDict()
        self.heap: LaneHeap | None = None
        self.ticket = 0

    def key(self, at: CallLock | None = None) -> _Key:
        """Return its place in the order: by priority, then the user unserved the longest, then first come.

        Args:
            at: the lock on which it is parked. Lanes parked on their user's lock belong to one user, so the user's
                last turn makes no difference between them; it is left out, because each turn would make all their
                keys wrong.
        """
        return (self.priority, 0 if at is self.user else self.user.served, next(iter(self.waiters)).seq)


class Condemned:
    """The waiters that an error is to end, one after another. Waiters that come later are not among them.

    Nothing is copied: membership is computed, and iteration goes over the lanes as they are, because to list
    100,000 waiters would block the event loop.

    Attributes:
        error: the error.
        lock: the user's or the mailbox's lock that all of them wait for; None if they have none in common.
    """

    __slots__ = ("_before", "_gates", "_lasted", "error", "lock")

    def __init__(
        self, error: FeishuMailError, lock: CallLock | None, lasted: float, before: int, locks: Iterator[CallLock]
    ) -> None:
        self.error = error
        self.lock = lock
        self._lasted = lasted
        self._before = before
        self._gates = locks

    def __contains__(self, waiter: Waiter) -> bool:
        lane = waiter.lane
        return (
            lane is not None
            and waiter.seq < self._before
            and waiter.outage <= self._lasted
            and (self.lock is None or self.lock in lane.locks)
        )

    def __iter__(self) -> Iterator[Waiter | None]:
        """Yield the waiters, and None now and then, so that the caller can pause where many places hold none."""
        for number, place in enumerate(self._places(), 1):  # empty places cost time, too
            if place is not None and place in self:
                yield place
            elif number % _MOST_PLACES == 0:
                yield None

    def _places(self) -> Iterator[Waiter | None]:
        for lock in self._gates:
            yield None
            for lane in drain(lock.lanes):
                yield None
                yield from drain(lane.waiters)


class Lanes:
    """The lanes and locks of one endpoint; see the theory of operation above.

    Args:
        exclusive: a call holds its user's and its mailbox's lock; False for an endpoint that only reads.

    Attributes:
        waiting: the number of waiters, by priority.
        users: the users' locks, by key.
        mailboxes: the mailboxes' locks, by key.
        ready: the heap of ready lanes.
        lanes: all lanes, by user, mailbox, priority and stream; one goes with its last waiter.
        alarms: a heap of the times at which locks open.
        more: `offer` gave up for now, because many lanes had to be moved: let others run, and call it again.
    """

    def __init__(self, *, exclusive: bool = True) -> None:
        self._exclusive = exclusive
        self.waiting = dict.fromkeys(Priority, 0)
        self.users: dict[str, CallLock] = {}
        self.mailboxes: dict[str, CallLock] = {}
        self.ready = LaneHeap()
        self.lanes: dict[tuple[str, str, Priority, Stream | None], Lane] = {}
        self.alarms: list[tuple[float, int, CallLock]] = []
        self._idle_users: OrderedDict[str, None] = OrderedDict()
        self._count = itertools.count(1)
        self._turns = 0
        self._unfinished: dict[CallLock, None] = {}
        self._elsewhere: list[CallLock] = []  # locks that calls of other loops hold
        self.more = False

    # -- waiters ---------------------------------------------------------------------------------------

    def add(self, waiter: Waiter, now: float, seq: int = 0) -> None:
        """Append a waiter to its lane; it has come just now unless it has a number in the order of arrival."""
        waiter.seq = seq or next(self._count)
        lane = self.lanes.get((waiter.user, waiter.mailbox, waiter.priority, waiter.stream))
        if lane is None:
            lane = self._new_lane(waiter)
        lane.waiters[waiter] = None
        waiter.lane = lane
        self.waiting[waiter.priority] += 1
        if lane.heap is None:
            self._place(lane, now)

    def cancel(self, waiter: Waiter, now: float) -> None:
        """Remove a waiter. Nothing happens if it does not wait."""
        lane = waiter.lane
        if lane is None:
            return
        was_ready = lane.heap is self.ready
        self._take_out(waiter, lane)
        if not lane.waiters:
            # If it was the representative of others at an open lock, another one has to be.
            self._opened([lock for lock in lane.locks if was_ready or not lock.lanes], now)

    def move(self, waiter: Waiter, priority: Priority, stream: Stream | None, now: float) -> None:
        """Move a waiter whose call a second caller wants, too.

        It gets the higher one of the two priorities. Unless both belong to one stream, it leaves its stream, so
        that holding back one run does not hold back the other caller.

        Args:
            waiter: the waiter; it need not wait now.
            priority: the second caller's.
            stream: the second caller's run, or None.
            now: the time.
        """
        if stream is waiter.stream and priority >= waiter.priority:
            return
        waiting = waiter.lane is not None
        self.cancel(waiter, now)
        waiter.priority = min(priority, waiter.priority)
        waiter.stream = stream if stream is waiter.stream else None
        if waiting:
            self.add(waiter, now, waiter.seq)

    def any_shut(self, now: float) -> bool:
        """Return whether any user or mailbox has to wait."""
        return first_shut(itertools.chain(self.users.values(), self.mailboxes.values()), now) is not None

    def condemn(
        self, error: FeishuMailError, *, lock: CallLock | None = None, lasted: float = math.inf
    ) -> "Condemned":
        """Return the present waiters that an error is to end. They stay where they are.

        Args:
            error: the error.
            lock: only the waiters that need this lock; None: all.
            lasted: seconds that an outage has lasted: only the waiters whose `outage` is at most this.
        """
        locks = self.users.values() if lock is None else (lock,)
        return Condemned(error, lock, lasted, next(self._count), drain(locks))

    def _new_lane(self, waiter: Waiter) -> Lane:
        user = self.users.get(waiter.user) or CallLock(waiter.user)
        mailbox = self.mailboxes.get(waiter.mailbox) or CallLock(waiter.mailbox)
        lane = Lane(user, mailbox, waiter)
        # Only now, when everything has been made: a lock without a lane would never be forgotten.
        self.users[waiter.user], self.mailboxes[waiter.mailbox] = user, mailbox
        self._idle_users.pop(waiter.user, None)
        self.lanes[waiter.user, waiter.mailbox, waiter.priority, waiter.stream] = lane
        for lock in lane.locks:
            lock.lanes[lane] = None
        return lane

    def _take_out(self, waiter: Waiter, lane: Lane) -> None:
        """Take a waiter out of its lane, which is dropped with its last one."""
        del lane.waiters[waiter]
        waiter.lane = None
        self.waiting[waiter.priority] -= 1
        if not lane.waiters:
            self._unplace(lane)
            del self.lanes[lane.user.key, lane.mailbox.key, lane.priority, lane.stream]
            for lock in lane.locks:
                del lock.lanes[lane]

    # -- turns -----------------------------------------------------------------------------------------

    def offer(self, now: float, *, urgent_only: bool, most: int = 1) -> list[Waiter]:
        """Return waiters that could go now, the next one first. They stay where they are.

        Args:
            now: the time.
            urgent_only: only INTERACTIVE waiters may go.
            most: waiters wanted: one, or several where a shared ledger may know of an obstacle to the first.
        """
        self.more = False
        if self.alarms and self.alarms[0][0] <= now:
            self._ring(now)
        offered: list[Lane] = []
        aside: list[Lane] = []
        for _ in range(_MOST_MOVES + most - 1):
            if self._unfinished:
                self._wake(self._unfinished.popitem()[0], now)
                continue
            best = self.ready.first()
            if best is None:
                break
            key, lane = best
            if urgent_only and lane.priority is not Priority.INTERACTIVE:
                break
            if first_shut(lane.locks, now) is None and lane.key() == key:
                offered.append(lane)
                if len(offered) == most:
                    break
                self.ready.remove(lane)  # only to see the next one; it is put back below
                aside.append(lane)
                continue
            # A lock has shut since, or the user was served. At its locks that are open another lane has to be the
            # representative now.
            self._unplace(lane)
            self._place(lane, now)
            for lock in lane.locks:
                self._wake(lock, now)
        else:
            self.more = not offered
        for lane in aside:
            self.ready.push(lane, lane.key())
        return [next(iter(lane.waiters)) for lane in offered]

    def serve(self, waiter: Waiter, permit: Permit, now: float) -> Turn:
        """Take a waiter out and shut the locks of its user and mailbox: now it has its turn."""
        lane = waiter.lane
        assert lane is not None
        turn = Turn(lane.user, lane.mailbox, waiter, permit)
        self._take_out(waiter, lane)
        self._turns += 1
        lane.user.served = self._turns
        lane.user.busy = lane.mailbox.busy = self._exclusive
        if lane.waiters:
            self._unplace(lane)
            self._place(lane, now)
        for lock in lane.locks[2:] if self._exclusive else lane.locks:
            self._wake(lock, now)  # it is still open, and another lane has to be its representative
        return turn

    def shut(self, lock: CallLock, until: float) -> None:
        """Shut a lock until that time. Its ready lanes are parked when they come up in `offer`.

        Args:
            lock: the lock.
            until: the time; infinity: a call of another loop holds it, until `look_anew`.
        """
        if until < math.inf:
            lock.open_at = max(lock.open_at, until)
        else:
            lock.busy = True
            self._elsewhere.append(lock)

    def look_anew(self, now: float) -> None:
        """Open the locks that calls of other loops held.

        One that is still held is noticed in the store's next `take`, and shut again.
        """
        elsewhere, self._elsewhere = self._elsewhere, []
        for lock in elsewhere:
            lock.busy = False
        self._opened(elsewhere, now)

    def swept(self, lock: CallLock, now: float) -> None:
        """Note that a sweep of a lock's waiters has ended."""
        lock.sweeps -= 1
        self._opened((lock,), now)

    def release(self, user: CallLock, mailbox: CallLock, now: float) -> None:
        """Open the locks of a call that has ended."""
        user.busy = mailbox.busy = False
        self._opened((user, mailbox), now)

    def unhold(self, lock: CallLock, now: float) -> None:
        """Open a lock that was held."""
        lock.held = False
        self._opened((lock,), now)

    def next_alarm(self) -> float:
        """Return when the next lock opens by time alone; infinity if none does."""
        return self.alarms[0][0] if self.alarms else math.inf

    # -- the state of a lane ---------------------------------------------------------------------------

    def _place(self, lane: Lane, now: float) -> None:
        """Put a lane that holds waiters where it belongs: make it ready, or park it on the lock that keeps it."""
        shut = first_shut(lane.locks, now)
        if shut is not None:
            self._park(lane, shut, now)
            return
        key = lane.key()
        for lock in lane.locks:
            # The representative is ready on behalf of all lanes of an open lock: the others cost nothing until it
            # has left.
            if lock.representative is not None and lock.representative.key() <= key:
                self._park(lane, lock, now)
                return
        self._make_ready(lane, key)

    def _park(self, lane: Lane, lock: CallLock, now: float) -> None:
        if lock.parked is None:
            lock.parked = LaneHeap()
        lock.parked.push(lane, lane.key(lock))
        self._set_alarm(lock, now)

    def _make_ready(self, lane: Lane, key: _Key) -> None:
        # A worse lane that was the representative stays ready: it is tested like any other when it comes up.
        for lock in lane.locks:
            lock.representative = lane
        self.ready.push(lane, key)

    @staticmethod
    def _unplace(lane: Lane) -> None:
        if lane.heap is not None:
            lane.heap.remove(lane)
        for lock in lane.locks:
            if lock.representative is lane:
                lock.representative = None

    def _wake(self, lock: CallLock, now: float) -> None:
        """Make the best of the lanes parked on an open lock ready.

        A lane that another of its locks keeps is parked there instead, and the next one is tried.
        """
        if lock.parked is None or first_shut((lock,), now) is not None:
            return
        for _ in range(_MOST_MOVES):
            best = lock.parked.first()
            if best is None:
                return
            key, lane = best
            lock.parked.remove(lane)
            shut = first_shut(lane.locks, now)
            if shut is not None:
                self._park(lane, shut, now)
            elif lane.key(lock) != key:
                self._park(lane, lock, now)  # its user was served since: another lane may be better now
            else:
                self._make_ready(lane, lane.key())
                return
        self._unfinished[lock] = None  # `offer` goes on with it: no call may move more than a few

    def _ring(self, now: float) -> None:
        """Open the locks whose time has come."""
        while self.alarms and self.alarms[0][0] <= now:
            lock = heapq.heappop(self.alarms)[2]
            lock.alarm = math.inf
            self._opened((lock,), now)

    def _opened(self, locks: Iterable[CallLock], now: float) -> None:
        """Wake a lane of each lock that may have opened, or set its alarm, or forget it if no lane needs it.

        Of those that no lane needs only users are remembered; the one longest idle goes first.
        """
        for lock in locks:
            if first_shut((lock,), now) is not None:
                self._set_alarm(lock, now)
            elif lock.lanes:
                self._wake(lock, now)
            elif self.mailboxes.get(lock.key) is lock:
                del self.mailboxes[lock.key]
            elif self.users.get(lock.key) is lock:
                self._idle_users[lock.key] = None
                self._idle_users.move_to_end(lock.key)
                while len(self._idle_users) > USERS_REMEMBERED:
                    del self.users[self._idle_users.popitem(last=False)[0]]

    def _set_alarm(self, lock: CallLock, now: float) -> None:
        """Set an alarm for a lock that opens by time."""
        # Not for one that a call or a renewal keeps shut: when that ends, `_opened` comes here again.
        if not lock.busy and not lock.held and now < lock.open_at < lock.alarm:
            lock.alarm = lock.open_at
            heapq.heappush(self.alarms, (lock.open_at, next(self._count), lock))
