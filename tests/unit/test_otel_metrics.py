"""Metrics: gauges, counters and buckets, and what they cost where nobody collects."""

import asyncio
import logging
import threading
from typing import Any

import pytest
from opentelemetry import metrics, trace

from feishu_mail_async import FeishuMailClient, Priority
from feishu_mail_async.otel import gauges, instrument, instrumentation
from tests.helpers.scenes import scene
from tests.helpers.tasks import settle
from tests.helpers.telemetry import SEND, Telemetry, id_of, open_spans, send

pytestmark = pytest.mark.looptime(start=0)


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
    monkeypatch.setattr(gauges, "_PATIENCE", 60.0)
    async with scene() as (_, client, (one,)):
        seen.instrument(client)
        await client.send_draft(one)
        assert await asyncio.to_thread(seen.numbers, "feishu_mail.permits.used", "server.address") == {
            "127.0.0.1": 1
        }


async def test_a_busy_loop_delays_no_reader_for_long(
    seen: Telemetry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gauges, "_PATIENCE", 0.01)
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
    (stopped,) = gauges._observed
    assert stopped.read(patience=1e6) is None
    assert telemetry.points("feishu_mail.permits.used") == []
    loop.close()  # and the client never was
    assert telemetry.points("feishu_mail.permits.used") == []

    async def another() -> None:
        async with FeishuMailClient("u-x") as fresh:
            telemetry.instrument(fresh)
            assert len(telemetry.points("feishu_mail.permits.used")) == 1
            assert len(instrumentation._live) == 1

    asyncio.run(another())
    assert instrumentation._live == {}
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
    assert instrumentation._live == {}
