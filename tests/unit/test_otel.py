"""Spans and metrics: that they tell what happened, to whom, and no more; and that nothing stays open."""

import asyncio
import contextlib
import gc
import logging
import subprocess
import sys
import textwrap
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any, Final
from unittest import mock

import aiohttp
import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from feishu_mail_async import (
    ClientClosed,
    Draft,
    FeishuMailClient,
    Outcome,
    OutcomeUnknown,
    Priority,
    RateLimit,
    RetryPolicy,
    codes,
    otel,
)
from feishu_mail_async.events import AttemptEnded, AttemptStarted, DraftDone, Event, TurnGranted
from feishu_mail_async.otel import instrument
from feishu_mail_async.sandbox import Arrival, Fault, Sandbox
from tests.helpers.clock import now
from tests.helpers.support import FREE, SENT, always, raw_server, scene, settle
from tests.simulation.test_secrets import faults

pytestmark = pytest.mark.looptime(start=0)

DRAFTS: Final = "/open-apis/mail/v1/user_mailboxes/:user_mailbox_id/drafts"
SEND: Final = f"POST {DRAFTS}/:draft_id/send"
LIST: Final = f"GET {DRAFTS}"
CLOSES_THE_APP: Final = [
    Fault.code(row.name) for row in codes.CODES.values() if row.subject is codes.Subject.APP and row.until
]
ALREADY_SENT: Final = codes.named("AlreadySent").number


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
    assert otel._live == {}, "an instrumentation outlives its client"


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
    return sum(len(one._spans._drafts) + len(one._spans._attempts) for one in otel._live.values())


def send(client: FeishuMailClient, draft: str | Draft, **how: Any) -> "asyncio.Task[Any]":
    return asyncio.create_task(client.send_draft(draft, **how))


# --- a run in which everything goes wrong ----------------------------------------------------------------


async def test_spans_and_metrics_tell_what_the_sandbox_saw_call_by_call(seen: Telemetry) -> None:
    users = [f"user-{number}" for number in range(40)]
    async with Sandbox(users=users, calls=100_000, latency=0.05) as sandbox:
        given: list[tuple[Draft, Fault]] = []
        for number, fault in enumerate(faults()):
            user = users[number % len(users)]
            given.append((Draft(sandbox.add_draft(user), user=user), fault))
            sandbox.script(given[-1][0].draft_id, fault)
        drafts = [draft for draft, fault in given if fault not in CLOSES_THE_APP]
        async with FeishuMailClient(
            sandbox.tokens, base_url=sandbox.base_url, rate_limit=FREE, retry=RetryPolicy(attempts=2, refusals=2)
        ) as client:
            seen.instrument(client)
            with seen.tracer.start_as_current_span("the run") as run:
                outcomes = [outcome async for outcome in client.send_drafts(drafts)]
                for draft, _ in [one for one in given if one[1] in CLOSES_THE_APP]:
                    outcomes += [outcome async for outcome in client.send_drafts([draft])]
                    client.resume("app")
                assert [draft async for draft in client.list_drafts(user=users[0])]
            assert open_spans() == 0
        assert len(outcomes) == len(given)
        assert len(sandbox.ledger.sends) > len(given) + 10  # some were tried again
        calls = check_calls(seen, sandbox.ledger.arrivals)
        check_drafts(seen, outcomes, run.get_span_context().span_id)
        check_metrics(seen, calls, outcomes)
        secrets = [*sandbox.tokens.values(), sandbox.client_secret]
    text = seen.everything()
    assert [secret for secret in secrets if secret in text or "Bearer" in text] == []


