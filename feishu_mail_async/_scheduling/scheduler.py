"""The scheduler: the decision when the next call of an endpoint may go, and which.

Theory of operation. A draft that waits is a `Waiter`; the permission to make one call is a `Turn`.

    submit -> waiter -- the dispatcher picks it --> granted(turn) --> the call --> settle or give_back
                |                                                                   |
                +-- refused or recorded: it ends without a turn                     +-> others wait, are suspended

One dispatcher, a task only while there are waiters, waits for spacing, then for any pause, then for a permit, and
only then picks a waiter; nothing is awaited between pick and dispatch, so a late, urgent waiter never waits behind
one that was picked earlier. (With a database, permit and locks are taken in one transaction among the waiters
offered to it.) Every turn ends in `settle`, which takes the judgement on the call and decides who waits and which
subject is suspended, or in `give_back` if no call was made.

One scheduler is shared by all clients of one app in one event loop, and knows nothing of HTTP. The state in its
store may be shared further: by other loops of the process, which notify it of changes (`_look_anew`), and by other
processes. Times are the store's, which are the loop's plus an offset; events have the loop's.
"""

import asyncio
import contextlib
import copy
import math
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from feishu_mail_async._api.protocol import Judgement
from feishu_mail_async._hub import EventHub
from feishu_mail_async._tasks import look_at, start_task
from feishu_mail_async.codes import ResumeWhen, Subject, Verdict
from feishu_mail_async.errors import FeishuMailError, LedgerError, Suspended, TransportError
from feishu_mail_async.events import (
    AppPaused,
    AppResumed,
    SuspensionEnded,
    SuspensionStarted,
    UserCooled,
)
from feishu_mail_async.model import Priority, RateLimit

from .lanes import OWN, CallLock, Condemned, Lanes, Stream, Turn, Waiter
from .state import Delays, EndpointState, Settled
from .store import Offer, SchedulerStore, answer_of, mutex, of
from .suspensions import APP, EVERYWHERE, Suspension, SuspensionKey, Suspensions
from .sweeps import Sweep, Sweeper

__all__ = ["Scheduler", "Snapshot"]

_SUCCESSOR: Final = 0.1
"""Seconds after which a dispatcher that was cancelled is started again."""

_SAME: Final = 1e-3
"""Seconds by which two readings of one pause's end in a shared ledger may differ."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of an app's calls at one moment.

    Attributes:
        waiting: drafts of this loop that wait for a turn, by priority.
        in_flight: calls that have been made and not answered, over all loops of the process.
        permits: free permits: calls that the window would let go now.
        limit: the limit in force.
        next_permit: seconds until a permit is free (0: now); None while that depends on calls in flight.
        paused: seconds until the next probe while the whole app is paused (0: it is being made); else None.
        pause_reason: the reason of the pause, in words.
        cooling: seconds of backoff that are left, by user.
        suspended: the suspensions that hold.
    """

    waiting: dict[Priority, int]
    in_flight: int
    permits: int
    limit: RateLimit
    next_permit: float | None
    paused: float | None
    pause_reason: str | None
    cooling: dict[str, float]
    suspended: tuple[Suspension, ...]


@dataclass(slots=True)
class _Told:
    """The pauses, suspensions and outages that have been noticed, and published or passed on to waiters.

    Attributes:
        pauses: `EndpointState.pauses` when a pause was last published.
        paused_since: when the present pause was first published; None: there is none.
        paused_until: its end, as published.
        suspended: the keys of the suspensions that held when they were last looked at.
        suspension_changes: `Suspensions.changes` at that time.
        outages: `EndpointState.unreachable_times` when waiters were last refused for an outage.
    """

    pauses: int = 0
    paused_since: float | None = None
    paused_until: float = -math.inf
    suspended: set[SuspensionKey] = field(default_factory=set)
    suspension_changes: int = 0
    outages: int = 0


