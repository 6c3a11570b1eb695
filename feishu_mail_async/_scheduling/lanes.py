"""Who waits, and whose turn it is among them. Pure: the time is handed in, and nothing is awaited.

A call that waits is an `Ask`. Asks of one user, mailbox, priority and run form a `Lane`, first come, first
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
from .state import Grant
from .sweeps import drain

__all__ = ["OWN", "Ask", "Condemned", "Gate", "Lanes", "Stream", "Taker", "Turn", "mailbox_key"]

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


class Taker(Protocol):
    """Whoever asks for a turn. Both calls must be quick and must not raise."""

    def granted(self, turn: "Turn") -> None:
        """It is this ask's turn: make the call now, then settle the turn."""

    def refused(self, error: FeishuMailError) -> None:
        """There will be no turn: the scope is closed, nothing was reachable for too long, or the ledger fails."""

    def recorded(self, record: Record) -> None:
        """There is no need of a turn: the ledger has it that the draft was sent."""


class Turn:
    """The leave to make one call. It must be given to the scheduler's `settle` or `give_back`, once.

    Attributes:
        user: whose call it is; no other of theirs is made meanwhile.
        mailbox: the mailbox concerned, likewise.
        ask: what asked for it.
        grant: what the ledger has granted.
    """

    __slots__ = ("ask", "grant", "mailbox", "user")

    def __init__(self, user: "Gate", mailbox: "Gate", ask: "Ask", grant: Grant) -> None:
        self.user = user
        self.mailbox = mailbox
        self.ask = ask
        self.grant = grant


class Ask:
    """One draft that waits for its turn.

    Attributes:
        user: the user's key; calls of one user go one at a time.
        mailbox: the mailbox's key (see `mailbox_key`).
        priority: who goes first.
        taker: who is told.
        outage: seconds nothing may be reachable before this ask is refused; infinity: as long as it takes.
        stream: the run it belongs to, which can be held back as a whole.
        draft_id: the draft that its call sends; None for a call that changes nothing at the server.
        timeout: seconds after which its call is broken off.
    """

    __slots__ = (
        "draft_id",
        "lane",
        "mailbox",
        "outage",
        "priority",
        "seq",
        "stream",
        "taker",
        "timeout",
        "user",
    )

    def __init__(
        self,
        user: str,
        mailbox: str,
        priority: Priority,
        taker: Taker,
        *,
        outage: float = math.inf,
        stream: "Stream | None" = None,
        draft_id: str | None = None,
        timeout: float = 30.0,
    ) -> None:
        self.user = user
        self.mailbox = mailbox
        self.priority = priority
        self.taker = taker
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


class Gate:
    """A user or a mailbox: at most one call passes at a time."""

    __slots__ = (
        "alarm",
        "busy",
        "cooling",
        "held",
        "key",
        "lanes",
        "open_at",
        "parked",
        "served",
        "stand_in",
        "strikes",
        "sweeps",
    )

    def __init__(self, key: str) -> None:
        self.key = key
        self.busy = False
        self.held = False  # while the user's token is renewed
        self.sweeps = 0  # under way, which end what waits here
        self.open_at = -math.inf  # after a lost call, or a cool-down
        self.cooling = -math.inf  # the end of a cool-down alone, for the snapshot
        self.served = 0  # the count of turns when it had its last
        self.strikes = 0  # refusals in a row
        self.lanes: dict[Lane, None] = {}  # a set that keeps its order
        self.parked = LaneHeap()
        self.stand_in: Lane | None = None  # the ready lane that stands for those parked here while it is open
        self.alarm = math.inf  # the time for which an alarm is set

    def shut(self, now: float) -> bool:
        """Whether no call can pass now."""
        return self.busy or self.held or self.sweeps > 0 or self.open_at > now


class Stream(Gate):
    """The asks of one run, which can be held back together. Any number of them may have a turn at once."""

    __slots__ = ()