def check_calls(seen: Telemetry, arrivals: list[Arrival]) -> Counter[tuple[str, str, str]]:
    """Each call that arrived has a span, and there is no other; they are counted by endpoint, code and end."""
    calls: Counter[tuple[str, str, str]] = Counter()
    spans = seen.spans(SEND, LIST)
    answered = {about(span)["feishu_mail.log_id"]: span for span in spans if "feishu_mail.log_id" in about(span)}
    lost = [span for span in spans if "feishu_mail.log_id" not in about(span)]
    drafts = {id_of(span): span for span in seen.spans("send draft")}
    made: Counter[str | None] = Counter()
    for arrival in arrivals:
        span = answered.pop(arrival.log_id, None)
        if span is None:
            span = next(one for one in lost if about(one)["feishu_mail.draft_id"] == arrival.draft_id)
            lost.remove(span)
        said = about(span)
        assert span.name == (LIST if arrival.endpoint == "list" else SEND)
        assert span.kind is SpanKind.CLIENT
        began, ended = lasted(span)
        assert began <= arrival.time
        assert said.get("feishu_mail.draft_id") == arrival.draft_id
        code = None
        if said["feishu_mail.end"] == "answered":
            assert arrival.time <= ended
            assert said["http.response.status_code"] == arrival.http_status
            code = arrival.code
        else:
            assert said["feishu_mail.end"] == "lost"
            assert "http.response.status_code" not in said
        assert said.get("feishu_mail.code") == (None if code is None else str(code))
        calls[arrival.endpoint, "none" if code is None else str(code), said["feishu_mail.end"]] += 1
        good = arrival.code == ALREADY_SENT or said["feishu_mail.verdict"] == "sent"
        assert span.status.status_code is (StatusCode.UNSET if good else StatusCode.ERROR)
        assert ("error.type" in said) is not good
        if not good and (arrival.http_status or 0) >= 400 and said["feishu_mail.end"] == "answered":
            assert said["error.type"] == str(arrival.http_status)
        if arrival.draft_id is not None:
            parent = drafts[parent_of(span) or 0]
            assert about(parent)["feishu_mail.draft_id"] == arrival.draft_id
            assert lasted(parent)[0] <= began <= ended <= lasted(parent)[1]
            assert said.get("http.request.resend_count", 0) == made[arrival.draft_id]
            made[arrival.draft_id] += 1
    assert not lost
    assert not answered
    return calls


def check_drafts(seen: Telemetry, outcomes: list[Outcome], run: int) -> None:
    """Each draft has one span, within the span of whoever gave it, that tells what became of it."""
    drafts = seen.drafts()
    for outcome in outcomes:
        span = drafts.pop(outcome.draft.draft_id)
        said = about(span)
        assert parent_of(span) == run
        assert span.kind is SpanKind.INTERNAL
        assert said["feishu_mail.outcome"] == outcome.status
        assert said["feishu_mail.user"] == outcome.draft.user
        assert said["feishu_mail.mailbox"] == "me"
        made = [one for one in seen.spans(SEND) if parent_of(one) == id_of(span)]
        assert said["feishu_mail.attempts"] == len(made)
        assert len([one for one in span.events if one.name == "feishu_mail.turn_granted"]) == len(made)
        assert len([one for one in span.events if one.name == "feishu_mail.retry_planned"]) == max(
            0, len(made) - 1
        )
        if outcome.error is None:
            assert span.status.status_code is StatusCode.UNSET
            assert "error.type" not in said
        else:
            assert span.status.status_code is StatusCode.ERROR
            assert said["error.type"] == type(outcome.error).__name__
            assert said.get("feishu_mail.log_id") == outcome.error.log_id
    assert not drafts


def check_metrics(seen: Telemetry, calls: Counter[tuple[str, str, str]], outcomes: list[Outcome]) -> None:
    spans = seen.spans(SEND, LIST)
    names = "feishu_mail.endpoint", "feishu_mail.code", "feishu_mail.end"
    assert seen.numbers("feishu_mail.calls", *names) == dict(calls)
    by_status = Counter(about(span).get("http.response.status_code") for span in spans)
    assert seen.numbers("http.client.request.duration", "http.response.status_code") == dict(by_status)
    by_error = Counter(about(span).get("error.type") for span in spans)
    assert seen.numbers("http.client.request.duration", "error.type") == dict(by_error)
    took = sum(point.sum for point in seen.points("http.client.request.duration"))
    assert took == pytest.approx(sum(map(length, spans)))
    assert seen.numbers("feishu_mail.outcomes", "feishu_mail.outcome") == Counter(one.status for one in outcomes)
    told = [event for span in seen.spans("send draft") for event in span.events]
    turns: list[dict[str, Any]] = [
        dict(one.attributes or {}) for one in told if one.name == "feishu_mail.turn_granted"
    ]
    waits: list[HistogramDataPoint] = [
        one for one in seen.points("feishu_mail.turn.wait") if one.attributes["feishu_mail.endpoint"] == "send"
    ]
    assert sum(one.count for one in waits) == len(turns) == len(seen.spans(SEND))
    assert sum(one.sum for one in waits) == pytest.approx(sum(one["feishu_mail.waited"] for one in turns))
    retries = Counter(
        dict(one.attributes or {})["feishu_mail.subject"]
        for one in told
        if one.name == "feishu_mail.retry_planned"
    )
    assert len(retries) == 3
    assert seen.numbers("feishu_mail.retries", "feishu_mail.subject") == dict(retries)


# --- what stands in a span -------------------------------------------------------------------------------


