"""A BulkRun at the pace of its consumer: a slow one holds back nobody else, a quick one leaves the loop free."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final

import pytest

from feishu_mail_async import Draft, Outcome, Priority, RateLimit
from tests.helpers.clock import now
from tests.helpers.runs import SENT, SKIPPED, OwnError, play, raising
from tests.helpers.scenes import Scene, drain
from tests.helpers.tasks import settle
from tests.models.bulk_model import fetch

pytestmark = pytest.mark.looptime(start=0, noop_cycles=12)
BACKLOG: Final = 100
"""Outcomes that may wait for the consumer."""


# --- a consumer that takes its time ------------------------------------------------------------------------


async def test_a_slow_consumer_holds_back_calls_and_memory() -> None:
    async def act(stage: Scene) -> None:
        read = 0

        def reading() -> Iterator[Draft]:
            nonlocal read
            for draft in stage.drafts:
                read += 1
                yield draft

        async with stage.client.send_drafts(reading(), read_ahead=250) as run:
            outcomes = [await anext(run)]
            await asyncio.sleep(5000)
            # One user, so at most one call was under way when the backlog was full.
            assert BACKLOG <= stage.calls <= BACKLOG + 2
            assert read <= 250 + 1
            assert stage.client.snapshot().in_flight == 0
            for _ in range(5):
                outcomes.append(await anext(run))
                await asyncio.sleep(100)
                assert stage.calls <= len(outcomes) + BACKLOG + 1
                assert read <= len(outcomes) + 250
            outcomes += [outcome async for outcome in run]
        stage.true(outcomes)
        assert {outcome.status for outcome in outcomes} == {SENT}

    await play(act, 400)


async def test_a_slow_consumer_of_many_users_has_one_call_each_in_flight_at_most() -> None:
    async def act(stage: Scene) -> None:
        users = [f"u{number}" for number in range(8)]
        given = [draft for user in users for draft in stage.more(40, user)]
        async with stage.client.send_drafts(given) as run:
            await asyncio.sleep(5000)
            assert BACKLOG <= stage.calls < BACKLOG + 8
            stage.true([outcome async for outcome in run], given)

    await play(act, 0, *(f"u{number}" for number in range(8)))


async def test_what_else_the_client_does_is_not_held_up_by_a_slow_consumer() -> None:
    async def act(stage: Scene) -> None:
        other = stage.more(150)
        urgent = stage.more(1)[0]
        async with stage.client.send_drafts(stage.drafts) as held:
            await asyncio.sleep(5000)
            calls = stage.calls
            assert calls < BACKLOG + 2
            start = now()
            await stage.client.send_draft(urgent, priority=Priority.INTERACTIVE)
            assert now() - start == pytest.approx(0.1, abs=0.01)
            outcomes = await drain(stage.client.send_drafts(other))
            stage.true(outcomes, other)
            assert now() - start == pytest.approx(0.1 + 15, abs=0.1)
            assert stage.calls == calls + 151
            stage.true([outcome async for outcome in held])

    await play(act, 200)


@pytest.mark.parametrize("priority", Priority)
async def test_a_send_goes_though_its_draft_waits_in_a_held_run(priority: Priority) -> None:
    async def act(stage: Scene) -> None:
        async with stage.client.send_drafts(stage.drafts) as held:
            await asyncio.sleep(5000)
            last = stage.drafts[-1]
            assert stage.calls_of(last) == 0
            start = now()
            result = await asyncio.wait_for(stage.client.send_draft(last, priority=priority), 60)
            assert now() - start == pytest.approx(0.1, abs=0.01)
            assert result.draft.tag is last.tag
            outcomes = [outcome async for outcome in held]
        stage.true(outcomes)
        assert stage.calls == 200

    await play(act, 200)


async def test_another_run_goes_though_its_drafts_wait_in_a_held_run() -> None:
    async def act(stage: Scene) -> None:
        async with stage.client.send_drafts(stage.drafts) as held:
            await asyncio.sleep(5000)
            late = stage.drafts[-20:]
            outcomes = await asyncio.wait_for(drain(stage.client.send_drafts(late)), 60)
            stage.true(outcomes, late)
            stage.true([outcome async for outcome in held])
        assert stage.calls == 200

    await play(act, 200)


async def test_stopping_a_held_run_tells_all_that_it_skips() -> None:
    async def act(stage: Scene) -> None:
        async with stage.client.send_drafts(stage.drafts, read_ahead=150) as run:
            await asyncio.sleep(5000)
            run.stop()
            await asyncio.sleep(1)
            outcomes = [outcome async for outcome in run]
        stage.true(outcomes)
        assert Counter(outcome.status for outcome in outcomes)[SKIPPED] >= 200 - BACKLOG - 2

    await play(act, 200)


@pytest.mark.parametrize("read_ahead", [1, 2, 7, 100])
@pytest.mark.parametrize("form", ["generator", "async generator"])
async def test_read_ahead_bounds_what_is_read_and_not_fetched(form: str, read_ahead: int) -> None:
    async def act(stage: Scene) -> None:
        read = fetched = most = 0

        def count() -> None:
            nonlocal read, most
            read += 1
            most = max(most, read - fetched)

        def reading() -> Iterator[Draft]:
            for draft in stage.drafts:
                count()
                yield draft

        async def reading_async() -> AsyncIterator[Draft]:
            for draft in reading():
                yield draft

        run = stage.client.send_drafts(
            reading() if form == "generator" else reading_async(), read_ahead=read_ahead
        )
        outcomes = []
        async for outcome in run:
            outcomes.append(outcome)
            fetched += 1
        stage.true(outcomes)
        assert most == min(read_ahead, 60)

    await play(act, 60)


# --- two consumers, and one that never waits ---------------------------------------------------------------


async def test_two_consumers_of_one_run_share_its_outcomes() -> None:
    async def act(stage: Scene) -> None:
        run = stage.client.send_drafts(stage.drafts)

        async def consume() -> list[Outcome]:
            return [outcome async for outcome in run]

        first, second = await asyncio.wait_for(asyncio.gather(consume(), consume()), 60)
        stage.true([*first, *second])

    await play(act, 60)


async def test_two_consumers_when_the_input_fails() -> None:
    async def act(stage: Scene) -> None:
        run = stage.client.send_drafts(raising(stage.drafts, OwnError()))
        outcomes: list[Outcome] = []

        async def consume() -> None:
            await fetch(run, outcomes)

        ends = await asyncio.wait_for(asyncio.gather(consume(), consume(), return_exceptions=True), 60)
        assert any(isinstance(end, OwnError) for end in ends)
        stage.true(outcomes)

    await play(act, 10)


@contextlib.contextmanager
def ticking() -> Iterator[Callable[[], int]]:
    """Meanwhile, how often another task has had its chance."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticker = asyncio.create_task(tick())
    try:
        yield lambda: ticks
    finally:
        ticker.cancel()