class Lane:
    """Asks of one user, mailbox, priority and stream."""

    __slots__ = ("asks", "gates", "heap", "mailbox", "priority", "stream", "ticket", "user")

    def __init__(self, user: Gate, mailbox: Gate, ask: Ask) -> None:
        self.user = user
        self.mailbox = mailbox
        self.priority = ask.priority
        self.stream = ask.stream
        self.gates = (user, mailbox) if ask.stream is None else (user, mailbox, ask.stream)
        # A linked list: first in, first out, and any ask can leave at once.
        self.asks: OrderedDict[Ask, None] = OrderedDict()
        self.heap: LaneHeap | None = None
        self.ticket = 0

    def head(self) -> Ask:
        """The ask that came first."""
        return next(iter(self.asks))

    def key(self, at: Gate | None = None) -> _Key:
        """The smallest goes first: by priority, then the user unserved the longest, then the ask's arrival.

        Among those parked `at` their user, all of one user, the user's last turn makes no difference; left
        out, a turn does not make the keys of all the others wrong.
        """
        return (self.priority, 0 if at is self.user else self.user.served, self.head().seq)


class Condemned:
    """Asks that an error is to end, one after another; none that comes later is meant.

    Attributes:
        error: the error.
        gate: the user or the mailbox that all of them wait for, if it is one.
    """

    __slots__ = ("_before", "_gates", "_lasted", "error", "gate")

    def __init__(
        self, error: FeishuMailError, gate: Gate | None, lasted: float, before: int, gates: Iterator[Gate]
    ) -> None:
        self.error = error
        self.gate = gate
        self._lasted = lasted
        self._before = before
        self._gates = gates

    def __contains__(self, ask: Ask) -> bool:
        lane = ask.lane
        return (
            lane is not None
            and ask.seq < self._before
            and ask.outage <= self._lasted
            and (self.gate is None or self.gate in lane.gates)
        )

    def __iter__(self) -> Iterator[Ask | None]:
        """Go through them. None stands for many places without any."""
        for number, place in enumerate(self._places(), 1):
            if place is not None and place in self:
                yield place
            elif number % _MOST_PLACES == 0:
                yield None

    def _places(self) -> Iterator[Ask | None]:
        for gate in self._gates:
            yield None
            for lane in drain(gate.lanes):
                yield None
                yield from drain(lane.asks)


