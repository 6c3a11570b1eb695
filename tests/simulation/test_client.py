"""The face: joining, cancelling, deadlines, closing, sharing, and what wrong parameters get."""

import asyncio
import contextvars
import logging
import math
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from feishu_mail_async import (
    ClientClosed,
    ConcurrentWrite,
    ContentRisk,
    Draft,
    FeishuMailClient,
    FeishuMailError,
    MailboxNotFound,
    NotSent,
    OutcomeUnknown,
    Priority,
    RateLimit,
    RetryPolicy,
    SendResult,
    Suspended,
    UserDailyQuota,
)
from feishu_mail_async._api.protocol import Reply
from feishu_mail_async.events import DraftDone
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.clock import now
from tests.helpers.support import ONCE, TOKEN, begins_with, cancel_all, chain, holds, our_tasks, scene, settle

pytestmark = pytest.mark.looptime(start=0)

# A round trip of the sandboxes here takes 2 s, one each way, so that there is a time "in flight".
SLOW = 2.0


def at(seconds: float) -> Any:
    return pytest.approx(seconds, abs=0.01)


def send(client: FeishuMailClient, draft: str | Draft, **how: Any) -> asyncio.Task[SendResult]:
    return asyncio.create_task(client.send_draft(draft, **how))


def order(sandbox: Sandbox) -> list[str | None]:
    return [arrival.draft_id for arrival in sandbox.ledger.arrivals]


# -- the same draft twice ----------------------------------------------------------------------------------


async def test_the_same_draft_twice_at_once_is_one_call() -> None:
    async with scene() as (sandbox, client, (one,)):
        drafts = [Draft(one, tag=number) for number in range(5)]
        results = await asyncio.gather(*map(client.send_draft, drafts))
        assert [result.draft.tag for result in results] == [0, 1, 2, 3, 4]
        assert len({(result.message_id, result.log_id, result.attempts) for result in results}) == 1
        assert order(sandbox) == [one]


async def test_each_gets_the_draft_it_gave_when_it_fails() -> None:
    async with scene() as (sandbox, client, (one,)):
        sandbox.script(one, Fault.code("ContentRisk"))
        ends = await asyncio.gather(
            *(client.send_draft(Draft(one, tag=number)) for number in range(3)), return_exceptions=True
        )
        assert order(sandbox) == [one]
        for end in ends:
            assert isinstance(end, ContentRisk)
        drafts = [end.draft for end in ends if isinstance(end, ContentRisk)]
        assert [draft.tag for draft in drafts if draft is not None] == [0, 1, 2]


async def test_the_same_draft_under_other_names_is_one_call() -> None:
    async with scene("alice@example.com") as (sandbox, client, (one,)):
        sends = [
            client.send_draft(one),
            client.send_draft(one, user="alice@example.com"),
            client.send_draft(one, mailbox="alice@example.com"),
            client.send_draft(Draft(one, "ALICE@Example.COM")),
        ]
        sandbox_box = {result.draft.mailbox for result in await asyncio.gather(*sends)}
        assert sandbox_box == {"me", "alice@example.com", "ALICE@Example.COM"}
        assert len(order(sandbox)) == 1


async def test_the_same_id_elsewhere_is_another_draft() -> None:
    async with scene("alice", "bob") as (sandbox, client, (one,)):
        mine, other = send(client, one, user="alice"), send(client, one, user="bob")
        await mine
        with pytest.raises(FeishuMailError):
            await other
        assert order(sandbox) == [one, one]


async def test_one_after_the_other_is_two_calls() -> None:
    async with scene() as (sandbox, client, (one,)):
        assert not (await client.send_draft(one)).already_sent
        assert (await client.send_draft(one)).already_sent
        assert sandbox.ledger.sent == {one: 1}


async def test_two_clients_send_it_once() -> None:
    async with scene() as (sandbox, client, (one,)):
        async with FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url) as other:
            results = await asyncio.gather(client.send_draft(one), other.send_draft(one))
        assert [result.already_sent for result in results] == [False, True]
        assert sandbox.ledger.sent == {one: 1}
        assert sandbox.ledger.conflicts == 0


