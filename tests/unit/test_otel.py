"""Spans: that they tell what happened, to whom, and no more; and that nothing stays open."""

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from feishu_mail_async import ClientClosed, Draft, FeishuMailClient, Outcome, RetryPolicy, codes
from feishu_mail_async.sandbox import Arrival, Fault, Sandbox
from tests.helpers.scenes import FREE, scene
from tests.helpers.telemetry import (
    LIST,
    SEND,
    Telemetry,
    about,
    id_of,
    lasted,
    length,
    open_spans,
    parent_of,
    send,
)
from tests.simulation.test_secrets import faults

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import HistogramDataPoint

pytestmark = pytest.mark.looptime(start=0)
CLOSES_THE_APP: Final = [
    Fault.code(row.name) for row in codes.CODES.values() if row.subject is codes.Subject.APP and row.until
]
ALREADY_SENT: Final = codes.named("AlreadySent").number


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
        good = arrival.code == ALREADY_SENT or said["feishu_mail.verdict"] == "done"
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
