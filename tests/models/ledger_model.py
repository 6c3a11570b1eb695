"""Two processes on one ledger against a small model: permits, locks, leases, pauses, probes, suspensions.

And the ledger's clock against boots and elapsed time. All times are multiples of a quarter of a second, so that
sums are exact and no comparison depends on rounding.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Final

from feishu_mail_async._api.protocol import Judgement, Reply
from feishu_mail_async.model import Priority, RateLimit
from tests.helpers.judgements import judge_send
from tests.helpers.ledgers import LOST, NEVER, SENT, Waits, refused

HOUR: Final = 3600.0
TIMEOUT: Final = 30.0
SLACK: Final = 5.0

ENDS: Final[dict[str, Judgement]] = {
    "sent": SENT,
    "already": judge_send(Reply(409, b'{"code":1236005,"msg":"","data":{}}')),
    "lost": LOST,
    "never": NEVER,
    "busy": refused("ConcurrentWrite"),
    "frequency": refused("FrequencyLimited", reset="30"),
    "frequency-bare": refused("FrequencyLimited"),
    "quota": refused("UserDailyQuota"),
    "storage": refused("TenantStorageFull"),
    "mailbox": refused("MailboxNotFound"),
    "rejected": refused("TooManyRecipients"),
    "internal": refused("InternalError"),
}


@dataclass(eq=False)
class Call:
    """A call that was granted."""

    turn: str
    user: str
    mailbox: str
    draft: str
    at: float
    lapses: float
    probe: bool
    pauses: int
    in_doubt: bool
    ended: float | None = None
    gone: bool = False
    """It never left, or its turn was given back."""

    @property
    def open(self) -> bool:
        return self.ended is None and not self.gone

    @property
    def end(self) -> float:
        return self.lapses if self.ended is None else self.ended


@dataclass
class Note:
    """What is known of a draft."""

    sent: bool = False
    in_doubt: bool = False
    turn: str | None = None


@dataclass
class Model:
    """A ledger as its promises say, over flat lists."""

    limit: RateLimit
    now: float
    calls: list[Call] = field(default_factory=list)
    drafts: dict[str, Note] = field(default_factory=dict)
    shut_until: dict[tuple[str, str], float] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)
    closed: dict[str, float] = field(default_factory=dict)
    last: float = -math.inf
    pause: float | None = None
    prober: Call | None = None
    pauses: int = 0
    smooth_until: float = -math.inf
    unreachable_since: float | None = None
    unreachable_times: int = 0

    def counted(self) -> int:
        window = self.limit.per + self.limit.margin
        return sum(not one.gone and one.end + window > self.now for one in self.calls)

    def holder(self, kind: str, key: str) -> Call | None:
        """The call that holds a lock."""
        return next(
            (one for one in self.calls if one.open and one.lapses > self.now and getattr(one, kind) == key), None
        )

    def open_at(self, kind: str, key: str) -> bool:
        return self.holder(kind, key) is None and self.shut_until.get((kind, key), -math.inf) <= self.now

    def lapse(self, scopes: list[str]) -> None:
        for scope in scopes:
            if self.closed.get(scope, math.inf) <= self.now:
                del self.closed[scope]
                if scope == "app":
                    self.pause_until(self.now)

    def pause_until(self, until: float) -> None:
        self.pauses += 1
        self.pause = until if self.pause is None else max(self.pause, until)

    def may_go(self) -> bool:
        pace = self.limit.spacing
        if self.now < self.smooth_until:
            pace = max(pace, self.limit.per / self.limit.calls)
        if self.now < self.last + pace or self.counted() >= self.limit.calls:
            return False
        if self.pause is None:
            return True
        return self.now >= self.pause if self.prober is None else self.now >= self.prober.lapses

    def take(self, wanted: list[Any]) -> tuple[int | None, list[int], set[tuple[str, str]]]:
        """Which of them goes, which were sent before, and what keeps others."""
        for one in wanted:
            self.lapse(["app", f"user:{one.user}", f"mailbox:{one.mailbox}"])
        may_go, reserved = self.may_go(), self.limit.calls - self.counted() <= self.limit.reserve
        granted, recorded, shut = None, [], set()
        for place, one in enumerate(wanted):
            if self.drafts.setdefault(one.draft_id, Note()).sent:
                recorded.append(place)
                continue
            if {"app", f"user:{one.user}", f"mailbox:{one.mailbox}"} & self.closed.keys():
                continue
            kept = {(kind, getattr(one, kind)) for kind in ("user", "mailbox")}
            kept = {pair for pair in kept if not self.open_at(*pair)}
            shut |= kept
            urgent = one.priority is Priority.INTERACTIVE
            if not kept and may_go and granted is None and (urgent or not reserved):
                granted = place
                # What this one takes keeps those after it.
                self.granted(one)
        return granted, recorded, shut

    def granted(self, one: Any) -> None:
        note = self.drafts[one.draft_id]
        lapses = self.now + TIMEOUT + self.limit.grace + SLACK
        in_doubt = note.in_doubt or note.turn is not None
        call = Call(
            "",
            one.user,
            one.mailbox,
            one.draft_id,
            self.now,
            lapses,
            self.pause is not None,
            self.pauses,
            in_doubt,
        )
        self.calls.append(call)
        note.in_doubt = in_doubt
        self.last = self.now
        if self.pause is not None:
            self.prober = call

    def settle(self, call: Call, kind: str) -> None:
        self.lapse(["app", f"user:{call.user}", f"mailbox:{call.mailbox}"])
        judgement = ENDS[kind]
        end = self.now + self.limit.grace if kind == "lost" else self.now
        forgotten = call.lapses + self.limit.per + self.limit.margin <= self.now
        taken = self.now if forgotten else call.at
        if kind == "never" or forgotten:
            call.gone = True
        call.ended = end
        if kind == "lost":
            for lock in (("user", call.user), ("mailbox", call.mailbox)):
                self.shut_until[lock] = max(self.shut_until.get(lock, -math.inf), end)
        if self.prober is call:
            self.prober = None
        answered = kind not in {"lost", "never"} and call.probe and call.pauses == self.pauses
        if answered:
            self.unreachable_since, self.unreachable_times = None, 0
        if kind == "never":
            self.unreachable(call, taken)
        elif kind.startswith("frequency"):
            self.pause_until(self.now + (self.limit.per if kind.endswith("bare") else 30.0))
        elif answered:
            self.pause, self.smooth_until = None, self.now + self.limit.per
        if kind == "busy":
            self.refusals[call.user] = self.refusals.get(call.user, 0) + 1
            until = self.now + Waits().backoff(self.refusals[call.user])
            lock = "user", call.user
            self.shut_until[lock] = max(self.shut_until.get(lock, -math.inf), until)
        elif kind in {"sent", "already"}:
            self.refusals[call.user] = 0
        match kind:
            case "quota":
                self.closed[f"user:{call.user}"] = self.now + HOUR
            case "storage":
                self.closed["app"] = self.now + HOUR
            case "mailbox":
                self.closed[f"mailbox:{call.mailbox}"] = math.inf
        note = self.drafts[call.draft]
        if note.turn == call.turn:
            note.turn = None
            note.sent = kind in {"sent", "already"}
            note.in_doubt = not note.sent and (call.in_doubt or not judgement.conclusive)

    def unreachable(self, call: Call, taken: float) -> None:
        if self.unreachable_since is not None and call.pauses != self.pauses:
            return
        if self.unreachable_since is None or (self.pause is not None and taken > self.pause + 60):
            self.unreachable_since, self.unreachable_times = self.now, 0
        self.unreachable_times += 1
        lasted = self.now - self.unreachable_since
        self.pause_until(self.now + Waits().outage(self.unreachable_times, lasted))

    def give_back(self, call: Call) -> None:
        call.gone = True
        if self.prober is call:
            self.prober = None
        note = self.drafts[call.draft]
        if note.turn == call.turn:
            note.turn = None