async def test_a_span_follows_the_conventions(seen: Telemetry) -> None:
    async with scene(drafts=2, rate_limit=RateLimit(spacing=5)) as (sandbox, client, ids):
        seen.instrument(client)
        port = int(sandbox.base_url.rpartition(":")[2])
        results = await asyncio.gather(*(client.send_draft(one, priority=Priority.INTERACTIVE) for one in ids))
        first, second = seen.spans(SEND)
        url = f"{sandbox.base_url}/open-apis/mail/v1/user_mailboxes/me/drafts/{ids[0]}/send"
        assert about(first) == {
            "http.request.method": "POST",
            "url.full": url,
            "url.template": f"{DRAFTS}/:draft_id/send",
            "server.address": "127.0.0.1",
            "server.port": port,
            "http.response.status_code": 200,
            "feishu_mail.user": "alice",
            "feishu_mail.draft_id": ids[0],
            "feishu_mail.mailbox": "me",
            "feishu_mail.code": "0",
            "feishu_mail.log_id": results[0].log_id,
            "feishu_mail.end": "answered",
            "feishu_mail.verdict": "sent",
        }
        draft = seen.drafts()[ids[1]]
        assert draft.parent is None
        assert about(draft) == {
            "feishu_mail.user": "alice",
            "feishu_mail.draft_id": ids[1],
            "feishu_mail.mailbox": "me",
            "feishu_mail.priority": "interactive",
            "feishu_mail.outcome": "sent",
            "feishu_mail.attempts": 1,
            "feishu_mail.waited": pytest.approx(5, abs=0.01),
            "feishu_mail.log_id": results[1].log_id,
        }
        assert list(lasted(second)) == pytest.approx([5, 5.1], abs=0.01)
        assert list(lasted(draft)) == pytest.approx([0, 5.1], abs=0.01)
        (turn,) = draft.events
        assert turn.timestamp / 1e9 == pytest.approx(5, abs=0.1)
        assert dict(turn.attributes or {}) == {
            "feishu_mail.attempt": 1,
            "feishu_mail.waited": pytest.approx(5, abs=0.01),
            "feishu_mail.probe": False,
        }
        scope = draft.instrumentation_scope
        assert scope is not None
        assert (scope.name, scope.version) == ("feishu_mail_async", version("feishu-mail-async"))
        assert str(scope.schema_url).startswith("https://opentelemetry.io/schemas/1.")


async def test_a_listing_has_the_spans_of_its_calls_alone(seen: Telemetry) -> None:
    async with scene(drafts=150) as (sandbox, client, ids):
        seen.instrument(client)
        with seen.tracer.start_as_current_span("mine") as mine:
            assert [draft.draft_id async for draft in client.list_drafts()] == ids
        pages = seen.spans(LIST)
        assert [parent_of(span) for span in pages] == [mine.get_span_context().span_id] * 2
        targets = [about(span)["url.full"].removeprefix(sandbox.base_url) for span in pages]
        assert [target.partition("?")[0] for target in targets] == [DRAFTS.replace(":user_mailbox_id", "me")] * 2
        assert about(pages[0])["http.request.method"] == "GET"
        assert seen.spans("send draft") == []
        assert open_spans() == 0


async def test_a_path_of_the_host_is_part_of_the_template(seen: Telemetry) -> None:
    async with raw_server(always(SENT)) as server:
        async with FeishuMailClient("u-x", base_url=f"{server.base_url}/gate", rate_limit=FREE) as client:
            seen.instrument(client)
            await client.send_draft("a/b")
        span = seen.span(f"POST /gate{DRAFTS}/:draft_id/send")
        assert about(span)["url.full"] == server.base_url + server.requests[0].target
        assert about(span)["server.port"] == server.port


async def test_the_ordinary_port_is_named_too(seen: Telemetry) -> None:
    async with FeishuMailClient("u-x", base_url="https://mail.invalid", retry=RetryPolicy(outage=0)) as client:
        seen.instrument(client)
        with contextlib.suppress(Exception):
            await client.send_draft("a")
    assert (about(seen.span(SEND))["server.address"], about(seen.span(SEND))["server.port"]) == (
        "mail.invalid",
        443,
    )


