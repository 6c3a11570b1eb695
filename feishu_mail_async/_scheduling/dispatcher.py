"""The dispatcher: the decision when the next call of an endpoint may go, and which; and who is refused.

Theory of operation. A draft that waits is a `Waiter`; the permission to make one call is a `Turn`.

    submit -> waiter -- the dispatcher picks it --> granted(turn) --> the call --> `Scheduler.settle`, `give_back`
                |
                +-- refused or recorded: it ends without a turn

A look (`_look`) asks the state when the next call may go: spacing, then any pause, then a permit. If that is now,
it picks a waiter and dispatches. Nothing is awaited in between, so a late, urgent waiter never waits behind one
that was picked earlier. (With a database, permit and locks are taken in one transaction among the waiters that are
offered to it.)

    IDLE -- submit --> DUE -- whoever could go has gone --> ASLEEP -- timer, event --> DUE
                        |  -- nobody waits any more ------> IDLE
                        +---- a database is asked --> ASKING -- it has answered: the next look, at once

    IDLE    Nobody waits: there is nothing but the lanes.
    DUE     A look comes in the loop's next pass.
    ASKING  A database has been asked for a turn. Events are not missed: another look follows the answer.
    ASLEEP  The timer is set, or none is, where only an event can help: a call ends, a sweep ends, a hold ends.

A look never comes in the pass of the loop in which it gets due: of the drafts that are submitted in one pass the
most urgent one goes first. Looks are callbacks of the loop and no task, because a task may be cancelled with all
others of the loop, and the waiters would be left without a dispatcher.

Times are the store's, which are the loop's plus an offset; events have the loop's. The state in the store may be
shared: with other loops of the process, which notify this one of changes (`_look_anew`), and with other processes.
"""

import asyncio
import copy
import functools
import math
from collections.abc import Callable, Iterator

from feishu_mail_async._hub import EventHub
from feishu_mail_async.errors import FeishuMailError, Suspended, TransportError
from feishu_mail_async.model import Priority

from .lanes import Lanes
from .notices import Notices, Told
from .store import Offer, SchedulerStore, mutex, result_of
from .suspensions import SuspensionKey
from .sweeps import Condemned, Sweep, Sweeper
from .waiters import CallLock, Stream, Waiter

__all__ = ["Dispatcher"]


