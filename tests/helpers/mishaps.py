"""What can go wrong with the calls of all endpoints, drawn by lot."""

import random
from collections.abc import Callable, Sequence
from typing import Final

from feishu_mail_async import codes
from feishu_mail_async.sandbox import Arrival, Fault, Sandbox
from feishu_mail_async.sandbox.faults import Kind

__all__ = ["LOST", "LOST_KINDS", "MISHAPS", "NOTHING_KINDS", "QUICK", "mishaps"]

_INVALID: Final = codes.named("InvalidRequest").number
_READS: Final = {"list", "read", "delivery", "recall_progress"}
_EMPTY_SUCCESS: Final = Fault.code("Success", accepted=True)

LOST_KINDS: Final = [
    Fault.reset_after(),
    Fault.hang_after(),
    Fault.gateway(accepted=True),
    Fault.code("InternalError", accepted=True),
]
"""One of each kind of call that is carried out, and whose answer does not say so."""
NOTHING_KINDS: Final = [Fault.reset_before(), Fault.hang_before(), Fault.gateway(), Fault.code("InternalError")]
"""The same for who made the call; and nothing was done."""

LOST: Final = [
    *LOST_KINDS,
    Fault.code("ServiceFailed", accepted=True),
    _EMPTY_SUCCESS,
    Fault.unknown(1299998, 503, accepted=True),
    Fault.broken(accepted=True),
    Fault.empty(accepted=True),
    Fault.null(accepted=True),
    Fault.array(accepted=True),
    Fault.nulls(accepted=True),
    Fault.huge(300_000, accepted=True),
    # Given up after five seconds, they are done with before the grace of ten is over.
    Fault.delay(3.0, 5.0),
    Fault.delay(7.0, 6.0),
]
"""The call is carried out, and its answer does not say so, or comes too late."""
NOTHING: Final = [
    *NOTHING_KINDS,
    Fault.gateway(504),
    Fault.broken(),
    Fault.nulls(),
    Fault.redirect("http://127.0.0.1:9/elsewhere"),
]
"""The same for who made the call; and nothing was done."""
REFUSED: Final = [
    Fault.code("ConcurrentWrite"),
    Fault.code("MailThrottled"),
    Fault.code("ContentRisk"),
    Fault.code("InvalidRequest"),
    Fault.code("PermissionDenied"),
    Fault.frequency(reset="3"),
    Fault.frequency(400, reset="NaN"),
    Fault.bare_429("2"),
    Fault.unknown(1299999),
    Fault.unknown(1299999, 429),
]
"""Refusals that are over at once, or in a while."""
SUSPENDED: Final = [
    Fault.code("MailboxNotFound"),
    Fault.code("UserScopeMissing"),
    Fault.code("UserTokenInvalid"),
    Fault.code("UserDailyQuota"),
    Fault.code("TenantStorageFull"),
    Fault.code("AppQuotaSpent"),
    Fault.automation_disabled(),
]
"""Refusals that suspend somebody; the owners resume it."""
MISHAPS: Final = [*LOST * 4, *NOTHING * 4, *REFUSED * 3, *SUSPENDED]
"""Everything but a server that lies about what is there."""


QUICK: Final = [fault for fault in MISHAPS if fault.kind not in {Kind.DELAY, Kind.HANG}]
"""Those that take no time, for where it is real."""


def mishaps(
    sandbox: Sandbox, draw: random.Random, faults: Sequence[Fault], share: float
) -> Callable[[Arrival], Fault | None]:
    """What `Sandbox.on_call` is to do: every so often a call of any endpoint gets one of these."""

    def mishap(arrival: Arrival) -> Fault | None:
        if draw.random() >= share:
            return None
        fault = draw.choice(faults)
        if fault.reply is not None and fault.reply.code == _INVALID and arrival.endpoint == "recall_progress":
            return None  # it would say that there is no recall
        if fault is _EMPTY_SUCCESS and (arrival.endpoint in _READS or arrival.code):
            return None  # it would say that there are no drafts, or that what is refused is done
        if fault.kind is not Kind.DELAY:
            return fault
        sandbox.script_calls(arrival.endpoint, fault)  # a delay is due before a call arrives
        return None

    return mishap
