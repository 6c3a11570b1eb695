"""Deadlines: before the turn, in flight, and between two attempts."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from feishu_mail_async import (
    Draft,
    FeishuMailClient,
    FeishuMailError,
    NotSent,
    OutcomeUnknown,
    RateLimit,
    RetryPolicy,
)
from feishu_mail_async._api.protocol import Reply
from feishu_mail_async.events import DraftDone
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.canary import TOKEN
from tests.helpers.clock import now
from tests.helpers.scenes import scene
from tests.helpers.sends import SLOW, at, order, send
from tests.helpers.tasks import settle

pytestmark = pytest.mark.looptime(start=0)


async def test_a_deadline_before_its_turn() -> None:
    async with scene(drafts=2) as (sandbox, client, (one, two)):
        sandbox.latency = SLOW
        before = send(client, one)
        await settle()
        with pytest.raises(NotSent) as caught:
            await client.send_draft(Draft(two, tag=7), deadline=1.5)
        assert now() == at(1.5)
        error = caught.value
        assert type(error) is NotSent
        assert (error.draft, error.attempts) == (Draft(two), 0)
        assert error.draft is not None
        assert error.draft.tag == 7
        assert "1.5 s" in str(error)
        await before
        await asyncio.sleep(100)
        assert order(sandbox) == [one]


async def test_a_deadline_says_what_it_was_that_took_so_long() -> None:
    done: list[str] = []
    async with scene(drafts=3, rate_limit=RateLimit(calls=1)) as (sandbox, client, (one, two, three)):
        client.subscribe(lambda event: done.append(str(event)) if isinstance(event, DraftDone) else None)

        async def late(draft_id: str, deadline: float, why: str) -> None:
            with pytest.raises(NotSent, match=f"the deadline of {deadline:g} s passed: {why}") as caught:
                await client.send_draft(draft_id, deadline=deadline)
            await settle()
            assert done[-1].endswith(str(caught.value)), "the log says the same"

        async with sandbox.outage():
            await late(one, 5, "the server cannot be reached")
        await asyncio.sleep(100)
        await client.send_draft(one)
        await late(two, 5, r"all 1 calls of 60 s are made, the next may go in 5\d s")
        await asyncio.sleep(100)
        client.set_rate_limit(RateLimit())
        sandbox.script(three, Fault.code("ConcurrentWrite"))
        await late(three, 0.5, "the server slows user alice down for another 1 s")


@pytest.mark.parametrize("deadline", [0, -1.0, -1e9])
async def test_a_deadline_that_has_passed_costs_no_call(deadline: float) -> None:
    async with scene() as (sandbox, client, (one,)):
        with pytest.raises(NotSent) as caught:
            await client.send_draft(one, deadline=deadline)
        assert type(caught.value) is NotSent
        await asyncio.sleep(100)
        assert order(sandbox) == []


async def test_an_answer_in_the_pass_of_the_deadline_counts() -> None:
    async with FeishuMailClient(TOKEN) as client:
        loop = asyncio.get_running_loop()

        async def exchange(*_: object, may_go: Callable[[], bool]) -> Reply:
            assert may_go()
            answered = loop.create_future()
            loop.call_at(begun + 1.0 - 1e-10, answered.set_result, None)
            await answered
            return Reply(200, b'{"code":0,"data":{"message_id":"m"}}')

        transport: Any = client._binding._transport
        transport.exchange = exchange
        begun = loop.time()
        assert (await client.send_draft("d1", deadline=1.0)).message_id == "m"


async def test_a_deadline_in_flight() -> None:
    async with scene() as (sandbox, client, (one,)):
        sandbox.latency = SLOW
        with pytest.raises(OutcomeUnknown) as caught:
            await client.send_draft(Draft(one, tag=7), deadline=1.5)
        assert now() == at(1.5)
        assert caught.value.draft is not None
        assert caught.value.draft.tag == 7
        assert "1.5 s" in str(caught.value)
        assert client.snapshot().in_flight == 1
        await asyncio.sleep(SLOW)
        assert client.snapshot().in_flight == 0
        assert sandbox.ledger.sent == {one: 1}


@pytest.mark.parametrize(
    ("name", "raised"),
    [("ConcurrentWrite", NotSent), ("FrequencyLimited", NotSent), ("InternalError", OutcomeUnknown)],
)
async def test_a_deadline_between_two_attempts(name: str, raised: type[Exception]) -> None:
    async with scene(retry=RetryPolicy(initial=30)) as (sandbox, client, (one,)):
        sandbox.script(one, Fault.code(name))
        with pytest.raises(raised) as caught:
            await client.send_draft(one, deadline=5)
        assert now() == at(5)
        assert type(caught.value) is raised
        assert isinstance(caught.value, FeishuMailError)
        assert caught.value.attempts == 1
        await asyncio.sleep(1000)
        assert order(sandbox) == [one]


async def test_a_deadline_that_is_kept() -> None:
    async with scene() as (sandbox, client, (one,)):
        sandbox.latency = SLOW
        assert (await client.send_draft(one, deadline=SLOW + 0.01)).attempts == 1
        assert now() == at(SLOW)


async def test_a_deadline_is_each_callers_own() -> None:
    async with scene() as (sandbox, client, (one,)):
        sandbox.latency = SLOW
        hasty, patient = send(client, one, deadline=1), send(client, one)
        with pytest.raises(OutcomeUnknown):
            await hasty
        assert (await patient).attempts == 1
        assert order(sandbox) == [one]


async def test_a_deadline_in_the_very_step_of_the_turn_claims_no_call() -> None:
    async with (
        Sandbox(users=["alice"], latency=0.1) as sandbox,
        FeishuMailClient(sandbox.token("alice"), base_url=sandbox.base_url) as client,
    ):
        first = asyncio.create_task(client.send_draft(sandbox.add_draft("alice")))
        await asyncio.sleep(0)
        second = sandbox.add_draft("alice")
        _, error = await asyncio.gather(
            first, client.send_draft(second, deadline=0.2 + 1e-12), return_exceptions=True
        )
        await asyncio.sleep(5)
        # Either its call was made, and then it may have been sent; or it was not, and then it was not.
        assert isinstance(error, NotSent) != bool(sandbox.ledger.calls(second))


@pytest.mark.parametrize("deadline", [0, -3, 0.0])
async def test_a_deadline_that_has_passed_sends_nothing(deadline: float) -> None:
    async with Sandbox(users=["alice"], latency=0.1) as sandbox:
        async with FeishuMailClient(sandbox.token("alice"), base_url=sandbox.base_url) as client:
            with pytest.raises(NotSent):
                await client.send_draft(sandbox.add_draft("alice"), deadline=deadline)
            await asyncio.sleep(100)
        assert sandbox.ledger.sends == []
