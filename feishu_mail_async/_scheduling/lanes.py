"""Who waits, and whose turn it is among them. Pure: the time is handed in, and nothing is awaited.

A call that waits is an `Waiter`. Asks of one user, mailbox, priority and run form a `Lane`, first come, first
served. A lane is *ready* when its gates, its user's and its mailbox's, are open: no call in flight, no cool-down.
(A run has a gate too, its `Stream`, which is shut while its consumer does not keep up.) Otherwise it is *parked*
on a gate that is shut, and a gate that opens wakes one lane; of the lanes of an open gate one stands in for the
others. All choices are made on heaps, so that a decision costs the same however many wait; where many lanes have
to move from gate to gate, they do so a few at a time (`Lanes.more`).
"""

import functools
import heapq
import itertools
import math
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, Protocol

from feishu_mail_async.errors import FeishuMailError
from feishu_mail_async.model import Priority

from .record import Record
from .state import Permit
from .sweeps import drain

__all__ = ["OWN", "CallLock", "Condemned", "Lanes", "Stream", "Turn", "TurnCallbacks", "Waiter", "mailbox_key"]

OWN: Final = "me/"
"""Begins the key of a user's own mailbox whose address is not known."""

_MOST_MOVES: Final = 16
"""Lanes that are moved in one go, before others in the event loop have their chance."""

_MOST_PLACES: Final = 50
"""Lanes, gates and asks that are looked at in one go."""

USERS_REMEMBERED: Final = 10_000
"""Users at rest whose last turn is remembered."""

_NAMES_KEPT: Final = 1000
_Key = tuple[int, int, int]
_tickets: Final = itertools.count(1)


@functools.lru_cache(_NAMES_KEPT)  # the drafts of a mailbox share its name, and the time to make it
def mailbox_key(user: str, mailbox: str) -> str:
    """The name under which a mailbox is locked: addresses compare without case, and `me` is the user's own."""
    folded = mailbox.casefold()
    if folded != "me":
        return folded
    return user.casefold() if "@" in user else f"{OWN}{user}"


class TurnCallbacks(Protocol):
    """Whoever asks for a turn. Both calls must be quick and must not raise."""

    def granted(self, turn: "Turn") -> None:
        """It is this ask's turn: make the call now, then settle the turn."""

    def refused(self, error: FeishuMailError) -> None:
        """End without a turn: suspended, nothing reachable for too long, or the ledger fails."""

    def recorded(self, record: Record) -> None:
        """There is no need of a turn: the ledger has it that the draft was sent."""


class Turn:
    """The leave to make one call. It must be given to the scheduler's `settle` or `give_back`, once.

    Attributes:
        user: whose call it is; no other of theirs is made meanwhile.
        mailbox: the mailbox concerned, likewise.
        waiter: what asked for it.
        permit: what the ledger has granted.
    """

    __slots__ = ("mailbox", "permit", "user", "waiter")

    def __init__(self, user: "CallLock", mailbox: "CallLock", waiter: "Waiter", permit: Permit) -> None:
        self.user = user
        self.mailbox = mailbox
        self.waiter = waiter
        self.permit = permit


class Waiter:
    """One draft that waits for its turn.

    Attributes:
        user: the user's key; calls of one user go one at a time.
        mailbox: the mailbox's key (see `mailbox_key`).
        priority: who goes first.
        callbacks: who is told.
        outage: seconds nothing may be reachable before this ask is refused; infinity: as long as it takes.
        stream: the run it belongs to, which can be held back as a whole.
        draft_id: the draft that its call sends; None for a call that changes nothing at the server.
        timeout: seconds after which its call is broken off.
    """

    __slots__ = (
        "callbacks",
        "draft_id",
        "lane",
        "mailbox",
        "outage",
        "priority",
        "seq",
        "stream",
        "timeout",
        "user",
    )

    def __init__(
        self,
        user: str,
        mailbox: str,
        priority: Priority,
        callbacks: TurnCallbacks,
        *,
        outage: float = math.inf,
        stream: "Stream | None" = None,
        draft_id: str | None = None,
        timeout: float = 30.0,
    ) -> None:
        self.user = user
        self.mailbox = mailbox
        self.priority = priority
        self.callbacks = callbacks
        self.outage = outage
        self.stream = stream
        self.draft_id = draft_id
        self.timeout = timeout
        self.seq = 0
        self.lane: Lane | None = None


