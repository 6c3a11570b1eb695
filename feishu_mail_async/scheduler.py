"""Whose turn it is: all that decides when the next call may go, and which, lives here.

A draft that waits is an `Ask`; the leave to make one call is a `Turn`. One dispatcher waits for the spacing,
then for any pause, then for a permit, and only then picks an ask; nothing is awaited between the pick and the
dispatch, so a late, urgent ask never stands behind one picked earlier. Every turn ends in `settle`, which takes
the judgement on the call and says who waits and who is closed.

The scheduler is shared by all clients of one app in one event loop, and knows nothing of HTTP. Times are
seconds of the loop's clock.
"""

import asyncio
import math
from dataclasses import dataclass
from typing import Final, Protocol

from .budget import Budget, Spacing
from .codes import Scope, Until, Verdict
from .errors import FeishuMailError, ScopeClosed, TransportError, without_traceback
from .lanes import OWN, Ask, Gate, Lanes, Stream, Turn
from .model import Priority, RateLimit
from .protocol import CallEnd, Judgement

__all__ = [
    "ClosedScope",
    "Delays",
    "Scheduler",
    "Snapshot",
]

_HOUR: Final = 3600.0
_UNWATCHED: Final = 60.0
"""Seconds without a probe after which an outage may have ended and begun again."""


class Delays(Protocol):
    """The lengths of the waits, which a retry policy computes and the scheduler obeys."""

    def backoff(self, times: int) -> float:
        """Seconds to wait after the same thing went wrong `times` times in a row."""

    def outage(self, times: int, lasted: float) -> float:
        """Seconds to the next probe of an outage that has lasted that long."""


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


@dataclass(slots=True)
class _Closure:
    reason: FeishuMailError
    until: Until
    ends: float
    mark: object


