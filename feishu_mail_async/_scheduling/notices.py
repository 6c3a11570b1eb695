"""What has been told of pauses and suspensions: each is published once, whoever notices it.

A pause or a suspension may begin and end by a call of this loop, of another loop of the process, or of another
process. So a scheduler publishes no change when it makes one, but compares the state with what it has told so far.
"""

import copy
import math
from collections.abc import Iterable
from typing import Final

from feishu_mail_async._hub import EventHub
from feishu_mail_async.events import AppPaused, AppResumed, SuspensionEnded, SuspensionStarted

from .state import EndpointState
from .store import mutex
from .suspensions import Suspension, SuspensionKey

__all__ = ["Notices", "Told"]

_SAME: Final = 1e-3
"""Seconds by which two readings of one pause's end in a shared ledger may differ."""


class Notices:
    """The suspensions that have been published by the schedulers of an app.

    All of them notice a suspension, each when it looks; only the first one publishes it.
    """

    def __init__(self) -> None:
        self._published: set[tuple[str, str]] = set()

    def publish(
        self,
        events: EventHub,
        ended: Iterable[SuspensionKey],
        begun: Iterable[Suspension],
        at: float,
        endpoint: str,
    ) -> None:
        """Publish suspensions that have ended or begun, each of them once."""
        for key in sorted(ended):
            if key in self._published:
                self._published.remove(key)
                events.publish(SuspensionEnded(at, endpoint, key.subject))
        for new in begun:
            if (new.subject, new.reach) not in self._published:
                self._published.add((new.subject, new.reach))
                events.publish(SuspensionStarted(at, endpoint, new.subject, new.seconds, new.until, new.reason))


class Told:
    """What one scheduler has noticed of its endpoint's state, and published or passed on to waiters.

    Args:
        events: delivers events to subscribers.
        endpoint: the endpoint's name.
        notices: the suspensions published so far.

    Attributes:
        paused_since: when the present pause was first published; None: there is none.
        suspended: the keys of the suspensions that held when they were last looked at.
        suspension_changes: `Suspensions.changes` at that time.
        outages: `EndpointState.unreachable_times` when waiters were last refused for an outage.
    """

    def __init__(self, events: EventHub, endpoint: str, notices: Notices) -> None:
        self._events = events
        self._endpoint = endpoint
        self._notices = notices
        self._pauses = 0  # `EndpointState.pauses` when a pause was last published
        self._paused_until = -math.inf  # its end, as published
        self.paused_since: float | None = None
        self.suspended: set[SuspensionKey] = set()
        self.suspension_changes = 0
        self.outages = 0

    def publish(self, state: EndpointState, now: float, at: float) -> None:
        """Publish the pauses and suspensions that have begun or ended since the last time.

        Args:
            state: the endpoint's state.
            now: the store's time.
            at: the same by the loop's clock, which events have.
        """
        if state.pauses != self._pauses or (state.pause is None) != (self.paused_since is None):
            self._publish_pause(state, now, at)
        if state.suspensions.changes != self.suspension_changes:
            before = self.suspended
            with mutex:
                held, news = set(state.suspensions.entries), state.suspensions.holding(now, before)
                self.suspended, self.suspension_changes = held, state.suspensions.changes
            self._notices.publish(self._events, before - held, news, at, self._endpoint)

    def _publish_pause(self, state: EndpointState, now: float, at: float) -> None:
        since = self.paused_since
        with mutex:
            self._pauses = state.pauses
            pause = None if state.pause is None else copy.copy(state.pause)
        if pause is not None:
            if since is None or pause.until > self._paused_until + _SAME:
                self.paused_since, self._paused_until = now if since is None else since, pause.until
                self._events.publish(AppPaused(at, self._endpoint, max(0.0, pause.until - now), pause.reason))
        elif since is not None:
            self.paused_since = None
            self._events.publish(AppResumed(at, self._endpoint, now - since))