async def test_a_more_urgent_caller_makes_the_draft_more_urgent() -> None:
    async with scene(drafts=5) as (sandbox, client, ids):
        sends = [send(client, draft_id, priority=Priority.BULK) for draft_id in ids]
        await settle()
        sends.append(send(client, ids[4], priority=Priority.INTERACTIVE))
        await asyncio.gather(*sends)
        # The first one was on its way already.
        assert order(sandbox) == [ids[0], ids[4], ids[1], ids[2], ids[3]]


async def test_a_less_urgent_caller_changes_nothing() -> None:
    async with scene(drafts=4) as (sandbox, client, ids):
        sends = [send(client, ids[0])]
        await settle()
        sends += [send(client, ids[1], priority=Priority.BULK), send(client, ids[2])]
        sends.append(send(client, ids[3], priority=Priority.INTERACTIVE))
        await settle()
        sends.append(send(client, ids[3], priority=Priority.BULK))
        await asyncio.gather(*sends)
        assert order(sandbox) == [ids[0], ids[3], ids[2], ids[1]]


# -- cancelling --------------------------------------------------------------------------------------------


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


# -- deadlines ---------------------------------------------------------------------------------------------


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


async def test_an_answer_in_the_pass_of_the_deadline_counts() -> None:
    async with FeishuMailClient(TOKEN) as client:
        loop = asyncio.get_running_loop()

        async def exchange(*_: object) -> Reply:
            answered = loop.create_future()
            loop.call_at(begun + 1.0 - 1e-10, answered.set_result, None)
            await answered
            return Reply(200, b'{"code":0,"data":{"message_id":"m"}}')

        transport: Any = client._transport
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


# -- closing -----------------------------------------------------------------------------------------------


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


# -- loops -------------------------------------------------------------------------------------------------


async def bind(client: FeishuMailClient) -> None:
    client.snapshot()


def test_another_loop_gets_the_sentence() -> None:
    client = FeishuMailClient(TOKEN)
    asyncio.run(bind(client))

    async def from_another() -> None:
        for attempt in (client.send_draft("d1"), bind(client)):
            with pytest.raises(RuntimeError, match="run_coroutine_threadsafe"):
                await attempt

    asyncio.run(from_another())


def test_without_a_loop_it_can_be_built_and_not_used() -> None:
    client = FeishuMailClient(TOKEN)
    assert "open.feishu.cn" in repr(client)
    with pytest.raises(RuntimeError):
        client.snapshot()


async def test_a_client_built_outside_a_loop_is_bound_by_its_first_use() -> None:
    async with Sandbox(users=("alice",), latency=0.1) as sandbox:
        built: list[FeishuMailClient] = []
        thread = threading.Thread(
            target=lambda: built.append(FeishuMailClient(sandbox.token("alice"), base_url=sandbox.base_url))
        )
        thread.start()
        thread.join()
        async with built[0] as client:
            await client.send_draft(sandbox.add_draft("alice"))


@pytest.mark.looptime(False)
async def test_a_thread_sends_through_the_loop() -> None:
    async with Sandbox(users=("alice",), latency=0) as sandbox:
        one = sandbox.add_draft("alice")
        loop = asyncio.get_running_loop()
        async with FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url) as client:
            result = await asyncio.to_thread(
                lambda: asyncio.run_coroutine_threadsafe(client.send_draft(one), loop).result(timeout=60)
            )
        assert result.draft.draft_id == one


# -- clients of one app ------------------------------------------------------------------------------------


async def test_two_limits_for_one_app_are_an_error_while_both_are_open() -> None:
    first = FeishuMailClient(TOKEN, app="cli_1", rate_limit=RateLimit(calls=10))
    for base_url in ("https://open.feishu.cn", "HTTPS://open.feishu.cn:443/"):
        with pytest.raises(ValueError, match=begins_with("rate_limit")) as caught:
            FeishuMailClient(TOKEN, app="cli_1", base_url=base_url, rate_limit=RateLimit(calls=11))
        assert "set_rate_limit" in str(caught.value)
    same = FeishuMailClient(TOKEN, app="cli_1", rate_limit=RateLimit(calls=10))
    other_app = FeishuMailClient(TOKEN, app="cli_2", rate_limit=RateLimit(calls=11))
    other_host = FeishuMailClient(TOKEN, app="cli_1", base_url="https://open.larksuite.com")
    no_app = FeishuMailClient(TOKEN, rate_limit=RateLimit(calls=12))
    await first.close()
    with pytest.raises(ValueError, match=begins_with("rate_limit")):
        FeishuMailClient(TOKEN, app="cli_1", rate_limit=RateLimit(calls=11))
    await same.close()
    fine = FeishuMailClient(TOKEN, app="cli_1", rate_limit=RateLimit(calls=11))
    assert [client.snapshot().permits for client in (fine, other_app, other_host, no_app)] == [11, 11, 20, 12]
    for client in (fine, other_app, other_host, no_app):
        await client.close()


