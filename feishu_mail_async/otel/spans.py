"""The spans of an app's drafts and calls.

A draft's span is named by its endpoint, and lasts from its submission to its outcome. Its calls are child spans,
named and attributed by the stable semantic conventions for HTTP:

    send draft                         draft submitted ------------------------------> outcome
      POST .../drafts/:draft_id/send        attempt 1 ---|     attempt 2 ---|
"""

from typing import TYPE_CHECKING

from opentelemetry import context, trace
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.semconv.attributes.http_attributes import HTTP_REQUEST_RESEND_COUNT
from opentelemetry.semconv.attributes.url_attributes import URL_FULL
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider

from feishu_mail_async.errors import FeishuMailError
from feishu_mail_async.events import (
    AttemptEnded,
    AttemptStarted,
    DraftDone,
    DraftEvent,
    DraftQueued,
    Event,
    RetryPlanned,
    TurnGranted,
)

from .attributes import (
    SCHEMA,
    SCOPE,
    Attributes,
    Server,
    about,
    answer,
    error_type,
    outcome,
    priority_name,
    release,
)

if TYPE_CHECKING:
    from contextvars import Token

    from opentelemetry.context import Context

__all__ = ["Spans"]


class Spans:
    """The open spans of an app, opened and ended by events.

    Args:
        provider: the provider of the spans; None for the global one, which may be set later.
        server: the host of the calls.
    """

    def __init__(self, provider: TracerProvider | None, server: Server) -> None:
        self._tracer = trace.get_tracer(SCOPE, release(), provider, SCHEMA)
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
            span = self._drafts[event.job] = self._tracer.start_span(name, attributes=about(event))
        return span

    def _granted(self, event: TurnGranted) -> None:
        span = self._of(event)
        if span is not None:
            span.set_attribute("feishu_mail.priority", priority_name(event.priority))
            told: Attributes = {
                "feishu_mail.attempt": event.attempt,
                "feishu_mail.waited": event.waited,
                "feishu_mail.probe": event.probe,
            }
            span.add_event(f"feishu_mail.{event.name}", told)

    def _planned(self, event: RetryPlanned) -> None:
        span = self._of(event)
        if span is not None:
            told: Attributes = {
                "feishu_mail.attempts": event.attempts,
                "feishu_mail.delay": event.delay,
                "feishu_mail.subject": event.subject.value,
                ERROR_TYPE: error_type(event.error),
            }
            span.add_event(f"feishu_mail.{event.name}", told)

    def _started(self, event: AttemptStarted) -> None:
        """Open a call's span and make it current in the task that makes the call."""
        draft = self._of(event)
        parent = None if draft is None else trace.set_span_in_context(draft)
        attributes = self._server.attributes(event.endpoint) | about(event)
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
        attributes = outcome(event)
        attributes |= answer(event.code, event.log_id)
        attributes |= {"feishu_mail.end": event.end.value, "feishu_mail.verdict": event.verdict.value}
        _end(span, attributes, event.error)
        context.detach(token)

    def _done(self, event: DraftDone) -> None:
        if event.joined:  # a duplicate: the span of the draft it was joined to covers both
            return
        span = self._of(event)
        assert span is not None
        del self._drafts[event.job]
        attributes: Attributes = {
            "feishu_mail.outcome": event.status.value,
            "feishu_mail.attempts": event.attempts,
            "feishu_mail.waited": event.waited,
        }
        told = event.result or event.error
        attributes |= answer(event.code, None if told is None else told.log_id)
        if event.error is not None:
            attributes[ERROR_TYPE] = error_type(event.error)
        _end(span, attributes, event.error)


def _end(span: Span, attributes: Attributes, error: FeishuMailError | None) -> None:
    if span.is_recording():
        span.set_attributes(attributes)
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, str(error)))
    span.end()
