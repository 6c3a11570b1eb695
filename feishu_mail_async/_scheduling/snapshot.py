"""The state of an app's calls at one moment, for showing."""

import math
from dataclasses import dataclass

from feishu_mail_async.model import Priority, RateLimit

from .lanes import Lanes
from .state import EndpointState
from .suspensions import Suspension

__all__ = ["Snapshot", "obstacle", "snapshot_of"]


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


def snapshot_of(state: EndpointState, lanes: Lanes, now: float) -> Snapshot:
    """Return the snapshot of an endpoint's state, which no other thread changes meanwhile, and of its waiters."""
    budget, pause = state.budget, state.pause
    next_permit = max(0.0, budget.next_at(now) - now)
    return Snapshot(
        waiting=dict(lanes.waiting),
        in_flight=budget.in_flight,
        permits=max(0, budget.free(now)),
        limit=budget.limit,
        next_permit=next_permit if next_permit < math.inf else None,
        paused=None if pause is None else max(0.0, pause.until - now),
        pause_reason=None if pause is None else pause.reason,
        cooling={key: lock.backoff_until - now for key, lock in lanes.users.items() if lock.backoff_until > now},
        suspended=state.suspensions.holding(now),
    )


def obstacle(state: EndpointState, lanes: Lanes, user: str, now: float) -> str | None:
    """Return in words the obstacle to a user's drafts; None if others just come first."""
    if state.pause is not None:
        return state.pause.reason
    limit = state.budget.limit
    if state.budget.free(now) <= 0:
        back = state.budget.next_at(now)
        when = f", the next may go in {math.ceil(back - now)} s" if back < math.inf else ""
        return f"all {limit.calls} calls of {limit.per:g} s are made{when}"
    lock = lanes.users.get(user)
    if lock is not None and lock.backoff_until > now:
        return f"the server slows user {user} down for another {math.ceil(lock.backoff_until - now)} s"
    return None