async def test_a_client_that_was_not_closed_but_forgotten_does_not_hold_the_limit() -> None:
    FeishuMailClient(TOKEN, app="cli_1", rate_limit=RateLimit(calls=10))
    fine = FeishuMailClient(TOKEN, app="cli_1", rate_limit=RateLimit(calls=11))
    await fine.close()


async def test_permits_outlive_their_client() -> None:
    async with scene(drafts=5) as (sandbox, client, ids):
        for draft_id in ids:
            await client.send_draft(draft_id)
        await client.close()
        less = RateLimit(calls=7)
        async with FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url, rate_limit=less) as other:
            assert other.snapshot().permits == 2
        async with FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url) as another:
            assert another.snapshot().permits == 15
            assert another.snapshot().limit == RateLimit()


async def test_clients_of_one_app_share_the_limit_and_the_locks() -> None:
    async with scene(drafts=50) as (sandbox, _, ids):
        clients = [FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url) for _ in range(5)]
        await asyncio.gather(*(clients[place % 5].send_draft(draft_id) for place, draft_id in enumerate(ids)))
        assert sandbox.ledger.refusals == 0
        assert sandbox.ledger.conflicts == 0
        assert sandbox.ledger.busiest_window() <= 20
        assert len(set(sandbox.ledger.sent)) == 50
        assert {repr(client.snapshot()) for client in clients} == {repr(clients[0].snapshot())}
        for client in clients:
            await client.close()


async def test_clients_of_one_app_share_what_is_closed() -> None:
    async with scene(drafts=2) as (sandbox, client, (one, two)):
        sandbox.script(one, Fault.code("UserDailyQuota"))
        async with FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url) as other:
            with pytest.raises(UserDailyQuota):
                await client.send_draft(one)
            with pytest.raises(Suspended):
                await other.send_draft(two)
            other.resume("user:alice")
            await client.send_draft(two)


async def test_a_closed_client_leaves_the_others_alone() -> None:
    async with scene(drafts=3) as (sandbox, client, ids):
        sandbox.latency = SLOW
        async with FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url) as other:
            mine, theirs = send(client, ids[0]), [send(other, draft_id) for draft_id in ids[1:]]
            await asyncio.sleep(0.5)
            await client.close(timeout=0)
            with pytest.raises(OutcomeUnknown):
                await mine
            await asyncio.gather(*theirs)
        assert sandbox.ledger.conflicts == 0


async def test_unnamed_tokens_of_two_people_are_two_lanes() -> None:
    async with scene("alice", "bob") as (sandbox, *_):
        sandbox.latency = SLOW
        users = ("alice", "bob")
        ids = {user: sandbox.add_drafts(user, 2) for user in users}
        clients = {user: FeishuMailClient(sandbox.token(user), base_url=sandbox.base_url) for user in users}
        await asyncio.gather(*(clients[user].send_draft(draft_id) for user in users for draft_id in ids[user]))
        # Two after two, not four in a row; and never two of one.
        assert now() == at(2 * SLOW + 0.2)
        assert sandbox.ledger.conflicts == 0
        for client in clients.values():
            await client.close()


async def test_the_same_unnamed_token_twice_is_one_lane() -> None:
    async with scene(drafts=2) as (sandbox, _, (one, two)):
        sandbox.latency = SLOW
        clients = [FeishuMailClient(sandbox.token("alice"), base_url=sandbox.base_url) for _ in range(2)]
        await asyncio.gather(clients[0].send_draft(one), clients[1].send_draft(two))
        assert now() == at(2 * SLOW)
        assert sandbox.ledger.conflicts == 0
        for client in clients:
            await client.close()