async def test_a_consumer_that_never_waits_leaves_the_loop_to_others() -> None:
    async def act(stage: Scene) -> None:
        with ticking() as ticks:
            run = stage.client.send_drafts(stage.drafts)
            run.stop()
            first = await anext(run)
            await settle(1000)
            assert run.summary.total == 5000  # all are there: the consumer has nothing to wait for
            at = [ticks()]
            async for outcome in run:
                assert outcome.status is first.status is SKIPPED
                at.append(ticks())
        assert len(at) == 5000
        gaps = Counter(at)
        assert max(gaps.values()) <= 100, "outcomes fetched while nothing else had its chance"

    await play(act, 5000)


async def test_reading_a_long_list_leaves_the_loop_to_others() -> None:
    async def act(stage: Scene) -> None:
        read: list[int] = []

        def reading() -> Iterator[Draft]:
            for draft in stage.drafts:
                read.append(ticks())
                yield draft

        # Leaving the run waits for the clock, which stands still while anything ticks.
        async with stage.client.send_drafts(reading()):
            with ticking() as ticks:
                while len(read) < 3000:  # noqa: ASYNC110 - what is measured is who else has a chance
                    await asyncio.sleep(0)
        assert max(Counter(read).values()) <= 100

    await play(act, 3000, limit=RateLimit(calls=1))
