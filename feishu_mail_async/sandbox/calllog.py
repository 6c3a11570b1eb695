"""The call log: every call at the instant it arrived, and the counts that follow from the calls.

Tests judge a client by it, so nothing in it is derived from anything the client reports.
"""

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
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
        endpoint: "send", "cancel", "list", "create", "read" or "delete".
        user: the user whose token the call carried; None if the call was refused before or because of its token.
        mailbox: the mailbox's address, `me` resolved; as given if there is no such mailbox.
        draft_id: the draft's id, decoded; None if the endpoint has none.
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
    code: int | None
    http_status: int | None
    scripted: bool
    accepted: bool
    log_id: str


class CallLog:
    """The record of a sandbox's calls.

    Attributes:
        arrivals: every call of the mail endpoints, in order of arrival.
        sends: the arrivals at the send endpoint.
        sent: draft id -> number of times the mail went out. A value above 1 never occurs: the second call is
            refused, as the documents say.
        refusals: the number of sends that the window refused, without scripted refusals.
        paused_refusals: the number of sends refused because of `Sandbox.limit_now`.
        sibling_refusals: the number of calls of the other endpoints that their own limits refused.
        conflicts: the number of writes that arrived while another call held the user's or the mailbox's lock,
            without scripted ones.
        refreshes: user -> number of refresh tokens spent.
    """

    def __init__(self, per: float) -> None:
        self._per = per
        self._by_draft: defaultdict[str, list[Arrival]] = defaultdict(list)
        self.arrivals: list[Arrival] = []
        self.sends: list[Arrival] = []
        self.sent: Counter[str] = Counter()
        self.refusals = 0
        self.paused_refusals = 0
        self.sibling_refusals = 0
        self.conflicts = 0
        self.refreshes: Counter[str] = Counter()

    def __repr__(self) -> str:
        return (
            f"<CallLog: {len(self.sends)} sends, {self.sent.total()} sent, {self.refusals} refused, "
            f"{self.conflicts} conflicts>"
        )

    def record(self, arrival: Arrival, *, paused: bool = False) -> None:
        """Record a call that has just been judged.

        Args:
            arrival: the call.
            paused: True if `limit_now` refused it, not the window.
        """
        self.arrivals.append(arrival)
        if arrival.draft_id is not None:
            self._by_draft[arrival.draft_id].append(arrival)
        if arrival.endpoint == SEND:
            self.sends.append(arrival)
        if arrival.scripted:
            return
        if arrival.code == _CONFLICT:
            self.conflicts += 1
        elif arrival.code == _LIMITED:
            if paused:
                self.paused_refusals += 1
            elif arrival.endpoint == SEND:
                self.refusals += 1
            else:
                self.sibling_refusals += 1

    def calls(self, draft_id: str) -> list[Arrival]:
        """Return every call that named this draft, in order of arrival.

        Args:
            draft_id: the draft's id.
        """
        return list(self._by_draft.get(draft_id, ()))

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
            "sent": dict(self.sent),
            "refreshes": dict(self.refreshes),
            "arrivals": [asdict(arrival) for arrival in self.arrivals],
        }