async def test_the_limit_can_be_changed_for_all() -> None:
    async with scene(drafts=6, rate_limit=RateLimit(calls=2)) as (sandbox, client, ids):
        other = FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url, rate_limit=RateLimit(calls=2))
        sends = [send(client, draft_id) for draft_id in ids]
        await asyncio.sleep(10)
        assert len(sandbox.ledger.sent) == 2
        other.set_rate_limit(RateLimit(calls=5))
        await asyncio.sleep(10)
        assert len(sandbox.ledger.sent) == 5
        assert client.snapshot().limit == other.snapshot().limit == RateLimit(calls=5)
        await asyncio.gather(*sends)
        assert now() > 60
        # Who comes now has to bring the limit in force.
        await FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url, rate_limit=RateLimit(calls=5)).close()
        with pytest.raises(ValueError, match=begins_with("rate_limit")):
            FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url, rate_limit=RateLimit(calls=2))
        await other.close()


async def test_a_lower_limit_holds_at_once() -> None:
    async with scene(drafts=4) as (_, client, ids):
        for draft_id in ids[:3]:
            await client.send_draft(draft_id)
        client.set_rate_limit(RateLimit(calls=2))
        assert client.snapshot().permits == 0
        await client.send_draft(ids[3])
        assert now() > 60


# -- what the caller's own hooks see -----------------------------------------------------------------------

who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


async def test_the_callers_context_reaches_the_callers_hooks() -> None:
    seen: list[str] = []

    async def hook(*_: Any) -> None:
        seen.append(who.get())

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(hook)
    async with (
        scene(drafts=3) as (sandbox, _, ids),
        aiohttp.ClientSession(trace_configs=[trace]) as session,
        FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url, session=session) as client,
    ):
        sandbox.script(ids[1], Fault.code("InternalError"))
        sends = []
        for name, draft_id in zip(("ann", "ben", "cid"), ids, strict=True):
            who.set(name)
            sends.append(send(client, draft_id))
        who.set("later")
        await asyncio.gather(*sends)
    # Also in a retry, which is made long after.
    assert sorted(seen) == ["ann", "ben", "ben", "cid"]


async def test_a_hook_that_raises_may_have_sent() -> None:
    async def hook(*_: Any) -> None:
        raise ZeroDivisionError(TOKEN)

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(hook)
    async with (
        scene() as (sandbox, _, (one,)),
        aiohttp.ClientSession(trace_configs=[trace]) as session,
        FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url, session=session, retry=ONCE) as client,
    ):
        with pytest.raises(OutcomeUnknown):
            await client.send_draft(one)
        assert client.snapshot().in_flight == 0


# -- wrong parameters --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("app", "", ValueError),
        ("app", "a\n", ValueError),
        ("app", 7, TypeError),
        ("rate_limit", 20, TypeError),
        ("rate_limit", None, TypeError),
        ("rate_limit", RateLimit, TypeError),
        ("retry", 3, TypeError),
        ("retry", None, TypeError),
        ("attempt_timeout", 0, ValueError),
        ("attempt_timeout", -1, ValueError),
        ("attempt_timeout", math.nan, ValueError),
        ("attempt_timeout", math.inf, ValueError),
        ("attempt_timeout", True, TypeError),
        ("attempt_timeout", "30", TypeError),
        ("attempt_timeout", None, TypeError),
    ],
)
async def test_wrong_parameters_of_the_client(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=begins_with(name)):
        FeishuMailClient(TOKEN, **{name: value})
    assert our_tasks() == []


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("draft", "", ValueError),
        ("draft", "  ", ValueError),
        ("draft", "a\n", ValueError),
        ("draft", "x" * 513, ValueError),
        ("draft", None, TypeError),
        ("draft", b"d1", TypeError),
        ("draft", ["d1"], TypeError),
        ("mailbox", "", ValueError),
        ("mailbox", "a\0", ValueError),
        ("mailbox", None, TypeError),
        ("user", "", ValueError),
        ("user", "a\x7f", ValueError),
        ("user", 7, TypeError),
        ("priority", 0, TypeError),
        ("priority", 2, TypeError),
        ("priority", "INTERACTIVE", TypeError),
        ("priority", None, TypeError),
        ("priority", Priority, TypeError),
        ("deadline", math.nan, ValueError),
        ("deadline", math.inf, ValueError),
        ("deadline", True, TypeError),
        ("deadline", "5", TypeError),
    ],
)
async def test_wrong_parameters_of_a_send(name: str, value: Any, error: type[Exception]) -> None:
    async with scene() as (sandbox, client, (one,)):
        given = {"draft": one, name: value}
        with pytest.raises(error, match=begins_with(name)):
            await client.send_draft(**given)
        assert order(sandbox) == []
        assert sum(client.snapshot().waiting.values()) == 0