class LaneHeap:
    """Lanes by their keys; a lane is in one heap at most. A record is void once its lane has left."""

    __slots__ = ("_live", "_records")

    def __init__(self) -> None:
        self._records: list[tuple[_Key, int, Lane]] = []
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
        if len(self._records) > 2 * self._live + 64:
            # Many lanes came and went while nothing was popped; without this a long pause would pile them up.
            self._records = [record for record in self._records if record[2].ticket == record[1]]
            heapq.heapify(self._records)

    def first(self) -> "tuple[_Key, Lane] | None":
        """The lane with the smallest key, and the key it had when it came."""
        while self._records:
            key, ticket, lane = self._records[0]
            if ticket == lane.ticket:
                return key, lane
            heapq.heappop(self._records)
        return None


class CallLock:
    """A user or a mailbox: at most one call passes at a time."""

    __slots__ = (
        "alarm",
        "backoff_until",
        "busy",
        "consecutive_refusals",
        "held",
        "key",
        "lanes",
        "open_at",
        "parked",
        "representative",
        "served",
        "sweeps",
    )

    def __init__(self, key: str) -> None:
        self.key = key
        self.busy = False
        self.held = False  # while the user's token is renewed
        self.sweeps = 0  # under way, which end what waits here
        self.open_at = -math.inf  # after a lost call, or a cool-down
        self.backoff_until = -math.inf  # the end of a cool-down alone, for the snapshot
        self.served = 0  # the count of turns when it had its last
        self.consecutive_refusals = 0  # refusals in a row
        self.lanes: dict[Lane, None] = {}  # a set that keeps its order
        self.parked = LaneHeap()
        self.representative: Lane | None = (
            None  # the ready lane that stands for those parked here while it is open
        )
        self.alarm = math.inf  # the time for which an alarm is set

    def shut(self, now: float) -> bool:
        """Whether no call can pass now."""
        return self.busy or self.held or self.sweeps > 0 or self.open_at > now


class Stream(CallLock):
    """The asks of one run, which can be held back together. Any number of them may have a turn at once."""

    __slots__ = ()


class Lane:
    """Asks of one user, mailbox, priority and stream."""

    __slots__ = ("heap", "locks", "mailbox", "priority", "stream", "ticket", "user", "waiters")

    def __init__(self, user: CallLock, mailbox: CallLock, waiter: Waiter) -> None:
        self.user = user
        self.mailbox = mailbox
        self.priority = waiter.priority
        self.stream = waiter.stream
        self.locks = (user, mailbox) if waiter.stream is None else (user, mailbox, waiter.stream)
        # A linked list: first in, first out, and any ask can leave at once.
        self.waiters: OrderedDict[Waiter, None] = OrderedDict()
        self.heap: LaneHeap | None = None
        self.ticket = 0

    def head(self) -> Waiter:
        """The ask that came first."""
        return next(iter(self.waiters))

    def key(self, at: CallLock | None = None) -> _Key:
        """The smallest goes first: by priority, then the user unserved the longest, then the ask's arrival.

        Among those parked `at` their user, all of one user, the user's last turn makes no difference; left
        out, a turn does not make the keys of all the others wrong.
        """
        return (self.priority, 0 if at is self.user else self.user.served, self.head().seq)


