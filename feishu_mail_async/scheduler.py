"""Whose turn it is: all that decides when the next call may go, and which, lives here.

A draft that waits is an `Ask`; the leave to make one call is a `Turn`. One dispatcher waits for the spacing,
then for any pause, then for a permit, and only then picks an ask; nothing is awaited between the pick and the
dispatch, so a late, urgent ask never stands behind one picked earlier. Every turn ends in `settle`, which takes
the judgement on the call and says who waits and who is closed.

Asks of one user, mailbox and priority form a `_Lane`, first come, first served. A lane is *ready* when its
gates, its user's and its mailbox's, are open: no call in flight, no cool-down. (A run has a gate too, which it
shuts while its consumer does not keep up.) Otherwise it is *parked* on
the gate that is shut, and a gate that opens wakes one lane. All choices are made on heaps, so that a decision
costs the same however many wait.

The scheduler is shared by all clients of one app in one event loop, and knows nothing of HTTP. Times are
seconds of the loop's clock.
"""

import asyncio
import heapq
import itertools
import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from .budget import Budget, Spacing
from .codes import Scope, Until, Verdict
from .errors import FeishuMailError, ScopeClosed, TransportError
from .model import Priority, RateLimit
from .protocol import CallEnd, Judgement

__all__ = [
    "Ask",
    "ClosedScope",
    "Delays",
    "Scheduler",
    "Snapshot",
    "Stream",
    "Taker",
    "Turn",
    "mailbox_key",
]

_HOUR: Final = 3600.0
_OWN: Final = "me/"
_UNWATCHED: Final = 60.0
"""Seconds without a probe after which an outage may have ended and begun again."""
_USERS_REMEMBERED: Final = 10_000


def mailbox_key(user: str, mailbox: str) -> str:
    """The name under which a mailbox is locked: addresses compare without case, and `me` is the user's own."""
    folded = mailbox.casefold()
    if folded != "me":
        return folded
    return user.casefold() if "@" in user else f"{_OWN}{user}"


class Taker(Protocol):
    """Whoever asks for a turn. Both calls must be quick and must not raise."""

    def granted(self, turn: "Turn") -> None:
        """It is this ask's turn: make the call now, then settle the turn."""

    def refused(self, error: FeishuMailError) -> None:
        """There will be no turn: the scope is closed, or nothing was reachable for too long."""


class Delays(Protocol):
    """The lengths of the waits, which a retry policy computes and the scheduler obeys."""

    def backoff(self, times: int) -> float:
        """Seconds to wait after the same thing went wrong `times` times in a row."""

    def outage(self, times: int, lasted: float) -> float:
        """Seconds to the next probe of an outage that has lasted that long."""


class Ask:
    """One draft that waits for its turn.

    Attributes:
        user: the user's key; calls of one user go one at a time.
        mailbox: the mailbox's key (see `mailbox_key`).
        priority: who goes first.
        taker: who is told.
        outage: seconds nothing may be reachable before this ask is refused; infinity: as long as it takes.
        stream: the run it belongs to, which can be held back as a whole.
    """

    __slots__ = ("lane", "mailbox", "outage", "priority", "seq", "stream", "taker", "user")

    def __init__(
        self,
        user: str,
        mailbox: str,
        priority: Priority,
        taker: Taker,
        *,
        outage: float = math.inf,
        stream: "Stream | None" = None,
    ) -> None:
        self.user = user
        self.mailbox = mailbox
        self.priority = priority
        self.taker = taker
        self.outage = outage
        self.stream = stream
        self.seq = 0
        self.lane: _Lane | None = None


class Turn:
    """The leave to make one call. It must be given to `settle` or `give_back`, once, whatever happens."""

    __slots__ = ("at", "mailbox", "pauses", "probe", "user")

    def __init__(self, user: "_Gate", mailbox: "_Gate", at: float, pauses: int, *, probe: bool) -> None:
        self.user = user
        self.mailbox = mailbox
        self.at = at
        self.pauses = pauses
        self.probe = probe