async def test_a_draft_brings_its_own_mailbox_and_user() -> None:
    async with scene("alice", "bob") as (sandbox, client, (one,)):
        draft = Draft(one, "alice@example.com", "alice")
        for given in (draft, Draft(one)):
            with pytest.raises(ValueError, match=r"^mailbox, user\b"):
                await client.send_draft(given, mailbox="bob@example.com")
            with pytest.raises(ValueError, match=r"^mailbox, user\b"):
                await client.send_draft(given, user="bob")
        assert order(sandbox) == []
        await client.send_draft(draft, mailbox="alice@example.com", user="alice")


@pytest.mark.parametrize("limit", [20, None, "20/60"])
async def test_a_limit_is_a_rate_limit(limit: Any) -> None:
    async with FeishuMailClient(TOKEN) as client:
        with pytest.raises(TypeError, match=begins_with("rate_limit")):
            client.set_rate_limit(limit)
        assert client.snapshot().limit == RateLimit()


# -- snapshot and reopen -----------------------------------------------------------------------------------


async def test_a_snapshot_at_rest() -> None:
    async with FeishuMailClient(TOKEN) as client:
        shot = client.snapshot()
        assert shot.waiting == {Priority.INTERACTIVE: 0, Priority.NORMAL: 0, Priority.BULK: 0}
        assert (shot.in_flight, shot.permits, shot.limit) == (0, 20, RateLimit())
        assert shot.next_permit == 0
        assert (shot.paused, shot.pause_reason, shot.cooling, shot.suspended) == (
            None,
            None,
            {},
            (),
        )


async def test_a_snapshot_at_work() -> None:
    limit = RateLimit(calls=2, per=60)
    async with scene("alice", "bob", drafts=4, rate_limit=limit) as (sandbox, client, ids):
        sandbox.latency = SLOW
        sends = [send(client, draft_id, user="alice") for draft_id in ids[:2]]
        sends.append(send(client, ids[2], user="alice", priority=Priority.BULK))
        sends.append(send(client, sandbox.add_draft("bob"), user="bob", priority=Priority.INTERACTIVE))
        await asyncio.sleep(1)
        shot = client.snapshot()
        assert shot.waiting == {Priority.INTERACTIVE: 0, Priority.NORMAL: 1, Priority.BULK: 1}
        assert (shot.in_flight, shot.permits) == (2, 0)
        # That depends on when those in flight end.
        assert shot.next_permit is None
        await asyncio.sleep(2)
        shot = client.snapshot()
        assert (shot.in_flight, shot.permits) == (0, 0)
        assert shot.next_permit == at(60.1 + SLOW - 3)
        for task in sends:
            task.cancel()
        await asyncio.gather(*sends, return_exceptions=True)
        assert sum(client.snapshot().waiting.values()) == 0


async def test_a_snapshot_of_a_pause() -> None:
    async with scene(drafts=2) as (sandbox, client, (one, _)):
        sandbox.script(one, Fault.frequency(429, "30"))
        task = send(client, one)
        await asyncio.sleep(10)
        shot = client.snapshot()
        assert shot.paused == at(20.1)
        assert shot.pause_reason is not None
        assert "frequency limit" in shot.pause_reason
        await task
        assert client.snapshot().paused is None
        assert client.snapshot().pause_reason is None


