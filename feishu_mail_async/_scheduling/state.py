"""The state of one endpoint of an app: permits, pause and suspensions, and the rules by which calls change them.

Theory of operation. An endpoint has a budget of permits, a spacing and a pause; the app's suspensions are shared
by all its endpoints. `not_before` says when the next call may be dispatched; `settle` applies the judgement on a
call that has ended: who waits, and who is suspended.

    open -- refused for the rate, or nothing reachable --> paused -- the pause is over --> one call probes
      ^                                                       ^                                  |  |
      |                                                       +------ refused, or no answer -----+  |
      +------ answered: then at the even pace for one `per` ----------------------------------------+

A suspension of the app that time has ended begins such a pause of no length, too: one call probes.

An answer to a call made before the pause must not end it: it says nothing about the server's state since. So each
permit carries the number of pauses that there had been when it was granted.

Pure: time is passed in. In memory one state lives as long as the process's store. A database ledger builds one
from its rows in each transaction, applies the same rules, and writes the changes back; its process keeps the
result as its knowledge until the next transaction.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from feishu_mail_async._api.endpoints import Endpoint
from feishu_mail_async._api.protocol import CallEnd, Judgement
from feishu_mail_async.codes import Subject, Verdict
from feishu_mail_async.model import Priority, RateLimit

from .budget import Budget, Spacing
from .suspensions import APP, SuspensionKey, Suspensions, reach_of, reaches, subjects

__all__ = ["Delays", "EndpointState", "Lock", "Pause", "Permit", "Settled"]

_MOST_WINDOWS: Final = 4
"""Windows of the limit that a refusal for the rate may pause calls, at most; the server forgets all after one."""
_LEAST_BOUND: Final = 60.0
"""Seconds that this bound is at least, because the server's window may be longer than the limit's."""
_UNWATCHED: Final = 60.0
"""Seconds without a probe after which an outage may have ended and begun again."""


class Delays(Protocol):
    """The lengths of the waits, which a retry policy computes and the scheduler obeys."""

    def backoff(self, times: int) -> float:
        """Return the seconds to wait after `times` refusals in a row."""

    def outage(self, times: int, lasted: float) -> float:
        """Return the seconds to the next probe of an outage, after so many probes and so many seconds of it."""


class Lock(Protocol):
    """The lock of a user or a mailbox, as memory, a database's rows and the lanes each have one.

    Attributes:
        key: the user's or the mailbox's key.
        open_at: the time until which it stays shut after a lost call or during a backoff.
        backoff_until: the end of the backoff alone.
        consecutive_refusals: refusals in a row.
    """

    key: str
    open_at: float
    backoff_until: float
    consecutive_refusals: int


class Permit(NamedTuple):
    """The permit of one turn.

    Attributes:
        turn: the turn's name in the store.
        at: the time when it was granted.
        pauses: the number of pauses of the endpoint by then.
        probe: the endpoint is paused, and this call finds out whether it still has to be.
        in_doubt: an earlier call, of this process or another, may have sent the draft, and no answer says so.
        good_until: the last moment at which its call may be made, by the loop's clock.
    """

    turn: str
    at: float
    pauses: int
    probe: bool
    in_doubt: bool = False
    good_until: float = math.inf


@dataclass(slots=True)
class Pause:
    """A pause of all calls of an endpoint. Then one call probes, and its answer ends the pause.

    Attributes:
        until: when the next call may probe.
        reason: the reason, in words.
        probe: the turn that probes; None while there is none.
        probe_lapses: when a probe without any answer is given up, so that another call may probe.
    """

    until: float
    reason: str
    probe: str | None = None
    probe_lapses: float = math.inf

    @property
    def next_probe(self) -> float:
        """The time when the next call may probe; while one is in flight, the time when that one lapses."""
        return self.until if self.probe is None else self.probe_lapses


class Settled(NamedTuple):
    """The consequences of a call's end, beside the changed state.

    Attributes:
        ended: when the call counts as ended, for its permit; None: it never left.
        suspended: the suspension that it brought about, if any.
        outage: seconds for which nothing has been reachable, if the call reached nothing either.
    """

    ended: float | None
    suspended: SuspensionKey | None
    outage: float | None


class EndpointState:
    """The state of one endpoint of an app.

    Args:
        endpoint: the endpoint.
        limit: the limit in force.
        suspensions: the app's suspensions.

    Attributes:
        endpoint: as above.
        suspensions: as above.
        budget: its permits.
        spacing: spaces the dispatches of a process that keeps its state in memory.
        last: the time of the last dispatch on record in a ledger, which spaces the dispatches of all processes.
        pause: the pause, if it is paused.
        pauses: the number of pauses so far.
        smooth_until: the end of the time after a pause in which calls go at the even pace.
        unreachable_since: when an outage began; None while there is none.
        unreachable_times: probes that found nothing reachable.
        unreachable_lasted: seconds that the outage had lasted at the last of them.
    """

    __slots__ = (
        "budget",
        "endpoint",
        "last",
        "pause",
        "pauses",
        "smooth_until",
        "spacing",
        "suspensions",
        "unreachable_lasted",
        "unreachable_since",
        "unreachable_times",
    )

    def __init__(self, endpoint: Endpoint[Any], limit: RateLimit, suspensions: Suspensions) -> None:
        self.endpoint = endpoint
        self.suspensions = suspensions
        self.budget = Budget(limit)
        self.spacing = Spacing()
        self.last = -math.inf
        self.pause: Pause | None = None
        self.pauses = 0
        self.smooth_until = -math.inf
        self.unreachable_since: float | None = None
        self.unreachable_times = 0
        self.unreachable_lasted = 0.0
        suspensions.probing.append(self._probe_first)

    # -- when the next call may go ---------------------------------------------------------------------

    def not_before(self, now: float, *, urgent: bool = True) -> float:
        """Return the earliest time to look for the next dispatch; infinity while that depends on a call in flight.

        Args:
            now: the time.
            urgent: the dispatch of an INTERACTIVE call, which may take a permit of the reserve.
        """
        at = self.budget.next_at(now, 0 if urgent else self.budget.limit.reserve)
        if self.pause is not None:
            at = max(at, self.pause.next_probe)
        if at > now:
            return at
        limit, spacing = self.budget.limit, self.budget.limit.spacing
        even = now < self.smooth_until
        if even:
            spacing = max(spacing, limit.per / limit.calls)
        at = max(self.spacing.ready_at(now, spacing), self.last + spacing)
        return min(at, self.smooth_until) if even else at  # the even pace may end first

    def may_go(self, priority: Priority, now: float) -> bool:
        """Return whether a call of this priority may be dispatched now."""
        return self.not_before(now, urgent=priority is Priority.INTERACTIVE) <= now

    def at_rest(self, now: float) -> bool:
        """Return whether there is nothing to remember: no call counts, and nothing is paused."""
        return self.budget.free(now) >= self.budget.limit.calls and self.pause is None

    def dispatch(self, turn: str, now: float, lapses: float = math.inf, good_until: float = math.inf) -> Permit:
        """Make the permit of a dispatch. To count it, and to space dispatches, is left to the caller.

        Args:
            turn: the turn's name.
            now: the time.
            lapses: if it is a probe, the time when it is given up without an answer.
            good_until: the last moment at which its call may be made, by the loop's clock.
        """
        if self.pause is not None:
            self.pause.probe, self.pause.probe_lapses = turn, lapses
        return Permit(turn, now, self.pauses, self.pause is not None, good_until=good_until)

    # -- the end of a call -----------------------------------------------------------------------------

    def settle(  # noqa: PLR0917 - one for each thing concerned
        self,
        permit: Permit,
        judgement: Judgement,
        delays: Delays,
        now: float,
        user: Lock,
        mailbox: Lock,
        *,
        renewing: bool,
    ) -> Settled:
        """Apply the judgement on a call that has ended, and count its permit.

        Args:
            permit: the permit of its turn.
            judgement: the judgement on the call.
            delays: the lengths of the waits.
            now: the time.
            user: the lock of its user, which is changed.
            mailbox: the lock of its mailbox, which is changed.
            renewing: the user's token was refused and is being renewed; nothing is suspended for that yet.
        """
        ended: float | None = now
        if judgement.end is CallEnd.NEVER_LEFT:
            ended = None
        elif judgement.end is CallEnd.LOST:
            ended = self.lost(now, user, mailbox)
        outage, retry = None, judgement.verdict is Verdict.RETRY
        if self.pause is not None or permit.probe or (retry and judgement.subject is Subject.APP):
            outage = self._settle_pause(permit, judgement, delays, now)
        if retry and judgement.subject is Subject.USER:
            user.consecutive_refusals += 1
            user.backoff_until = now + delays.backoff(user.consecutive_refusals)
            user.open_at = max(user.open_at, user.backoff_until)
        elif user.consecutive_refusals and judgement.good:
            user.consecutive_refusals = 0
        suspended = None
        if judgement.verdict is Verdict.FATAL and judgement.until is not None and not renewing:
            subject = _subject(judgement.subject, user, mailbox)
            suspended = SuspensionKey(subject, reach_of(self.endpoint, judgement.reach))
            self.suspensions.suspend(suspended, judgement.error, judgement.until, now)
        self.budget.end(ended)
        return Settled(ended, suspended, outage)

    def lost(self, at: float, user: Lock, mailbox: Lock) -> float:
        """Return when a call counts as ended that ended without an answer; until then it keeps its locks."""
        # It may still arrive, and be counted, and run into the next call of the same user.
        ended = at + self.budget.limit.grace
        if self.endpoint.writes:
            for lock in (user, mailbox):
                lock.open_at = max(lock.open_at, ended)
        return ended

    def give_back(self, turn: str) -> None:
        """Let another call probe if this turn was the probe. To count its permit is left to the caller."""
        if self.pause is not None and self.pause.probe == turn:
            self.pause.probe = None

    def _settle_pause(self, permit: Permit, judgement: Judgement, delays: Delays, now: float) -> float | None:
        """Pause for what the server asks, within bounds, or one `per`; in an outage for `delays.outage`."""
        self.give_back(permit.turn)
        # Only the probe of this very pause can end it; a call without an answer leaves it to the next one.
        answered = judgement.end is CallEnd.ANSWERED and permit.probe and permit.pauses == self.pauses
        if answered:
            self.unreachable_since, self.unreachable_times = None, 0
        if judgement.verdict is Verdict.RETRY and judgement.subject is Subject.APP:
            if judgement.end is CallEnd.NEVER_LEFT:
                return self._unreachable(permit, judgement, delays, now)
            per = self.budget.limit.per
            longest = max(_MOST_WINDOWS * per, _LEAST_BOUND)
            seconds = per if judgement.pause is None else min(judgement.pause, longest)
            self.pause_calls(now + seconds, str(judgement.error))
        elif answered:
            self.pause = None
            self.smooth_until = now + self.budget.limit.per
        return None

    def pause_calls(self, until: float, reason: str) -> None:
        """Pause all calls until that time; of several pauses the latest end counts."""
        self.pauses += 1
        if self.pause is None:
            self.pause = Pause(until, reason)
        elif until >= self.pause.until:
            self.pause.until, self.pause.reason = until, reason

    def _unreachable(self, permit: Permit, judgement: Judgement, delays: Delays, now: float) -> float | None:
        if self.unreachable_since is not None and permit.pauses != self.pauses:
            return None  # it was made before the pause, so it shows nothing new
        unwatched = self.pause is not None and permit.at > self.pause.until + _UNWATCHED
        if self.unreachable_since is None or unwatched:
            self.unreachable_since, self.unreachable_times = now, 0
        lasted = self.unreachable_lasted = now - self.unreachable_since
        self.unreachable_times += 1
        self.pause_calls(now + delays.outage(self.unreachable_times, lasted), str(judgement.error))
        return lasted

    # -- suspensions -----------------------------------------------------------------------------------

    def keys_of(self, user: str, mailbox: str) -> list[SuspensionKey]:
        """Return the keys of all suspensions that could keep a call of this user and mailbox from being made."""
        own = reaches(self.endpoint)
        return [SuspensionKey(subject, reach) for subject in subjects(user, mailbox) for reach in own]

    def concerns(self, key: SuspensionKey) -> bool:
        """Return whether a suspension under this key reaches the endpoint."""
        return key.reach in reaches(self.endpoint)

    def suspended(self, keys: Iterable[SuspensionKey], now: float) -> SuspensionKey | None:
        """Return the first of these keys under which a suspension holds; drop those whose time is over."""
        keys = list(keys)
        self.suspensions.lapse(keys, now)
        return self.suspensions.find(keys, now)

    def _probe_first(self, now: float, key: SuspensionKey, reason: str) -> None:
        if self.concerns(key):
            self.pause_calls(now, reason)


def _subject(subject: Subject, user: Lock, mailbox: Lock) -> str:
    match subject:
        case Subject.USER:
            return f"user:{user.key}"
        case Subject.MAILBOX:
            return f"mailbox:{mailbox.key}"
        case _:
            return APP