async def test_a_pause_is_counted_once_and_its_probe_is_told(seen: Telemetry) -> None:
    async with scene(drafts=3, rate_limit=FREE) as (sandbox, client, ids):
        seen.instrument(client)
        sandbox.script(ids[0], Fault.frequency(reset="30"), Fault.frequency(reset="50"))
        await client.send_draft(ids[0])
        first, second, third = seen.spans(SEND)
        assert [about(span).get("http.request.resend_count") for span in (first, second, third)] == [None, 1, 2]
        assert about(first)["error.type"] == "429"
        assert about(first)["feishu_mail.code"] == str(codes.named("FrequencyLimited").number)
        draft = seen.drafts()[ids[0]]
        assert length(draft) == pytest.approx(80, abs=2)
        told = [(event.name.partition(".")[2], dict(event.attributes or {})) for event in draft.events]
        assert [name for name, _ in told] == ["turn_granted", "retry_planned"] * 2 + ["turn_granted"]
        assert [said["feishu_mail.probe"] for name, said in told if name == "turn_granted"] == [False, True, True]
        assert told[1][1] == {
            "feishu_mail.attempts": 1,
            "feishu_mail.delay": 0.0,
            "feishu_mail.subject": "app",
            "error.type": "FrequencyLimited",
        }
        assert seen.numbers("feishu_mail.pauses", "feishu_mail.endpoint") == {"send": 1}
        sandbox.script(ids[1], Fault.frequency(reset="30"))
        await client.send_draft(ids[1])
        assert seen.numbers("feishu_mail.pauses", "feishu_mail.endpoint") == {"send": 2}


async def test_a_call_that_never_left_is_told_too(seen: Telemetry) -> None:
    async with scene(rate_limit=FREE) as (sandbox, client, (one,)):
        seen.instrument(client)
        async with sandbox.outage():
            task = send(client, one)
            await asyncio.sleep(0.5)
        await task
        first, *_, last = seen.spans(SEND)
        assert about(first)["feishu_mail.end"] == "never left"
        assert about(first)["error.type"] == "TransportError"
        assert "http.response.status_code" not in about(first)
        # Nothing was sent before, so nothing is sent again.
        assert "http.request.resend_count" not in about(last)
        assert seen.numbers("feishu_mail.calls", "feishu_mail.end")["never left"] == len(seen.spans(SEND)) - 1


async def test_a_joined_draft_is_an_outcome_and_no_span(seen: Telemetry) -> None:
    async with scene() as (_, client, (one,)):
        seen.instrument(client)
        await asyncio.gather(*(client.send_draft(one) for _ in range(3)))
        assert len(seen.spans("send draft", SEND)) == 2
        assert seen.numbers("feishu_mail.outcomes", "feishu_mail.outcome") == {"sent": 1, "already_sent": 2}


async def test_a_draft_that_ends_before_it_waits_has_a_span_of_no_length(seen: Telemetry) -> None:
    async with aiohttp.ClientSession() as session, FeishuMailClient("u-x", session=session) as client:
        seen.instrument(client)
        await session.close()
        with seen.tracer.start_as_current_span("mine") as mine, pytest.raises(ClientClosed):
            await client.send_draft("one")
        span = seen.drafts()["one"]
        assert length(span) == 0
        assert parent_of(span) == mine.get_span_context().span_id
        assert about(span)["feishu_mail.outcome"] == "skipped"
        assert about(span)["error.type"] == "ClientClosed"
        assert open_spans() == 0


# --- whose span is whose ---------------------------------------------------------------------------------


async def test_the_span_of_a_call_is_current_while_the_call_is_made_and_no_longer(seen: Telemetry) -> None:
    current: list[tuple[str, str]] = []

    def look(where: str) -> None:
        span = trace.get_current_span()
        current.append((where, span.name if isinstance(span, ReadableSpan) else "none"))

    async def nested(*_: Any) -> None:
        look("exchange")
        seen.tracer.start_span("nested").end()

    tracing = aiohttp.TraceConfig()
    tracing.on_request_start.append(nested)
    async with Sandbox(users=["alice"]) as sandbox, aiohttp.ClientSession(trace_configs=[tracing]) as session:
        draft_id = sandbox.add_draft("alice")
        sandbox.script(draft_id, Fault.gateway())
        async with FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url, session=session) as client:
            seen.instrument(client)
            client.subscribe(lambda event: look(event.name))
            with seen.tracer.start_as_current_span("mine"):
                await client.send_draft(draft_id)
                look("after")
            look("outside")
    once = [("turn_granted", "mine"), ("attempt_started", SEND), ("exchange", SEND), ("attempt_ended", "mine")]
    assert current == [
        ("draft_queued", "mine"),
        *once,
        ("retry_planned", "mine"),
        *once,
        ("draft_done", "mine"),
        ("after", "mine"),
        ("outside", "none"),
    ]
    assert [parent_of(span) for span in seen.spans("nested")] == [id_of(span) for span in seen.spans(SEND)]


