"""Leaving a BulkRun early, and closing its client: true outcomes, and nothing left behind."""

import asyncio
import gc
from collections import Counter

import pytest

from feishu_mail_async import ClientClosed, NotSent, Outcome
from feishu_mail_async.sandbox import Fault
from tests.helpers.clock import now
from tests.helpers.runs import FORMS, SENT, SKIPPED, OwnError, play, the_tasks
from tests.helpers.scenes import Scene, drain
from tests.helpers.tasks import settle
from tests.models.bulk_model import check_one, fetch

pytestmark = pytest.mark.looptime(start=0, noop_cycles=12)


async def test_leaving_early_waits_for_calls_in_flight_and_makes_no_more() -> None:
    async def act(stage: Scene) -> None:
        for draft in stage.drafts:
            stage.sandbox.script(draft.draft_id, Fault.delay(2, 3))
        async with stage.client.send_drafts(stage.drafts) as run:
            await stage.in_flight()
            left = now()
        assert now() - left == pytest.approx(5, abs=0.1)
        assert stage.client.snapshot().in_flight == 0
        assert stage.sandbox.ledger.sent.total() == stage.calls == 1
        assert [outcome async for outcome in run] == []
        await settle()
        assert the_tasks() == set()
        await asyncio.sleep(100)
        assert stage.calls == 1

    await play(act)


async def test_an_exception_in_the_body_comes_out_and_ends_the_run() -> None:
    async def act(stage: Scene) -> None:
        async def body() -> None:
            async with stage.client.send_drafts(stage.drafts) as run:
                async for _ in run:
                    raise OwnError

        with pytest.raises(OwnError):
            await body()
        await settle()
        assert the_tasks() == set()
        calls = stage.calls
        assert calls <= 2
        await asyncio.sleep(100)
        assert stage.calls == calls

    await play(act)


@pytest.mark.parametrize("managed", [True, False], ids=["async with", "plain"])
async def test_cancelling_the_task_that_consumes(managed: bool) -> None:
    async def act(stage: Scene) -> None:
        outcomes: list[Outcome] = []

        async def consume() -> None:
            run = stage.client.send_drafts(stage.drafts)
            if managed:
                await run.__aenter__()
            try:
                await fetch(run, outcomes)
            finally:
                if managed:
                    await run.__aexit__(None, None, None)

        consumer = asyncio.create_task(consume())
        await asyncio.sleep(0.25)
        await stage.in_flight()
        consumer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consumer
        assert len(outcomes) == 2
        if managed:
            assert stage.client.snapshot().in_flight == 0
            await settle()
            assert the_tasks() == set()
            assert stage.calls == 3
        await stage.client.close()
        assert stage.sandbox.ledger.sent.total() == stage.calls
        for outcome in outcomes:
            check_one(outcome, stage.sandbox.ledger)

    await play(act, 50)


async def test_cancelling_twice_gives_up_waiting_and_still_leaves_nothing_behind() -> None:
    async def act(stage: Scene) -> None:
        for draft in stage.drafts:
            stage.sandbox.script(draft.draft_id, Fault.delay(2, 3))
        run = stage.client.send_drafts(stage.drafts)
        consumer = asyncio.create_task(drain(run))
        await stage.in_flight()
        consumer.cancel()
        await asyncio.sleep(1)
        assert not consumer.done()
        consumer.cancel()
        await settle()
        assert consumer.cancelled()
        # The call is still under way, in the client's hands.
        assert stage.client.snapshot().in_flight == 1
        await stage.client.close()
        assert now() == pytest.approx(5, abs=0.1)
        assert stage.sandbox.ledger.sent.total() == 1

    await play(act)


async def test_a_break_and_then_closing_the_client() -> None:
    async def act(stage: Scene) -> None:
        async for _ in stage.client.send_drafts(stage.drafts):
            break
        await stage.in_flight()
        calls = stage.calls
        await stage.client.close()
        assert the_tasks() == set()
        assert stage.calls <= calls + 1
        assert stage.sandbox.ledger.sent.total() == stage.calls

    await play(act, 50)


