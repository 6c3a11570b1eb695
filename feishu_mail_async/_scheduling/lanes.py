"""The waiters of one endpoint, and the choice of the next one. Pure: time is passed in, nothing is awaited.

Theory of operation. A draft that waits for a call is a `Waiter`. Waiters of one user, mailbox, priority and run
form a `Lane`: first in, first out. A lane needs two or three locks (`CallLock`): its user's, its mailbox's, and in
a run, the run's `Stream`. A lock is *open* or *shut*, and four independent reasons can shut it:

           a call is in flight (`busy`)           a token is renewed, or a run is held back (`held`)
           a sweep ends its waiters (`sweeps`)    a lost call, or a backoff (`open_at`)
    OPEN ----------------------------------------------------------------------------------------> SHUT
      ^                                                                                              |
      +---- the call, the hold or the sweep has ended, or the time has come: if nothing else is left --+

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
- Alarm. A lock that only time keeps shut has an entry in `alarms`, and `offer` opens it when its time has come.
- Held. A lock is held while its user's token is renewed, or while a run's consumer does not keep up. Like any lock
  that shuts, it moves no lane then, and one lane when it opens.
- Sweeps. A lock stays shut while a sweep ends its waiters, so that none of them gets a turn meanwhile.
- Lazy heaps. An entry whose lane has left, or whose key has changed, is corrected when it comes up (`LaneHeap`,
  `offer`, `_wake`), not when it becomes wrong.

What may never happen:
- A waiter is served while one of its locks is shut. `offer` tests the locks of a lane again before it returns it.
- An open lock has parked lanes, none of its lanes is ready, and nothing is left to wake one: they would wait for
  ever. So whatever takes a lane out of the ready heap or opens a lock has `_wake` or `opened` run for the locks
  concerned; for those that the call holds that is when it has ended. A wake-up that has too many lanes to move
  leaves its lock in `_unfinished`, where the next `offer` goes on.
- A decision takes longer because more drafts wait. At most `_MOST_MOVES` lanes are moved in one call; `Lanes.more`
  then says that the caller has to let other tasks run and call again.

Why not one heap of waiters? A user with 100,000 drafts has one call at a time, so nearly every decision would have
to skip all the others. Why not all lanes of open locks in one heap? Each turn would change the keys of many.
"""

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from feishu_mail_async.model import Priority

from .alarms import Alarms
from .state import Permit
from .waiters import CallLock, Lane, Stream, Turn, Waiter

__all__ = ["Lanes", "first_shut"]

_MOST_MOVES: Final = 16
"""Lanes that are moved in one call, before other tasks of the event loop have their chance."""

_MOST_SIFTED: Final = 4
"""Records of a heap that are looked through as one more gets void; as long as that is above 2, there is an end."""

USERS_REMEMBERED: Final = 10_000
"""Idle users whose last turn is remembered, so that the user unserved the longest still goes first."""

_Key = tuple[int, int, int]
_Record = tuple[_Key, int, Lane]
_tickets: Final = itertools.count(1)


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

    def push(self, lane: Lane, key: _Key) -> None:
        lane.ticket = next(_tickets)  # no two records are ever equal, so lanes are never compared
        heapq.heappush(self._records, (key, lane.ticket, lane))
        self._live += 1

    def remove(self, lane: Lane) -> None:
        lane.ticket = 0
        self._live -= 1
        if not self._old and len(self._records) > 2 * self._live + 64:
            self._old, self._records = self._records, []
        for _ in range(min(_MOST_SIFTED, len(self._old))):
            record = self._old.pop()  # a heap without its last item is a heap
            if record[2].ticket == record[1]:
                heapq.heappush(self._records, record)

    def first(self) -> tuple[_Key, Lane] | None:
        """Return the lane with the smallest key, and the key it had when it was pushed."""
        best: _Record | None = None
        for heap in (self._records, self._old) if self._old else (self._records,):
            while heap and heap[0][2].ticket != heap[0][1]:
                heapq.heappop(heap)
            if heap and (best is None or heap[0] < best):
                best = heap[0]
        return None if best is None else (best[0], best[2])


def first_shut(locks: Iterable[CallLock], now: float) -> CallLock | None:
    """Return the first of these locks that keeps calls from being made now; None: all are open."""
    for lock in locks:
        if lock.busy or lock.held or lock.sweeps or lock.open_at > now:
            return lock
    return None


