"""The scheduler: turns are granted by its dispatcher, and end here. It knows nothing of HTTP.

Theory of operation. Every turn that the dispatcher grants ends in one of two ways:

    granted(turn) -- a call was made --> settle: permit and locks come back, now or later; others may have to wait,
                                                 or a subject is suspended
                  -- none was made ----> give_back: all of it comes back now

`settle` takes the judgement on the call to the store, which applies the rules of `EndpointState`, and then does
what follows from it for the waiters of this loop. A store in memory answers at once, a database later: `_after` is
the place that decides. While a user's token is being renewed the user's lock is held, until `renewed`.

One scheduler is shared by all clients of one app in one event loop.
"""

import asyncio
import functools
import itertools
from collections.abc import Callable
from typing import TypeVar

from feishu_mail_async._api.protocol import Judgement
from feishu_mail_async._hub import EventHub
from feishu_mail_async._tasks import look_at, start_task
from feishu_mail_async.codes import ResumeWhen, Subject, Verdict
from feishu_mail_async.errors import FeishuMailError
from feishu_mail_async.events import UserCooled
from feishu_mail_async.model import RateLimit

from .dispatcher import Dispatcher
from .lanes import first_shut
from .notices import Notices
from .snapshot import Snapshot, obstacle, snapshot_of
from .state import Delays, Settled
from .store import Answer, SchedulerStore, answer_of, mutex
from .suspensions import APP, EVERYWHERE, SuspensionKey
from .waiters import OWN, Turn

__all__ = ["Scheduler"]

T = TypeVar("T")


class Scheduler(Dispatcher):
    """The scheduler of one endpoint of an app in one event loop; see the theory of operation above.

    Its parameters and attributes are those of `Dispatcher`.
    """

    def __init__(
        self, store: SchedulerStore, events: EventHub | None = None, notices: Notices | None = None
    ) -> None:
        super().__init__(store, events, notices)
        self._writing: set[asyncio.Task[None]] = set()

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
        return self._after(settled, functools.partial(self._settled, turn, judgement), now)

    def _settled(self, turn: Turn, judgement: Judgement, settled: Settled | None, now: float) -> None:
        state, told, user = self.store.state, self._told, turn.user
        try:
            if settled is None:
                return  # the store has failed, and the locks come back all the same
            if judgement.verdict is Verdict.RETRY and judgement.subject is Subject.USER:
                seconds = user.backoff_until - now
                self.events.publish(UserCooled(now - self._offset, user.key, seconds, user.consecutive_refusals))
            # Most ends change nothing that has to be told: no pause is in force, nor was one.
            news = state.suspensions.changes != told.suspension_changes
            if news or state.pause is not None or told.paused_since is not None:
                self._tell_changes(now)
            if settled.outage is not None:
                told.outages = state.unreachable_times
                self._refuse_unreachable(str(judgement.error), settled.outage)
            if settled.suspended is not None:
                self._refuse_suspended(settled.suspended, now)
        finally:
            self._lanes.release(user, turn.mailbox, now)
            if self._lanes.lanes:
                self._look_soon()

    def give_back(self, turn: Turn) -> asyncio.Task[None] | None:
        """End a turn in which no call was made; returns the same as `settle`."""
        given = self.store.give_back(turn.permit)
        return self._after(given, functools.partial(self._given_back, turn), self._now())

    def _given_back(self, turn: Turn, _: None, now: float) -> None:
        self._lanes.release(turn.user, turn.mailbox, now)
        self._look_soon()

    def renewed(self, user: str, error: FeishuMailError | None = None, fingerprint: str | None = None) -> None:
        """End the hold on a user whose token was being renewed.

        Args:
            user: the user's key.
            error: the reason to suspend the user until the token changes; None: there is a new token.
            fingerprint: with `error`, the fingerprint of the refused token.
        """
        now = self._now()
        if error is None:
            self._unhold(user, now)
        else:
            closing = self.store.suspend_user(user, error, fingerprint, now)
            self._after(closing, functools.partial(self._user_suspended, user), now)

    def _user_suspended(self, user: str, _: None, now: float) -> None:
        try:
            self._tell_changes(now)
            self._refuse_suspended(SuspensionKey(f"user:{user}", EVERYWHERE), now)
        finally:
            self._unhold(user, now)

    def _unhold(self, user: str, now: float) -> None:
        lock = self._lanes.users[user]
        lock.held = False
        self._lanes.opened((lock,), now)
        self._look_soon()

    def _after(
        self, answer: Answer[T], then: Callable[[T | None, float], None], now: float
    ) -> asyncio.Task[None] | None:
        """Go on when the store has answered: at once in memory, else in a task that its caller does not cancel.

        Args:
            answer: the store's answer.
            then: called with the answer, or None if the store has failed, and with the time.
            now: the time.

        Returns:
            None if that is done; else the task.
        """
        if not isinstance(answer, asyncio.Future):
            then(answer, now)
            return None
        task = start_task(self._later(answer, then), "feishu-mail-ledger", self._writing)
        # Closing the ledger cancels it, and its caller may have gone: without this asyncio would log the error.
        task.add_done_callback(look_at)
        return task

    async def _later(self, answer: asyncio.Future[T], then: Callable[[T | None, float], None]) -> None:
        done = None
        try:
            done = await answer_of(answer)
        finally:
            then(done, self._now())  # cancelled or failed, it must not leave its user shut for ever

    async def written(self) -> None:
        """Wait until the end of every call that has ended so far is on record."""
        if self._writing:
            await asyncio.wait(set(self._writing))
        await self.store.written()

    # -- suspensions, and the limit --------------------------------------------------------------------

    def refused_fingerprint(self, user: str) -> str | None:
        """Return the fingerprint of the refused token for which a user is suspended; None if there is none."""
        entries = self.store.state.suspensions.entries
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

    @property
    def limit(self) -> RateLimit:
        """The limit in force."""
        return self.store.state.budget.limit

    def set_limit(self, limit: RateLimit) -> None:
        """Change the limit; the calls of the current window count against the new one."""
        self.store.set_limit(limit)
        self._look_soon()

    # -- what is shown ---------------------------------------------------------------------------------

    def obstacle(self, user: str) -> str | None:
        """Return in words the obstacle to a user's drafts; None if others just come first."""
        now = self._now()
        with mutex:
            return obstacle(self.store.state, self._lanes, user, now)

    def unreachable_for(self) -> float:
        """Return the seconds for which nothing has been reachable; 0 while there is no outage."""
        since = self.store.state.unreachable_since
        return 0.0 if since is None else self._now() - since

    def snapshot(self) -> Snapshot:
        """Return the present state."""
        now = self._now()
        with mutex:
            return snapshot_of(self.store.state, self._lanes, now)

    def at_rest(self) -> bool:
        """Return whether there is nothing to remember: no call counts, nothing waits, is paused or suspended."""
        now, lanes = self._now(), self._lanes
        with mutex:
            rests = self.store.state.at_rest(now)
        locks = itertools.chain(lanes.users.values(), lanes.mailboxes.values())
        return rests and not lanes.lanes and first_shut(locks, now) is None
