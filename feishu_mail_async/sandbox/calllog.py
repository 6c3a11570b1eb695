"""The call log: every call at the instant it arrived, and the counts that follow from the calls.

Tests judge a client by it, so nothing in it is derived from anything the client reports.
"""

from bisect import insort_right
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any, Final

from feishu_mail_async import codes

from .window import TOLERANCE

__all__ = ["SEND", "Arrival", "CallLog"]

SEND: Final = "send"
"""The value of `Arrival.endpoint` for a send."""

_LIMITED: Final = codes.named("FrequencyLimited").number
_CONFLICT: Final = codes.named("ConcurrentWrite").number


@dataclass(frozen=True, slots=True)
class Arrival:
    """One call, with the decision made about it when it arrived.

    Attributes:
        time: the arrival, in seconds of the loop's clock, after the latency on the way to the server.
        endpoint: "send", "list", "create", "read", "update", "delete", "cancel", "mails", "delivery", "recall" or
            "recall_progress".
        user: the user whose token the call carried; None if the call was refused before or because of its token.
        mailbox: the mailbox's address, `me` resolved; as given if there is no such mailbox.
        draft_id: the draft's id, decoded; None if the endpoint has none.
        message_id: the mail's id, decoded; None if the endpoint has none.
        code: the `code` of the answer's body; None if the answer has none, or no answer comes.
        http_status: the answer's HTTP status; None if no answer comes.
        scripted: True if a fault decided the answer.
        accepted: True if the call passed the rate limit.
        log_id: the `X-Tt-Logid` of the answer.
    """

    time: float
    endpoint: str
    user: str | None
    mailbox: str | None
    draft_id: str | None
    message_id: str | None
    code: int | None
    http_status: int | None
    scripted: bool
    accepted: bool
    log_id: str


class CallLog:
    """The record of a sandbox's calls.

    Attributes:
        arrivals: every call of the mail endpoints, in order of arrival. A call with a large message is recorded
            a moment later, in its place.
        sends: the arrivals at the send endpoint.
        sent: draft id -> number of times the mail went out. A value above 1 never occurs: the second call is
            refused, as the documents say.
        created: draft id -> the Message-ID of its EML (None without one), for drafts created by a call.
        updated: draft id -> number of times that a draft's mail was replaced.
        deleted: draft id -> number of times that a draft was deleted: 1.
        scheduled: draft id -> number of times that a send was scheduled.
        cancelled: draft id -> number of times that a scheduled send was cancelled.
        recalled: draft id -> number of times that a recall of its mail was begun: 1.
        refusals: the number of sends that the window refused, without scripted refusals.
        paused_refusals: the number of sends refused because of `Sandbox.limit_now`.
        sibling_refusals: the number of calls of the other endpoints that their own limits refused.
        conflicts: the number of writes that arrived while another call held the user's or the mailbox's lock,
            without scripted ones.
        refusals_by_endpoint: endpoint -> number of calls that its limit refused, without scripted refusals and
            without those because of `Sandbox.limit_now`.
        conflicts_by_endpoint: endpoint -> its part of `conflicts`.
        refreshes: user -> number of refresh tokens spent.
    """

    def __init__(self, per: float) -> None:
        self._per = per
        self._by_id: defaultdict[str, list[Arrival]] = defaultdict(list)
        self.arrivals: list[Arrival] = []
        self.sends: list[Arrival] = []
        self.sent: Counter[str] = Counter()
        self.created: dict[str, str | None] = {}
        self.updated: Counter[str] = Counter()
        self.deleted: Counter[str] = Counter()
        self.scheduled: Counter[str] = Counter()
        self.cancelled: Counter[str] = Counter()
        self.recalled: Counter[str] = Counter()
        self.refusals = 0
        self.paused_refusals = 0
        self.sibling_refusals = 0
        self.conflicts = 0
        self.refusals_by_endpoint: Counter[str] = Counter()
        self.conflicts_by_endpoint: Counter[str] = Counter()
        self.refreshes: Counter[str] = Counter()

    def __repr__(self) -> str:
        return (
            f"<CallLog: {len(self.sends)} sends, {self.sent.total()} sent, {self.refusals} refused, "
            f"{self.conflicts} conflicts>"
        )

    def record(self, arrival: Arrival, *, paused: bool = False) -> None:
        """Record a call that has been judged.

        Args:
            arrival: the call.
            paused: True if `limit_now` refused it, not the window.
        """
        _put(self.arrivals, arrival)
        if (named := arrival.draft_id or arrival.message_id) is not None:
            _put(self._by_id[named], arrival)
        if arrival.endpoint == SEND:
            self.sends.append(arrival)
        if arrival.scripted:
            return
        if arrival.code == _CONFLICT:
            self.conflicts += 1
            self.conflicts_by_endpoint[arrival.endpoint] += 1
        elif arrival.code == _LIMITED:
            if paused:
                self.paused_refusals += 1
                return
            self.refusals_by_endpoint[arrival.endpoint] += 1
            if arrival.endpoint == SEND:
                self.refusals += 1
            else:
                self.sibling_refusals += 1

    def calls(self, named: str) -> list[Arrival]:
        """Return every call that named this draft or this mail, in order of arrival.

        Args:
            named: the draft's id, or that of the mail.
        """
        return list(self._by_id.get(named, ()))

    def busiest_window(self, per: float | None = None, *, accepted_only: bool = True) -> int:
        """Return the largest number of sends that arrived within any half-open window.

        Args:
            per: the window's length in seconds; None for the sandbox's own.
            accepted_only: count only sends that passed the rate limit.
        """
        # Half-open: an arrival exactly `per` later begins a new window, even if rounding makes it a hair early.
        length = (self._per if per is None else per) - TOLERANCE
        times = [send.time for send in self.sends if send.accepted or not accepted_only]
        most = first = 0
        for last, time in enumerate(times):
            while time - times[first] >= length:
                first += 1
            most = max(most, last - first + 1)
        return most

    def as_json(self) -> dict[str, Any]:
        """Return the whole log as a JSON-compatible value. It contains no token."""
        return {
            "totals": {
                "arrivals": len(self.arrivals),
                "sends": len(self.sends),
                "sent": self.sent.total(),
            },
            "busiest_window": self.busiest_window(),
            "refusals": self.refusals,
            "paused_refusals": self.paused_refusals,
            "sibling_refusals": self.sibling_refusals,
            "conflicts": self.conflicts,
            "refusals_by_endpoint": dict(self.refusals_by_endpoint),
            "conflicts_by_endpoint": dict(self.conflicts_by_endpoint),
            "sent": dict(self.sent),
            "created": dict(self.created),
            "updated": dict(self.updated),
            "deleted": dict(self.deleted),
            "scheduled": dict(self.scheduled),
            "cancelled": dict(self.cancelled),
            "recalled": dict(self.recalled),
            "refreshes": dict(self.refreshes),
            "arrivals": [asdict(arrival) for arrival in self.arrivals],
        }


def _put(arrivals: list[Arrival], arrival: Arrival) -> None:
    """Put a call into its place by the time of its arrival, which is nearly always the end."""
    if arrivals and arrival.time < arrivals[-1].time:
        insort_right(arrivals, arrival, key=attrgetter("time"))
    else:
        arrivals.append(arrival)
