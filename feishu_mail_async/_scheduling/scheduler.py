"""Whose turn it is: all that decides when the next call may go, and which, lives here.

A draft that waits is an `Ask`; the leave to make one call is a `Turn`. One dispatcher waits for the spacing,
then for any pause, then for a permit, and only then picks an ask; nothing is awaited between the pick and the
dispatch, so a late, urgent ask never stands behind one picked earlier. Every turn ends in `settle`, which takes
the judgement on the call and says who waits and who is closed.

The scheduler is shared by all clients of one app in one event loop, and knows nothing of HTTP. What its book keeps
may be shared by more: by other loops, which tell it of what they change (`_look_anew`), and by other processes.
Times are the book's, which are the loop's and an offset; events have the loop's.
"""

import asyncio
import contextlib
import copy
import math
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Final

from feishu_mail_async._api.protocol import Judgement
from feishu_mail_async._tasks import check_stack, look_at, start_task
from feishu_mail_async.codes import Scope, Verdict
from feishu_mail_async.errors import FeishuMailError, LedgerError, ScopeClosed, TransportError
from feishu_mail_async.events import AppPaused, AppResumed, ClosureEnded, ClosureStarted, EventHub, UserCooled
from feishu_mail_async.model import Priority, RateLimit

from .budget import Spacing
from .lanes import OWN, Ask, Condemned, Gate, Lanes, Stream, Turn
from .state import APP, ClosedScope, Delays, Settled, Standing, scopes
from .store import Book, Taken, answer_of, mutex, of
from .sweeps import Sweep, Sweeper

__all__ = ["Scheduler", "Snapshot"]

_SUCCESSOR: Final = 0.1
"""Seconds after which a dispatcher that was cancelled has a successor."""

