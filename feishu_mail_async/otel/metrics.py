"""The metrics of an app's drafts and calls: counters and histograms, which are fed by events, and the gauges."""

import functools
import weakref
from collections.abc import Callable
from typing import Final

from opentelemetry import metrics
from opentelemetry.metrics import MeterProvider
from opentelemetry.semconv.metrics.http_metrics import HTTP_CLIENT_REQUEST_DURATION

from feishu_mail_async._scheduling.snapshot import Snapshot
from feishu_mail_async.events import (
    AppPaused,
    AppResumed,
    AttemptEnded,
    DraftDone,
    Event,
    RetryPlanned,
    TurnGranted,
)

from .attributes import SCHEMA, SCOPE, Attributes, Server, code_text, outcome, priority_name, release
from .gauges import Observed, create_gauges

__all__ = ["Metrics"]

_EXCHANGE: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""The bucket boundaries of a request's duration, in seconds, as the semantic conventions prescribe."""

_WAIT: Final = (0, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 180, 240, 300, 450, 600)
"""The bucket boundaries of waits for a turn, in seconds: from no wait to ten windows of a minute."""


class _Instruments:
    """The instruments of one provider, created once: the callback of an observable gauge cannot be unregistered.

    Args:
        provider: the provider of the metrics; None for the global one, which may be set later.
    """

    def __init__(self, provider: MeterProvider | None) -> None:
        self._provider = None if provider is None else weakref.ref(provider)
        meter = metrics.get_meter(SCOPE, release(), provider, SCHEMA)
        self.calls = meter.create_counter(
            "feishu_mail.calls", "{call}", "Calls that have ended, by the code of the answer."
        )
        self.duration = meter.create_histogram(
            HTTP_CLIENT_REQUEST_DURATION,
            "s",
            "Duration of HTTP client requests.",
            explicit_bucket_boundaries_advisory=_EXCHANGE,
        )
        self.retries = meter.create_counter(
            "feishu_mail.retries", "{retry}", "Further attempts that were planned, by whose fault it was."
        )
        self.waits = meter.create_histogram(
            "feishu_mail.turn.wait",
            "s",
            "Time that a call has waited for its turn.",
            explicit_bucket_boundaries_advisory=_WAIT,
        )
        self.outcomes = meter.create_counter("feishu_mail.outcomes", "{draft}", "What became of the drafts.")
        self.pauses = meter.create_counter(
            "feishu_mail.pauses", "{pause}", "How often all calls of the app began to wait."
        )
        create_gauges(meter, self.provider)

    def provider(self) -> MeterProvider | None:
        """Return the provider, or the current global one."""
        return metrics.get_meter_provider() if self._provider is None else self._provider()


_of_global: Final = functools.cache(functools.partial(_Instruments, None))
_of_provider: Final[weakref.WeakKeyDictionary[MeterProvider, _Instruments]] = weakref.WeakKeyDictionary()


def _instruments(provider: MeterProvider | None) -> _Instruments:
    if provider is None:
        return _of_global()
    if provider not in _of_provider:
        _of_provider[provider] = _Instruments(provider)
    return _of_provider[provider]


class Metrics:
    """The metrics of an app.

    Args:
        provider: the provider of the metrics; None for the global one, which may be set later.
        server: the host of the calls.
        app: attributes that distinguish the app from others of the process.
        snapshot: returns the state of the app's calls, in its loop; None if there is none.
    """

    def __init__(
        self,
        provider: MeterProvider | None,
        server: Server,
        app: Attributes,
        snapshot: Callable[[], Snapshot | None],
    ) -> None:
        self._to = _instruments(provider)
        self._server = server
        self._app = app
        self._paused: set[str] = set()
        self._observed = Observed(snapshot, self._to.provider, app)

    def hear(self, event: Event) -> None:
        """Handle an event, in the context in which it is delivered."""
        match event:
            case AttemptEnded():
                how: Attributes = {"feishu_mail.code": code_text(event.code), "feishu_mail.end": event.end.value}
                self._to.calls.add(1, how | self._at(event.endpoint))
                attributes = self._server.attributes(event.endpoint) | outcome(event)
                self._to.duration.record(event.seconds, attributes)
            case TurnGranted():
                priority: Attributes = {"feishu_mail.priority": priority_name(event.priority)}
                self._to.waits.record(event.waited, priority | self._at(event.endpoint))
            case DraftDone():
                became: Attributes = {
                    "feishu_mail.outcome": event.status.value,
                    "feishu_mail.code": code_text(event.code),
                }
                self._to.outcomes.add(1, became | self._app)
            case RetryPlanned():
                subject: Attributes = {"feishu_mail.subject": event.subject.value}
                self._to.retries.add(1, subject | self._at(event.endpoint))
            case AppPaused():
                if event.endpoint not in self._paused:  # otherwise a pause is only prolonged
                    self._paused.add(event.endpoint)
                    self._to.pauses.add(1, self._at(event.endpoint))
            case AppResumed():
                self._paused.discard(event.endpoint)

    def close(self) -> None:
        """End the gauges."""
        self._observed.close()

    def _at(self, endpoint: str) -> Attributes:
        return {"feishu_mail.endpoint": endpoint, **self._app}