async def test_a_snapshot_of_a_cool_down() -> None:
    policy = RetryPolicy(initial=40, maximum=40)
    async with scene("alice", "bob", retry=policy) as (sandbox, client, (one,)):
        sandbox.script(one, Fault.code("ConcurrentWrite"))
        task = send(client, one, user="alice")
        await asyncio.sleep(1)
        cooling = client.snapshot().cooling
        assert set(cooling) == {"alice"}
        assert 19 <= cooling["alice"] <= 39.2
        await task
        assert client.snapshot().cooling == {}


async def test_a_snapshot_is_a_copy() -> None:
    async with FeishuMailClient(TOKEN) as client:
        shot = client.snapshot()
        shot.waiting[Priority.BULK] = 99
        assert client.snapshot().waiting[Priority.BULK] == 0
        with pytest.raises(AttributeError):
            shot.permits = 99  # type: ignore[misc]


@pytest.mark.parametrize("scope", ["app", "user:alice", "user:a:b", "mailbox:box@example.com", "mailbox:me/alice"])
async def test_what_is_not_closed_stays_as_it_is(scope: str) -> None:
    async with FeishuMailClient(TOKEN) as client:
        client.resume(scope)
        assert client.snapshot().suspended == ()


@pytest.mark.parametrize(
    ("scope", "error"),
    [
        ("", ValueError),
        ("App", ValueError),
        ("app:", ValueError),
        ("app:cli_1", ValueError),
        ("user", ValueError),
        ("user:", ValueError),
        ("mailbox:", ValueError),
        ("users:alice", ValueError),
        ("draft:d1", ValueError),
        ("alice", ValueError),
        ("user:a\n", ValueError),
        (None, TypeError),
        (7, TypeError),
    ],
)
async def test_what_is_no_scope(scope: Any, error: type[Exception]) -> None:
    async with FeishuMailClient(TOKEN) as client:
        with pytest.raises(error, match=begins_with("subject")):
            client.resume(scope)


@pytest.mark.parametrize("user", ["alice", "Alice", "Alice@Example.com", "ÄLICE", "straße@example.com"])
@pytest.mark.parametrize("box", ["me", "Shared@Example.COM"])
async def test_reopening_as_the_error_says(user: str, box: str) -> None:
    async with Sandbox(users=(user,), latency=0.1) as sandbox:
        sandbox.share_mailbox("Shared@Example.COM", user)
        one, two = (sandbox.add_draft(user, mailbox=box) for _ in range(2))
        sandbox.script(one, Fault.code("MailboxNotFound"))
        async with FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url) as client:
            with pytest.raises(MailboxNotFound):
                await client.send_draft(one, mailbox=box)
            with pytest.raises(Suspended) as caught:
                await client.send_draft(two, mailbox=box)
            assert client.snapshot().suspended[0].subject == caught.value.subject
            client.resume(caught.value.subject)
            assert client.snapshot().suspended == ()
            await client.send_draft(two, mailbox=box)


@pytest.mark.parametrize("unnamed", [True, False])
async def test_reopening_a_user_as_the_error_says(unnamed: bool) -> None:
    async with scene(drafts=2) as (sandbox, _, (one, two)):
        sandbox.script(one, Fault.code("UserScopeMissing"))
        tokens = sandbox.token("alice") if unnamed else sandbox.tokens
        async with FeishuMailClient(tokens, base_url=sandbox.base_url) as client:
            with pytest.raises(FeishuMailError):
                await client.send_draft(one)
            with pytest.raises(Suspended) as caught:
                await client.send_draft(two)
            assert caught.value.subject.startswith("user:")
            assert sandbox.token("alice") not in caught.value.subject
            client.resume(caught.value.subject)
            await client.send_draft(two)


async def test_what_waits_behind_a_closure_is_told_at_once() -> None:
    async with scene("alice", "bob", drafts=3) as (sandbox, client, ids):
        sandbox.script(ids[0], Fault.code("UserDailyQuota"))
        ends = await asyncio.gather(
            *(client.send_draft(Draft(draft_id, user="alice", tag=draft_id)) for draft_id in ids),
            client.send_draft(sandbox.add_draft("bob"), user="bob"),
            return_exceptions=True,
        )
        assert isinstance(ends[0], UserDailyQuota)
        for draft_id, end in zip(ids[1:], ends[1:3], strict=True):
            assert isinstance(end, Suspended)
            assert end.draft is not None
            assert end.draft.tag == draft_id
            assert end.__cause__ is not None
        assert isinstance(ends[3], SendResult)
        assert now() < 1