_SAME: Final = 1e-3
"""Seconds by which the end of a pause may be read differently from one look at a shared ledger to the next."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How an app's calls stand at one moment.

    Attributes:
        waiting: drafts of this loop that wait for a turn, by priority.
        in_flight: calls that have been made and not answered, over all loops of the process.
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
class _Told:
    """The pauses and closures that subscribers have heard of.

    Attributes:
        pauses: the count of pauses when one was told last.
        paused_since: when the pause was first told that lasts; None: there is none.
        paused_until: the end that was told of it.
        closed: the scopes of the closures that last.
        closings: the count of changes of what is closed when they were told last.
        outages: the probes that found nothing reachable when the last of them was told to those that wait.
    """

    pauses: int = 0
    paused_since: float | None = None
    paused_until: float = -math.inf
    closed: set[str] = field(default_factory=set)
    closings: int = 0
    outages: int = 0


class Scheduler:
    """The turns of one app in one event loop.

    Args:
        book: keeps its permits, locks, pauses and closures.
        events: hears what happens; None: nobody does.
        endpoint: what its calls do, as events name it.
    """

    def __init__(self, book: Book, events: EventHub | None = None, endpoint: str = "send") -> None:
        self.book = book
        self.events = events or EventHub()
        self.endpoint = endpoint
        self._told = _Told()
        self._spacing = Spacing()
        self._lanes = Lanes()
        self._time: Callable[[], float] | None = None  # the book's, once there is a loop
        self._offset = 0.0  # what it is ahead of the loop's
        self._rung = -math.inf
        self._dispatcher: asyncio.Task[None] | None = None
        self._sleeper: asyncio.Future[None] | None = None
        self._writing: set[asyncio.Task[None]] = set()
        self._sweeper = Sweeper()
        self._sweeping = 0  # sweeps of what waits at no one gate: meanwhile nobody has a turn
        self._condemned: list[Condemned] = []

    @property
    def _standing(self) -> Standing:
        return self.book.standing

    @property
    def idle(self) -> bool:
        """Whether nobody waits, so that whoever comes next may go at once."""
        return self._dispatcher is None

    # -- asking ----------------------------------------------------------------------------------------

    def submit(self, ask: Ask) -> None:
        """Let an ask wait for its turn, behind what its lane holds. It is told at once if its scope is closed."""
        now = self._now()
        closed = self._closed_for(ask, now)
        if closed is not None:
            ask.taker.refused(closed)
            return
        self._lanes.add(ask, now)
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
        check_stack()
        self._lanes.resume(stream, self._now())
        self._nudge()

    # -- the dispatcher --------------------------------------------------------------------------------

    def _run(self) -> None:
        """Have the dispatcher look: it is a task only while somebody waits."""
        if self._dispatcher is None:
            self._dispatcher = start_task(self._dispatch(), "feishu-mail-turns")
        else:
            self._nudge()

    async def _dispatch(self) -> None:
        try:
            while self._lanes.any_waiting():
                if self._sweeping:
                    await self._sleep(math.inf)
                    continue
                now = self._now()
                self._lanes.ring(now)
                at = self._not_before(now)
                if at > now:
                    await self._sleep(at)
                    continue
                asks = self._lanes.offer(now, urgent_only=self._reserved(now), most=self.book.most)
                if asks:
                    await self._take(asks, now)
                elif self._lanes.more:
                    await asyncio.sleep(0)
                else:
                    await self._sleep(self._next_change(now))
        except asyncio.CancelledError:
            # Not a task at once: whoever cancels until there are none left would never come to an end.
            asyncio.get_running_loop().call_later(_SUCCESSOR, self._succeed)
            raise
        finally:
            self._dispatcher = None

    def _succeed(self) -> None:
        """The dispatcher was cancelled by a stranger; those who still wait get another one."""
        if self._dispatcher is None and self._lanes.any_waiting():
            self._run()

    async def _take(self, asks: list[Ask], now: float) -> None:
        """Take a turn for one of these asks; what else the ledger knows of them is told them."""
        offered = self.book.take(asks, now)
        if isinstance(offered, Taken):
            taken = offered
            if taken.granted is None:
                self._heard(asks, taken, now)
        else:
            try:
                taken = await of(offered)
            except asyncio.CancelledError:
                offered.add_done_callback(self._nobody_takes)
                raise
            except FeishuMailError as error:
                self._refuse_all(error)
                return
            now = self._now()
            self._tell_changes(now)
            self._heard(asks, taken, now)
        if taken.granted is None:
            return
        ask, grant = taken.granted
        if self.book.shared and self._gone(ask):  # while the ledger was asked
            with contextlib.suppress(LedgerError):  # then it lapses
                await of(self.book.give_back(grant))
            return
        await self._spacing.take()  # `_not_before` has seen that this does not suspend
        user, mailbox = self._lanes.serve(ask, now)
        ask.taker.granted(Turn(user, mailbox, ask, grant))

    def _nobody_takes(self, offered: asyncio.Future[Taken]) -> None:
        """The dispatcher that offered these asks is gone, and their turn comes without it."""
        if not offered.cancelled() and offered.exception() is None:
            granted = offered.result().granted
            if granted is not None:
                self.book.give_back(granted[1])

    def _heard(self, asks: list[Ask], taken: Taken, now: float) -> None:
        """What a book knows of asks that were offered to it, beside whose turn it is."""
        for kind, key, until, cooling in taken.shut:
            gate = (self._lanes.users if kind == "user" else self._lanes.mailboxes).get(key)
            if gate is not None:
                gate.cooling = cooling
                self._lanes.shut(gate, until)
        for ask, record in taken.recorded:
            if ask.lane is not None:
                self.cancel(ask)
                ask.taker.recorded(record)
        for ask, error in taken.refused:
            self.refuse(ask, error)
        closed = [self.book.closed(scopes(ask.user, ask.mailbox), now) for ask in asks]
        for scope in dict.fromkeys(closed):
            if scope is not None:
                self._refuse_scope(scope, now)

    def _not_before(self, now: float) -> float:
        """The earliest moment of the next dispatch, as far as no ask's own obstacles go."""
        with mutex:
            standing = self._standing
            at, spacing = standing.not_before(now), standing.spacing(now)
        return at if at > now else self._spacing.ready_at(now, spacing)

    def _next_change(self, now: float) -> float:
        """When to look again though a call could be made now: an alarm, or a permit beyond the reserve."""
        alarm = self._lanes.next_alarm()
        if not self._reserved(now):
            return alarm
        with mutex:
            budget = self._standing.budget
            return min(alarm, budget.next_at(now, budget.limit.reserve))

    def _reserved(self, now: float) -> bool:
        budget = self._standing.budget
        if not budget.limit.reserve:
            return False
        with mutex:
            return budget.free(now) <= budget.limit.reserve

    async def _sleep(self, until: float) -> None:
        """Sleep until that moment, or until something has changed."""
        loop = asyncio.get_running_loop()
        until = min(until, self.book.look_again(self._now()))
        self._sleeper = loop.create_future()
        timer = loop.call_at(until - self._offset, self._wake_up, until) if until < math.inf else None
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
        return max((self._time or self._join())(), self._rung)

    def _join(self) -> Callable[[], float]:
        loop = asyncio.get_running_loop()
        offset = self._offset = self.book.join(loop, self._look_anew)
        self._time = (lambda: loop.time() + offset) if offset else loop.time
        loop.call_soon(self._look_anew)  # at what others have done before
        return self._time

    def _look_anew(self) -> None:
        """Others of the process have changed something: what kept our asks may keep them no longer."""
        now = self._now()
        before = self._told.closed
        self._tell_changes(now)
        for scope in self._told.closed - before:
            self._refuse_scope(scope, now)
        with mutex:
            standing = self._standing
            outages, lasted, pause = standing.unreachable_times, standing.unreachable_lasted, standing.pause
        if outages != self._told.outages and pause is not None:
            self._refuse_unreachable(pause.reason, lasted)
        self._told.outages = outages
        self._lanes.look_anew(now)
        self._nudge()

    # -- the end of a turn -----------------------------------------------------------------------------

    def settle(
        self, turn: Turn, judgement: Judgement, delays: Delays, *, renewing: bool = False
    ) -> asyncio.Task[None] | None:
        """The call of a turn has ended: permit and locks come back, and others wait or are closed.

        Args:
            turn: the turn.
            judgement: what the call means.
            delays: how long those wait who wait.
            renewing: the user's token was refused and is being renewed: the user's calls are held, instead
                of closed, until `renewed`.

        Returns:
            None if that is done; else the task that does it, whatever becomes of the caller.
        """
        turn.user.held = renewing
        now = self._now()
        settled = self.book.settle(turn, judgement, delays, now, renewing=renewing)
        if isinstance(settled, Settled):
            self._settled(turn, settled, judgement, now)
            return None
        return self._write(self._settle_later(turn, settled, judgement))

    async def _settle_later(self, turn: Turn, settled: asyncio.Future[Settled], judgement: Judgement) -> None:
        try:
            done = await answer_of(settled)
            self._settled(turn, done, judgement, self._now())
        except BaseException:
            self._given_back(turn)  # whatever broke it off must not keep a user shut
            raise

    def _settled(self, turn: Turn, settled: Settled, judgement: Judgement, now: float) -> None:
        if judgement.verdict is Verdict.RETRY and judgement.scope is Scope.USER:
            user = turn.user
            self.events.publish(UserCooled(now - self._offset, user.key, user.cooling - now, user.strikes))
        self._tell_changes(now)
        if settled.outage is not None:
            self._told.outages = self._standing.unreachable_times
            self._refuse_unreachable(str(judgement.error), settled.outage)
        if settled.closed is not None:
            self._refuse_scope(settled.closed, now)
        self._lanes.release(turn.user, turn.mailbox, now)
        self._nudge()

    def _refuse_unreachable(self, reason: str, lasted: float) -> None:
        error = TransportError(f"{reason}; this has lasted {lasted:.0f} s")
        self._refuse_all(error, lasted=lasted)

    def give_back(self, turn: Turn) -> asyncio.Task[None] | None:
        """No call was made in this turn; what is returned is as for `settle`."""
        given = self.book.give_back(turn.grant)
        if given is None:
            self._given_back(turn)
            return None
        return self._write(self._give_back_later(turn, given))

    async def _give_back_later(self, turn: Turn, given: asyncio.Future[None]) -> None:
        try:
            await answer_of(given)
        finally:
            self._given_back(turn)

    def _given_back(self, turn: Turn) -> None:
        self._lanes.release(turn.user, turn.mailbox, self._now())
        self._nudge()

    def renewed(self, user: str, error: FeishuMailError | None = None, mark: str | None = None) -> None:
        """The renewal of a user's token has ended.

        Args:
            user: the user's key.
            error: why the user is closed until the token changes; None: there is a new token.
            mark: with `error`, what identifies the refused token (not the token itself).
        """
        if error is None:
            self._renewed(user)
            return
        closing = self.book.close_user(user, error, mark, self._now())
        if closing is None:
            self._user_closed(user)
        else:
            self._write(self._close_user_later(user, closing))

    async def _close_user_later(self, user: str, closing: asyncio.Future[None]) -> None:
        try:
            await answer_of(closing)
        except BaseException:
            self._renewed(user)
            raise
        self._user_closed(user)

    def _user_closed(self, user: str) -> None:
        self._tell_changes(self._now())
        self._refuse_scope(f"user:{user}", self._now())
        self._renewed(user)

    def _renewed(self, user: str) -> None:
        self._lanes.resume(self._lanes.users[user], self._now())
        self._nudge()

    def _write(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Let something be written that must not be broken off with whoever wanted it."""
        task = start_task(work, "feishu-mail-ledger", self._writing)
        task.add_done_callback(look_at)  # a ledger that closes ends it, and whoever wanted it may have gone
        return task

    async def written(self) -> None:
        """Wait until all that has ended so far is on record."""
        if self._writing:
            await asyncio.wait(set(self._writing))
        await self.book.written()

    def obstacle(self, user: str) -> str | None:
        """What keeps a user's drafts from having their turn, in words; None if others just come first."""
        now, gate = self._now(), self._lanes.users.get(user)
        with mutex:
            standing = self._standing
            limit, pause = standing.budget.limit, standing.pause
            free, back = standing.budget.free(now), standing.budget.next_at(now)
        if pause is not None:
            return pause.reason
        if free <= 0:
            when = f", the next may go in {math.ceil(back - now)} s" if back < math.inf else ""
            return f"all {limit.calls} calls of {limit.per:g} s are made{when}"
        if gate is not None and gate.cooling > now:
            return f"the server slows user {user} down for another {math.ceil(gate.cooling - now)} s"
        return None

    def unreachable_for(self) -> float:
        """Seconds for which nothing has been reachable; 0 while all is well."""
        since = self._standing.unreachable_since
        return 0.0 if since is None else self._now() - since

    # -- closed scopes ---------------------------------------------------------------------------------

    def refuse(self, ask: Ask, error: FeishuMailError) -> None:
        """End an ask if it waits."""
        if ask.lane is not None:  # it may have been given up by one who was told before it
            self.cancel(ask)
            ask.taker.refused(copy.copy(error))

    def _refuse_all(self, error: FeishuMailError, *, gate: Gate | None = None, lasted: float = math.inf) -> None:
        condemned = self._lanes.condemn(error, gate=gate, lasted=lasted)
        self._condemned.append(condemned)
        self.sweep(
            self._refusing(condemned),
            gate,
            lambda: self._condemned.remove(condemned),
        )

    def _refusing(self, condemned: Condemned) -> Iterator[None]:
        for ask in condemned:
            if ask is not None:
                self.refuse(ask, condemned.error)
            yield

    def _refuse_scope(self, scope: str, now: float) -> None:
        kind, _, key = scope.partition(":")
        gates = {"user": self._lanes.users, "mailbox": self._lanes.mailboxes}.get(kind)
        gate = None if gates is None else gates.get(key)
        refusal = self._refusal(scope, now)
        if refusal is not None and (gates is None or gate is not None):
            self._refuse_all(refusal, gate=gate)

    def refuse_condemned(self, ask: Ask) -> bool:
        """End an ask now if it waits and a sweep is about to end it; whether that was so."""
        for condemned in self._condemned:
            if ask in condemned:
                self.refuse(ask, condemned.error)
                return True
        return False

    # -- sweeps ----------------------------------------------------------------------------------------

    def sweep(
        self,
        steps: Iterator[object],
        gate: Gate | None = None,
        done: Callable[[], object] = lambda: None,
    ) -> Sweep:
        """End many asks, a few in each pass of the loop. Meanwhile none of them has a turn.

        Args:
            steps: ends one, or does as little, whenever it is asked for its next item.
            gate: what all of them wait for: a user, a mailbox or a stream; None: they have nothing in common, and
                nobody has a turn.
            done: called when all is done.
        """
        if gate is None:
            self._sweeping += 1
        else:
            gate.sweeps += 1

        def end() -> None:
            done()
            if gate is None:
                self._sweeping -= 1
            else:
                self._lanes.swept(gate, self._now())
            self._nudge()

        return self._sweeper.start(steps, end)

    def _gone(self, ask: Ask) -> bool:
        """Whether an ask has ended, or may be about to."""
        return ask.lane is None or self._sweeping > 0 or any(gate.sweeps for gate in ask.lane.gates)

    def _refusal(self, scope: str, now: float) -> ScopeClosed | None:
        """What those are told whose scope this is; None if whoever was told of its closing has reopened it."""
        with mutex:
            return self._standing.refusal(scope, now) if scope in self._standing.closed else None

    def _closed_for(self, ask: Ask, now: float) -> ScopeClosed | None:
        """Why this ask would be skipped; None if nothing that concerns it is closed."""
        if not self._standing.closed:
            return None
        scope = self.book.closed(scopes(ask.user, ask.mailbox), now)
        self._tell_changes(now)
        return None if scope is None else self._refusal(scope, now)

    def refused_mark(self, user: str) -> str | None:
        """The mark of the token because of which the user is closed; None if that is not so."""
        closed = self._standing.closed
        closure = closed.get(f"user:{user}") if closed else None
        return closure.mark if closure is not None else None

    def reopen(self, scope: str) -> None:
        """Let drafts of a closed scope go again; nothing happens if it is not closed.

        Args:
            scope: "app", "user:NAME" or "mailbox:ADDRESS", as `ScopeClosed.scope` and `snapshot` say.

        Raises:
            ValueError: it is none of the three forms.
        """
        kind, _, key = scope.partition(":")
        if scope != APP and (kind not in {"user", "mailbox"} or not key):
            raise ValueError(f'scope: give "app", "user:NAME" or "mailbox:ADDRESS", not {scope!r}')
        if kind == "mailbox" and not key.startswith(OWN):
            scope = f"mailbox:{key.casefold()}"
        self.book.reopen(scope)
        self._tell_changes(self._now())

    # -- events ----------------------------------------------------------------------------------------

    def _tell_changes(self, now: float) -> None:
        """Tell of pauses and closures that have begun or ended, by whatever and whichever process it was."""
        standing, told = self._standing, self._told
        if standing.pauses != told.pauses or (standing.pause is None) != (told.paused_since is None):
            self._tell_pause(standing, now)
        if standing.closings != told.closings:
            self._tell_closures(standing, now)

    def _tell_pause(self, standing: Standing, now: float) -> None:
        told, since, at = self._told, self._told.paused_since, now - self._offset
        with mutex:
            told.pauses = standing.pauses
            pause = None if standing.pause is None else copy.copy(standing.pause)
        if pause is not None:
            if since is None or pause.until > told.paused_until + _SAME:
                told.paused_since, told.paused_until = now if since is None else since, pause.until
                self.events.publish(AppPaused(at, self.endpoint, max(0.0, pause.until - now), pause.reason))
        elif since is not None:
            told.paused_since = None
            self.events.publish(AppResumed(at, self.endpoint, now - since))

    def _tell_closures(self, standing: Standing, now: float) -> None:
        before, at = self._told.closed, now - self._offset
        with mutex:
            closed, news = set(standing.closed), standing.closed_scopes(now, before)
            self._told.closed, self._told.closings = closed, standing.closings
        for scope in sorted(before - closed):
            self.events.publish(ClosureEnded(at, self.endpoint, scope))
        for new in news:
            self.events.publish(ClosureStarted(at, self.endpoint, new.scope, new.seconds, new.until, new.reason))

    # -- the limit, and how things stand ---------------------------------------------------------------

    @property
    def limit(self) -> RateLimit:
        """The limit in force."""
        return self._standing.budget.limit

    def at_rest(self) -> bool:
        """Whether there is nothing to remember: no call that counts, nothing that waits, is paused or closed."""
        now = self._now()
        with mutex:
            rests = self._standing.at_rest(now)
        return rests and not self._lanes.any_waiting() and not self._lanes.any_shut(now)

    def set_limit(self, limit: RateLimit) -> None:
        """Change the limit; the calls of the current window count against the new one."""
        self.book.set_limit(limit)
        self._nudge()

    def snapshot(self) -> Snapshot:
        """How things stand now."""
        now = self._now()
        users = self._lanes.users.values()
        with mutex:
            standing = self._standing
            budget, pause = standing.budget, standing.pause
            free = max(0, budget.free(now))
            next_permit = max(0.0, budget.next_at(now) - now)
            return Snapshot(
                waiting=dict(self._lanes.waiting),
                in_flight=budget.in_flight,
                permits=free,
                limit=budget.limit,
                next_permit=next_permit if next_permit < math.inf else None,
                paused=None if pause is None else max(0.0, pause.until - now),
                pause_reason=None if pause is None else pause.reason,
                cooling={user.key: user.cooling - now for user in users if user.cooling > now},
                closed=standing.closed_scopes(now),
            )
