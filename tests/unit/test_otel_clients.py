"""Which clients are told of, to which providers, and from when until when."""

import asyncio
import gc
import logging
import subprocess
import sys
import textwrap
import weakref
from typing import Any
from unittest import mock

import pytest

from feishu_mail_async import ClientClosed, FeishuMailClient, OutcomeUnknown, Priority, RateLimit
from feishu_mail_async.events import AttemptEnded, AttemptStarted, DraftDone, Event, TurnGranted
from feishu_mail_async.otel import instrument, instrumentation
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.scenes import FREE, scene
from tests.helpers.tasks import settle
from tests.helpers.telemetry import SEND, Telemetry, about, id_of, lasted, length, open_spans, parent_of, send

pytestmark = pytest.mark.looptime(start=0)


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
        assert instrumentation._live == {}
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
        assert client._binding._subscriptions == []
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


async def test_a_subscriber_may_end_it_at_an_event_that_it_has_not_heard_yet(seen: Telemetry) -> None:
    async with scene(rate_limit=FREE) as (_, client, (one,)):
        client.subscribe(lambda event: end() if isinstance(event, DraftDone) else None)
        end = seen.instrument(client)
        await client.send_draft(one)
        assert len(seen.spans("send draft")) == 1
        assert seen.numbers("feishu_mail.outcomes", "feishu_mail.outcome") == {}


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
            assert instrumentation._live == {}
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


async def test_a_closed_client_cannot_be_instrumented() -> None:
    async with FeishuMailClient("u-x") as client:
        pass
    with pytest.raises(ClientClosed):
        instrument(client)
    assert instrumentation._live == {}


async def test_a_client_is_instrumented_in_its_own_loop() -> None:
    async def elsewhere() -> None:
        instrument(client)

    async with FeishuMailClient("u-x") as client:
        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, elsewhere())
        with pytest.raises(RuntimeError):
            await asyncio.to_thread(instrument, client)
    assert instrumentation._live == {}


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
