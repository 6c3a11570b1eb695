"""OpenTelemetry traces and metrics of an app's calls. Needs the extra `otel`.

A draft's span is named by its endpoint, and lasts from its submission to its outcome. Its calls are child spans,
named and attributed by the stable semantic conventions for HTTP:

    send draft                         draft submitted ------------------------------> outcome
      POST .../drafts/:draft_id/send        attempt 1 ---|     attempt 2 ---|

Spans and measurements are timestamped by the SDK's clock; measured durations are those of the loop's clock.

All instrumented clients of one app in one loop share an `_Instrumentation`, because each of them receives the
events of the whole app: only the first one passes them on, so nothing is counted twice. Counters and histograms
are fed by events. Gauges are read from a snapshot when the reader collects, because permits come back with time,
without an event.
"""

import asyncio
import concurrent.futures
import functools
import re
import weakref
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

try:
    from opentelemetry import context, metrics, trace
    from opentelemetry.metrics import CallbackOptions, CallbackT, Meter, MeterProvider, Observation
    from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
    from opentelemetry.semconv.attributes.http_attributes import (
        HTTP_REQUEST_METHOD,
        HTTP_REQUEST_RESEND_COUNT,
        HTTP_RESPONSE_STATUS_CODE,
    )
    from opentelemetry.semconv.attributes.server_attributes import SERVER_ADDRESS, SERVER_PORT
    from opentelemetry.semconv.attributes.url_attributes import URL_FULL
    from opentelemetry.semconv.metrics.http_metrics import HTTP_CLIENT_REQUEST_DURATION
    from opentelemetry.semconv.schemas import Schemas
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, TracerProvider
except ImportError as missing:
    raise ImportError(
        f"otel: {missing.name} is missing; install it with: pip install 'feishu-mail-async[otel]'",
        name=missing.name,
    ) from None

from ._api.endpoints import ENDPOINTS, Endpoint
from ._engine import EngineKey
from ._scheduling.scheduler import Snapshot
from .client import FeishuMailClient
from .errors import ClientClosed, FeishuMailError
from .events import (
    AppPaused,
    AppResumed,
    AttemptEnded,
    AttemptStarted,
    DraftDone,
    DraftEvent,
    DraftQueued,
    Event,
    RetryPlanned,
    TurnGranted,
)
from .model import Priority

if TYPE_CHECKING:
    from contextvars import Token

    from opentelemetry.context import Context

__all__ = ["instrument"]

_Attributes = dict[str, str | int | float | bool]

_SCOPE: Final = "feishu_mail_async"
_URL_TEMPLATE: Final = "url.template"  # not a stable attribute, but the stable span name is built from it
_SCHEMA: Final = Schemas.V1_36_0.value
_CLIENT_ERROR: Final = 400
_NONE: Final = "none"
"""The code attribute's value if there is no code: all measurements of an instrument have the same attributes."""

_EXCHANGE: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""The bucket boundaries of a request's duration, in seconds, as the semantic conventions prescribe."""

_WAIT: Final = (0, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 180, 240, 300, 450, 600)
"""The bucket boundaries of waits for a turn, in seconds: from no wait to ten windows of a minute."""

_PATIENCE: Final = 0.5
"""The longest time that a thread collecting metrics waits for the loop's snapshot, in seconds."""