def key_of(lane: Lane, at: CallLock | None = None) -> _Key:
    """Return a lane's place in the order: by priority, then the user unserved the longest, then first come.

    Args:
        lane: the lane.
        at: the lock on which it is parked. Lanes parked on their user's lock belong to one user, so the user's
            last turn makes no difference between them; it is left out, because each turn would make all their keys
            wrong.
    """
    return (lane.priority, 0 if at is lane.user else lane.user.served, next(iter(lane.waiters)).seq)


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
        parked: the heaps of parked lanes, by the lock on which they are parked.
        alarms: the times at which locks open.
        more: `offer` gave up for now, because many lanes had to be moved: let others run, and call it again.
    """

    def __init__(self, *, exclusive: bool = True) -> None:
        self._exclusive = exclusive
        self.waiting = dict.fromkeys(Priority, 0)
        self.users: dict[str, CallLock] = {}
        self.mailboxes: dict[str, CallLock] = {}
        self.ready = LaneHeap()
        self.lanes: dict[tuple[str, str, Priority, Stream | None], Lane] = {}
        self.parked: dict[CallLock, LaneHeap] = {}
        self.alarms = Alarms()
        self._idle_users: OrderedDict[str, None] = OrderedDict()
        self._count = itertools.count(1)
        self._turns = 0
        self._unfinished: dict[CallLock, None] = {}
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
        if not lane.ready and lane.parked_on is None:
            self._place(lane, now)

    def cancel(self, waiter: Waiter, now: float) -> None:
        """Remove a waiter. Nothing happens if it does not wait."""
        lane = waiter.lane
        if lane is None:
            return
        was_ready = lane.ready
        self._take_out(waiter, lane)
        if not lane.waiters:
            # If it was the representative of others at an open lock, another one has to be.
            self.opened([lock for lock in lane.locks if was_ready or not lock.lanes], now)

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

    def mark(self) -> int:
        """Return a number in the order of arrival that is between those so far and those to come."""
        return next(self._count)

    def _new_lane(self, waiter: Waiter) -> Lane:
        user = self.users.get(waiter.user) or CallLock(waiter.user)
        mailbox = self.mailboxes.get(waiter.mailbox) or CallLock(waiter.mailbox)
        locks = (user, mailbox) if waiter.stream is None else (user, mailbox, waiter.stream)
        lane = Lane(user, mailbox, waiter.priority, waiter.stream, locks)
        # Only now, when everything has been made: a lock without a lane would never be forgotten.
        self.users[waiter.user], self.mailboxes[waiter.mailbox] = user, mailbox
        self._idle_users.pop(waiter.user, None)
        self.lanes[waiter.user, waiter.mailbox, waiter.priority, waiter.stream] = lane
        for lock in locks:
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
                if not lock.lanes:
                    self.parked.pop(lock, None)

    # -- turns -----------------------------------------------------------------------------------------

    def offer(self, now: float, *, urgent_only: bool, most: int = 1) -> list[Waiter]:
        """Return waiters that could go now, the next one first. They stay where they are.

        Args:
            now: the time.
            urgent_only: only INTERACTIVE waiters may go.
            most: waiters wanted: one, or several where a shared ledger may know of an obstacle to the first.
        """
        self.more = False
        if self.alarms.next_at <= now:
            self.opened(self.alarms.ring(now), now)
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
            if first_shut(lane.locks, now) is None and key_of(lane) == key:
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
            self.ready.push(lane, key_of(lane))
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

    def release(self, user: CallLock, mailbox: CallLock, now: float) -> None:
        """Open the locks of a call that has ended."""
        user.busy = mailbox.busy = False
        self.opened((user, mailbox), now)

    def opened(self, locks: Iterable[CallLock], now: float) -> None:
        """Go on with the lanes of locks of which one reason to be shut has gone.

        Wake a lane of each that is open now; set the alarm of one that only time keeps shut. Forget those that no
        lane needs: idle mailboxes, and of idle users the ones longest idle.
        """
        for lock in locks:
            if first_shut((lock,), now) is not None:
                self.alarms.set(lock, now)
            elif lock.lanes:
                self._wake(lock, now)
            elif self.mailboxes.get(lock.key) is lock:
                del self.mailboxes[lock.key]
            elif self.users.get(lock.key) is lock:
                self._idle_users[lock.key] = None
                self._idle_users.move_to_end(lock.key)
                while len(self._idle_users) > USERS_REMEMBERED:
                    del self.users[self._idle_users.popitem(last=False)[0]]

    # -- the state of a lane ---------------------------------------------------------------------------

    def _place(self, lane: Lane, now: float) -> None:
        """Put a lane that holds waiters where it belongs: make it ready, or park it on the lock that keeps it."""
        shut = first_shut(lane.locks, now)
        if shut is not None:
            self._park(lane, shut, now)
            return
        key = key_of(lane)
        for lock in lane.locks:
            # The representative is ready on behalf of all lanes of an open lock: the others cost nothing until it
            # has left.
            if lock.representative is not None and key_of(lock.representative) <= key:
                self._park(lane, lock, now)
                return
        self._make_ready(lane, key)

    def _park(self, lane: Lane, lock: CallLock, now: float) -> None:
        heap = self.parked.get(lock)
        if heap is None:
            heap = self.parked[lock] = LaneHeap()
        heap.push(lane, key_of(lane, lock))
        lane.parked_on = lock
        self.alarms.set(lock, now)

    def _make_ready(self, lane: Lane, key: _Key) -> None:
        # A worse lane that was the representative stays ready: it is tested like any other when it comes up.
        for lock in lane.locks:
            lock.representative = lane
        self.ready.push(lane, key)
        lane.ready = True

    def _unplace(self, lane: Lane) -> None:
        if lane.ready:
            self.ready.remove(lane)
            lane.ready = False
        elif lane.parked_on is not None:
            self.parked[lane.parked_on].remove(lane)
            lane.parked_on = None
        for lock in lane.locks:
            if lock.representative is lane:
                lock.representative = None

    def _wake(self, lock: CallLock, now: float) -> None:
        """Make the best of the lanes parked on an open lock ready.

        A lane that another of its locks keeps is parked there instead, and the next one is tried.
        """
        heap = self.parked.get(lock)
        if heap is None or first_shut((lock,), now) is not None:
            return
        for _ in range(_MOST_MOVES):
            best = heap.first()
            if best is None:
                return
            key, lane = best
            heap.remove(lane)
            lane.parked_on = None
            shut = first_shut(lane.locks, now)
            if shut is not None:
                self._park(lane, shut, now)
            elif key_of(lane, lock) != key:
                self._park(lane, lock, now)  # its user was served since: another lane may be better now
            else:
                self._make_ready(lane, key_of(lane))
                return
        self._unfinished[lock] = None  # `offer` goes on with it: no call may move more than a few