@dataclass(slots=True)
class _Pause:
    """The whole app waits, then one call probes; its answer ends the pause."""

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
        self._lanes = Lanes()
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
        self._lanes.add(ask, self._now())
        self._run()

    def cancel(self, ask: Ask) -> None:
        """Take a waiting ask out. Nothing happens if it is not waiting."""
        self._lanes.cancel(ask, self._now())
        if not self._lanes.any_waiting():
            self._nudge()  # the dispatcher ends when nobody waits

    def move(self, ask: Ask, priority: Priority, stream: Stream | None) -> None:
        """Somebody else wants an ask's call too: it gets the higher priority, and no single stream holds it."""
        self._lanes.move(ask, priority, stream, self._now())
        self._nudge()

    def stream(self) -> Stream:
        """A new stream, for the asks of one run."""
        return Stream("")

    def hold(self, stream: Stream) -> None:
        """Give the asks of a stream no turn until `resume`."""
        stream.held = True

    def resume(self, stream: Stream) -> None:
        """Let the asks of a stream go again."""
        self._lanes.resume(stream, self._now())
        self._nudge()

    # -- the dispatcher --------------------------------------------------------------------------------

    def _run(self) -> None:
        """Have the dispatcher look: it is a task only while somebody waits."""
        if self._dispatcher is None:
            # Not by the loop's task factory: an eager one would be at its end before it is assigned here.
            loop = asyncio.get_running_loop()
            self._dispatcher = asyncio.Task(self._dispatch(), loop=loop, name="feishu-mail-turns")
        else:
            self._nudge()

    async def _dispatch(self) -> None:
        try:
            while self._lanes.any_waiting():
                now = self._now()
                self._lanes.ring(now)
                at = self._not_before(now)
                taken = self._lanes.take(now, urgent_only=self._reserved(now)) if at <= now else None
                if taken is None and self._lanes.more:
                    await asyncio.sleep(0)
                    continue
                if taken is None:
                    await self._sleep(at if at > now else self._next_change(now))
                    continue
                await self._spacing.take(now)  # `_not_before` has seen that this does not suspend
                ask, user, mailbox = taken
                ask.taker.granted(self._turn(user, mailbox, now))
        finally:
            self._dispatcher = None

    def _turn(self, user: Gate, mailbox: Gate, now: float) -> Turn:
        self._budget.take()
        turn = Turn(user, mailbox, now, self._pauses, probe=self._pause is not None)
        if self._pause is not None:
            self._pause.probe = turn
        return turn

    def _not_before(self, now: float) -> float:
        """The earliest moment of the next dispatch, as far as no ask's own obstacles go."""
        limit = self._budget.limit
        smooth = now < self._smooth_until
        self._spacing.set(max(limit.spacing, limit.per / limit.calls) if smooth else limit.spacing)
        at = self._spacing.ready_at(now)
        if smooth and at > self._smooth_until:
            at = max(self._smooth_until, self._spacing.after(limit.spacing))
        if self._pause is not None:
            at = max(at, self._pause.until if self._pause.probe is None else math.inf)
        return max(at, self._budget.next_at(now))

    def _next_change(self, now: float) -> float:
        """When to look again though a call could be made now: an alarm, or a permit beyond the reserve."""
        alarm = self._lanes.next_alarm()
        reserve = self._budget.limit.reserve
        return min(alarm, self._budget.next_at(now, reserve)) if self._reserved(now) else alarm

    def _reserved(self, now: float) -> bool:
        return self._budget.free(now) <= self._budget.limit.reserve

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
        self._lanes.release(turn.user, turn.mailbox, now)
        self._nudge()

    def give_back(self, turn: Turn) -> None:
        """No call was made in this turn."""
        self._budget.refund()
        self._probed(turn)
        self._lanes.release(turn.user, turn.mailbox, self._now())
        self._nudge()

    def renewed(self, user: str, error: FeishuMailError | None = None, mark: object = None) -> None:
        """The renewal of a user's token has ended.

        Args:
            user: the user's key.
            error: why the user is closed until the token changes; None: there is a new token.
            mark: with `error`, what identifies the refused token (not the token itself).
        """
        now = self._now()
        if error is not None:
            self._close(f"user:{user}", error, Until.TOKEN, now, mark)
        self._lanes.resume(self._lanes.users[user], now)
        self._nudge()

    def _settle_app(self, turn: Turn, judgement: Judgement, delays: Delays, now: float) -> None:
        self._probed(turn)
        # Only the probe of this very pause can end it; a call without an answer leaves it to the next one.
        answered = judgement.end is CallEnd.ANSWERED and turn.probe and turn.pauses == self._pauses
        if answered:
            self._unreachable_since, self._unreachable_times = None, 0
        if judgement.verdict is Verdict.RETRY and judgement.scope is Scope.APP:
            if judgement.end is CallEnd.NEVER_LEFT:
                self._unreachable(turn, judgement, delays, now)
            else:
                seconds = self._budget.limit.per if judgement.pause is None else judgement.pause
                self._pause_app(now + seconds, str(judgement.error))
        elif answered:
            self._pause = None
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
        for ask in [ask for ask in self._lanes.asks() if ask.outage <= lasted]:
            self._refuse(ask, TransportError(f"{judgement.error}; this has lasted {lasted:.0f} s"))

    def _refuse(self, ask: Ask, error: FeishuMailError) -> None:
        if ask.lane is not None:  # it may have been given up by one who was told before it
            self.cancel(ask)
            ask.taker.refused(error)

    def unreachable_for(self) -> float:
        """Seconds for which nothing has been reachable; 0 while all is well."""
        return 0.0 if self._unreachable_since is None else self._now() - self._unreachable_since

    @staticmethod
    def _settle_user(user: Gate, judgement: Judgement, delays: Delays, now: float) -> None:
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
        # A copy: the error itself is raised to a caller, whose frames its traceback keeps alive.
        reason = FeishuMailError(f"{scope} is closed") if reason is None else without_traceback(reason)
        ends = now + _HOUR if until is Until.HOUR else math.inf
        self._closed[scope] = _Closure(reason, until, ends, mark)
        kind, _, key = scope.partition(":")
        gates = {"user": self._lanes.users, "mailbox": self._lanes.mailboxes}.get(kind)
        asks = self._lanes.asks() if gates is None else self._lanes.asks_at(gates.get(key))
        for ask in list(asks):
            self._refuse(ask, self._skipped(scope, self._closed[scope], now))

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
        if kind == "mailbox" and not key.startswith(OWN):
            scope = f"mailbox:{key.casefold()}"
        self._closed.pop(scope, None)

    # -- the limit, and how things stand ---------------------------------------------------------------

    @property
    def limit(self) -> RateLimit:
        """The limit in force."""
        return self._budget.limit

    def at_rest(self) -> bool:
        """Whether there is nothing to remember: no call that counts, nothing that waits, is paused or closed."""
        now = self._now()
        return (
            self._budget.free(now) >= self._budget.limit.calls
            and not self._lanes.any_waiting()
            and self._pause is None
            # When the app's closure is over, one call has to probe; a user's and a mailbox's just ends.
            and not any(closure.ends > now or scope == "app" for scope, closure in self._closed.items())
            and not self._lanes.any_shut(now)
        )

    def set_limit(self, limit: RateLimit) -> None:
        """Change the limit; the calls of the current window count against the new one."""
        self._budget.limit = limit
        self._nudge()

    def snapshot(self) -> Snapshot:
        """How things stand now."""
        now = self._now()
        free = max(0, self._budget.free(now))
        next_permit = max(0.0, self._budget.next_at(now) - now)
        pause = self._pause
        return Snapshot(
            waiting=dict(self._lanes.waiting),
            in_flight=self._budget.in_flight,
            permits=free,
            limit=self._budget.limit,
            next_permit=next_permit if next_permit < math.inf else None,
            paused=None if pause is None else max(0.0, pause.until - now),
            pause_reason=None if pause is None else pause.reason,
            cooling={user.key: user.cooling - now for user in self._lanes.users.values() if user.cooling > now},
            closed=tuple(
                ClosedScope(
                    scope,
                    str(closure.reason),
                    None if closure.ends == math.inf else max(0.0, closure.ends - now),
                )
                for scope, closure in self._closed.items()
                if closure.ends > now
            ),
        )