def instrument(
    client: FeishuMailClient,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> Callable[[], None]:
    """Emit spans and metrics for the calls of a client's app, until the client is closed.

    They cover all clients of the app in this loop, as `FeishuMailClient.subscribe` does. If several of them are
    instrumented, nothing is counted twice, and all are covered for as long as one instrumented client is open.

    Args:
        client: a client, in its own event loop.
        tracer_provider: the provider of the spans; None for the global one.
        meter_provider: the provider of the metrics; None for the global one.

    Returns:
        a function that ends the instrumentation, to be called in the client's loop. It ends open spans.

    Raises:
        ClientClosed: the client is closed.
        RuntimeError: this is not the client's event loop.
    """
    client.snapshot()  # binds the client to this loop, or raises the reason why that is impossible
    # Loops that ended without closing their clients have left entries behind.
    for ended in [key for key in tuple(_live) if key[0].is_closed()]:
        _live.pop(ended).close()
    key = asyncio.get_running_loop(), client._key, tracer_provider, meter_provider  # noqa: SLF001 - our package
    if key not in _live:
        _live[key] = _Instrumentation(key)
    return _live[key].join(client)


@functools.cache
def _release() -> str:
    return version("feishu-mail-async")


_Key = tuple[asyncio.AbstractEventLoop, EngineKey, TracerProvider | None, MeterProvider | None]


class _Server:
    """The attributes common to the spans and measurements of all calls to one host.

    Args:
        base_url: the client's base URL.

    Attributes:
        base_url: the same.
        at: the attributes that name the host.
    """

    def __init__(self, base_url: str) -> None:
        parts = urlsplit(base_url)
        self.base_url = base_url
        self._prefix = parts.path
        self.at: _Attributes = {
            SERVER_ADDRESS: parts.hostname or "",
            SERVER_PORT: parts.port or (443 if parts.scheme == "https" else 80),
        }
        self._calls = {name: self._call(endpoint) for name, endpoint in ENDPOINTS.items()}

    def _call(self, endpoint: Endpoint[Any]) -> tuple[str, _Attributes]:
        method, template = endpoint.method, self._prefix + _template(endpoint.path)
        return f"{method} {template}", {HTTP_REQUEST_METHOD: method, _URL_TEMPLATE: template, **self.at}

    def name(self, endpoint: str) -> str:
        """Return the name of a call's span."""
        return self._calls[endpoint][0]

    def attributes(self, endpoint: str) -> _Attributes:
        """Return a new dict of a call's attributes, which the caller may extend."""
        return dict(self._calls[endpoint][1])


def _template(path: str) -> str:
    """Return the path of an endpoint's row as the API documents spell it."""
    return re.sub(r"\{(\w+)\}", r":\1", path.replace("{mailbox}", "{user_mailbox_id}"))


def _outcome(event: AttemptEnded) -> _Attributes:
    """Return the attributes of a call's end by the conventions, common to its span and its duration."""
    attributes: _Attributes = {}
    if event.http_status is not None:
        attributes[HTTP_RESPONSE_STATUS_CODE] = event.http_status
    if event.error is not None:
        # The error of the event decides, not the HTTP status: "already sent" has an HTTP error status and is a
        # success, and some failures come with HTTP 200.
        failed = event.http_status is not None and event.http_status >= _CLIENT_ERROR
        attributes[ERROR_TYPE] = str(event.http_status) if failed else _type(event.error)
    return attributes


def _type(error: FeishuMailError) -> str:
    return type(error).__qualname__


def _name(priority: Priority) -> str:
    return priority.name.lower()


def _code(code: int | None) -> str:
    return _NONE if code is None else str(code)


def _answer(code: int | None, log_id: str | None) -> _Attributes:
    """Return the attributes that identify an answer; empty if there was none."""
    answer: _Attributes = {} if code is None else {"feishu_mail.code": _code(code)}
    return answer if log_id is None else answer | {"feishu_mail.log_id": log_id}


def _about(event: DraftEvent) -> _Attributes:
    """Return the attributes of a call's user and draft."""
    about: _Attributes = {"feishu_mail.user": event.user}
    if event.draft is not None:
        about |= {"feishu_mail.draft_id": event.draft.draft_id, "feishu_mail.mailbox": event.draft.mailbox}
    return about


class _Spans:
    """The open spans of an app, opened and ended by events.

    Args:
        tracer: the tracer that makes them.
        server: the host of the calls.
    """

    def __init__(self, tracer: Tracer, server: _Server) -> None:
        self._tracer = tracer
        self._server = server
        self._drafts: dict[int, Span] = {}
        self._attempts: dict[int, tuple[Span, Token[Context]]] = {}

    def hear(self, event: Event) -> None:
        """Handle an event, in the context in which it is delivered."""
        match event:
            case AttemptStarted():
                self._started(event)
            case AttemptEnded():
                self._ended(event)
            case TurnGranted():
                self._granted(event)
            case DraftDone():
                self._done(event)
            case RetryPlanned():
                self._planned(event)
            case DraftQueued():
                self._of(event)

    def close(self) -> None:
        """End the open spans."""
        # The contexts that attempts have attached are not detached here: that is possible only in the attempts'
        # own tasks, which are about to end.
        for span in [attempt for attempt, _ in self._attempts.values()] + list(self._drafts.values()):
            span.end()
        self._attempts.clear()
        self._drafts.clear()

    def _of(self, event: DraftEvent) -> Span | None:
        """Return the draft's span, opening it with the first event of the draft; None for a list call.

        The event is delivered in the context of the code that submitted the draft, so the span current there
        becomes the parent.
        """
        if event.draft is None:
            return None
        span = self._drafts.get(event.job)
        if span is None:
            name = f"{event.endpoint} draft"
            span = self._drafts[event.job] = self._tracer.start_span(name, attributes=_about(event))
        return span

    def _granted(self, event: TurnGranted) -> None:
        span = self._of(event)
        if span is not None:
            span.set_attribute("feishu_mail.priority", _name(event.priority))
            told: _Attributes = {
                "feishu_mail.attempt": event.attempt,
                "feishu_mail.waited": event.waited,
                "feishu_mail.probe": event.probe,
            }
            span.add_event(f"feishu_mail.{event.name}", told)

    def _planned(self, event: RetryPlanned) -> None:
        span = self._of(event)
        if span is not None:
            told: _Attributes = {
                "feishu_mail.attempts": event.attempts,
                "feishu_mail.delay": event.delay,
                "feishu_mail.subject": event.subject.value,
                ERROR_TYPE: _type(event.error),
            }
            span.add_event(f"feishu_mail.{event.name}", told)

    def _started(self, event: AttemptStarted) -> None:
        """Open a call's span and make it current in the task that makes the call."""
        draft = self._of(event)
        parent = None if draft is None else trace.set_span_in_context(draft)
        attributes = self._server.attributes(event.endpoint) | _about(event)
        attributes[URL_FULL] = self._server.base_url + event.path
        if event.attempt > 1:
            attributes[HTTP_REQUEST_RESEND_COUNT] = event.attempt - 1
        name = self._server.name(event.endpoint)
        span = self._tracer.start_span(name, parent, SpanKind.CLIENT, attributes)
        self._attempts[event.job] = span, context.attach(trace.set_span_in_context(span))

    def _ended(self, event: AttemptEnded) -> None:
        span, token = self._attempts.pop(event.job, (None, None))
        if span is None or token is None:  # the attempt began before the instrumentation
            return
        attributes = _outcome(event)
        attributes |= _answer(event.code, event.log_id)
        attributes |= {"feishu_mail.end": event.end.value, "feishu_mail.verdict": event.verdict.value}
        _end(span, attributes, event.error)
        context.detach(token)

    def _done(self, event: DraftDone) -> None:
        if event.joined:  # a duplicate: the span of the draft it was joined to covers both
            return
        span = self._of(event)
        assert span is not None
        del self._drafts[event.job]
        attributes: _Attributes = {
            "feishu_mail.outcome": event.status.value,
            "feishu_mail.attempts": event.attempts,
            "feishu_mail.waited": event.waited,
        }
        told = event.result or event.error
        attributes |= _answer(event.code, None if told is None else told.log_id)
        if event.error is not None:
            attributes[ERROR_TYPE] = _type(event.error)
        _end(span, attributes, event.error)


def _end(span: Span, attributes: _Attributes, error: FeishuMailError | None) -> None:
    if span.is_recording():
        span.set_attributes(attributes)
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, str(error)))
    span.end()


