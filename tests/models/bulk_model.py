"""What a bulk run is judged by: when it ought to end, and whether its outcomes are true.

`bulk_end` is an event model of one app, its users and what goes wrong with their calls. Written from
shared/DESIGN.md (invariants 1 to 7), it shares no code with the package and looks through plain lists; jitter
is random there and its mean here. `check_true` holds outcomes against the sandbox's ledger.
"""

import heapq
import itertools
import math
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, TypeVar

from feishu_mail_async import Draft, Outcome, OutcomeStatus, OutcomeUnknown
from feishu_mail_async.sandbox import CallLog

__all__ = ["End", "Mishap", "Rules", "bulk_end", "check_one", "check_true", "fetch"]

T = TypeVar("T")

_EPSILON: Final = 1e-6


class End(Enum):
    """What a call comes to."""

    DONE = "done"  # sent, or sent before
    FATAL = "fatal"  # refused for good, the draft alone
    DRAFT = "draft"  # the draft goes again, after a wait of its own
    LOST = "lost"  # the same, and nobody knows whether the call is still on its way
    USER = "user"  # the user cools down
    APP = "app"  # the whole app pauses


@dataclass(frozen=True)
class Mishap:
    """What goes wrong with one call.

    Attributes:
        end: what it comes to.
        takes: seconds it takes, where that is not the ordinary way there and back.
        reset: seconds the app pauses.
    """

    end: End
    takes: float | None = None
    reset: float = 0.0


@dataclass(frozen=True)
class Rules:
    """The limit, and how long one waits."""

    calls: int = 20
    per: float = 60.0
    spacing: float = 0.2
    grace: float = 10.0
    margin: float = 0.1
    initial: float = 1.0
    maximum: float = 60.0

    def backoff(self, times: int) -> float:
        """The mean of a wait of which half is jitter."""
        return 0.75 * min(self.maximum, self.initial * 2.0 ** (times - 1))


@dataclass
class _Post:
    mishaps: deque[Mishap]
    faults: int = 0


@dataclass
class _User:
    waiting: deque[_Post]
    free_at: float = 0.0
    consecutive_refusals: int = 0
    served: int = -1


@dataclass
class _Model:
    rules: Rules
    users: dict[str, _User]
    permits_back: list[float] = field(default_factory=list)
    in_flight: int = 0
    next_dispatch: float = 0.0
    last_dispatch: float = -math.inf
    pause_until: float | None = None
    probing: int | None = None
    pauses: int = 0
    smooth_until: float = -math.inf
    end: float = 0.0

    def may_go_at(self, now: float) -> float:
        """When the next call may go, as far as the app is concerned; infinity while it depends on an answer."""
        rules = self.rules
        self.permits_back = [at for at in self.permits_back if at > now + _EPSILON]
        spacing = max(rules.spacing, rules.per / rules.calls) if now < self.smooth_until else rules.spacing
        at = max(now, self.last_dispatch + spacing)
        if self.pause_until is not None:
            at = max(at, math.inf if self.probing is not None else self.pause_until)
        if rules.calls - self.in_flight - len(self.permits_back) <= 0:
            at = max(at, min(self.permits_back, default=math.inf))
        return at

    def pick(self, now: float) -> str | None:
        """The user served the longest ago, of those who have something to send and may."""
        able = [name for name, user in self.users.items() if user.waiting and user.free_at <= now + _EPSILON]
        return min(able, key=lambda name: self.users[name].served, default=None)

    def ended(self, name: str, post: _Post, mishap: Mishap, call: "_CallOf", now: float) -> float | None:
        """Take in the end of a call; seconds until its draft wants to go again, or None."""
        rules, user = self.rules, self.users[name]
        over = now + rules.grace if mishap.end is End.LOST else now
        self.in_flight -= 1
        self.permits_back.append(over + rules.per + rules.margin)
        user.free_at = over
        if self.probing == call.number:
            self.probing = None
        if mishap.end is End.APP:
            self.pauses += 1
            self.pause_until = max(self.pause_until or 0.0, now + mishap.reset)
            return 0.0
        if mishap.end is not End.LOST and call.probes and call.pauses == self.pauses:
            self.pause_until, self.smooth_until = None, now + rules.per
        if mishap.end is End.USER:
            user.consecutive_refusals += 1
            user.free_at = now + rules.backoff(user.consecutive_refusals)
            return 0.0
        if mishap.end in {End.DRAFT, End.LOST}:
            post.faults += 1
            return rules.backoff(post.faults)
        if mishap.end is End.DONE:
            user.consecutive_refusals = 0
        self.end = now
        return None


@dataclass(frozen=True)
class _CallOf:
    number: int
    probes: bool
    pauses: int


