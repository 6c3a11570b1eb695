"""Closing a client: what waits ends, what flies is finished, and no task is left."""

import asyncio
import math
from typing import Any

import pytest

from feishu_mail_async import (
    ClientClosed,
    Draft,
    FeishuMailClient,
    FeishuMailError,
    OutcomeUnknown,
    RateLimit,
    RetryPolicy,
    SendResult,
)
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.canary import TOKEN
from tests.helpers.clock import now
from tests.helpers.scenes import scene
from tests.helpers.sends import SLOW, at, order, send
from tests.helpers.tasks import cancel_all, our_tasks, settle
from tests.helpers.wrong import begins_with

pytestmark = pytest.mark.looptime(start=0)


async def test_closing_ends_what_waits_and_finishes_what_flies() -> None:
    async with scene("alice", "bob", drafts=4) as (sandbox, client, ids):
        sandbox.latency = SLOW
        bobs = sandbox.add_draft("bob")
        flying = [send(client, ids[0], user="alice"), send(client, bobs, user="bob")]
        waiting = [send(client, Draft(draft_id, user="alice", tag=draft_id)) for draft_id in ids[1:]]
        await asyncio.sleep(0.5)
        closing = asyncio.create_task(client.close())
        for draft_id, task in zip(ids[1:], waiting, strict=True):
            with pytest.raises(ClientClosed) as caught:
                await task
            assert (caught.value.draft, caught.value.attempts) == (Draft(draft_id, user="alice"), 0)
        assert now() == at(0.5)
        assert not closing.done()
        assert {(await task).draft.draft_id for task in flying} == {ids[0], bobs}
        await closing
        assert now() == at(0.2 + SLOW)
        assert our_tasks() == []
        await asyncio.sleep(1000)
        assert set(order(sandbox)) == {ids[0], bobs}


async def test_closing_leaves_no_task() -> None:
    async with Sandbox(users=("alice",), latency=SLOW) as sandbox:
        ids = sandbox.add_drafts("alice", 3)
        client = FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url)
        sends = [send(client, draft_id) for draft_id in ids]
        await asyncio.sleep(0.5)
        sends[0].cancel()
        await client.close()
        await asyncio.gather(*sends, return_exceptions=True)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("passes", range(12))
async def test_a_client_outlives_the_cancelling_of_all_tasks(passes: int) -> None:
    """Programs that are about to end do that, and may have a last word to send."""
    async with Sandbox(users=("alice", "bob")) as sandbox:
        alices, bobs = sandbox.add_drafts("alice", 4), sandbox.add_drafts("bob", 4)
        mine = [Draft(one, user="alice") for one in alices]
        all_drafts = [*mine, *(Draft(one, user="bob") for one in bobs)]
        async with FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url) as client:
            run = client.send_drafts(all_drafts[len(mine) :])
            first = asyncio.ensure_future(anext(run))
            callers = [*(send(client, draft) for draft in mine), first]
            await cancel_all(callers, passes)
            await asyncio.wait_for(asyncio.gather(*map(client.send_draft, all_drafts)), 600)
            assert client.snapshot().in_flight == 0
        assert sandbox.ledger.sent == dict.fromkeys([*alices, *bobs], 1)
        assert (sandbox.ledger.conflicts, sandbox.ledger.refusals) == (0, 0)
    assert our_tasks() == []


@pytest.mark.parametrize("timeout_", [0, 0.25])
async def test_closing_with_a_timeout_breaks_off(timeout_: float) -> None:
    async with scene(drafts=2) as (sandbox, client, (one, two)):
        sandbox.latency = SLOW
        flying, waiting = send(client, one), send(client, two)
        await asyncio.sleep(0.5)
        await client.close(timeout=timeout_)
        assert now() == at(0.5 + timeout_)
        with pytest.raises(OutcomeUnknown) as caught:
            await flying
        assert caught.value.draft == Draft(one)
        with pytest.raises(ClientClosed):
            await waiting
        assert our_tasks() == []
        # What was broken off may still arrive, and counts.
        async with FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url) as other:
            assert other.snapshot().permits == 19
            await other.send_draft(two)
        assert sandbox.ledger.conflicts == 0