async def test_a_break_and_then_forgetting_the_run() -> None:
    """Nobody holds the run any more; the client still ends what it has begun."""

    async def act(stage: Scene) -> None:
        async def begin() -> None:
            async for _ in stage.client.send_drafts((draft for draft in stage.drafts), read_ahead=5):
                break

        await begin()
        gc.collect()
        await stage.client.close()
        assert the_tasks() == set()
        assert stage.sandbox.ledger.sent.total() == stage.calls <= 7

    await play(act, 50)


async def test_closing_the_client_ends_a_run_that_is_consumed_with_true_outcomes() -> None:
    async def act(stage: Scene) -> None:
        run = stage.client.send_drafts(stage.drafts)
        consumer = asyncio.create_task(drain(run))
        await asyncio.sleep(0.55)
        await stage.in_flight()
        await stage.client.close()
        outcomes = await asyncio.wait_for(consumer, 1)
        stage.true(outcomes)
        assert Counter(outcome.status for outcome in outcomes) == {SENT: 6, SKIPPED: 294}
        assert all(isinstance(outcome.error, NotSent) for outcome in outcomes if outcome.status is SKIPPED)

    await play(act, 300)


@pytest.mark.parametrize("form", ["generator", "async generator"])
async def test_closing_the_client_ends_a_run_whose_input_is_not_read_to_its_end(form: str) -> None:
    async def act(stage: Scene) -> None:
        run = stage.client.send_drafts(FORMS[form](stage.drafts), read_ahead=10)
        first = await anext(run)
        await stage.client.close()
        rest = [outcome async for outcome in run]
        assert len(rest) <= 11
        assert {outcome.status for outcome in rest} <= {SENT, SKIPPED}
        for outcome in (first, *rest):
            check_one(outcome, stage.sandbox.ledger)

    await play(act, 300)


async def test_closing_the_client_with_outcomes_left_behind_and_nobody_who_fetches_them() -> None:
    async def act(stage: Scene) -> None:
        runs = [stage.client.send_drafts(stage.drafts[start::3]) for start in range(3)]
        for run in runs:
            await anext(run)
        await asyncio.sleep(2)
        await asyncio.wait_for(stage.client.close(), 10)
        assert the_tasks() == set()

    await play(act, 60)


async def test_a_run_of_a_closed_client() -> None:
    async def act(stage: Scene) -> None:
        unbegun = stage.client.send_drafts(stage.drafts)
        await stage.client.close()
        with pytest.raises(ClientClosed):
            stage.client.send_drafts(stage.drafts)
        outcomes = await drain(unbegun)
        assert {outcome.status for outcome in outcomes} == {SKIPPED}
        stage.true(outcomes)
        assert stage.calls == 0

    await play(act)


async def test_leaving_does_not_wait_for_a_send_of_somebody_elses() -> None:
    """A single send of a draft of the run waits for a paused app; that is nothing to who leaves the run."""

    async def act(stage: Scene) -> None:
        stage.sandbox.script(stage.drafts[0].draft_id, Fault.frequency(reset="500"))
        async with stage.client.send_drafts(stage.drafts):
            send = asyncio.create_task(stage.client.send_draft(stage.drafts[0]))
            await asyncio.sleep(10)
            assert stage.calls == 1
            assert stage.client.snapshot().in_flight == 0
        assert now() == pytest.approx(10, abs=0.1)
        await send
        assert stage.calls == 2

    await play(act)


async def test_leaving_leaves_a_single_send_of_a_waiting_draft_alone() -> None:
    async def act(stage: Scene) -> None:
        async with stage.client.send_drafts(stage.drafts):
            await stage.in_flight()
            send = asyncio.create_task(stage.client.send_draft(stage.drafts[5]))
            await settle()
        result = await send
        assert result.draft.tag is stage.drafts[5].tag
        assert stage.sandbox.ledger.sent[stage.drafts[5].draft_id] == 1
        assert stage.calls == 2

    await play(act)
