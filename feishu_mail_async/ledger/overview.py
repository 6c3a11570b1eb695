"""The state of an app in a ledger, for showing."""

from dataclasses import dataclass

from feishu_mail_async._scheduling.suspensions import Suspension
from feishu_mail_async.model import RateLimit

__all__ = ["Overview"]


@dataclass(frozen=True, slots=True)
class Overview:
    """The state of an app's sends in a ledger, over all its processes.

    Attributes:
        drafts: the number of drafts by state: the statuses of outcomes, "waiting" and "in_flight".
        limit: the limit in force.
        in_use: permits in use: calls that count in the server's window, those in flight among them.
        in_flight: calls in flight.
        next_permit: seconds until a permit is free; 0: now.
        paused: seconds until the next probe while the whole app is paused; else None.
        pause_reason: the reason of the pause, in words.
        suspended: the suspensions that hold.
    """

    drafts: dict[str, int]
    limit: RateLimit
    in_use: int
    in_flight: int
    next_permit: float
    paused: float | None
    pause_reason: str | None
    suspended: tuple[Suspension, ...]