# -- the canary --------------------------------------------------------------------------------------------


def every_fault() -> Iterator[tuple[str, Fault]]:
    """Every kind of fault once."""
    from feishu_mail_async.codes import CODES  # noqa: PLC0415 - for this list only

    for row in CODES.values():
        if row.error:
            yield row.name, Fault.code(row.name)
    yield "unknown", Fault.unknown(7)
    yield "unknown 429", Fault.unknown(7, 429)
    yield "unknown 500", Fault.unknown(7, 500)
    yield "frequency", Fault.frequency(400, None)
    yield "bare", Fault.bare_429()
    yield "automation", Fault.automation_disabled()
    yield "gateway", Fault.gateway()
    yield "redirect", Fault.redirect("http://127.0.0.1:9/")
    yield "broken", Fault.broken()
    yield "empty", Fault.empty()
    yield "null", Fault.null()
    yield "array", Fault.array()
    yield "nulls", Fault.nulls()
    yield "huge", Fault.huge(1_000_000)
    yield "huge declared", Fault.huge(1_000_000, declared=True)
    yield "reset before", Fault.reset_before()
    yield "reset after", Fault.reset_after()
    yield "hang before", Fault.hang_before()
    yield "hang after", Fault.hang_after()
    yield "delay", Fault.delay(40)


class Everything(logging.Handler):
    """Keeps every record as it came, and as it would be written."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts += [self.format(record), repr(record.args), repr(vars(record))]
        if record.exc_info and record.exc_info[1] is not None:
            self.texts.append("".join(traceback.format_exception(record.exc_info[1])))


async def test_the_canary(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG)
    handler = Everything()
    logging.getLogger().addHandler(handler)
    asyncio.get_running_loop().set_debug(True)
    shown: list[str] = []
    found: list[str] = []
    ended = 0
    try:
        async with Sandbox(latency=0.1, calls=1000) as sandbox:
            sandbox.add_user("alice", token=TOKEN)
            for name, fault in every_fault():
                one = sandbox.add_draft("alice")
                sandbox.script(one, *[fault] * 3)
                async with FeishuMailClient(
                    {"alice": TOKEN}, app=name, base_url=sandbox.base_url, retry=ONCE
                ) as client:
                    task = send(client, one)
                    await asyncio.sleep(0.05)
                    shown += [repr(client.snapshot()), repr(asyncio.all_tasks())]
                    await asyncio.wait([task])
                    if (error := task.exception()) is None:
                        shown.append(repr(task.result()))
                    else:
                        ended += 1
                        found += [f"{name}: {place}" for place in holds(error, TOKEN)]
                        shown += [repr(list(chain(error)))]
                    shown += [repr(client), repr(vars(client).keys()), repr(client.snapshot())]
                    if client.snapshot().suspended:
                        with pytest.raises(Suspended) as caught:
                            await client.send_draft("another")
                        found += [f"{name}, closed: {place}" for place in holds(caught.value, TOKEN)]
            async with (
                sandbox.outage(),
                FeishuMailClient({"alice": TOKEN}, app="outage", base_url=sandbox.base_url, retry=ONCE) as client,
            ):
                with pytest.raises(FeishuMailError) as unreachable:
                    await client.send_draft("d1")
                found += holds(unreachable.value, TOKEN)
                shown.append(repr(client.snapshot()))
    finally:
        asyncio.get_running_loop().set_debug(False)
        logging.getLogger().removeHandler(handler)
    assert ended > 35
    assert found == []
    assert [text[:300] for text in (*shown, *handler.texts, caplog.text) if TOKEN in text] == []
    assert TOKEN not in "".join(capfd.readouterr())


async def test_a_refusal_until_the_end_says_whose_it_is() -> None:
    async with scene(retry=ONCE) as (sandbox, client, (one,)):
        sandbox.script(one, Fault.code("ConcurrentWrite"))
        with pytest.raises(ConcurrentWrite) as caught:
            await client.send_draft(Draft(one, tag=7))
        assert caught.value.draft is not None
        assert caught.value.draft.tag == 7