class Notices:
    """The suspensions that have been published by the schedulers of an app.

    All of them notice a suspension, each when it looks; only the first one publishes it.
    """

    def __init__(self) -> None:
        self._published: set[tuple[str, str]] = set()

    def publish(
        self,
        events: EventHub,
        ended: Iterable[SuspensionKey],
        begun: Iterable[Suspension],
        at: float,
        endpoint: str,
    ) -> None:
        """Publish suspensions that have ended or begun, each of them once."""
        for key in sorted(ended):
            if key in self._published:
                self._published.remove(key)
                events.publish(SuspensionEnded(at, endpoint, key.subject))
        for new in begun:
            if (new.subject, new.reach) not in self._published:
                self._published.add((new.subject, new.reach))
                events.publish(SuspensionStarted(at, endpoint, new.subject, new.seconds, new.until, new.reason))


class Scheduler:
    """The scheduler of one endpoint of an app in one event loop; see the theory of operation above.

    Args:
        store: keeps the endpoint's permits, locks and pauses, and the app's suspensions.
        events: delivers events to subscribers; None: there are none.
        notices: the suspensions published so far; schedulers of one app share it.

    Attributes:
        store: as above.
        events: as above.
        endpoint: the endpoint.
    """

    def __init__(
        self, store: SchedulerStore, events: EventHub | None = None, notices: Notices | None = None
    ) -> None:
        self.store = store
        self.events = events or EventHub()
        self.endpoint = store.state.endpoint
        self._notices = notices or Notices()
        self._told = _Told()
        self._lanes = Lanes(exclusive=self.endpoint.writes)
        self._time: Callable[[], float] | None = None  # the store's clock, once there is a loop
        self._offset = 0.0  # seconds by which it is ahead of the loop's
        self._rung = -math.inf  # the time for which the last timer was set; see `_now`
        self._dispatcher: asyncio.Task[None] | None = None
        self._sleeper: asyncio.Future[None] | None = None
        self._writing: set[asyncio.Task[None]] = set()
        self._sweeper = Sweeper()
        self._sweeping = 0  # sweeps of waiters that share no lock; meanwhile no turn is granted
        self._condemned: list[Condemned] = []

    @property
    def _state(self) -> EndpointState:
        return self.store.state

    @property
    def idle(self) -> bool:
        """True if there are no waiters, so that the next one may go at once."""
        return self._dispatcher is None

    # -- waiters ---------------------------------------------------------------------------------------

    def submit(self, waiter: Waiter) -> None:
        """Append a waiter to its lane; refuse it at once if its user, mailbox or app is suspended."""
        now = self._now()
        suspended = self._suspended_for(waiter, now)
        if suspended is not None:
            waiter.callbacks.refused(suspended)
            return
        self._lanes.add(waiter, now)
        self._run()

    def cancel(self, waiter: Waiter) -> None:
        """Remove a waiter. Nothing happens if it does not wait."""
        self._lanes.cancel(waiter, self._now())
        if not self._lanes.any_waiting():
            self._nudge()  # so that the dispatcher ends

    def move(self, waiter: Waiter, priority: Priority, stream: Stream | None) -> None:
        """Move a waiter whose call a second caller wants, too; see `Lanes.move`."""
        self._lanes.move(waiter, priority, stream, self._now())
        self._nudge()

    def stream(self) -> Stream:
        """Return a new stream, for the waiters of one run."""
        return Stream("")

    def hold(self, stream: Stream) -> None:
        """Grant the waiters of a stream no turn until `unhold`."""
        stream.held = True

    def unhold(self, stream: Stream) -> None:
        """Let the waiters of a stream have turns again."""
        self._lanes.unhold(stream, self._now())
        self._nudge()

    # -- the dispatcher --------------------------------------------------------------------------------

    def _run(self) -> None:
        """Start the dispatcher, or wake it: it is a task only while there are waiters."""
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
                at = self._not_before(now)
                if at > now:
                    await self._sleep(at)
                    continue
                waiters = self._lanes.offer(now, urgent_only=self._reserved(now), most=self.store.most)
                if waiters:
                    await self._take(waiters, now)
                elif self._lanes.more:
                    await asyncio.sleep(0)
                else:
                    await self._sleep(self._next_change(now))
        except asyncio.CancelledError:
            # Not at once: code that cancels all tasks of a loop until none is left would never come to an end.
            asyncio.get_running_loop().call_later(_SUCCESSOR, self._succeed)
            raise
        finally:
            self._dispatcher = None

    def _succeed(self) -> None:
        """Start another dispatcher for the remaining waiters after the first was cancelled from outside."""
        if self._dispatcher is None and self._lanes.any_waiting():
            self._run()

    async def _take(self, waiters: list[Waiter], now: float) -> None:
        """Take a turn for one of these waiters, and apply the rest of the store's answer to the others."""
        offered = self.store.take(waiters, now)
        if isinstance(offered, Offer):
            taken = offered
            if taken.granted is None:
                self._heard(waiters, taken, now)
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
            self._heard(waiters, taken, now)
        if taken.granted is None:
            return
        waiter, permit = taken.granted
        if self.store.shared and self._gone(waiter):  # during the await above
            with contextlib.suppress(LedgerError):  # then its lease lapses
                await of(self.store.give_back(permit))
            return
        waiter.callbacks.granted(self._lanes.serve(waiter, permit, now))

    def _nobody_takes(self, offered: asyncio.Future[Offer]) -> None:
        """Give back a permit that was granted after its dispatcher had been cancelled."""
        if not offered.cancelled() and offered.exception() is None:
            granted = offered.result().granted
            if granted is not None:
                self.store.give_back(granted[1])

    def _heard(self, waiters: list[Waiter], taken: Offer, now: float) -> None:
        """Apply the answer of the store for waiters that were not granted a turn: shut locks, or end waiters."""
        for kind, name, until, backoff_until in taken.shut:
            lock = (self._lanes.users if kind == "user" else self._lanes.mailboxes).get(name)
            if lock is not None:
                lock.backoff_until = backoff_until
                self._lanes.shut(lock, until)
        for waiter, record in taken.recorded:
            if waiter.lane is not None:
                self.cancel(waiter)
                waiter.callbacks.recorded(record)
        for waiter, error in taken.refused:
            self.refuse(waiter, error)
        found = [self.store.suspended(waiter.user, waiter.mailbox, now) for waiter in waiters]
        for key in dict.fromkeys(found):
            if key is not None:
                self._refuse_suspended(key, now)

    def _not_before(self, now: float) -> float:
        """Return the earliest time of the next dispatch: spacing, pause and permits, but no waiter's own locks."""
        with mutex:
            return self._state.not_before(now)

    def _next_change(self, now: float) -> float:
        """Return when to look again if no waiter may go now: at an alarm, or at a permit above the reserve."""
        alarm = self._lanes.next_alarm()
        if not self._reserved(now):
            return alarm
        with mutex:
            budget = self._state.budget
            return min(alarm, budget.next_at(now, budget.limit.reserve))

    def _reserved(self, now: float) -> bool:
        budget = self._state.budget
        if not budget.limit.reserve:
            return False
        with mutex:
            return budget.free(now) <= budget.limit.reserve

    async def _sleep(self, until: float) -> None:
        """Sleep until that time, or until `_nudge`."""
        loop = asyncio.get_running_loop()
        until = min(until, self.store.look_again(self._now()))
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
        # A timer may fire early, by as much as the clock's resolution. Taken as it is read, the time would then be
        # before the one that was waited for, and the dispatcher would spin until the clock has caught up.
        return max((self._time or self._join())(), self._rung)

    def _join(self) -> Callable[[], float]:
        loop = asyncio.get_running_loop()
        offset = self._offset = self.store.join(loop, self._look_anew)
        self._time = (lambda: loop.time() + offset) if offset else loop.time
        loop.call_soon(self._look_anew)  # at what other loops have changed before
        return self._time

    def _look_anew(self) -> None:
        """Publish and apply what other loops of the process have changed, and open the locks that they held."""
        now = self._now()
        before = self._told.suspended
        self._tell_changes(now)
        for key in self._told.suspended - before:
            self._refuse_suspended(key, now)
        with mutex:
            state = self._state
            outages, lasted, pause = state.unreachable_times, state.unreachable_lasted, state.pause
        if outages != self._told.outages and pause is not None:
            self._refuse_unreachable(pause.reason, lasted)
        self._told.outages = outages
        self._lanes.look_anew(now)
        self._nudge()

    # -- the end of a turn -----------------------------------------------------------------------------

    def settle(
        self, turn: Turn, judgement: Judgement, delays: Delays, *, renewing: bool = False
    ) -> asyncio.Task[None] | None:
        """End a turn whose call has ended: give permit and locks back, and let others wait or be suspended.

        Args:
            turn: the turn.
            judgement: the judgement on the call.
            delays: the lengths of the waits.
            renewing: the user's token was refused and is being renewed: the user's calls are held, instead
                of suspended, until `renewed`.

        Returns:
            None if that is done; else the task that does it. Cancelling the caller does not cancel the task.
        """
        turn.user.held = renewing
        now = self._now()
        settled = self.store.settle(turn, judgement, delays, now, renewing=renewing)
        if isinstance(settled, Settled):
            self._settled(turn, settled, judgement, now)
            return None
        return self._write(self._settle_later(turn, settled, judgement))

    async def _settle_later(self, turn: Turn, settled: asyncio.Future[Settled], judgement: Judgement) -> None:
        try:
            done = await answer_of(settled)
            self._settled(turn, done, judgement, self._now())
        except BaseException:
            self._given_back(turn)  # cancelled or failed, it must not leave its user shut for ever
            raise

    def _settled(self, turn: Turn, settled: Settled, judgement: Judgement, now: float) -> None:
        if judgement.verdict is Verdict.RETRY and judgement.subject is Subject.USER:
            user = turn.user
            self.events.publish(
                UserCooled(now - self._offset, user.key, user.backoff_until - now, user.consecutive_refusals)
            )
        self._tell_changes(now)
        if settled.outage is not None:
            self._told.outages = self._state.unreachable_times
            self._refuse_unreachable(str(judgement.error), settled.outage)
        if settled.suspended is not None:
            self._refuse_suspended(settled.suspended, now)
        self._lanes.release(turn.user, turn.mailbox, now)
        self._nudge()

    def _refuse_unreachable(self, reason: str, lasted: float) -> None:
        error = TransportError(f"{reason}; this has lasted {lasted:.0f} s")
        self._refuse_all(error, lasted=lasted)

    def give_back(self, turn: Turn) -> asyncio.Task[None] | None:
        """End a turn in which no call was made; returns the same as `settle`."""
        given = self.store.give_back(turn.permit)
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

    def renewed(self, user: str, error: FeishuMailError | None = None, fingerprint: str | None = None) -> None:
        """End the hold on a user whose token was being renewed.

        Args:
            user: the user's key.
            error: the reason to suspend the user until the token changes; None: there is a new token.
            fingerprint: with `error`, the fingerprint of the refused token.
        """
        if error is None:
            self._renewed(user)
            return
        closing = self.store.suspend_user(user, error, fingerprint, self._now())
        if closing is None:
            self._user_suspended(user)
        else:
            self._write(self._suspend_user_later(user, closing))

    async def _suspend_user_later(self, user: str, closing: asyncio.Future[None]) -> None:
        try:
            await answer_of(closing)
        except BaseException:
            self._renewed(user)
            raise
        self._user_suspended(user)

    def _user_suspended(self, user: str) -> None:
        self._tell_changes(self._now())
        self._refuse_suspended(SuspensionKey(f"user:{user}", EVERYWHERE), self._now())
        self._renewed(user)

    def _renewed(self, user: str) -> None:
        self._lanes.unhold(self._lanes.users[user], self._now())
        self._nudge()

    def _write(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Start a task for a write that must not be cancelled with its caller."""
        task = start_task(work, "feishu-mail-ledger", self._writing)
        # Closing the ledger cancels it, and its caller may have gone: without this asyncio would log the error.
        task.add_done_callback(look_at)
        return task

    async def written(self) -> None:
        """Wait until the end of every call that has ended so far is on record."""
        if self._writing:
            await asyncio.wait(set(self._writing))
        await self.store.written()

    def obstacle(self, user: str) -> str | None:
        """Return in words the obstacle to a user's drafts; None if others just come first."""
        now, lock = self._now(), self._lanes.users.get(user)
        with mutex:
            state = self._state
            limit, pause = state.budget.limit, state.pause
            free, back = state.budget.free(now), state.budget.next_at(now)
        if pause is not None:
            return pause.reason
        if free <= 0:
            when = f", the next may go in {math.ceil(back - now)} s" if back < math.inf else ""
            return f"all {limit.calls} calls of {limit.per:g} s are made{when}"
        if lock is not None and lock.backoff_until > now:
            return f"the server slows user {user} down for another {math.ceil(lock.backoff_until - now)} s"
        return None

    def unreachable_for(self) -> float:
        """Return the seconds for which nothing has been reachable; 0 while there is no outage."""
        since = self._state.unreachable_since
        return 0.0 if since is None else self._now() - since

    # -- suspensions ---------------------------------------------------------------------------------

    def refuse(self, waiter: Waiter, error: FeishuMailError) -> None:
        """End a waiter with an error, if it still waits."""
        if waiter.lane is not None:  # the callback of one that was refused before may have cancelled it
            self.cancel(waiter)
            waiter.callbacks.refused(copy.copy(error))

    def _refuse_all(
        self, error: FeishuMailError, *, lock: CallLock | None = None, lasted: float = math.inf
    ) -> None:
        condemned = self._lanes.condemn(error, lock=lock, lasted=lasted)
        self._condemned.append(condemned)
        self.sweep(
            self._refusing(condemned),
            lock,
            lambda: self._condemned.remove(condemned),
        )

    def _refusing(self, condemned: Condemned) -> Iterator[None]:
        for waiter in condemned:
            if waiter is not None:
                self.refuse(waiter, condemned.error)
            yield

    def _refuse_suspended(self, key: SuspensionKey, now: float) -> None:
        if not self._state.concerns(key):
            return
        kind, _, name = key.subject.partition(":")
        locks = {"user": self._lanes.users, "mailbox": self._lanes.mailboxes}.get(kind)
        lock = None if locks is None else locks.get(name)
        refusal = self._refusal(key, now)
        if refusal is not None and (locks is None or lock is not None):
            self._refuse_all(refusal, lock=lock)

    def refuse_condemned(self, waiter: Waiter) -> bool:
        """End a waiter now if a sweep under way is going to end it; return True if it was ended."""
        for condemned in self._condemned:
            if waiter in condemned:
                self.refuse(waiter, condemned.error)
                return True
        return False

    # -- sweeps ----------------------------------------------------------------------------------------

    def sweep(
        self,
        steps: Iterator[object],
        lock: CallLock | None = None,
        done: Callable[[], object] = lambda: None,
    ) -> Sweep:
        """End many waiters, a few in each pass of the loop. Meanwhile none of them is granted a turn.

        Args:
            steps: an iterator of which each step ends one waiter, or does as little.
            lock: the lock that all of them need, a user's, a mailbox's or a stream, which is shut meanwhile; None:
                they share none, and no turn at all is granted meanwhile.
            done: called when all is done.

        Returns:
            the sweep.
        """
        if lock is None:
            self._sweeping += 1
        else:
            lock.sweeps += 1

        def end() -> None:
            done()
            if lock is None:
                self._sweeping -= 1
            else:
                self._lanes.swept(lock, self._now())
            self._nudge()

        return self._sweeper.start(steps, end)

    def _gone(self, waiter: Waiter) -> bool:
        """Return whether a waiter has ended, or a sweep may be about to end it."""
        return waiter.lane is None or self._sweeping > 0 or any(lock.sweeps for lock in waiter.lane.locks)

    def _refusal(self, key: SuspensionKey, now: float) -> Suspended | None:
        """Return the error for the waiters of a suspended subject; None if a subscriber has resumed it already."""
        suspensions = self._state.suspensions
        with mutex:
            return suspensions.refusal(key, now) if key in suspensions.entries else None

    def _suspended_for(self, waiter: Waiter, now: float) -> Suspended | None:
        """Return the error with which a waiter is refused; None if no suspension concerns it."""
        if not self._state.suspensions.entries:
            return None
        key = self.store.suspended(waiter.user, waiter.mailbox, now)
        self._tell_changes(now)
        return None if key is None else self._refusal(key, now)

    def refused_fingerprint(self, user: str) -> str | None:
        """Return the fingerprint of the refused token for which a user is suspended; None if there is none."""
        entries = self._state.suspensions.entries
        entry = entries.get(SuspensionKey(f"user:{user}", EVERYWHERE)) if entries else None
        return entry.fingerprint if entry is not None else None

    def token_changed(self, user: str) -> None:
        """Resume a user who was suspended until the token changes."""
        self.store.resume(f"user:{user}", ResumeWhen.TOKEN)
        self._tell_changes(self._now())

    def resume(self, subject: str) -> None:
        """Let drafts of a suspended subject go again; nothing happens if it is not suspended.

        Args:
            subject: "app", "user:NAME" or "mailbox:ADDRESS", as `Suspended.subject` and `snapshot` say.

        Raises:
            ValueError: it is none of the three forms.
        """
        kind, _, key = subject.partition(":")
        if subject != APP and (kind not in {"user", "mailbox"} or not key):
            raise ValueError(f'subject: give "app", "user:NAME" or "mailbox:ADDRESS", not {subject!r}')
        if kind == "mailbox" and not key.startswith(OWN):
            subject = f"mailbox:{key.casefold()}"
        self.store.resume(subject)
        self._tell_changes(self._now())

    # -- events ----------------------------------------------------------------------------------------

    def _tell_changes(self, now: float) -> None:
        """Publish pauses and suspensions that have begun or ended, here, in another loop or another process."""
        state, told = self._state, self._told
        if state.pauses != told.pauses or (state.pause is None) != (told.paused_since is None):
            self._tell_pause(state, now)
        if state.suspensions.changes != told.suspension_changes:
            self._tell_suspensions(state.suspensions, now)

    def _tell_pause(self, state: EndpointState, now: float) -> None:
        told, since, at = self._told, self._told.paused_since, now - self._offset
        with mutex:
            told.pauses = state.pauses
            pause = None if state.pause is None else copy.copy(state.pause)
        if pause is not None:
            if since is None or pause.until > told.paused_until + _SAME:
                told.paused_since, told.paused_until = now if since is None else since, pause.until
                self.events.publish(AppPaused(at, self.endpoint.name, max(0.0, pause.until - now), pause.reason))
        elif since is not None:
            told.paused_since = None
            self.events.publish(AppResumed(at, self.endpoint.name, now - since))

    def _tell_suspensions(self, suspensions: Suspensions, now: float) -> None:
        before = self._told.suspended
        with mutex:
            held, news = set(suspensions.entries), suspensions.holding(now, before)
            self._told.suspended, self._told.suspension_changes = held, suspensions.changes
        self._notices.publish(self.events, before - held, news, now - self._offset, self.endpoint.name)

    # -- the limit, and the snapshot -------------------------------------------------------------------

    @property
    def limit(self) -> RateLimit:
        """The limit in force."""
        return self._state.budget.limit

    def at_rest(self) -> bool:
        """Return whether there is nothing to remember: no call counts, nothing waits, is paused or suspended."""
        now = self._now()
        with mutex:
            rests = self._state.at_rest(now)
        return rests and not self._lanes.any_waiting() and not self._lanes.any_shut(now)

    def set_limit(self, limit: RateLimit) -> None:
        """Change the limit; the calls of the current window count against the new one."""
        self.store.set_limit(limit)
        self._nudge()

    def snapshot(self) -> Snapshot:
        """Return the present state."""
        now = self._now()
        users = self._lanes.users.values()
        with mutex:
            state = self._state
            budget, pause = state.budget, state.pause
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
                cooling={user.key: user.backoff_until - now for user in users if user.backoff_until > now},
                suspended=state.suspensions.holding(now),
            )