async def test_of_many_at_once_each_has_its_own(seen: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
    users = [f"user-{number}" for number in range(10)]
    async with Sandbox(users=users, calls=100_000, latency=(0.01, 2.0), seed=7) as sandbox:
        owned = {user: sandbox.add_drafts(user, 8) for user in users}
        for number, ids in enumerate(owned.values()):
            sandbox.script(ids[number % 8], Fault.gateway(), Fault.reset_after())
        async with FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url, rate_limit=FREE) as client:
            seen.instrument(client)

            async def one(user: str, draft_id: str) -> None:
                with seen.tracer.start_as_current_span(f"call {draft_id}"):
                    await client.send_draft(draft_id, user=user)

            async def run(user: str, ids: list[str]) -> None:
                with seen.tracer.start_as_current_span(f"run {user}"):
                    drafts = [Draft(draft_id, user=user) for draft_id in ids]
                    assert len([outcome async for outcome in client.send_drafts(drafts)]) == len(ids)

            async with asyncio.TaskGroup() as group:
                for number, (user, ids) in enumerate(owned.items()):
                    if number % 2:
                        group.create_task(run(user, ids))
                    else:
                        for draft_id in ids:
                            group.create_task(one(user, draft_id))
            assert open_spans() == 0
        drafts = seen.drafts()
        for number, (user, ids) in enumerate(owned.items()):
            for draft_id in ids:
                owner = seen.span(f"run {user}" if number % 2 else f"call {draft_id}")
                draft = drafts.pop(draft_id)
                assert parent_of(draft) == id_of(owner)
                calls = [span for span in seen.spans(SEND) if parent_of(span) == id_of(draft)]
                assert len(calls) == len(sandbox.ledger.calls(draft_id))
                assert {about(span)["feishu_mail.draft_id"] for span in calls} == {draft_id}
        assert not drafts
    assert [record for record in caplog.records if record.name.startswith("opentelemetry")] == []


# --- nothing stays open ----------------------------------------------------------------------------------


async def test_a_caller_who_goes_leaves_no_span_open(seen: Telemetry) -> None:
    async with scene(drafts=3, rate_limit=RateLimit(spacing=10)) as (sandbox, client, ids):
        seen.instrument(client)
        sandbox.latency = 2.0
        sandbox.script(ids[2], Fault.gateway())
        flying, waiting, retrying = (send(client, one) for one in ids)
        await asyncio.sleep(1)
        flying.cancel()
        waiting.cancel()
        await settle()
        assert list(seen.drafts()) == [ids[1]]  # the call under way is finished
        assert about(seen.drafts()[ids[1]])["feishu_mail.outcome"] == "skipped"
        assert seen.spans(SEND) == []
        await asyncio.sleep(15)
        assert about(seen.drafts()[ids[0]])["feishu_mail.outcome"] == "sent"
        assert length(seen.drafts()[ids[0]]) == pytest.approx(2, abs=0.1)
        retrying.cancel()  # it waits for its second turn
        await settle()
        assert about(seen.drafts()[ids[2]])["feishu_mail.outcome"] == "unknown"
        assert len(seen.spans(SEND)) == 2
        assert open_spans() == 0


async def test_a_client_that_breaks_its_calls_off_ends_their_spans(
    seen: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    async with scene(drafts=2) as (sandbox, client, ids):
        seen.instrument(client)
        sandbox.latency = 5.0
        tasks = [send(client, one) for one in ids]
        await asyncio.sleep(1)
        closing = asyncio.create_task(client.close(timeout=1))
        await asyncio.sleep(0.5)
        assert seen.points("feishu_mail.permits.used") == []
        await closing
        broken, ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(broken, OutcomeUnknown)
        assert isinstance(ended, ClientClosed)
        assert {one: about(span)["feishu_mail.outcome"] for one, span in seen.drafts().items()} == {
            ids[0]: "unknown",
            ids[1]: "skipped",
        }
        (call,) = seen.spans(SEND)
        assert about(call)["feishu_mail.end"] == "lost"
        assert length(call) == pytest.approx(2, abs=0.1)
        assert otel._live == {}
    assert [record for record in caplog.records if record.name.startswith("opentelemetry")] == []


async def test_spans_of_other_clients_end_with_the_one_that_was_instrumented(seen: Telemetry) -> None:
    async with scene(drafts=2) as (sandbox, other, ids):
        sandbox.latency = 5.0
        client = FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url)
        seen.instrument(client)
        tasks = [send(other, one) for one in ids]
        await asyncio.sleep(1)
        await client.close()
        assert sorted(seen.drafts()) == sorted(ids)
        assert len(seen.spans(SEND)) == 1
        await asyncio.gather(*tasks)
        assert len(seen.spans(SEND, "send draft")) == 3


