"""Stopping a BulkRun: what is in flight is finished, the rest is skipped and said to be."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import pytest

from feishu_mail_async import Draft, FeishuMailClient, NotSent, OutcomeStatus, Priority, RateLimit
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.clock import now
from tests.helpers.runs import FAILED, FORMS, SENT, SKIPPED, OwnError, play
from tests.helpers.scenes import Scene, drain, scene
from tests.helpers.tasks import cancel_all, settle
from tests.models.bulk_model import check_one, check_true, fetch

pytestmark = pytest.mark.looptime(start=0, noop_cycles=12)


async def test_stop_finishes_what_is_in_flight_and_skips_the_rest() -> None:
    async def act(stage: Scene) -> None:
        more = stage.more(50, "bob")
        run = stage.client.send_drafts([*stage.drafts, *more])
        outcomes = []
        async for outcome in run:
            outcomes.append(outcome)
            if len(outcomes) == 20:
                await stage.in_flight(2)
                begun = stage.calls
                run.stop()
                run.stop()
        stage.true(outcomes, [*stage.drafts, *more])
        sent = [outcome for outcome in outcomes if outcome.status is SENT]
        assert len(sent) == stage.calls <= begun + 2
        assert stage.sandbox.ledger.sent.total() == len(sent)
        for outcome in outcomes:
            if outcome.status is not SENT:
                assert outcome.status is SKIPPED
                assert type(outcome.error) is NotSent
                assert outcome.error.draft == outcome.draft

    await play(act, 50, "alice", "bob")


async def test_stop_does_not_wait_for_a_retry() -> None:
    """A draft whose call has failed and that waits to be tried again is not in flight."""

    async def act(stage: Scene) -> None:
        stage.sandbox.script(stage.drafts[0].draft_id, *[Fault.code("InternalError")] * 5)
        stage.sandbox.script(stage.drafts[1].draft_id, Fault.code("ContentRisk"))
        run = stage.client.send_drafts(stage.drafts[:2])
        consumer = asyncio.create_task(drain(run))
        await asyncio.sleep(0.3)
        assert stage.calls == 2
        run.stop()
        outcomes = {outcome.draft: outcome for outcome in await consumer}
        assert now() == pytest.approx(0.3, abs=0.01)
        # Its call had no clear end, so the mail may be out.
        assert outcomes[stage.drafts[0]].status is OutcomeStatus.UNKNOWN
        assert outcomes[stage.drafts[1]].status is FAILED
        stage.true(list(outcomes.values()), stage.drafts[:2])

    await play(act, 2)


async def test_stop_skips_the_unread_rest_of_a_list() -> None:
    async def act(stage: Scene) -> None:
        run = stage.client.send_drafts(stage.drafts, read_ahead=5)
        outcomes = [await anext(run)]
        run.stop()
        outcomes += [outcome async for outcome in run]
        stage.true(outcomes)
        assert Counter(outcome.status for outcome in outcomes)[SKIPPED] >= 300 - 2
        assert stage.calls <= 2

    await play(act, 300)


@pytest.mark.parametrize("form", ["generator", "async generator"])
async def test_stop_reads_a_generator_no_further_and_lets_it_clean_up(form: str) -> None:
    async def act(stage: Scene) -> None:
        read: list[Draft] = []
        closed = []

        def reading() -> Iterator[Draft]:
            try:
                for draft in stage.drafts:
                    read.append(draft)
                    yield draft
            finally:
                closed.append(True)

        async def reading_async() -> AsyncIterator[Draft]:
            try:
                for draft in stage.drafts:
                    read.append(draft)
                    yield draft
            finally:
                await asyncio.sleep(0)
                closed.append(True)

        run = stage.client.send_drafts(reading() if form == "generator" else reading_async(), read_ahead=5)
        outcomes = [await anext(run)]
        run.stop()
        count = len(read)
        outcomes += [outcome async for outcome in run]
        assert len(read) == count <= 6
        assert len(closed) == 1, "the generator's finally has not run"
        stage.true(outcomes, read)

    await play(act, 100)


async def test_stop_ends_a_run_whose_generator_waits_for_something() -> None:
    async def act(stage: Scene) -> None:
        closed = []

        async def tailing() -> AsyncIterator[Draft]:
            try:
                yield stage.drafts[0]
                await asyncio.Event().wait()
            finally:
                closed.append(True)

        run = stage.client.send_drafts(tailing())
        outcomes = [await anext(run)]
        asyncio.get_running_loop().call_later(7, run.stop)
        outcomes += [outcome async for outcome in run]
        assert now() == pytest.approx(7.1, abs=0.1)
        assert closed == [True]
        stage.true(outcomes, stage.drafts[:1])

    await play(act, 1)


@pytest.mark.parametrize("form", FORMS)
async def test_a_run_stopped_before_it_begins_makes_no_call(form: str) -> None:
    async def act(stage: Scene) -> None:
        run = stage.client.send_drafts(FORMS[form](stage.drafts))
        run.stop()
        outcomes = await drain(run)
        assert {outcome.status for outcome in outcomes} <= {SKIPPED}
        # A list is skipped whole; what has to be read to be known is not read.
        assert len(outcomes) == (10 if form in {"list", "tuple", "dict"} else 0)
        assert stage.calls == 0

    await play(act)


async def test_a_generator_is_read_no_further_when_the_first_draft_s_event_stops_the_run() -> None:
    async def act(stage: Scene) -> None:
        read: list[Draft] = []

        def reading() -> Iterator[Draft]:
            for draft in stage.drafts:
                read.append(draft)
                yield draft

        stage.client.subscribe(lambda _: run.stop())
        run = stage.client.send_drafts(reading())
        assert {outcome.status for outcome in await drain(run)} == {SKIPPED}
        assert read == stage.drafts[:1]

    await play(act)


async def test_a_run_whose_tasks_are_cancelled_as_it_begins_is_read_all_the_same() -> None:
    async with scene(drafts=4) as (sandbox, client, ids):
        run = client.send_drafts(ids)
        consumer = asyncio.create_task(drain(run))
        await asyncio.sleep(0)
        await cancel_all([], 0)
        assert [outcome.draft.draft_id for outcome in await consumer] == ids
        assert sandbox.ledger.sent == dict.fromkeys(ids, 1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("steps", range(6))
async def test_a_run_stopped_just_after_it_began_ends(form: str, steps: int) -> None:
    async def act(stage: Scene) -> None:
        run = stage.client.send_drafts(FORMS[form](stage.drafts))
        consumer = asyncio.create_task(drain(run))
        await settle(steps)
        run.stop()
        outcomes = await asyncio.wait_for(consumer, 100)
        if form in {"list", "tuple", "dict"}:
            stage.true(outcomes)
        for outcome in outcomes:
            check_one(outcome, stage.sandbox.ledger)

    await play(act)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("steps", range(6))
async def test_a_run_whose_client_is_closed_just_after_it_began_ends(form: str, steps: int) -> None:
    async def act(stage: Scene) -> None:
        run = stage.client.send_drafts(FORMS[form](stage.drafts))
        consumer = asyncio.create_task(drain(run))
        await settle(steps)
        await stage.client.close()
        outcomes = await asyncio.wait_for(consumer, 100)
        if form in {"list", "tuple", "dict"}:
            stage.true(outcomes)

    await play(act)


@pytest.mark.parametrize("form", ["generator", "async generator"])
@pytest.mark.parametrize("end", ["stop", "leave", "close"])
async def test_a_generator_whose_cleaning_up_fails_does_not_hold_up_the_end(form: str, end: str) -> None:
    async def act(stage: Scene) -> None:
        def reading() -> Iterator[Draft]:
            try:
                yield from stage.drafts
            finally:
                raise OwnError("the file cannot be closed")

        async def reading_async() -> AsyncIterator[Draft]:
            try:
                for draft in stage.drafts:
                    yield draft
            finally:
                raise OwnError("the file cannot be closed")

        run = stage.client.send_drafts(reading() if form == "generator" else reading_async(), read_ahead=3)
        outcomes = [await anext(run)]
        if end == "leave":
            await asyncio.wait_for(run.leave(), 100)
        elif end == "close":
            await asyncio.wait_for(stage.client.close(), 100)
        else:
            run.stop()
        # What went wrong with the input is the caller's to know, except where they have left.
        with contextlib.ExitStack() as stack:
            if end != "leave":
                stack.enter_context(pytest.raises(OwnError))
            async with asyncio.timeout(100):
                await fetch(run, outcomes)
        for outcome in outcomes:
            check_one(outcome, stage.sandbox.ledger)

    await play(act)


@pytest.mark.parametrize("form", ["list", "generator", "async generator"])
async def test_stop_while_a_token_is_being_fetched_skips_the_draft_it_was_for(form: str) -> None:
    asked = asyncio.Event()

    async def tokens(_: str | None) -> str:
        asked.set()
        await asyncio.sleep(50)
        return sandbox.token("alice")

    async with Sandbox(users=["alice"], latency=0.1) as sandbox:
        given = [Draft(draft_id, tag=object()) for draft_id in sandbox.add_drafts("alice", 5)]
        async with FeishuMailClient(tokens, base_url=sandbox.base_url) as client:
            run = client.send_drafts(FORMS[form](given))
            consumer = asyncio.create_task(drain(run))
            await asked.wait()
            run.stop()
            outcomes = await consumer
            assert {outcome.status for outcome in outcomes} == {SKIPPED}
            check_true(given, outcomes, sandbox.ledger)
            assert sandbox.ledger.sends == []


async def test_stopping_both_runs_that_share_a_draft_stops_the_draft() -> None:
    async def act(stage: Scene) -> None:
        runs = [stage.client.send_drafts(stage.drafts) for _ in range(2)]
        consumers = [asyncio.create_task(drain(run)) for run in runs]
        await asyncio.sleep(1)
        for run in runs:
            run.stop()
        first, second = await asyncio.gather(*consumers)
        assert now() == pytest.approx(1, abs=0.2)
        assert stage.calls <= 2
        stage.true(first)
        stage.true(second)

    await play(act, 50, limit=RateLimit(calls=1))


async def test_a_stopped_run_makes_no_call_for_a_send_that_was_given_up() -> None:
    """A single send wanted the same draft, so the stop left it alone; then the send is cancelled."""

    async def act(stage: Scene) -> None:
        run = stage.client.send_drafts(stage.drafts)
        consumer = asyncio.create_task(drain(run))
        await asyncio.sleep(1)
        assert stage.calls == 1
        last = stage.drafts[-1]
        send = asyncio.create_task(stage.client.send_draft(last, priority=Priority.BULK))
        await asyncio.sleep(1)
        run.stop()
        await asyncio.sleep(1)
        send.cancel()
        outcomes = await consumer
        assert now() == pytest.approx(3, abs=0.2)
        assert stage.calls_of(last) == 0
        stage.true(outcomes)

    await play(act, 5, limit=RateLimit(calls=1))


async def test_stop_leaves_a_draft_to_the_single_send_that_wants_it_too() -> None:
    async def act(stage: Scene) -> None:
        run = stage.client.send_drafts(stage.drafts)
        consumer = asyncio.create_task(drain(run))
        await asyncio.sleep(1)
        send = asyncio.create_task(stage.client.send_draft(stage.drafts[-1]))
        await asyncio.sleep(1)
        run.stop()
        assert (await send).draft == stage.drafts[-1]
        outcomes = await consumer
        assert stage.calls == 2
        assert Counter(outcome.draft for outcome in outcomes) == Counter(stage.drafts)

    await play(act, 5, limit=RateLimit(calls=1))