class _Instruments:
    """The instruments of one provider, created once: the callback of an observable gauge cannot be unregistered.

    Args:
        provider: the provider of the metrics; None for the global one, which may be set later.
    """

    def __init__(self, provider: MeterProvider | None) -> None:
        self._provider = None if provider is None else weakref.ref(provider)
        meter = metrics.get_meter(_SCOPE, _release(), provider, _SCHEMA)
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
        self._observe(meter)

    def _observe(self, meter: Meter) -> None:
        meter.create_observable_gauge(
            "feishu_mail.queue.length", [self._callback(_queued)], "{draft}", "Drafts that wait for a turn."
        )
        meter.create_observable_gauge(
            "feishu_mail.permits.used",
            [self._callback(_used)],
            "{permit}",
            "Permits of the window that are taken.",
        )
        meter.create_observable_gauge(
            "feishu_mail.permits.limit", [self._callback(_limit)], "{permit}", "Permits that the window has."
        )

    def _callback(self, read: Callable[[Snapshot], Iterable[Observation]]) -> CallbackT:
        def observe(options: CallbackOptions) -> Iterator[Observation]:
            # A copy, because readers collect in threads of their own while the loop changes the dict.
            for one in tuple(_live.values()):
                if one.instruments.provider is self.provider:
                    now = one.standing(min(_PATIENCE, options.timeout_millis / 1000))
                    for value in () if now is None else read(now):
                        yield Observation(value.value, {**(value.attributes or {}), **one.app})

        return observe

    @property
    def provider(self) -> MeterProvider | None:
        """The provider, or the current global one."""
        return metrics.get_meter_provider() if self._provider is None else self._provider()


def _queued(now: Snapshot) -> Iterator[Observation]:
    for priority, number in now.waiting.items():
        yield Observation(number, {"feishu_mail.priority": _name(priority)})


def _used(now: Snapshot) -> Iterator[Observation]:
    yield Observation(now.limit.calls - now.permits)


def _limit(now: Snapshot) -> Iterator[Observation]:
    yield Observation(now.limit.calls)


_of_global: Final = functools.cache(functools.partial(_Instruments, None))
_of_provider: Final[weakref.WeakKeyDictionary[MeterProvider, _Instruments]] = weakref.WeakKeyDictionary()


def _instruments(provider: MeterProvider | None) -> _Instruments:
    if provider is None:
        return _of_global()
    if provider not in _of_provider:
        _of_provider[provider] = _Instruments(provider)
    return _of_provider[provider]