@dataclass(frozen=True, slots=True)
class ClosedScope:
    """A scope whose drafts are skipped.

    Attributes:
        scope: "app", "user:NAME" or "mailbox:ADDRESS", as `reopen` takes it.
        reason: what closed it.
        seconds: until one draft may try again; None if it takes a new token or `reopen`.
    """

    scope: str
    reason: str
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How an app's calls stand at one moment, over all its clients in this loop.

    Attributes:
        waiting: drafts that wait for a turn, by priority.
        in_flight: calls that have been made and not answered.
        permits: calls that could be made now, as far as the window goes.
        limit: the limit in force.
        next_permit: seconds until a permit is free (0: now); None while that depends on calls in flight.
        paused: seconds until the next probe while the whole app is paused (0: it is being made); else None.
        pause_reason: why it is paused.
        cooling: seconds that users still cool down, by user.
        closed: what is closed, why and until when.
    """

    waiting: dict[Priority, int]
    in_flight: int
    permits: int
    limit: RateLimit
    next_permit: float | None
    paused: float | None
    pause_reason: str | None
    cooling: dict[str, float]
    closed: tuple[ClosedScope, ...]


_Key = tuple[int, int, int]


_tickets: Final = itertools.count(1)


class _LaneHeap:
    """Lanes by their keys; a lane is in one heap at most. A record is void once its lane has left."""

    __slots__ = ("_live", "_records")

    def __init__(self) -> None:
        self._records: list[tuple[_Key, int, _Lane]] = []
        self._live = 0

    def push(self, lane: "_Lane", key: _Key) -> None:
        lane.heap = self
        lane.ticket = next(_tickets)  # no two records are ever equal, so lanes are never compared
        self._live += 1
        heapq.heappush(self._records, (key, lane.ticket, lane))

    def remove(self, lane: "_Lane") -> None:
        lane.heap = None
        lane.ticket = 0
        self._live -= 1
        if len(self._records) > 2 * self._live + 64:
            # Many lanes came and went while nothing was popped; without this a long pause would pile them up.
            self._records = [record for record in self._records if record[2].ticket == record[1]]
            heapq.heapify(self._records)

    def first(self) -> "tuple[_Key, _Lane] | None":
        """The lane with the smallest key, and the key it had when it came."""
        while self._records:
            key, ticket, lane = self._records[0]
            if ticket == lane.ticket:
                return key, lane
            heapq.heappop(self._records)
        return None


class _Gate:
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
    )

    def __init__(self, key: str) -> None:
        self.key = key
        self.busy = False
        self.held = False  # while the user's token is renewed
        self.open_at = -math.inf  # after a lost call, or a cool-down
        self.cooling = -math.inf  # the end of a cool-down alone, for the snapshot
        self.served = 0  # the count of turns when it had its last
        self.strikes = 0  # refusals in a row
        self.lanes: dict[_Lane, None] = {}  # a set that keeps its order
        self.parked = _LaneHeap()
        self.stand_in: _Lane | None = None  # the ready lane that stands for those parked here while it is open
        self.alarm = math.inf  # the time for which an alarm is set

    def shut(self, now: float) -> bool:
        return self.busy or self.held or self.open_at > now


class Stream(_Gate):
    """The asks of one run, which can be held back together. Any number of them may have a turn at once."""

    __slots__ = ()


class _Lane:
    """Asks of one user, mailbox, priority and stream."""

    __slots__ = ("asks", "gates", "heap", "mailbox", "priority", "stream", "ticket", "user")

    def __init__(self, user: _Gate, mailbox: _Gate, priority: Priority, stream: Stream | None) -> None:
        self.user = user
        self.mailbox = mailbox
        self.priority = priority
        self.stream = stream
        self.gates = (user, mailbox) if stream is None else (user, mailbox, stream)
        # A linked list: first in, first out, and any ask can leave at once.
        self.asks: OrderedDict[Ask, None] = OrderedDict()
        self.heap: _LaneHeap | None = None
        self.ticket = 0

    def head(self) -> Ask:
        return next(iter(self.asks))

    def key(self, at: _Gate | None = None) -> _Key:
        """The smallest goes first: by priority, then the user unserved the longest, then the ask's arrival.

        Among those parked `at` their user, all of one user, the user's last turn makes no difference; left
        out, a turn does not make the keys of all the others wrong.
        """
        return (self.priority, 0 if at is self.user else self.user.served, self.head().seq)


@dataclass(slots=True)
class _Closure:
    reason: FeishuMailError
    until: Until
    ends: float
    mark: object


@dataclass(slots=True)
class _Pause:
    """The whole app waits, then one call probes; `answered` ends it."""

    until: float
    reason: str
    probe: Turn | None = None


class Scheduler:
    """The turns of one app in one event loop.

    Args:
        limit: the rate limit to keep.
    """

    def __init__(self, limit: RateLimit) -> None:
        self._budget = Budget(limit)
        self._spacing = Spacing(limit.spacing)
        self._users: dict[str, _Gate] = {}
        self._idle_users: OrderedDict[str, None] = OrderedDict()
        self._mailboxes: dict[str, _Gate] = {}
        self._lanes: dict[tuple[str, str, Priority, Stream | None], _Lane] = {}
        self._ready = _LaneHeap()
        self._alarms: list[tuple[float, int, _Gate]] = []
        self._waiting = dict.fromkeys(Priority, 0)
        self._count = itertools.count(1)
        self._served = 0
        self._pause: _Pause | None = None
        self._pauses = 0
        self._smooth_until = -math.inf
        self._rung = -math.inf
        self._unreachable_since: float | None = None
        self._unreachable_times = 0
        self._closed: dict[str, _Closure] = {}
        self._dispatcher: asyncio.Task[None] | None = None
        self._sleeper: asyncio.Future[None] | None = None

    # -- asking ----------------------------------------------------------------------------------------

    def submit(self, ask: Ask) -> None:
        """Let an ask wait for its turn, behind what its lane holds. It is told at once if its scope is closed."""
        closed = self.closed_for(ask)
        if closed is not None:
            ask.taker.refused(closed)
            return
        ask.seq = next(self._count)
        self._enqueue(ask)

    def cancel(self, ask: Ask) -> None:
        """Take a waiting ask out. Nothing happens if it is not waiting."""
        lane = ask.lane
        if lane is None:
            return
        self._remove(ask, lane)
        if not lane.asks:
            self._retire(lane)
        if not any(self._waiting.values()):
            self._nudge()  # the dispatcher ends when nobody waits

    def move(self, ask: Ask, priority: Priority, stream: Stream | None) -> None:
        """Somebody else wants an ask's draft too: it gets the higher priority, and no single stream holds it."""
        if stream is ask.stream and priority >= ask.priority:
            return
        waiting = ask.lane is not None
        self.cancel(ask)
        ask.priority = min(priority, ask.priority)
        ask.stream = stream if stream is ask.stream else None
        if waiting:
            self._enqueue(ask)

    def stream(self) -> Stream:
        """A new stream, for the asks of one run."""
        return Stream("")

    def hold(self, stream: Stream) -> None:
        """Give the asks of a stream no turn until `resume`."""
        stream.held = True

    def resume(self, stream: Stream) -> None:
        """Let the asks of a stream go again."""
        stream.held = False
        self._wake(stream)
        self._nudge()

    def _enqueue(self, ask: Ask) -> None:
        key = (ask.user, ask.mailbox, ask.priority, ask.stream)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = self._new_lane(ask)
        lane.asks[ask] = None
        ask.lane = lane
        self._waiting[ask.priority] += 1
        if lane.heap is None:
            self._place(lane, self._now())
        if self._dispatcher is None:
            self._dispatcher = asyncio.get_running_loop().create_task(self._dispatch(), name="feishu-mail-turns")
        else:
            self._nudge()

    def _new_lane(self, ask: Ask) -> _Lane:
        user = self._users.get(ask.user)
        if user is None:
            user = self._users[ask.user] = _Gate(ask.user)
        self._idle_users.pop(ask.user, None)
        mailbox = self._mailboxes.get(ask.mailbox)
        if mailbox is None:
            mailbox = self._mailboxes[ask.mailbox] = _Gate(ask.mailbox)
        lane = _Lane(user, mailbox, ask.priority, ask.stream)
        for gate in lane.gates:
            gate.lanes[lane] = None
        return lane

    def _remove(self, ask: Ask, lane: _Lane) -> None:
        del lane.asks[ask]
        ask.lane = None
        self._waiting[ask.priority] -= 1

    # -- lanes -----------------------------------------------------------------------------------------

    def _place(self, lane: _Lane, now: float) -> None:
        """Put a lane that holds asks where it belongs: ready, or parked on what keeps it."""
        shut = self._shut_gate(lane, now)
        if shut is not None:
            self._park(lane, shut)
            return
        key = lane.key()
        for gate in lane.gates:
            # One ready lane stands for all of an open gate: the others cost nothing until it has gone.
            if gate.stand_in is not None and gate.stand_in.key() <= key:
                self._park(lane, gate)
                return
        self._make_ready(lane)

    @staticmethod
    def _shut_gate(lane: _Lane, now: float) -> _Gate | None:
        return next((gate for gate in lane.gates if gate.shut(now)), None)

    def _park(self, lane: _Lane, gate: _Gate) -> None:
        gate.parked.push(lane, lane.key(gate))
        self._set_alarm(gate)

    def _make_ready(self, lane: _Lane) -> None:
        for gate in lane.gates:
            gate.stand_in = lane
        self._ready.push(lane, lane.key())

    def _unplace(self, lane: _Lane) -> None:
        if lane.heap is not None:
            lane.heap.remove(lane)
        for gate in lane.gates:
            if gate.stand_in is lane:
                gate.stand_in = None

    def _retire(self, lane: _Lane) -> None:
        """An empty lane goes; if it stood for others at an open gate, another takes its place."""
        was_ready = lane.heap is self._ready
        self._unplace(lane)
        del self._lanes[lane.user.key, lane.mailbox.key, lane.priority, lane.stream]
        for gate in lane.gates:
            del gate.lanes[lane]
        for gate in lane.gates:
            if was_ready:
                self._wake(gate)
            self._forget(gate)

    def _wake(self, gate: _Gate) -> None:
        """Make the best of the lanes parked on an open gate ready.

        A lane that another gate keeps moves there. There are no more such gates than calls in flight, users
        cooling down and streams held, so this does not grow with the number of lanes.
        """
        now = self._now()
        if gate.shut(now):
            return
        while (best := gate.parked.first()) is not None:
            key, lane = best
            gate.parked.remove(lane)
            shut = self._shut_gate(lane, now)
            if shut is not None:
                self._park(lane, shut)
            elif lane.key(gate) != key:
                self._park(lane, gate)  # its user was served since: another lane may be better now
            else:
                self._make_ready(lane)
                return

    def _set_alarm(self, gate: _Gate) -> None:
        """Have a gate that only time keeps shut looked at when it opens."""
        if not gate.busy and not gate.held and self._now() < gate.open_at < gate.alarm:
            gate.alarm = gate.open_at
            heapq.heappush(self._alarms, (gate.open_at, next(self._count), gate))

    def _ring(self, now: float) -> None:
        while self._alarms and self._alarms[0][0] <= now:
            gate = heapq.heappop(self._alarms)[2]
            gate.alarm = math.inf
            self._opened(gate)

    def _opened(self, gate: _Gate) -> None:
        """A gate has opened, or may have: it wakes a lane, waits for longer, or can be forgotten."""
        self._wake(gate)
        self._set_alarm(gate)
        self._forget(gate)

    def _forget(self, gate: _Gate) -> None:
        """Drop what need not be remembered: a mailbox at rest; of users at rest, those served longest ago."""
        if gate.busy or gate.held or gate.lanes or gate.open_at > self._now():
            return
        if self._mailboxes.get(gate.key) is gate:
            del self._mailboxes[gate.key]
        elif self._users.get(gate.key) is gate:
            self._idle_users[gate.key] = None
            self._idle_users.move_to_end(gate.key)
            while len(self._idle_users) > _USERS_REMEMBERED:
                del self._users[self._idle_users.popitem(last=False)[0]]

    # -- the dispatcher --------------------------------------------------------------------------------

    async def _dispatch(self) -> None:
        try:
            while any(self._waiting.values()):
                now = self._now()
                self._ring(now)
                at = self._not_before(now)
                ask = self._pick(now) if at <= now else None
                if ask is None:
                    await self._sleep(at if at > now else self._next_change(now))
                    continue
                await self._spacing.take(now)  # `_not_before` has seen that this does not suspend
                ask.taker.granted(self._grant(ask))
        finally:
            self._dispatcher = None

    def _not_before(self, now: float) -> float:
        """The earliest moment of the next dispatch, as far as no ask's own obstacles go."""
        limit = self._budget.limit
        smooth = now < self._smooth_until
        self._spacing.set(max(limit.spacing, limit.per / limit.calls) if smooth else limit.spacing)
        at = self._spacing.ready_at(now)
        if self._pause is not None:
            at = max(at, self._pause.until if self._pause.probe is None else math.inf)
        if self._budget.free(now) <= 0:
            at = max(at, self._budget.next_at())
        return at

    def _next_change(self, now: float) -> float:
        """When to look again though a call could be made now: an alarm, or a permit beyond the reserve."""
        alarm = self._alarms[0][0] if self._alarms else math.inf
        return min(alarm, self._budget.next_at()) if self._reserved(now) else alarm

    def _reserved(self, now: float) -> bool:
        return self._budget.free(now) <= self._budget.limit.reserve

    def _pick(self, now: float) -> Ask | None:
        """Take the ask whose turn it is out of its lane; None if none can go now."""
        urgent_only = self._reserved(now)
        while (best := self._ready.first()) is not None:
            key, lane = best
            if urgent_only and lane.priority is not Priority.INTERACTIVE:
                return None
            self._unplace(lane)
            if self._shut_gate(lane, now) is None and lane.key() == key:
                ask = lane.head()
                self._remove(ask, lane)
                return ask
            # A gate has shut since, or its user was served. Where a gate is open, another lane has to stand in.
            self._place(lane, now)
            for gate in lane.gates:
                self._wake(gate)
        return None

    def _grant(self, ask: Ask) -> Turn:
        lane = self._lanes[ask.user, ask.mailbox, ask.priority, ask.stream]
        user, mailbox = lane.user, lane.mailbox
        self._served += 1
        user.served = self._served
        user.busy = mailbox.busy = True
        self._budget.take()
        turn = Turn(user, mailbox, self._now(), self._pauses, probe=self._pause is not None)
        if self._pause is not None:
            self._pause.probe = turn
        if lane.asks:
            self._place(lane, self._now())
        else:
            self._retire(lane)
        if ask.stream is not None:
            self._wake(ask.stream)  # it is still open, and another lane has to stand for it
        return turn

    async def _sleep(self, until: float) -> None:
        """Sleep until that moment, or until something has changed."""
        loop = asyncio.get_running_loop()
        self._sleeper = loop.create_future()
        timer = loop.call_at(until, self._wake_up, until) if until < math.inf else None
        try:
            await self._sleeper
        finally:
            self._sleeper = None
            if timer is not None:
                timer.cancel()

    def _wake_up(self, at: float) -> None:
        self._rung = at
        self._nudge()

    def _nudge(self) -> None:
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)

    def _now(self) -> float:
        # A timer may fire before its time by as much as the clock's resolution: then its time is the time.
        return max(asyncio.get_running_loop().time(), self._rung)

    # -- the end of a turn -----------------------------------------------------------------------------

    def settle(self, turn: Turn, judgement: Judgement, delays: Delays, *, renewing: bool = False) -> None:
        """The call of a turn has ended: permit and locks come back, and others wait or are closed.

        Args:
            turn: the turn.
            judgement: what the call means.
            delays: how long those wait who wait.
            renewing: the user's token was refused and is being renewed: the user's calls are held, instead
                of closed, until `renewed`.
        """
        now = self._now()
        if judgement.end is CallEnd.NEVER_LEFT:
            self._budget.refund()
        elif judgement.end is CallEnd.LOST:
            # It may still arrive, and be counted, and run into the next call of the same user.
            over = now + self._budget.limit.grace
            self._budget.ended(over)
            for gate in (turn.user, turn.mailbox):
                gate.open_at = max(gate.open_at, over)
        else:
            self._budget.ended(now)
        turn.user.held = renewing
        self._settle_app(turn, judgement, delays, now)
        self._settle_user(turn.user, judgement, delays, now)
        if judgement.verdict is Verdict.FATAL and judgement.until is not None and not renewing:
            self._close(self._scope(judgement.scope, turn), judgement.error, judgement.until, now)
        self._release(turn)

    def give_back(self, turn: Turn) -> None:
        """No call was made in this turn."""
        self._budget.refund()
        self._probed(turn)
        self._release(turn)

    def renewed(self, user: str, error: FeishuMailError | None = None, mark: object = None) -> None:
        """The renewal of a user's token has ended.

        Args:
            user: the user's key.
            error: why the user is closed until the token changes; None: there is a new token.
            mark: with `error`, what identifies the refused token (not the token itself).
        """
        gate = self._users[user]
        gate.held = False
        if error is not None:
            self._close(f"user:{user}", error, Until.TOKEN, self._now(), mark)
        self._opened(gate)
        self._nudge()

    def _release(self, turn: Turn) -> None:
        for gate in (turn.user, turn.mailbox):
            gate.busy = False
        for gate in (turn.user, turn.mailbox):
            self._opened(gate)
        self._nudge()

    def _settle_app(self, turn: Turn, judgement: Judgement, delays: Delays, now: float) -> None:
        self._probed(turn)
        if judgement.verdict is Verdict.RETRY and judgement.scope is Scope.APP:
            if judgement.end is CallEnd.NEVER_LEFT:
                self._unreachable(turn, judgement, delays, now)
            else:
                seconds = self._budget.limit.per if judgement.pause is None else judgement.pause
                self._pause_app(now + seconds, str(judgement.error))
        elif judgement.end is CallEnd.ANSWERED and turn.probe and turn.pauses == self._pauses:
            # Only the probe of this very pause can end it; a call without an answer leaves it to the next one.
            self._pause = None
            self._unreachable_since, self._unreachable_times = None, 0
            self._smooth_until = now + self._budget.limit.per

    def _probed(self, turn: Turn) -> None:
        if self._pause is not None and self._pause.probe is turn:
            self._pause.probe = None

    def _pause_app(self, until: float, reason: str) -> None:
        self._pauses += 1
        if self._pause is None:
            self._pause = _Pause(until, reason)
        elif until >= self._pause.until:
            self._pause.until, self._pause.reason = until, reason

    def _unreachable(self, turn: Turn, judgement: Judgement, delays: Delays, now: float) -> None:
        if self._unreachable_since is not None and turn.pauses != self._pauses:
            return  # made before the pause: it tells nothing new
        unwatched = self._pause is not None and turn.at > self._pause.until + _UNWATCHED
        if self._unreachable_since is None or unwatched:
            self._unreachable_since, self._unreachable_times = now, 0
        lasted = now - self._unreachable_since
        self._unreachable_times += 1
        self._pause_app(now + delays.outage(self._unreachable_times, lasted), str(judgement.error))
        for ask in [ask for ask in self._asks() if ask.outage <= lasted]:
            self.cancel(ask)
            ask.taker.refused(TransportError(f"{judgement.error}; this has lasted {lasted:.0f} s"))

    def unreachable_for(self) -> float:
        """Seconds for which nothing has been reachable; 0 while all is well."""
        return 0.0 if self._unreachable_since is None else self._now() - self._unreachable_since

    @staticmethod
    def _settle_user(user: _Gate, judgement: Judgement, delays: Delays, now: float) -> None:
        if judgement.verdict is Verdict.RETRY and judgement.scope is Scope.USER:
            user.strikes += 1
            user.cooling = now + delays.backoff(user.strikes)
            user.open_at = max(user.open_at, user.cooling)
        elif judgement.verdict in {Verdict.SENT, Verdict.ALREADY_SENT}:
            user.strikes = 0

    # -- closed scopes ---------------------------------------------------------------------------------

    @staticmethod
    def _scope(scope: Scope, turn: Turn) -> str:
        match scope:
            case Scope.USER:
                return f"user:{turn.user.key}"
            case Scope.MAILBOX:
                return f"mailbox:{turn.mailbox.key}"
            case _:
                return "app"

    def _close(
        self, scope: str, reason: FeishuMailError | None, until: Until, now: float, mark: object = None
    ) -> None:
        reason = reason or FeishuMailError(f"{scope} is closed")
        ends = now + _HOUR if until is Until.HOUR else math.inf
        self._closed[scope] = _Closure(reason, until, ends, mark)
        kind, _, key = scope.partition(":")
        gates = {"user": self._users, "mailbox": self._mailboxes}.get(kind)
        asks = self._asks() if gates is None else self._asks_at(gates.get(key))
        for ask in list(asks):
            self.cancel(ask)
            ask.taker.refused(self._skipped(scope, self._closed[scope], now))

    def _asks(self) -> Iterator[Ask]:
        for user in self._users.values():
            yield from self._asks_at(user)

    @staticmethod
    def _asks_at(gate: _Gate | None) -> Iterator[Ask]:
        for lane in gate.lanes if gate is not None else ():
            yield from lane.asks

    @staticmethod
    def _skipped(scope: str, closure: _Closure, now: float) -> ScopeClosed:
        left = None if closure.ends == math.inf else max(0.0, closure.ends - now)
        ends = f"until {closure.until}" if left is None else f"for another {left:.0f} s"
        error = ScopeClosed(
            f"not attempted: {scope} is closed {ends}, because of: {closure.reason}", scope=scope, until=left
        )
        error.__cause__ = closure.reason
        return error

    def closed_for(self, ask: Ask) -> ScopeClosed | None:
        """Why this ask would be skipped; None if nothing that concerns it is closed."""
        now = self._now()
        for scope in ("app", f"user:{ask.user}", f"mailbox:{ask.mailbox}"):
            closure = self._closed.get(scope)
            if closure is None:
                continue
            if closure.ends > now:
                return self._skipped(scope, closure, now)
            # Its time is over. A user's calls go one at a time, so the next one is the probe; the app's do not.
            del self._closed[scope]
            if scope == "app":
                self._pause_app(now, str(closure.reason))
        return None

    def refused_mark(self, user: str) -> object:
        """The mark of the token because of which the user is closed; None if that is not so."""
        closure = self._closed.get(f"user:{user}")
        return closure.mark if closure is not None and closure.until is Until.TOKEN else None

    def reopen(self, scope: str) -> None:
        """Let drafts of a closed scope go again; nothing happens if it is not closed.

        Args:
            scope: "app", "user:NAME" or "mailbox:ADDRESS", as `ScopeClosed.scope` and `snapshot` say.

        Raises:
            ValueError: it is none of the three forms.
        """
        kind, _, key = scope.partition(":")
        if scope != "app" and (kind not in {"user", "mailbox"} or not key):
            raise ValueError(f'scope: give "app", "user:NAME" or "mailbox:ADDRESS", not {scope!r}')
        if kind == "mailbox" and not key.startswith(_OWN):
            scope = f"mailbox:{key.casefold()}"
        self._closed.pop(scope, None)

    # -- the limit, and how things stand ---------------------------------------------------------------

    @property
    def limit(self) -> RateLimit:
        """The limit in force."""
        return self._budget.limit

    def set_limit(self, limit: RateLimit) -> None:
        """Change the limit; the calls of the current window count against the new one."""
        self._budget.limit = limit
        self._nudge()

    def snapshot(self) -> Snapshot:
        """How things stand now."""
        now = self._now()
        free = max(0, self._budget.free(now))
        next_permit = 0.0 if free else self._budget.next_at() - now
        pause = self._pause
        return Snapshot(
            waiting=dict(self._waiting),
            in_flight=self._budget.in_flight,
            permits=free,
            limit=self._budget.limit,
            next_permit=next_permit if next_permit < math.inf else None,
            paused=None if pause is None else max(0.0, pause.until - now),
            pause_reason=None if pause is None else pause.reason,
            cooling={user.key: user.cooling - now for user in self._users.values() if user.cooling > now},
            closed=tuple(
                ClosedScope(
                    scope,
                    str(closure.reason),
                    None if closure.ends == math.inf else max(0.0, closure.ends - now),
                )
                for scope, closure in self._closed.items()
            ),
        )