class Dispatcher:
    """The dispatcher of one endpoint of an app in one event loop; see the theory of operation above.

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
        self._told = Told(self.events, self.endpoint.name, notices or Notices())
        self._lanes = Lanes(exclusive=self.endpoint.writes)
        self._time: Callable[[], float] | None = None  # the store's clock, once there is a loop
        self._offset = 0.0  # seconds by which it is ahead of the loop's
        self._rung = -math.inf  # the time for which the last timer was set; see `_now`
        self._look_due = False  # in the loop's next pass, or when the store has answered
        self._timer: asyncio.TimerHandle | None = None
        self._elsewhere: list[CallLock] = []  # locks that calls of other loops hold
        self._sweeper = Sweeper()
        self._sweeping = 0  # sweeps of waiters that share no lock; meanwhile no turn is granted
        self._condemned: list[Condemned] = []

    # -- waiters ---------------------------------------------------------------------------------------

    def submit(self, waiter: Waiter) -> None:
        """Append a waiter to its lane; refuse it at once if its user, mailbox or app is suspended."""
        now = self._now()
        self._look_soon()
        self._lanes.add(waiter, now)
        if self.store.state.suspensions.entries:
            key = self.store.suspended(waiter.user, waiter.mailbox, now)
            self._tell_changes(now)  # a subscriber may cancel the waiter
            refusal = None if key is None else self._refusal(key, now)
            if refusal is not None:
                self.refuse(waiter, refusal)

    def cancel(self, waiter: Waiter) -> None:
        """Remove a waiter. Nothing happens if it does not wait."""
        self._lanes.cancel(waiter, self._now())
        if self._timer is not None and not self._lanes.lanes:
            self._timer.cancel()
            self._timer = None

    def move(self, waiter: Waiter, priority: Priority, stream: Stream | None) -> None:
        """Move a waiter whose call a second caller wants, too; see `Lanes.move`."""
        self._lanes.move(waiter, priority, stream, self._now())
        self._look_soon()

    def stream(self) -> Stream:
        """Return a new stream, for the waiters of one run."""
        return Stream("")

    def hold(self, stream: Stream) -> None:
        """Grant the waiters of a stream no turn until `unhold`."""
        stream.held = True

    def unhold(self, stream: Stream) -> None:
        """Let the waiters of a stream have turns again."""
        stream.held = False
        self._lanes.opened((stream,), self._now())
        self._look_soon()

    # -- looks -----------------------------------------------------------------------------------------

    def _look_soon(self) -> None:
        """Look in the loop's next pass whether a turn can be granted."""
        if not self._look_due:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            asyncio.get_running_loop().call_soon(self._look)
            self._look_due = True

    def _look(self, _: object = None) -> None:
        """Grant turns as long as calls may go now; then sleep until the next one may."""
        self._look_due = False
        lanes, store = self._lanes, self.store
        while lanes.lanes and not self._sweeping:
            now = self._now()
            with mutex:
                state = store.state
                at = state.not_before(now)
                others_at = state.not_before(now, urgent=False) if state.budget.limit.reserve else at
            if at > now:
                self._sleep(at, now)
                return
            waiters = lanes.offer(now, urgent_only=others_at > now, most=store.most)
            if not waiters:
                if lanes.more:
                    self._look_soon()
                else:
                    self._sleep(min(lanes.alarms.next_at, others_at if others_at > now else math.inf), now)
                return
            offer = store.take(waiters, now)
            if isinstance(offer, asyncio.Future):
                self._look_due = True
                offer.add_done_callback(functools.partial(self._answered, waiters))
                return
            if offer.granted is None:
                self._heard(waiters, offer, now)
            else:
                waiter, permit = offer.granted
                waiter.callbacks.granted(lanes.serve(waiter, permit, now))

    def _answered(self, waiters: list[Waiter], answer: asyncio.Future[Offer]) -> None:
        """Apply the answer of a store on a database, and look again."""
        given_back = None
        try:
            offer = result_of(answer)
        except FeishuMailError as error:
            self._refuse_all(error)
        else:
            now = self._now()
            self._tell_changes(now)
            self._heard(waiters, offer, now)
            if offer.granted is not None:
                waiter, permit = offer.granted
                if self._gone(waiter):  # meanwhile
                    given_back = self.store.give_back(permit)
                else:
                    waiter.callbacks.granted(self._lanes.serve(waiter, permit, now))
        finally:
            self._look_due = False
        if given_back is None:
            self._look()
        else:
            self._look_due = True
            given_back.add_done_callback(self._look)

    def _heard(self, waiters: list[Waiter], taken: Offer, now: float) -> None:
        """Apply the answer of the store for waiters that were not granted a turn: shut locks, or end waiters."""
        for kind, name, until, backoff_until in taken.shut:
            lock = (self._lanes.users if kind == "user" else self._lanes.mailboxes).get(name)
            if lock is not None:
                lock.backoff_until = backoff_until
                if until < math.inf:
                    lock.open_at = max(lock.open_at, until)
                else:
                    lock.busy = True
                    self._elsewhere.append(lock)
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

    def _sleep(self, until: float, now: float) -> None:
        """Set the timer, unless a look is due before."""
        until = min(until, self.store.look_again(now))
        if until < math.inf and not self._look_due:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(until - self._offset, self._wake_up, until)

    def _wake_up(self, at: float) -> None:
        self._timer = None
        self._rung = at
        self._look_soon()

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
            state = self.store.state
            outages, lasted, pause = state.unreachable_times, state.unreachable_lasted, state.pause
        if outages != self._told.outages and pause is not None:
            self._refuse_unreachable(pause.reason, lasted)
        self._told.outages = outages
        elsewhere, self._elsewhere = self._elsewhere, []
        for lock in elsewhere:
            lock.busy = False  # one that is still held is noticed in the store's next `take`
        self._lanes.opened(elsewhere, now)
        self._look_soon()

    def _tell_changes(self, now: float) -> None:
        """Publish pauses and suspensions that have begun or ended, here, in another loop or another process."""
        self._told.publish(self.store.state, now, now - self._offset)

    # -- refusals --------------------------------------------------------------------------------------

    def refuse(self, waiter: Waiter, error: FeishuMailError) -> None:
        """End a waiter with an error, if it still waits."""
        if waiter.lane is not None:  # the callback of one that was refused before may have cancelled it
            self.cancel(waiter)
            waiter.callbacks.refused(copy.copy(error))

    def _refuse_unreachable(self, reason: str, lasted: float) -> None:
        error = TransportError(f"{reason}; this has lasted {lasted:.0f} s")
        self._refuse_all(error, lasted=lasted)

    def _refuse_all(
        self, error: FeishuMailError, *, lock: CallLock | None = None, lasted: float = math.inf
    ) -> None:
        condemned = Condemned(error, lock, lasted, self._lanes.mark(), self._lanes.users.values())
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
        if not self.store.state.concerns(key):
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
                lock.sweeps -= 1
                self._lanes.opened((lock,), self._now())
            self._look_soon()

        return self._sweeper.start(steps, end)

    def _gone(self, waiter: Waiter) -> bool:
        """Return whether a waiter has ended, or a sweep may be about to end it."""
        return waiter.lane is None or self._sweeping > 0 or any(lock.sweeps for lock in waiter.lane.locks)

    def _refusal(self, key: SuspensionKey, now: float) -> Suspended | None:
        """Return the error for the waiters of a suspended subject; None if a subscriber has resumed it already."""
        suspensions = self.store.state.suspensions
        with mutex:
            return suspensions.refusal(key, now) if key in suspensions.entries else None