def bulk_end(
    drafts: Mapping[str, Sequence[Sequence[Mishap]]], ways: Callable[[], tuple[float, float]], rules: Rules
) -> float:
    """Seconds until the last draft has its outcome, if all are given at once.

    Args:
        drafts: of each user, in order, what goes wrong with the calls of each draft, one after another.
        ways: seconds of the next call's way there and back; drawn in the order of the calls.
        rules: the limit.
    """
    model = _Model(
        rules,
        {name: _User(deque(_Post(deque(mishaps)) for mishaps in posts)) for name, posts in drafts.items()},
    )
    numbers = itertools.count()
    # (when, number, what happens): the end of a call, or a draft that wants to go again.
    events: list[tuple[float, int, str, _Post, Mishap | None, _CallOf | None]] = []
    now = 0.0
    while True:
        while events and events[0][0] <= now + _EPSILON:
            at, _, name, post, mishap, call = heapq.heappop(events)
            if mishap is None or call is None:
                model.users[name].waiting.append(post)
                continue
            again = model.ended(name, post, mishap, call, at)
            if again is not None:
                heapq.heappush(events, (at + again, next(numbers), name, post, None, None))
        may_go_at = model.may_go_at(now)
        chosen = model.pick(now) if may_go_at <= now + _EPSILON else None
        if chosen is not None:
            number = next(numbers)
            user = model.users[chosen]
            post = user.waiting.popleft()
            there, back = ways()
            mishap = post.mishaps.popleft() if post.mishaps else Mishap(End.DONE)
            takes = there + back if mishap.takes is None else mishap.takes
            probes = model.pause_until is not None
            call = _CallOf(number, probes, model.pauses)
            if probes:
                model.probing = number
            model.in_flight += 1
            model.last_dispatch, user.served, user.free_at = now, number, math.inf
            heapq.heappush(events, (now + takes, number, chosen, post, mishap, call))
            continue
        following = [event[0] for event in events[:1]]
        following += [user.free_at for user in model.users.values() if user.waiting]
        if any(user.waiting for user in model.users.values()):
            following.append(may_go_at)
        now = min((at for at in following if now + _EPSILON < at < math.inf), default=math.inf)
        if now == math.inf:
            assert not any(user.waiting for user in model.users.values()), "drafts wait, and nothing will happen"
            return model.end


async def fetch(source: AsyncIterator[T], into: list[T]) -> None:
    """Fetch to the end; what came before an exception stays in the list."""
    async for one in source:
        into.append(one)  # noqa: PERF401 - a comprehension would lose them


def check_true(
    given: Iterable[Draft], outcomes: Sequence[Outcome], ledger: CallLog, *, shared: Collection[str] = ()
) -> None:
    """Each input has exactly one outcome, and what it claims is what the server did.

    Args:
        given: what was read, in any order.
        outcomes: what came out, in any order.
        ledger: what the server did.
        shared: ids of drafts that somebody else sends too.
    """
    given = list(given)
    assert Counter(outcome.draft for outcome in outcomes) == Counter(given)
    assert Counter(id(outcome.draft.tag) for outcome in outcomes) == Counter(id(draft.tag) for draft in given)
    assert max(ledger.sent.values(), default=0) <= 1, "a mail went out twice"
    times = Counter(draft.draft_id for draft in given)
    for outcome in outcomes:
        alone = times[outcome.draft.draft_id] == 1 and outcome.draft.draft_id not in shared
        check_one(outcome, ledger, alone=alone)
    claimed = Counter(outcome.draft.draft_id for outcome in outcomes if outcome.status is OutcomeStatus.SENT)
    assert max(claimed.values(), default=0) <= 1, "two inputs claim to have sent the same draft"


def check_one(outcome: Outcome, ledger: CallLog, *, alone: bool = True) -> None:
    """What one outcome claims is true; of a draft that was given more than once the others may have sent it."""
    draft_id = outcome.draft.draft_id
    sent = ledger.sent[draft_id]
    assert (outcome.result is None) != (outcome.error is None)
    if outcome.result is not None:
        assert sent == 1, outcome
        assert outcome.result.draft == outcome.draft
        assert outcome.status in {OutcomeStatus.SENT, OutcomeStatus.ALREADY_SENT}
        assert outcome.result.already_sent == (outcome.status is OutcomeStatus.ALREADY_SENT)
        return
    assert outcome.error is not None
    assert outcome.error.status is outcome.status
    if outcome.status is OutcomeStatus.UNKNOWN:
        assert isinstance(outcome.error, OutcomeUnknown)
        assert any(call.code is None or (call.http_status or 0) >= 500 for call in ledger.calls(draft_id)), outcome
    else:
        assert outcome.status in {OutcomeStatus.FAILED, OutcomeStatus.SKIPPED}
        assert sent == 0 or not alone, outcome