class _Metrics:
    """The counters and histograms of an app, fed by events.

    Args:
        instruments: the instruments of its provider.
        server: the host of the calls.
        app: attributes that distinguish the app from others of the process.
    """

    def __init__(self, instruments: _Instruments, server: _Server, app: _Attributes) -> None:
        self._to = instruments
        self._server = server
        self._app = app
        self._paused: set[str] = set()

    def hear(self, event: Event) -> None:
        """Handle an event, in the context in which it is delivered."""
        match event:
            case AttemptEnded():
                how: _Attributes = {"feishu_mail.code": _code(event.code), "feishu_mail.end": event.end.value}
                self._to.calls.add(1, how | self._at(event.endpoint))
                attributes = self._server.attributes(event.endpoint) | _outcome(event)
                self._to.duration.record(event.seconds, attributes)
            case TurnGranted():
                priority: _Attributes = {"feishu_mail.priority": _name(event.priority)}
                self._to.waits.record(event.waited, priority | self._at(event.endpoint))
            case DraftDone():
                became: _Attributes = {
                    "feishu_mail.outcome": event.status.value,
                    "feishu_mail.code": _code(event.code),
                }
                self._to.outcomes.add(1, became | self._app)
            case RetryPlanned():
                subject: _Attributes = {"feishu_mail.subject": event.subject.value}
                self._to.retries.add(1, subject | self._at(event.endpoint))
            case AppPaused():
                if event.endpoint not in self._paused:  # otherwise a pause is only prolonged
                    self._paused.add(event.endpoint)
                    self._to.pauses.add(1, self._at(event.endpoint))
            case AppResumed():
                self._paused.discard(event.endpoint)

    def _at(self, endpoint: str) -> _Attributes:
        return {"feishu_mail.endpoint": endpoint, **self._app}


class _Member:
    """An instrumented client. Held weakly, so that instrumentation does not keep clients alive."""

    __slots__ = ("client",)

    def __init__(self, client: FeishuMailClient) -> None:
        self.client = weakref.ref(client)


class _Instrumentation:
    """The spans and metrics of one app in one loop, for one pair of providers.

    Every instrumented client of the app receives all events of the app, so only the first one passes them on.

    Args:
        key: the loop, the app and the providers.

    Attributes:
        app: attributes that distinguish the app from others of the process.
        instruments: the instruments of its provider.
    """

    def __init__(self, key: _Key) -> None:
        self._key = key
        self._loop, (base_url, app, _), tracer_provider, meter_provider = key
        server = _Server(base_url)
        self.app = server.at if app is None else {"feishu_mail.app": app, **server.at}
        self.instruments = _instruments(meter_provider)
        self._metrics = _Metrics(self.instruments, server, self.app)
        self._spans = _Spans(trace.get_tracer(_SCOPE, _release(), tracer_provider, _SCHEMA), server)
        self._members: list[_Member] = []

    def join(self, client: FeishuMailClient) -> Callable[[], None]:
        """Subscribe through this client too, and return a function that ends the subscription."""
        member = _Member(client)

        def hear(event: Event) -> None:
            if self._members[:1] == [member]:
                self._metrics.hear(event)  # first, while the call's span is current, which exemplars refer to
                self._spans.hear(event)

        def end() -> None:
            if member in self._members:
                unsubscribe()
                self._members.remove(member)
                if not self._members:
                    _live.pop(self._key, None)
                    self.close()

        unsubscribe = client.subscribe(hear, closed=end)
        self._members.append(member)
        return end

    def close(self) -> None:
        """End the open spans."""
        self._spans.close()

    def standing(self, patience: float) -> Snapshot | None:
        """Return a snapshot of the scheduler, from any thread; None if the loop or the clients cannot give one.

        Metric readers collect in threads of their own, and the scheduler's state belongs to the loop. Permits come
        back as time passes, without an event, so values kept from the last event would be wrong. So the snapshot
        is taken in the loop.

        Args:
            patience: the longest time that another thread waits for a busy loop, in seconds.
        """
        if not self._loop.is_running():
            return None
        try:
            if asyncio.get_running_loop() is self._loop:
                return self._snapshot()
        except RuntimeError:
            pass  # the calling thread has no loop
        found: concurrent.futures.Future[Snapshot | None] = concurrent.futures.Future()
        try:
            self._loop.call_soon_threadsafe(lambda: found.set_result(self._snapshot()))
            return found.result(patience)
        except (RuntimeError, TimeoutError):  # the loop was closed meanwhile, or is busy
            return None

    def _snapshot(self) -> Snapshot | None:
        for member in self._members:
            client = member.client()
            if client is not None:
                try:
                    return client.snapshot()
                except ClientClosed:  # the client is closing and finishes its calls
                    continue
        return None


_live: Final[dict[_Key, _Instrumentation]] = {}