async def test_closing_with_a_timeout_that_suffices() -> None:
    async with scene() as (sandbox, client, (one,)):
        sandbox.latency = SLOW
        flying = send(client, one)
        await asyncio.sleep(0.5)
        await client.close(timeout=100)
        assert now() == at(SLOW)
        assert (await flying).attempts == 1


@pytest.mark.parametrize(
    ("name", "raised"), [("ConcurrentWrite", ClientClosed), ("InternalError", OutcomeUnknown)]
)
async def test_closing_between_two_attempts(name: str, raised: type[Exception]) -> None:
    async with scene(retry=RetryPolicy(initial=30)) as (sandbox, client, (one,)):
        sandbox.script(one, *[Fault.code(name)] * 9)
        task = send(client, one)
        await asyncio.sleep(1)
        await client.close()
        assert now() == at(1)
        with pytest.raises(raised) as caught:
            await task
        assert isinstance(caught.value, FeishuMailError)
        assert (caught.value.draft, caught.value.attempts) == (Draft(one), 1)
        assert order(sandbox) == [one]


@pytest.mark.parametrize(
    ("name", "raised"), [("ConcurrentWrite", ClientClosed), ("InternalError", OutcomeUnknown)]
)
async def test_closing_while_a_refusal_is_on_its_way(name: str, raised: type[Exception]) -> None:
    async with scene() as (sandbox, client, (one,)):
        sandbox.latency = SLOW
        sandbox.script(one, *[Fault.code(name)] * 9)
        task = send(client, one)
        await asyncio.sleep(0.5)
        await client.close()
        assert now() == at(SLOW)
        with pytest.raises(raised):
            await task
        assert order(sandbox) == [one]


async def test_closing_twice_and_at_once() -> None:
    async with scene() as (sandbox, client, (one,)):
        sandbox.latency = SLOW
        flying = send(client, one)
        await asyncio.sleep(0.5)
        await asyncio.gather(client.close(), client.close(timeout=50), client.close())
        assert (await flying).attempts == 1
        await client.close()
        await client.close(timeout=0)


async def test_closing_in_the_very_step_of_a_turn() -> None:
    """However many steps of the loop later it is: what the caller is told is what happened."""
    ends = set()
    for steps in range(12):
        async with scene(app=f"app{steps}") as (sandbox, client, (one,)):
            task = send(client, one)
            await settle(steps)
            await client.close()
            (end,) = await asyncio.gather(task, return_exceptions=True)
            ends.add(type(end))
            assert sandbox.ledger.sent == ({one: 1} if isinstance(end, SendResult) else {})
            assert our_tasks() == []
    assert ends == {SendResult, ClientClosed}


async def test_closing_what_was_never_used() -> None:
    client = FeishuMailClient(TOKEN)
    await client.close()
    assert "closed" in repr(client)
    assert our_tasks() == []


async def test_nothing_goes_after_closing() -> None:
    client = FeishuMailClient(TOKEN)
    await client.close()
    with pytest.raises(ClientClosed):
        await client.send_draft("d1")
    with pytest.raises(ClientClosed):
        client.snapshot()
    with pytest.raises(ClientClosed):
        client.resume("app")
    with pytest.raises(ClientClosed):
        client.set_rate_limit(RateLimit())
    with pytest.raises(ClientClosed):
        async with client:
            raise AssertionError


async def test_an_error_within_the_block_closes_too() -> None:
    client = FeishuMailClient(TOKEN)
    with pytest.raises(ZeroDivisionError):
        async with client:
            raise ZeroDivisionError
    with pytest.raises(ClientClosed):
        client.snapshot()


@pytest.mark.parametrize(
    ("value", "error"), [(-1, ValueError), (math.nan, ValueError), ("5", TypeError), (True, TypeError)]
)
async def test_a_wrong_timeout_does_not_close(value: Any, error: type[Exception]) -> None:
    async with FeishuMailClient(TOKEN) as client:
        with pytest.raises(error, match=begins_with("timeout")):
            await client.close(value)
        assert client.snapshot().permits == 20
