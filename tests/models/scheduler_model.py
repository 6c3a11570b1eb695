"""A naive model of the scheduler, written from DESIGN.md, and a world in which the two are compared.

The model keeps flat lists and scans all of them for every question: slow, and easy to believe. A `World` drives
one `Scheduler` and one `Model` through the same events, in a loop whose clock moves only when nothing is left to
run. Every grant and every refusal is checked when it happens, and the clock may never pass the moment at which
the model says that some ask could go.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from feishu_mail_async._api.protocol import CallEnd, Judgement
from feishu_mail_async.codes import ResumeWhen, Subject, Verdict
from feishu_mail_async.errors import Suspended, TransportError
from feishu_mail_async.model import Priority, RateLimit
from tests.models.scheduler_loop import FixedDelays

HOUR: Final = 3600.0


Lane = tuple[str, str, Priority, str | None]


@dataclass(eq=False, slots=True)
class Want:
    """An ask, as the model knows it. `arrived` orders all asks, `place` those of its lane."""

    number: int
    user: str
    mailbox: str
    priority: Priority
    outage: float
    stream: str | None = None
    arrived: int = 0
    place: int = 0

    @property
    def lane(self) -> Lane:
        return self.user, self.mailbox, self.priority, self.stream

    def __repr__(self) -> str:
        return f"#{self.number}({self.user}, {self.mailbox}, {self.priority.name}, {self.stream})"


@dataclass(eq=False, slots=True)
class Call:
    """A call in flight, or one that has ended: then `latest` is the last moment at which it may be counted."""

    want: Want
    at: float
    era: int
    probe: bool
    late: bool = False
    latest: float = math.inf


@dataclass(slots=True)
class Paused:
    until: float
    probe: Call | None = None


@dataclass(slots=True)
class Lock:
    """What is known of a user or a mailbox."""

    opens: float = -math.inf
    cooling: float = -math.inf
    served: int = 0
    consecutive_refusals: int = 0
    held: bool = False


@dataclass(slots=True)
class Model:
    """What DESIGN.md says, in the plainest words that run."""

    limit: RateLimit
    delays: FixedDelays
    waiting: list[Want] = field(default_factory=list)
    flying: list[Call] = field(default_factory=list)
    past: list[Call] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    users: dict[str, Lock] = field(default_factory=dict)
    mailboxes: dict[str, Lock] = field(default_factory=dict)
    closed: dict[str, tuple[ResumeWhen, float]] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    pause: Paused | None = None
    era: int = 0
    since: float | None = None
    times: int = 0
    in_doubt: bool = False
    last: float = -math.inf
    smooth_until: float = -math.inf
    limit_since: float = -math.inf
    turns: int = 0
    moved: bool = False
    clock: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def user(self, key: str) -> Lock:
        return self.users.setdefault(key, Lock())

    def mailbox(self, key: str) -> Lock:
        return self.mailboxes.setdefault(key, Lock())

    # -- when could it go --

    def heads(self) -> list[Want]:
        """The first of each lane."""
        first: dict[Lane, Want] = {}
        for want in self.waiting:
            if want.lane not in first or want.place < first[want.lane].place:
                first[want.lane] = want
        return list(first.values())

    def locks_open(self, want: Want) -> float:
        """Invariant 3: one call at a time for the user and for the mailbox; lost calls and cool-downs too."""
        if self.user(want.user).held or want.stream in self.held:
            return math.inf
        if any(call.want.user == want.user or call.want.mailbox == want.mailbox for call in self.flying):
            return math.inf
        return max(self.user(want.user).opens, self.mailbox(want.mailbox).opens)

    def forget(self, now: float) -> None:
        """Drop the calls whose permits have come back."""
        self.ends = [end for end in self.ends if end + self.limit.per + self.limit.margin > now]

    def free(self, now: float) -> int:
        self.forget(now)
        return self.limit.calls - len(self.flying) - len(self.ends)

    def permit(self, now: float, wanted: int) -> float:
        """Invariant 1: when so many permits are free, if no further call ends."""
        missing = wanted - self.free(now)
        if missing <= 0:
            return -math.inf
        if missing > len(self.ends):
            return math.inf
        return sorted(self.ends)[missing - 1] + self.limit.per + self.limit.margin

    def permit_for(self, want: Want, now: float) -> float:
        return self.permit(now, 1 if want.priority is Priority.INTERACTIVE else self.limit.reserve + 1)

    def spaced(self, now: float) -> float:
        """Invariant 2, and the smooth rate after a pause."""
        plain = self.last + self.limit.spacing
        smooth = self.last + max(self.limit.spacing, self.limit.per / self.limit.calls)
        if now >= self.smooth_until:
            return plain
        return min(smooth, max(plain, self.smooth_until))

    def paused(self) -> float:
        if self.pause is None:
            return -math.inf
        return self.pause.until if self.pause.probe is None else math.inf

    def goes(self, want: Want, now: float) -> float:
        """When this head of a lane could go if nothing happened before."""
        return max(self.locks_open(want), self.permit_for(want, now), self.spaced(now), self.paused())

    def next_dispatch(self, now: float) -> float:
        """Invariant 6: the clock may not pass this moment without a dispatch."""
        return min((self.goes(want, now) for want in self.heads()), default=math.inf)

    # -- events --

    def scopes(self, want: Want) -> tuple[str, str, str]:
        return "app", f"user:{want.user}", f"mailbox:{want.mailbox}"

    def submit(self, want: Want, now: float) -> str | None:
        """The closed scope because of which the ask is refused; None if it waits."""
        for scope in self.scopes(want):
            until, ends = self.closed.get(scope, (None, -math.inf))
            if until is None:
                continue
            if ends > now:
                return scope
            del self.closed[scope]
            if scope == "app":
                self.pause_until(now)  # "quotas and storage an hour, then one probe"
        want.arrived = want.place = next(self.clock)
        self.waiting.append(want)
        return None

    def cancel(self, want: Want) -> None:
        if want in self.waiting:
            self.waiting.remove(want)

    def move(self, want: Want, priority: Priority, stream: str | None) -> None:
        """Another wants it too: it becomes more urgent, leaves a single stream, and goes behind its new lane."""
        if priority < want.priority or stream != want.stream:
            self.moved = True
            want.priority = min(priority, want.priority)
            want.stream = want.stream if stream == want.stream else None
            want.place = next(self.clock)

    def granted(self, want: Want, now: float) -> Call:
        """Check that it was the turn of this ask, and take the turn."""
        assert want in self.waiting, f"{want} was granted a turn, and does not wait"
        assert self.locks_open(want) <= now, f"{want}: its user or mailbox is locked until {self.locks_open(want)}"
        assert self.permit_for(want, now) <= now, f"{want}: no permit before {self.permit_for(want, now)}"
        assert self.spaced(now) <= now, f"{want}: {now} is too soon after the dispatch at {self.last}"
        assert self.paused() <= now, f"{want}: paused until {self.paused()}"
        heads = self.heads()
        assert want in heads, f"{want} overtook its own lane"
        for other in heads:
            if self.locks_open(other) > now or self.permit_for(other, now) > now:
                continue
            assert want.priority <= other.priority, f"{want} went before {other}, which is more urgent"
            if want.priority == other.priority:
                mine, theirs = self.user(want.user).served, self.user(other.user).served
                assert mine <= theirs, f"{want} went before {other}, whose user is unserved for longer"
                # Which of one user's mailboxes comes first is no promise; but they take turns as they came, as
                # long as no ask has moved into another lane (where it is last, though it came early).
                if mine == theirs and not self.moved:
                    assert want.arrived <= other.arrived, f"{want} went before {other}, which came first"
        self.as_the_server_counts(now)
        self.turns += 1
        self.user(want.user).served = self.turns
        self.waiting.remove(want)
        late = self.pause is not None and now > self.pause.until + self.delays.longest
        call = Call(want, now, self.era, probe=self.pause is not None, late=late)
        self.flying.append(call)
        self.last = now
        if self.pause is not None:
            self.pause.probe = call
        return call

    def as_the_server_counts(self, now: float) -> None:
        """Invariant 1 once more, from the calls alone: however late the others arrived, this one fits."""
        if self.limit_since > -math.inf:
            return
        counted = [call for call in self.past if call.latest + self.limit.per > now]
        assert len(counted) + len(self.flying) < self.limit.calls, f"over the limit at {now}"

    def give_back(self, call: Call) -> None:
        self.flying.remove(call)
        if self.pause is not None and self.pause.probe is call:
            self.pause.probe = None

    def settle(self, call: Call, judgement: Judgement, now: float, *, renewing: bool) -> dict[Want, type]:
        """The call has ended: who is refused, and with what."""
        refused: dict[Want, type] = {}
        want, verdict, scope = call.want, judgement.verdict, judgement.subject
        user, mailbox = self.user(want.user), self.mailbox(want.mailbox)
        self.give_back(call)
        if judgement.end is not CallEnd.NEVER_LEFT:
            call.latest = now + (self.limit.grace if judgement.end is CallEnd.LOST else 0.0)
            self.ends.append(call.latest)
            self.past.append(call)
        if judgement.end is CallEnd.LOST:
            user.opens = max(user.opens, call.latest)
            mailbox.opens = max(mailbox.opens, call.latest)
        user.held = renewing
        answered = judgement.end is CallEnd.ANSWERED and call.probe and call.era == self.era
        if answered:  # whatever it says, the server can be reached
            self.since, self.times, self.in_doubt = None, 0, False
        if verdict is Verdict.RETRY and scope is Subject.APP:
            if judgement.end is CallEnd.NEVER_LEFT:
                self.unreachable(call, now, refused)
            else:
                per = self.limit.per
                self.pause_until(
                    now + (per if judgement.pause is None else min(judgement.pause, max(60.0, 4 * per)))
                )
                self.in_doubt = self.since is not None and call.probe  # of an older pause, but it was answered
        elif answered:
            self.pause = None
            self.smooth_until = now + self.limit.per
        if verdict is Verdict.RETRY and scope is Subject.USER:
            user.consecutive_refusals += 1
            user.cooling = now + self.delays.backoff(user.consecutive_refusals)
            user.opens = max(user.opens, user.cooling)
        elif verdict in {Verdict.DONE, Verdict.ALREADY_DONE}:
            user.consecutive_refusals = 0
        if verdict is Verdict.FATAL and judgement.until is not None and not renewing:
            name = {Subject.USER: f"user:{want.user}", Subject.MAILBOX: f"mailbox:{want.mailbox}"}.get(
                scope, "app"
            )
            self.close(name, judgement.until, now, refused)
        return refused

    def close(self, name: str, until: ResumeWhen, now: float, refused: dict[Want, type]) -> None:
        self.closed[name] = until, now + HOUR if until is ResumeWhen.HOUR else math.inf
        for other in [other for other in self.waiting if name in self.scopes(other)]:
            self.waiting.remove(other)
            refused[other] = Suspended

    def renewed(self, key: str, now: float, *, worked: bool) -> dict[Want, type]:
        refused: dict[Want, type] = {}
        self.user(key).held = False
        if not worked:
            self.close(f"user:{key}", ResumeWhen.TOKEN, now, refused)
        return refused

    def pause_until(self, until: float) -> None:
        """The latest deadline wins; whatever probes now was made before this."""
        self.era += 1
        if self.pause is None:
            self.pause = Paused(until)
        else:
            self.pause.until = max(self.pause.until, until)

    def unreachable(self, call: Call, now: float, refused: dict[Want, type]) -> None:
        if self.since is None:
            self.since = now
        elif call.era != self.era:
            return
        if (self.in_doubt or call.late) and self.delays.asked == (1, 0.0):
            # Where an older call was answered in between, or nobody tried for long, it may or may not go on.
            self.since, self.times = now, 0
        self.in_doubt = False
        lasted = now - self.since
        self.times += 1
        self.pause_until(now + self.delays.outage(self.times, lasted))
        for want in [want for want in self.waiting if want.outage <= lasted]:
            self.waiting.remove(want)
            refused[want] = TransportError

    def set_limit(self, limit: RateLimit, now: float) -> None:
        self.forget(now)
        self.limit = limit
        self.limit_since = now
