"""What the sandbox saw: every call at the instant it arrived, and what was counted.

This is what a test judges a client by, so nothing here is derived from what the client says.
"""

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from typing import Any, Final

from feishu_mail_async import codes

from .window import TOLERANCE

__all__ = ["SEND", "Arrival", "CallLog"]

SEND: Final = "send"
"""The `endpoint` of an arrival at the send endpoint."""

_LIMITED: Final = codes.named("FrequencyLimited").number
_CONFLICT: Final = codes.named("ConcurrentWrite").number


@dataclass(frozen=True, slots=True)
class Arrival:
    """One call, as it was judged when it arrived.

    Attributes:
        time: seconds of the loop's clock at which it arrived; the way to the server lies behind it.
        endpoint: "send", "cancel", "list", "create", "read" or "delete".
        user: whose token it carried; None where the token settled nothing.
        mailbox: the address meant, `me` resolved; as given where there is no such mailbox.
        draft_id: the draft meant, decoded; None where the endpoint has none.
        code: the `code` of the answer's body; None where the answer has none, or none comes.
        http_status: the answer's HTTP status; None where no answer comes.
        scripted: a fault decided the answer.
        accepted: it passed the rate limit.
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
    """The sandbox's record.

    Attributes:
        arrivals: every call of the mail endpoints, in order of arrival.
        sends: those at the send endpoint.
        sent: draft id -> how often the mail really went out (a value above 1 never occurs: the second call
            is refused as the documents say).
        refusals: calls of the send endpoint that the window refused; scripted refusals are not among them.
        paused_refusals: calls of the send endpoint refused because of `Sandbox.limit_now`.
        sibling_refusals: calls of the other endpoints that their own limits refused.
        conflicts: writes that came while another held the user's or the mailbox's lock; scripted ones are
            not among them.
        refreshes: user -> refresh tokens spent.
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
        """Enter a call that has just been judged.

        Args:
            arrival: the call.
            paused: `limit_now` refused it, not the window.
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
        """Every call that named this draft, in order of arrival."""
        return list(self._by_draft.get(draft_id, ()))

    def busiest_window(self, per: float | None = None, *, accepted_only: bool = True) -> int:
        """The most sends that arrived within any half-open window.

        Args:
            per: the window's length in seconds; the sandbox's own if not given.
            accepted_only: count only what passed the rate limit.
        """
        length = (self._per if per is None else per) - TOLERANCE
        times = [send.time for send in self.sends if send.accepted or not accepted_only]
        most = first = 0
        for last, time in enumerate(times):
            while time - times[first] >= length:
                first += 1
            most = max(most, last - first + 1)
        return most

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON takes it; no token is among it."""
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
