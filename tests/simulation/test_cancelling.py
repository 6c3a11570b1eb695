"""Callers who give up: what waits costs no call, what is in flight is finished."""

import asyncio
from typing import Any

import pytest

from feishu_mail_async import Draft, Priority
from feishu_mail_async.sandbox import Fault
from tests.helpers.clock import now
from tests.helpers.scenes import scene
from tests.helpers.sends import SLOW, at, order, send
from tests.helpers.tasks import our_tasks, settle

pytestmark = pytest.mark.looptime(start=0)


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a send; it must end at once."""
    start = now()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert now() == start


async def test_the_first_gives_up_and_the_second_gets_the_result() -> None:
    async with scene(drafts=2) as (sandbox, client, (zero, one)):
        before = send(client, zero)
        first, second = send(client, Draft(one, tag=1)), send(client, Draft(one, tag=2))
        await settle()
        await cancelled(first)
        assert (await second).draft.tag == 2
        await before
        assert order(sandbox) == [zero, one]


async def test_all_give_up_while_it_waits_and_no_call_is_made() -> None:
    async with scene(drafts=3) as (sandbox, client, (zero, one, two)):
        before = send(client, zero)
        await settle()
        sends = [send(client, one), send(client, one, priority=Priority.INTERACTIVE)]
        await settle()
        for task in sends:
            await cancelled(task)
        await before
        await client.send_draft(two)
        await asyncio.sleep(100)
        assert order(sandbox) == [zero, two]
        assert client.snapshot().permits == 20


async def test_giving_up_in_the_very_step_of_its_turn() -> None:
    """However many steps of the loop later it is: the draft is sent once or not at all, and nothing is kept."""
    for steps in range(12):
        async with scene(app=f"app{steps}") as (sandbox, client, (one,)):
            task = send(client, one)
            await settle(steps)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.sleep(100)
            shot = client.snapshot()
            assert (shot.in_flight, shot.permits) == (0, 20)
            assert sum(shot.waiting.values()) == 0
            assert len(order(sandbox)) <= 1
            assert (await client.send_draft(one)).attempts == 1


async def test_giving_up_in_flight_finishes_the_call() -> None:
    async with scene(drafts=2) as (sandbox, client, (one, two)):
        sandbox.latency = SLOW
        task = send(client, one)
        await asyncio.sleep(0.5)
        await cancelled(task)
        assert now() == at(0.5)
        shot = client.snapshot()
        assert (shot.in_flight, shot.permits) == (1, 19)
        # The lane is kept until the end of the call.
        await client.send_draft(two)
        assert sandbox.ledger.sends[1].time >= SLOW + SLOW / 2 - 0.01
        assert sandbox.ledger.sent == {one: 1, two: 1}
        assert sandbox.ledger.conflicts == 0
        assert client.snapshot().permits == 18


async def test_who_asks_again_joins_the_call_that_was_given_up() -> None:
    async with scene() as (sandbox, client, (one,)):
        sandbox.latency = SLOW
        await asyncio.sleep(0)
        task = send(client, Draft(one, tag=1))
        await asyncio.sleep(0.5)
        await cancelled(task)
        await asyncio.sleep(0.5)
        result = await client.send_draft(Draft(one, tag=2))
        assert now() == at(SLOW)
        assert (result.draft.tag, result.attempts, result.already_sent) == (2, 1, False)
        assert result.message_id
        assert order(sandbox) == [one]


async def test_who_asks_again_in_flight_wakes_the_retries_too() -> None:
    async with scene() as (sandbox, client, (one,)):
        sandbox.latency = SLOW
        sandbox.script(one, Fault.code("InternalError"))
        task = send(client, one)
        await asyncio.sleep(0.5)
        await cancelled(task)
        assert (await client.send_draft(one)).attempts == 2


async def test_nobody_left_means_no_retry() -> None:
    async with scene() as (sandbox, client, (one,)):
        sandbox.latency = SLOW
        sandbox.script(one, *[Fault.code("InternalError")] * 3)
        task = send(client, one)
        await asyncio.sleep(0.5)
        await cancelled(task)
        await asyncio.sleep(1000)
        assert order(sandbox) == [one]
        assert our_tasks() == []


async def test_giving_up_between_two_attempts() -> None:
    async with scene(drafts=2) as (sandbox, client, (one, two)):
        sandbox.script(one, *[Fault.code("InternalError")] * 9)
        task = send(client, one)
        await asyncio.sleep(0.2)
        assert client.snapshot().in_flight == 0
        await cancelled(task)
        await client.send_draft(two)
        await asyncio.sleep(1000)
        assert order(sandbox) == [one, two]


async def test_a_timeout_of_the_callers_own() -> None:
    async with scene() as (sandbox, client, (one,)):
        sandbox.latency = SLOW
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await client.send_draft(one)
        assert now() == at(0.5)
        assert (await client.send_draft(one)).attempts == 1
        assert order(sandbox) == [one]


async def test_a_send_cancelled_in_the_pass_in_which_it_begins_costs_no_call() -> None:
    async with scene() as (sandbox, client, (one,)):
        sending = send(client, one)
        await settle(1)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await asyncio.sleep(100)
        assert order(sandbox) == []
        assert (await client.send_draft(one)).attempts == 1