async def test_it_can_be_ended_and_begun_in_the_midst(seen: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
    async with scene(drafts=2) as (sandbox, client, ids):
        sandbox.latency = 2.0
        sandbox.script(ids[0], Fault.gateway())
        end = seen.instrument(client)
        tasks = [send(client, one) for one in ids]
        await asyncio.sleep(1)
        end()
        end()
        assert client._subscriptions == []
        assert [len(seen.spans(name)) for name in (SEND, "send draft")] == [1, 2]
        assert seen.points("feishu_mail.queue.length") == []
        await asyncio.sleep(1)
        seen.instrument(client)
        await asyncio.gather(*tasks)
        # The first call's end was heard without its beginning: it is counted, and has no second span.
        assert seen.numbers("feishu_mail.calls", "feishu_mail.code") == {"none": 1, "0": 2}
        assert len(seen.spans(SEND)) == 3
        late = seen.spans("send draft")[2:]
        assert len(late) == 2
        assert all(lasted(span)[0] >= 2 for span in late)
        assert {parent_of(span) for span in seen.spans(SEND)[1:]} == set(map(id_of, late))
        assert open_spans() == 0
    assert [record for record in caplog.records if record.name.startswith(("opentelemetry", "feishu"))] == []


async def test_a_client_for_each_request_leaves_nothing_behind(
    seen: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Sandbox(users=["alice"]) as sandbox:
        made = mock.Mock(wraps=seen.meter_provider.get_meter)
        monkeypatch.setattr(seen.meter_provider, "get_meter", made)
        observers = seen.meter_provider._measurement_consumer._async_instruments
        for draft_id in sandbox.add_drafts("alice", 20):
            async with FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url, rate_limit=FREE) as client:
                seen.instrument(client)
                await client.send_draft(draft_id)
            assert otel._live == {}
            assert len(observers) == 3
            assert made.call_count == 1
    assert seen.numbers("feishu_mail.outcomes", "feishu_mail.outcome") == {"sent": 20}


async def test_a_provider_is_not_kept_alive() -> None:
    telemetry = Telemetry()
    gone = weakref.ref(telemetry.meter_provider)
    async with FeishuMailClient("u-x") as client:
        telemetry.instrument(client)
    telemetry.close()
    del telemetry, client
    gc.collect()
    assert gone() is None


# --- several clients, several apps -----------------------------------------------------------------------


async def test_clients_of_one_app_are_told_of_once(seen: Telemetry) -> None:
    async with scene(drafts=9, rate_limit=FREE) as (sandbox, first, ids):
        left = iter(ids)
        how: dict[str, Any] = {"base_url": sandbox.base_url, "rate_limit": FREE}

        async def each(*clients: FeishuMailClient) -> None:
            await asyncio.gather(*(client.send_draft(next(left)) for client in clients))

        second = FeishuMailClient(sandbox.tokens, **how)
        async with FeishuMailClient(sandbox.tokens, **how) as silent:
            for client in (first, second, second):
                seen.instrument(client)
            await each(first, second, silent)
            assert len(seen.drafts()) == seen.numbers("feishu_mail.calls", "feishu_mail.code")["0"] == 3
            await first.close()
            await each(second, silent)
            assert len(seen.drafts()) == seen.numbers("feishu_mail.calls", "feishu_mail.code")["0"] == 5
            assert len(seen.points("feishu_mail.permits.limit")) == 1
            await second.close()
            await each(silent)
            assert len(seen.drafts()) == seen.numbers("feishu_mail.outcomes", "feishu_mail.code")["none"] == 5


async def test_apps_are_told_apart(seen: Telemetry) -> None:
    async with scene(drafts=3, app="cli_a") as (sandbox, one, ids):
        limit = RateLimit(calls=7)
        async with FeishuMailClient(
            sandbox.tokens, app="cli_b", base_url=sandbox.base_url, rate_limit=limit
        ) as other:
            seen.instrument(one)
            seen.instrument(other)
            await one.send_draft(ids[0])
            await asyncio.gather(*map(other.send_draft, ids[1:]))
            assert seen.numbers("feishu_mail.outcomes", "feishu_mail.app") == {"cli_a": 1, "cli_b": 2}
            assert seen.numbers("feishu_mail.permits.used", "feishu_mail.app") == {"cli_a": 1, "cli_b": 2}
            assert seen.numbers("feishu_mail.permits.limit", "feishu_mail.app") == {"cli_a": 20, "cli_b": 7}


async def test_providers_hear_of_what_is_instrumented_for_them(seen: Telemetry) -> None:
    another = Telemetry()
    async with (
        scene(drafts=2, app="cli_a") as (sandbox, one, ids),
        FeishuMailClient(sandbox.tokens, app="cli_b", base_url=sandbox.base_url) as other,
    ):
        seen.instrument(one)
        another.instrument(other)
        await one.send_draft(ids[0])
        await other.send_draft(ids[1])
        for telemetry, app, sent in ((seen, "cli_a", ids[0]), (another, "cli_b", ids[1])):
            assert list(telemetry.drafts()) == [sent]
            assert telemetry.numbers("feishu_mail.calls", "feishu_mail.app") == {app: 1}
            assert telemetry.numbers("feishu_mail.permits.used", "feishu_mail.app") == {app: 1}
    another.close()


# --- how things stand ------------------------------------------------------------------------------------


async def test_gauges_tell_how_things_stand_though_nothing_happens(seen: Telemetry) -> None:
    async with scene(drafts=30) as (_, client, ids):
        seen.instrument(client)

        def standing() -> tuple[dict[str, float], float]:
            (used,) = seen.points("feishu_mail.permits.used")
            return seen.numbers("feishu_mail.queue.length", "feishu_mail.priority"), used.value

        assert standing() == ({"interactive": 0, "normal": 0, "bulk": 0}, 0)
        tasks = [send(client, one, priority=Priority(number % 3)) for number, one in enumerate(ids)]
        await asyncio.sleep(30)
        assert standing() == ({"interactive": 0, "normal": 0, "bulk": 10}, 20)
        assert seen.numbers("feishu_mail.turn.wait", "feishu_mail.priority") == {"interactive": 10, "normal": 10}
        await asyncio.gather(*tasks)
        assert standing() == ({"interactive": 0, "normal": 0, "bulk": 0}, 20)
        await asyncio.sleep(70)  # permits come back by themselves
        assert standing() == ({"interactive": 0, "normal": 0, "bulk": 0}, 0)
        await client.close()
        assert seen.points("feishu_mail.queue.length") == []
        assert sum(point.count for point in seen.points("feishu_mail.turn.wait")) == 30


async def test_another_thread_may_collect(seen: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otel, "_PATIENCE", 60.0)
    async with scene() as (_, client, (one,)):
        seen.instrument(client)
        await client.send_draft(one)
        assert await asyncio.to_thread(seen.numbers, "feishu_mail.permits.used", "server.address") == {
            "127.0.0.1": 1
        }


async def test_a_busy_loop_delays_no_reader_for_long(
    seen: Telemetry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(otel, "_PATIENCE", 0.01)
    async with scene() as (_, client, (one,)):
        seen.instrument(client)
        await client.send_draft(one)
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(seen.points("feishu_mail.permits.used")))
        thread.start()
        thread.join()  # the loop stands still meanwhile
        assert found == [[]]
        await settle()  # the late answer is for nobody
        assert len(seen.points("feishu_mail.permits.used")) == 1
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.looptime(enabled=False)
def test_a_loop_that_does_not_run_is_not_asked(caplog: pytest.LogCaptureFixture) -> None:
    telemetry = Telemetry()
    loop = asyncio.new_event_loop()
    client = FeishuMailClient("u-x")

    async def begin() -> None:
        telemetry.instrument(client)

    loop.run_until_complete(begin())
    (stopped,) = otel._live.values()
    assert stopped.standing(patience=1e6) is None
    assert telemetry.points("feishu_mail.permits.used") == []
    loop.close()  # and the client never was
    assert telemetry.points("feishu_mail.permits.used") == []

    async def another() -> None:
        async with FeishuMailClient("u-x") as fresh:
            telemetry.instrument(fresh)
            assert len(telemetry.points("feishu_mail.permits.used")) == 1
            assert len(otel._live) == 1

    asyncio.run(another())
    assert otel._live == {}
    telemetry.close()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_measurements_have_fit_buckets_and_name_their_span(seen: Telemetry) -> None:
    async with scene() as (_, client, (one,)):
        seen.instrument(client)
        await client.send_draft(one)
        (duration,) = seen.points("http.client.request.duration")
        assert (duration.explicit_bounds[0], duration.explicit_bounds[-1]) == (0.005, 10)
        assert duration.sum == pytest.approx(0.1, abs=0.01)
        assert [one.span_id for one in duration.exemplars] == [id_of(seen.span(SEND))]
        (wait,) = seen.points("feishu_mail.turn.wait")
        assert (wait.explicit_bounds[0], wait.explicit_bounds[-1]) == (0, 600)


# --- what there is not -----------------------------------------------------------------------------------


async def test_it_costs_nothing_but_time_where_nobody_collects() -> None:
    async with scene() as (_, client, (one,)):
        end = instrument(
            client, tracer_provider=trace.NoOpTracerProvider(), meter_provider=metrics.NoOpMeterProvider()
        )
        assert not (await client.send_draft(one)).already_sent
        assert open_spans() == 0
        end()
    assert otel._live == {}


async def test_a_closed_client_cannot_be_instrumented() -> None:
    async with FeishuMailClient("u-x") as client:
        pass
    with pytest.raises(ClientClosed):
        instrument(client)
    assert otel._live == {}


async def test_a_client_is_instrumented_in_its_own_loop() -> None:
    async def elsewhere() -> None:
        instrument(client)

    async with FeishuMailClient("u-x") as client:
        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, elsewhere())
        with pytest.raises(RuntimeError):
            await asyncio.to_thread(instrument, client)
    assert otel._live == {}


