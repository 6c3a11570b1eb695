"""How fast it can go: a greedy dispatcher under the same rules as the scheduler's, as a sum over events.

It shares no code with the package, looks through plain lists, and knows its drafts' delays beforehand. It is
what the end of a real run is compared with.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Limit", "Post", "Trip", "end_of"]

_EPSILON: Final = 1e-6


@dataclass(frozen=True)
class Trip:
    """What one call takes.

    Attributes:
        there: seconds to the server.
        back: seconds from there.
        lost: no answer comes back in time, so that the draft goes again.
        again: seconds until it wants to go again, if it was lost.
    """

    there: float
    back: float
    lost: bool = False
    again: float = 0.0


@dataclass(frozen=True)
class Post:
    """One draft: whose it is, and its trips; the last of them is not lost.

    Attributes:
        user: whose it is.
        trips: its calls, one after another; what a lost one takes is the time until it was given up.
        mailbox: the address; None: the user's own.
        priority: the smallest goes first.
    """

    user: str
    trips: Sequence[Trip]
    mailbox: str | None = None
    priority: int = 1


@dataclass(frozen=True)
class Limit:
    """The rules: `calls` permits, each back `per + margin` after its call's end, and `grace` later if lost."""

    calls: int = 20
    per: float = 60.0
    spacing: float = 0.2
    grace: float = 10.0
    margin: float = 0.1


@dataclass
class _Waiting:
    post: Post
    trips: deque[Trip]
    since: int = 0


@dataclass
class _State:
    permits_back: list[float] = field(default_factory=list)
    free_at: dict[str, float] = field(default_factory=dict)
    served: dict[str, int] = field(default_factory=dict)
    lanes: dict[tuple[str, str | None, int], deque[_Waiting]] = field(default_factory=dict)
    later: list[tuple[float, _Waiting]] = field(default_factory=list)
    count: int = 0

    def locks(self, post: Post) -> tuple[str, str]:
        return f"user {post.user}", f"mailbox {post.mailbox or post.user}"

    def may_go(self, post: Post, now: float) -> bool:
        return all(self.free_at.get(lock, 0.0) <= now + _EPSILON for lock in self.locks(post))

    def wait(self, one: _Waiting) -> None:
        """Let a draft stand behind those that are like it."""
        one.since = self.number()
        alike = (one.post.user, one.post.mailbox, one.post.priority)
        self.lanes.setdefault(alike, deque()).append(one)

    def number(self) -> int:
        self.count += 1
        return self.count


def end_of(posts: Sequence[Post], limit: Limit) -> float:
    """Seconds until the last of these drafts has its answer, if all of them are given at the time 0.

    Whenever there is a permit, and `spacing` has passed, the draft goes whose user and mailbox have no call
    under way, has the smallest priority, and among these the user who was served the longest ago, and of
    this user the one who waits the longest.
    """
    state = _State()
    for post in posts:
        state.wait(_Waiting(post, deque(post.trips)))
    now, next_dispatch, end = 0.0, 0.0, 0.0
    while any(state.lanes.values()) or state.later:
        for at, one in [entry for entry in state.later if entry[0] <= now + _EPSILON]:
            state.later.remove((at, one))
            state.wait(one)
        state.permits_back = [at for at in state.permits_back if at > now + _EPSILON]
        chosen = None
        if len(state.permits_back) < limit.calls and next_dispatch <= now + _EPSILON:
            able = [lane for lane in state.lanes.values() if lane and state.may_go(lane[0].post, now)]
            chosen = min(able, key=lambda lane: _rank(lane[0], state.served), default=None)
        if chosen is None:
            now = _next_event(state, now, next_dispatch)
            continue
        end = max(end, _go(state, chosen.popleft(), limit, now))
        next_dispatch = now + limit.spacing
    return end


def _rank(one: _Waiting, served: Mapping[str, int]) -> tuple[int, int, int]:
    return one.post.priority, served.get(one.post.user, 0), one.since


def _next_event(state: _State, now: float, next_dispatch: float) -> float:
    times = [next_dispatch, *state.permits_back, *state.free_at.values(), *(at for at, _ in state.later)]
    following = min((at for at in times if at > now + _EPSILON), default=math.inf)
    assert following < math.inf, "drafts wait, and nothing is going to happen"
    return following


def _go(state: _State, one: _Waiting, limit: Limit, now: float) -> float:
    """Make the next call of a draft, and return when it ends."""
    trip = one.trips.popleft()
    end = now + trip.there + trip.back
    held_until = end + limit.grace if trip.lost else end
    state.permits_back.append(held_until + limit.per + limit.margin)
    for lock in state.locks(one.post):
        state.free_at[lock] = held_until
    state.served[one.post.user] = state.number()
    if trip.lost:
        assert one.trips, "the last trip of a draft is not lost"
        state.later.append((end + trip.again, one))
    return end
