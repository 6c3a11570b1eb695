"""Events of an app's calls, for logs, progress bars and metrics.

Each thing that happens is published once, as it happens, as a frozen `Event`: to the log
(`feishu_mail_async.events`) and to all subscribers. Subscribers are called synchronously, so all of them see the
same order. A consumer that may be slow reads `FeishuMailClient.events`, whose buffer is bounded.

One draft on its way, with the events in brackets that may be missing or repeat:

    DraftQueued -> [TurnGranted -> AttemptStarted -> AttemptEnded -> [RetryPlanned -> TurnGranted -> ...]] ->
    DraftDone

A draft that ends early (no token, suspended, on record as sent) has DraftDone alone, or after DraftQueued.
"""

from .app import (
    AppPaused,
    AppResumed,
    DraftMayBeLeft,
    EventsLost,
    SuspensionEnded,
    SuspensionStarted,
    TokenRefreshed,
    UserCooled,
)
from .calls import AttemptEnded, AttemptStarted, DraftDone, DraftEvent, DraftQueued, RetryPlanned, TurnGranted
from .event import Event

__all__ = [
    "AppPaused",
    "AppResumed",
    "AttemptEnded",
    "AttemptStarted",
    "DraftDone",
    "DraftEvent",
    "DraftMayBeLeft",
    "DraftQueued",
    "Event",
    "EventsLost",
    "RetryPlanned",
    "SuspensionEnded",
    "SuspensionStarted",
    "TokenRefreshed",
    "TurnGranted",
    "UserCooled",
]