def run_python(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert done.stderr == ""
    return done.stdout


def test_without_the_extra_it_says_what_to_install_and_with_it_needs_no_more() -> None:
    said = run_python("""
        import sys
        import feishu_mail_async
        for missing in ("opentelemetry", "opentelemetry.semconv.schemas"):
            sys.modules[missing] = None
            try:
                from feishu_mail_async.otel import instrument
            except ImportError as error:
                print(error)
            del sys.modules[missing]
        import feishu_mail_async.otel
        unwanted = "opentelemetry.sdk", "opentelemetry.semconv._incubating"
        print([name for name in sys.modules if name.startswith(unwanted)])
    """)
    advice = "otel: {} is missing; install it with: pip install 'feishu-mail-async[otel]'"
    missing = "opentelemetry", "opentelemetry.semconv.schemas"
    assert said.splitlines() == [*map(advice.format, missing), "[]"]


def test_global_providers_may_be_set_later() -> None:
    said = run_python("""
        import asyncio
        from opentelemetry import metrics, trace
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        from feishu_mail_async import FeishuMailClient
        from feishu_mail_async.otel import instrument
        from feishu_mail_async.sandbox import Sandbox

        spans, reader = InMemorySpanExporter(), InMemoryMetricReader()

        def points(name):
            found = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
            return sum((point.value for one in found if one.name == name for point in one.data.data_points), 0)

        async def main():
            async with Sandbox(users=["alice"]) as sandbox:
                for app in ("before", "after"):
                    draft_id = sandbox.add_draft("alice")
                    async with FeishuMailClient(sandbox.tokens, app=app, base_url=sandbox.base_url) as client:
                        # Named or not, the global provider is one.
                        named = metrics.get_meter_provider() if app == "after" else None
                        instrument(client, meter_provider=named)
                        if app == "before":
                            tracers = TracerProvider()
                            tracers.add_span_processor(SimpleSpanProcessor(spans))
                            trace.set_tracer_provider(tracers)
                            metrics.set_meter_provider(MeterProvider([reader]))
                        await client.send_draft(draft_id)
                        print(len(spans.get_finished_spans()), points("feishu_mail.calls"))
                        print(points("feishu_mail.permits.used"), points("feishu_mail.permits.limit"))

        asyncio.run(main())
    """)
    assert said.split("\n") == ["2 1", "1 20", "4 2", "1 20", ""]


# --- what it stands on: a subscriber's end ---------------------------------------------------------------


async def test_a_subscriber_is_told_when_its_client_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    told: list[object] = []

    def fail() -> None:
        told.append("fail")
        raise RuntimeError

    async with scene(rate_limit=FREE) as (_, client, (one,)):
        client.subscribe(lambda _: None, closed=fail)
        client.subscribe(told.append, closed=lambda: told.append("closed"))
        client.subscribe(lambda _: None, closed=lambda: told.append("never"))()
        task = send(client, one)
        await settle()
        await client.close()
        await task
        await client.close()
        with pytest.raises(TypeError, match=r"^closed"):
            client.subscribe(told.append, closed="no")  # type: ignore[arg-type]
    assert [one for one in told if isinstance(one, str)] == ["fail", "closed"]
    assert isinstance(told[-3], DraftDone)
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1


async def test_events_say_what_a_span_needs() -> None:
    told: list[Event] = []
    async with scene(rate_limit=FREE) as (_, client, (one,)):
        client.subscribe(told.append)
        await client.send_draft(one, priority=Priority.INTERACTIVE)
    (turn,) = [event for event in told if isinstance(event, TurnGranted)]
    (start,) = [event for event in told if isinstance(event, AttemptStarted)]
    assert [event for event in told if isinstance(event, AttemptEnded)]
    assert turn.priority is Priority.INTERACTIVE
    assert start.path == f"/open-apis/mail/v1/user_mailboxes/me/drafts/{one}/send"