class Lanes:
    """All the lanes of one app.

    Attributes:
        waiting: asks that wait, by priority.
        users: the users' gates.
        mailboxes: the mailboxes' gates.
        more: `take` gave up for now, because many lanes had to move: let others run, and call it again.
    """

    def __init__(self) -> None:
        self.waiting = dict.fromkeys(Priority, 0)
        self.users: dict[str, Gate] = {}
        self.mailboxes: dict[str, Gate] = {}
        self.ready = LaneHeap()
        self.lanes: dict[tuple[str, str, Priority, Stream | None], Lane] = {}
        self.alarms: list[tuple[float, int, Gate]] = []
        self._idle_users: OrderedDict[str, None] = OrderedDict()
        self._count = itertools.count(1)
        self._turns = 0
        self._unfinished: dict[Gate, None] = {}
        self._elsewhere: list[Gate] = []  # gates that are shut by calls of other loops
        self.more = False

    # -- asks ------------------------------------------------------------------------------------------

    def add(self, ask: Ask, now: float) -> None:
        """Let an ask wait, behind what its lane holds."""
        ask.seq = next(self._count)
        self._enqueue(ask, now)

    def cancel(self, ask: Ask, now: float) -> None:
        """Take a waiting ask out. Nothing happens if it is not waiting."""
        lane = ask.lane
        if lane is None:
            return
        self._remove(ask, lane)
        if lane.asks:
            return
        was_ready = lane.heap is self.ready
        self._unplace(lane)
        self._drop(lane)
        for gate in lane.gates:
            # If it stood in for others at an open gate, another takes its place.
            if was_ready or not gate.lanes:
                self._opened(gate, now)

    def move(self, ask: Ask, priority: Priority, stream: Stream | None, now: float) -> None:
        """Somebody else wants an ask's call too: it gets the higher priority, and no single stream holds it."""
        if stream is ask.stream and priority >= ask.priority:
            return
        waiting = ask.lane is not None
        self.cancel(ask, now)
        ask.priority = min(priority, ask.priority)
        ask.stream = stream if stream is ask.stream else None
        if waiting:
            self._enqueue(ask, now)

    def any_waiting(self) -> bool:
        """Whether any ask waits."""
        return bool(self.lanes)  # a lane goes with its last ask

    def any_shut(self, now: float) -> bool:
        """Whether any user or mailbox has to wait."""
        return any(gate.shut(now) for gates in (self.users, self.mailboxes) for gate in gates.values())

    def condemn(
        self, error: FeishuMailError, *, gate: Gate | None = None, lasted: float = math.inf
    ) -> "Condemned":
        """Those of the asks that wait now which an error is to end; they stay where they are.

        Args:
            error: the error.
            gate: only those of this user or mailbox.
            lasted: only those that wait for no longer than so many seconds for something to be reachable.
        """
        gates = self.users.values() if gate is None else (gate,)
        return Condemned(error, gate, lasted, next(self._count), drain(gates))

    def _enqueue(self, ask: Ask, now: float) -> None:
        lane = self.lanes.get((ask.user, ask.mailbox, ask.priority, ask.stream))
        if lane is None:
            lane = self._new_lane(ask)
        lane.asks[ask] = None
        ask.lane = lane
        self.waiting[ask.priority] += 1
        if lane.heap is None:
            self._place(lane, now)

    def _new_lane(self, ask: Ask) -> Lane:
        user = self.users.get(ask.user) or Gate(ask.user)
        mailbox = self.mailboxes.get(ask.mailbox) or Gate(ask.mailbox)
        lane = Lane(user, mailbox, ask)
        # Only now that all of it is there: a gate without a lane would be forgotten by nobody.
        self.users[ask.user], self.mailboxes[ask.mailbox] = user, mailbox
        self._idle_users.pop(ask.user, None)
        self.lanes[ask.user, ask.mailbox, ask.priority, ask.stream] = lane
        for gate in lane.gates:
            gate.lanes[lane] = None
        return lane

    def _remove(self, ask: Ask, lane: Lane) -> None:
        del lane.asks[ask]
        ask.lane = None
        self.waiting[ask.priority] -= 1

    # -- turns -----------------------------------------------------------------------------------------

    def offer(self, now: float, *, urgent_only: bool, most: int = 1) -> list[Ask]:
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
            if self._shut_gate(lane, now) is None and lane.key() == key:
                offered.append(lane)
                if len(offered) == most:
                    break
                self.ready.remove(lane)  # only to see what is behind it
                aside.append(lane)
                continue
            # A gate has shut since, or its user was served. Where a gate is open, another lane has to stand in.
            self._unplace(lane)
            self._place(lane, now)
            for gate in lane.gates:
                self._wake(gate, now)
        else:
            self.more = not offered
        for lane in aside:
            self.ready.push(lane, lane.key())
        return [lane.head() for lane in offered]

    def serve(self, ask: Ask, now: float) -> tuple[Gate, Gate]:
        """Give a waiting ask its turn: its user's and its mailbox's gate, which are shut by it."""
        lane = ask.lane
        assert lane is not None
        user, mailbox = lane.user, lane.mailbox
        self._unplace(lane)
        self._remove(ask, lane)
        self._turns += 1
        user.served = self._turns
        user.busy = mailbox.busy = True
        if lane.asks:
            self._place(lane, now)
        else:
            self._drop(lane)
        if lane.stream is not None:
            self._wake(lane.stream, now)  # it is still open, and another lane has to stand in
        return user, mailbox

    def shut(self, gate: Gate, until: float) -> None:
        """Let nothing pass a gate before that time; the lanes that stand ready behind it are moved when found.

        Args:
            gate: the gate.
            until: the time; infinity: a call of another loop shuts it, until `look_anew`.
        """
        if until < math.inf:
            gate.open_at = max(gate.open_at, until)
        else:
            gate.busy = True
            self._elsewhere.append(gate)

    def look_anew(self, now: float) -> None:
        """Open the gates that calls of other loops shut; one that is still shut is found so when it is passed."""
        elsewhere, self._elsewhere = self._elsewhere, []
        for gate in elsewhere:
            gate.busy = False
            self._opened(gate, now)

    def swept(self, gate: Gate, now: float) -> None:
        """A sweep of what waited at this gate has ended."""
        gate.sweeps -= 1
        self._opened(gate, now)

    def release(self, user: Gate, mailbox: Gate, now: float) -> None:
        """The call that shut these gates has ended."""
        user.busy = mailbox.busy = False
        self._opened(user, now)
        self._opened(mailbox, now)

    def resume(self, gate: Gate, now: float) -> None:
        """Nothing holds this gate any longer."""
        gate.held = False
        self._opened(gate, now)

    def ring(self, now: float) -> None:
        """Open the gates whose time has come."""
        while self.alarms and self.alarms[0][0] <= now:
            gate = heapq.heappop(self.alarms)[2]
            gate.alarm = math.inf
            self._opened(gate, now)

    def next_alarm(self) -> float:
        """When the next gate opens by time alone; infinity if none does."""
        return self.alarms[0][0] if self.alarms else math.inf

    # -- where a lane stands ---------------------------------------------------------------------------

    def _place(self, lane: Lane, now: float) -> None:
        """Put a lane that holds asks where it belongs: ready, or parked on what keeps it."""
        shut = self._shut_gate(lane, now)
        if shut is not None:
            self._park(lane, shut, now)
            return
        key = lane.key()
        for gate in lane.gates:
            # One ready lane stands in for all of an open gate: the others cost nothing until it has gone.
            if gate.stand_in is not None and gate.stand_in.key() <= key:
                self._park(lane, gate, now)
                return
        self._make_ready(lane, key)

    @staticmethod
    def _shut_gate(lane: Lane, now: float) -> Gate | None:
        for gate in lane.gates:
            if gate.shut(now):
                return gate
        return None

    def _park(self, lane: Lane, gate: Gate, now: float) -> None:
        gate.parked.push(lane, lane.key(gate))
        self._set_alarm(gate, now)

    def _make_ready(self, lane: Lane, key: _Key) -> None:
        for gate in lane.gates:
            gate.stand_in = lane
        self.ready.push(lane, key)

    @staticmethod
    def _unplace(lane: Lane) -> None:
        if lane.heap is not None:
            lane.heap.remove(lane)
        for gate in lane.gates:
            if gate.stand_in is lane:
                gate.stand_in = None

    def _drop(self, lane: Lane) -> None:
        """An empty lane goes."""
        del self.lanes[lane.user.key, lane.mailbox.key, lane.priority, lane.stream]
        for gate in lane.gates:
            del gate.lanes[lane]

    def _wake(self, gate: Gate, now: float) -> None:
        """Make the best of the lanes parked on an open gate ready.

        A lane that another gate keeps moves there.
        """
        if gate.shut(now):
            return
        for _ in range(_MOST_MOVES):
            best = gate.parked.first()
            if best is None:
                return
            key, lane = best
            gate.parked.remove(lane)
            shut = self._shut_gate(lane, now)
            if shut is not None:
                self._park(lane, shut, now)
            elif lane.key(gate) != key:
                self._park(lane, gate, now)  # its user was served since: another lane may be better now
            else:
                self._make_ready(lane, lane.key())
                return
        self._unfinished[gate] = None

    def _opened(self, gate: Gate, now: float) -> None:
        """A gate has opened, or may have: it wakes a lane, waits for longer, or can be forgotten."""
        if gate.shut(now):
            self._set_alarm(gate, now)
        elif gate.lanes:
            self._wake(gate, now)
        else:
            self._forget(gate)

    def _set_alarm(self, gate: Gate, now: float) -> None:
        """Have a gate that only time keeps shut looked at when it opens."""
        if not gate.busy and not gate.held and now < gate.open_at < gate.alarm:
            gate.alarm = gate.open_at
            heapq.heappush(self.alarms, (gate.open_at, next(self._count), gate))

    def _forget(self, gate: Gate) -> None:
        """Drop what need not be remembered: a mailbox at rest; of users at rest, those served longest ago."""
        if self.mailboxes.get(gate.key) is gate:
            del self.mailboxes[gate.key]
        elif self.users.get(gate.key) is gate:
            self._idle_users[gate.key] = None
            self._idle_users.move_to_end(gate.key)
            while len(self._idle_users) > USERS_REMEMBERED:
                del self.users[self._idle_users.popitem(last=False)[0]]