class Condemned:
    """Asks that an error is to end, one after another; none that comes later is meant.

    Attributes:
        error: the error.
        lock: the user or the mailbox that all of them wait for, if it is one.
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
        """Go through them. None stands for many places without any."""
        for number, place in enumerate(self._places(), 1):
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
    """All the lanes of one app.

    Attributes:
        waiting: asks that wait, by priority.
        users: the users' gates.
        mailboxes: the mailboxes' gates.
        more: `take` gave up for now, because many lanes had to move: let others run, and call it again.
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
        self._elsewhere: list[CallLock] = []  # gates that are shut by calls of other loops
        self.more = False

    # -- asks ------------------------------------------------------------------------------------------

    def add(self, waiter: Waiter, now: float) -> None:
        """Let an ask wait, behind what its lane holds."""
        waiter.seq = next(self._count)
        self._enqueue(waiter, now)

    def cancel(self, waiter: Waiter, now: float) -> None:
        """Take a waiting ask out. Nothing happens if it is not waiting."""
        lane = waiter.lane
        if lane is None:
            return
        self._remove(waiter, lane)
        if lane.waiters:
            return
        was_ready = lane.heap is self.ready
        self._unplace(lane)
        self._drop(lane)
        for lock in lane.locks:
            # If it stood in for others at an open gate, another takes its place.
            if was_ready or not lock.lanes:
                self._opened(lock, now)

    def move(self, waiter: Waiter, priority: Priority, stream: Stream | None, now: float) -> None:
        """Somebody else wants an ask's call too: it gets the higher priority, and no single stream holds it."""
        if stream is waiter.stream and priority >= waiter.priority:
            return
        waiting = waiter.lane is not None
        self.cancel(waiter, now)
        waiter.priority = min(priority, waiter.priority)
        waiter.stream = stream if stream is waiter.stream else None
        if waiting:
            self._enqueue(waiter, now)

    def any_waiting(self) -> bool:
        """Whether any ask waits."""
        return bool(self.lanes)  # a lane goes with its last ask

    def any_shut(self, now: float) -> bool:
        """Whether any user or mailbox has to wait."""
        return any(lock.shut(now) for locks in (self.users, self.mailboxes) for lock in locks.values())

    def condemn(
        self, error: FeishuMailError, *, lock: CallLock | None = None, lasted: float = math.inf
    ) -> "Condemned":
        """Those of the asks that wait now which an error is to end; they stay where they are.

        Args:
            error: the error.
            lock: only those of this user or mailbox.
            lasted: only those that wait for no longer than so many seconds for something to be reachable.
        """
        locks = self.users.values() if lock is None else (lock,)
        return Condemned(error, lock, lasted, next(self._count), drain(locks))

    def _enqueue(self, waiter: Waiter, now: float) -> None:
        lane = self.lanes.get((waiter.user, waiter.mailbox, waiter.priority, waiter.stream))
        if lane is None:
            lane = self._new_lane(waiter)
        lane.waiters[waiter] = None
        waiter.lane = lane
        self.waiting[waiter.priority] += 1
        if lane.heap is None:
            self._place(lane, now)

    def _new_lane(self, waiter: Waiter) -> Lane:
        user = self.users.get(waiter.user) or CallLock(waiter.user)
        mailbox = self.mailboxes.get(waiter.mailbox) or CallLock(waiter.mailbox)
        lane = Lane(user, mailbox, waiter)
        # Only now that all of it is there: a gate without a lane would be forgotten by nobody.
        self.users[waiter.user], self.mailboxes[waiter.mailbox] = user, mailbox
        self._idle_users.pop(waiter.user, None)
        self.lanes[waiter.user, waiter.mailbox, waiter.priority, waiter.stream] = lane
        for lock in lane.locks:
            lock.lanes[lane] = None
        return lane

    def _remove(self, waiter: Waiter, lane: Lane) -> None:
        del lane.waiters[waiter]
        waiter.lane = None
        self.waiting[waiter.priority] -= 1

    # -- turns -----------------------------------------------------------------------------------------

    def offer(self, now: float, *, urgent_only: bool, most: int = 1) -> list[Waiter]:
        """The asks that could go now, the one whose turn it is first; they stay where they are.

        Args:
            now: the time.
            urgent_only: only INTERACTIVE asks may go.
            most: asks wanted; one, or several where a shared ledger may know what keeps the first.
        """
        self.more = False
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
            if self._shut_lock(lane, now) is None and lane.key() == key:
                offered.append(lane)
                if len(offered) == most:
                    break
                self.ready.remove(lane)  # only to see what is behind it
                aside.append(lane)
                continue
            # A gate has shut since, or its user was served. Where a gate is open, another lane has to stand in.
            self._unplace(lane)
            self._place(lane, now)
            for lock in lane.locks:
                self._wake(lock, now)
        else:
            self.more = not offered
        for lane in aside:
            self.ready.push(lane, lane.key())
        return [lane.head() for lane in offered]

    def serve(self, waiter: Waiter, now: float) -> tuple[CallLock, CallLock]:
        """Give a waiting ask its turn: its user's and its mailbox's gate, which are shut by it."""
        lane = waiter.lane
        assert lane is not None
        user, mailbox = lane.user, lane.mailbox
        self._unplace(lane)
        self._remove(waiter, lane)
        self._turns += 1
        user.served = self._turns
        user.busy = mailbox.busy = self._exclusive
        if lane.waiters:
            self._place(lane, now)
        else:
            self._drop(lane)
        if lane.stream is not None:
            self._wake(lane.stream, now)  # it is still open, and another lane has to stand in
        return user, mailbox

    def shut(self, lock: CallLock, until: float) -> None:
        """Let nothing pass a gate before that time; the lanes that stand ready behind it are moved when found.

        Args:
            lock: the gate.
            until: the time; infinity: a call of another loop shuts it, until `look_anew`.
        """
        if until < math.inf:
            lock.open_at = max(lock.open_at, until)
        else:
            lock.busy = True
            self._elsewhere.append(lock)

    def look_anew(self, now: float) -> None:
        """Open the gates that calls of other loops shut; one that is still shut is found so when it is passed."""
        elsewhere, self._elsewhere = self._elsewhere, []
        for lock in elsewhere:
            lock.busy = False
            self._opened(lock, now)

    def swept(self, lock: CallLock, now: float) -> None:
        """A sweep of what waited at this gate has ended."""
        lock.sweeps -= 1
        self._opened(lock, now)

    def release(self, user: CallLock, mailbox: CallLock, now: float) -> None:
        """The call that shut these gates has ended."""
        user.busy = mailbox.busy = False
        self._opened(user, now)
        self._opened(mailbox, now)

    def unhold(self, lock: CallLock, now: float) -> None:
        """Nothing holds this gate any longer."""
        lock.held = False
        self._opened(lock, now)

    def ring(self, now: float) -> None:
        """Open the gates whose time has come."""
        while self.alarms and self.alarms[0][0] <= now:
            lock = heapq.heappop(self.alarms)[2]
            lock.alarm = math.inf
            self._opened(lock, now)

    def next_alarm(self) -> float:
        """When the next gate opens by time alone; infinity if none does."""
        return self.alarms[0][0] if self.alarms else math.inf

    # -- where a lane stands ---------------------------------------------------------------------------

    def _place(self, lane: Lane, now: float) -> None:
        """Put a lane that holds asks where it belongs: ready, or parked on what keeps it."""
        shut = self._shut_lock(lane, now)
        if shut is not None:
            self._park(lane, shut, now)
            return
        key = lane.key()
        for lock in lane.locks:
            # One ready lane stands in for all of an open gate: the others cost nothing until it has gone.
            if lock.representative is not None and lock.representative.key() <= key:
                self._park(lane, lock, now)
                return
        self._make_ready(lane, key)

    @staticmethod
    def _shut_lock(lane: Lane, now: float) -> CallLock | None:
        for lock in lane.locks:
            if lock.shut(now):
                return lock
        return None

    def _park(self, lane: Lane, lock: CallLock, now: float) -> None:
        lock.parked.push(lane, lane.key(lock))
        self._set_alarm(lock, now)

    def _make_ready(self, lane: Lane, key: _Key) -> None:
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

    def _drop(self, lane: Lane) -> None:
        """An empty lane goes."""
        del self.lanes[lane.user.key, lane.mailbox.key, lane.priority, lane.stream]
        for lock in lane.locks:
            del lock.lanes[lane]

    def _wake(self, lock: CallLock, now: float) -> None:
        """Make the best of the lanes parked on an open gate ready.

        A lane that another gate keeps moves there.
        """
        if lock.shut(now):
            return
        for _ in range(_MOST_MOVES):
            best = lock.parked.first()
            if best is None:
                return
            key, lane = best
            lock.parked.remove(lane)
            shut = self._shut_lock(lane, now)
            if shut is not None:
                self._park(lane, shut, now)
            elif lane.key(lock) != key:
                self._park(lane, lock, now)  # its user was served since: another lane may be better now
            else:
                self._make_ready(lane, lane.key())
                return
        self._unfinished[lock] = None

    def _opened(self, lock: CallLock, now: float) -> None:
        """A gate has opened, or may have: it wakes a lane, waits for longer, or can be forgotten."""
        if lock.shut(now):
            self._set_alarm(lock, now)
        elif lock.lanes:
            self._wake(lock, now)
        else:
            self._forget(lock)

    def _set_alarm(self, lock: CallLock, now: float) -> None:
        """Have a gate that only time keeps shut looked at when it opens."""
        if not lock.busy and not lock.held and now < lock.open_at < lock.alarm:
            lock.alarm = lock.open_at
            heapq.heappush(self.alarms, (lock.open_at, next(self._count), lock))

    def _forget(self, lock: CallLock) -> None:
        """Drop what need not be remembered: a mailbox at rest; of users at rest, those served longest ago."""
        if self.mailboxes.get(lock.key) is lock:
            del self.mailboxes[lock.key]
        elif self.users.get(lock.key) is lock:
            self._idle_users[lock.key] = None
            self._idle_users.move_to_end(lock.key)
            while len(self._idle_users) > USERS_REMEMBERED:
                del self.users[self._idle_users.popitem(last=False)[0]]
