"""Telemetry that stays in this process, and looks at its spans."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from feishu_mail_async import Draft, FeishuMailClient
from feishu_mail_async.otel import instrument, instrumentation
from tests.helpers.clock import now

DRAFTS: Final = "/open-apis/mail/v1/user_mailboxes/:user_mailbox_id/drafts"
SEND: Final = f"POST {DRAFTS}/:draft_id/send"
LIST: Final = f"GET {DRAFTS}"


class Telemetry:
    """An SDK that keeps everything in memory."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        self.tracer_provider = TracerProvider(shutdown_on_exit=False)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meter_provider = MeterProvider([self.reader], shutdown_on_exit=False)
        self.tracer = self.tracer_provider.get_tracer("test")

    def instrument(self, client: FeishuMailClient) -> Callable[[], None]:
        return instrument(client, tracer_provider=self.tracer_provider, meter_provider=self.meter_provider)

    def close(self) -> None:
        self.tracer_provider.shutdown()
        self.meter_provider.shutdown()

    def spans(self, *names: str) -> list[ReadableSpan]:
        """Spans that have ended, in that order."""
        return [span for span in self._exporter.get_finished_spans() if span.name in names]

    def drafts(self) -> dict[str, ReadableSpan]:
        """The span of each draft; there is one each."""
        spans = self.spans("send draft")
        found = {str(about(span)["feishu_mail.draft_id"]): span for span in spans}
        assert len(found) == len(spans)
        return found

    def span(self, name: str) -> ReadableSpan:
        (span,) = self.spans(name)
        return span

    def points(self, name: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def numbers(self, name: str, *attributes: str) -> dict[Any, float]:
        """The sums, or counts of a histogram, by these attributes (one: its value; more: a tuple)."""
        found: dict[Any, float] = {}
        for point in self.points(name):
            values = tuple(point.attributes.get(one) for one in attributes)
            number = point.value if isinstance(point, NumberDataPoint) else point.count
            key = values[0] if len(values) == 1 else values
            found[key] = found.get(key, 0) + number
        return found

    def everything(self) -> str:
        data = self.reader.get_metrics_data()
        assert data is not None
        return "".join(span.to_json() for span in self._exporter.get_finished_spans()) + data.to_json()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Telemetry]:
    """An SDK whose spans have the times of the loop's clock."""
    monkeypatch.setattr("opentelemetry.sdk.trace.time_ns", lambda: round(now() * 1e9))
    telemetry = Telemetry()
    yield telemetry
    telemetry.close()
    assert instrumentation._live == {}, "an instrumentation outlives its client"


def about(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def lasted(span: ReadableSpan) -> tuple[float, float]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time / 1e9, span.end_time / 1e9


def length(span: ReadableSpan) -> float:
    began, ended = lasted(span)
    return ended - began


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def id_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def open_spans() -> int:
    return sum(len(one._spans._drafts) + len(one._spans._attempts) for one in instrumentation._live.values())


def send(client: FeishuMailClient, draft: str | Draft, **how: Any) -> "asyncio.Task[Any]":
    return asyncio.create_task(client.send_draft(draft, **how))
