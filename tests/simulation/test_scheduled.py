"""Sends that the server is to make later: handed over in time or not at all, never counted as sent."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from feishu_mail_async import (
    FeishuMailClient,
    NotSent,
    OutcomeStatus,
    OutcomeUnknown,
    RetryPolicy,
    ScheduleMissed,
    SendResult,
)
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.mishaps import LOST_KINDS

pytestmark = pytest.mark.looptime

SCHEDULED, FAILED, SKIPPED = OutcomeStatus.SCHEDULED, OutcomeStatus.FAILED, OutcomeStatus.SKIPPED


@pytest.fixture
async def sandbox(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sandbox]:
    async with Sandbox(users=["alice"], latency=0.1) as running:
        # The wall clock stands still while the loop's clock runs through hours.
        monkeypatch.setattr("feishu_mail_async._client.arguments.wall_clock", running.unix_time)
        yield running


@pytest.fixture
async def client(sandbox: Sandbox) -> AsyncIterator[FeishuMailClient]:
    async with client_of(sandbox) as running:
        yield running
    assert sandbox.ledger.conflicts == sandbox.ledger.refusals == sandbox.ledger.sibling_refusals == 0


def client_of(sandbox: Sandbox, **settings: Any) -> FeishuMailClient:
    return FeishuMailClient(sandbox.token("alice"), base_url=sandbox.base_url, **settings)


def ahead(sandbox: Sandbox, **time: float) -> datetime:
    return datetime.fromtimestamp(int(sandbox.unix_time()), UTC) + timedelta(**time)


def calls(sandbox: Sandbox) -> Counter[str]:
    return Counter(arrival.endpoint for arrival in sandbox.ledger.arrivals)


async def test_a_draft_is_scheduled_and_sent_in_time(sandbox: Sandbox, client: FeishuMailClient) -> None:
    [draft_id] = sandbox.add_drafts("alice", 1)
    at = ahead(sandbox, hours=1)
    result = await client.send_draft(draft_id, at=at)
    assert (result.status, result.scheduled_for, result.already_sent) == (SCHEDULED, at, False)
    assert result.message_id == sandbox.message_id(draft_id)
    assert not result.status.good
    assert result.status.done
    assert not sandbox.ledger.sent
    await asyncio.sleep(3590)
    assert not sandbox.ledger.sent
    await asyncio.sleep(20)
    assert sandbox.ledger.sent == {draft_id: 1}


async def test_parts_of_a_second_never_make_it_earlier(sandbox: Sandbox, client: FeishuMailClient) -> None:
    [draft_id] = sandbox.add_drafts("alice", 1)
    at = ahead(sandbox, hours=1)
    result = await client.send_draft(draft_id, at=at + timedelta(microseconds=1))
    assert result.scheduled_for == at + timedelta(seconds=1)


@pytest.mark.parametrize("fault", LOST_KINDS, ids=repr)
async def test_a_lost_answer_is_asked_for_again(fault: Fault, sandbox: Sandbox, client: FeishuMailClient) -> None:
    [draft_id] = sandbox.add_drafts("alice", 1)
    at = ahead(sandbox, hours=1)
    sandbox.script(draft_id, fault)
    result = await client.send_draft(draft_id, at=at)
    assert (result.status, result.scheduled_for) == (SCHEDULED, at)
    assert result.message_id == sandbox.message_id(draft_id)
    assert sandbox.ledger.scheduled == {draft_id: 1}


async def test_what_was_sent_before_is_not_said_to_be_scheduled(
    sandbox: Sandbox, client: FeishuMailClient
) -> None:
    [draft_id] = sandbox.add_drafts("alice", 1)
    await client.send_draft(draft_id)
    result = await client.send_draft(draft_id, at=ahead(sandbox, hours=1))
    assert (result.status, result.scheduled_for) == (OutcomeStatus.ALREADY_SENT, None)


async def test_an_answer_that_never_comes_leaves_it_in_doubt(sandbox: Sandbox) -> None:
    [draft_id] = sandbox.add_drafts("alice", 1)
    sandbox.script(draft_id, *[Fault.gateway()] * 2)
    async with client_of(sandbox, retry=RetryPolicy(attempts=2)) as client:
        with pytest.raises(OutcomeUnknown):
            await client.send_draft(draft_id, at=ahead(sandbox, hours=1))


async def test_a_run_is_scheduled_as_fast_as_the_limit_allows(sandbox: Sandbox, client: FeishuMailClient) -> None:
    ids = sandbox.add_drafts("alice", 100)
    at = ahead(sandbox, hours=1)
    began = asyncio.get_running_loop().time()
    async with client.send_drafts(ids, at=at) as run:
        results = {outcome.draft.draft_id: outcome.result async for outcome in run}
    assert asyncio.get_running_loop().time() - began < 4 * 61 + 30
    assert run.summary.statuses == {SCHEDULED: 100}
    for draft_id in ids:
        result = results[draft_id]
        assert result is not None
        assert (result.scheduled_for, result.message_id) == (at, sandbox.message_id(draft_id))
    assert calls(sandbox) == {"read": 100, "send": 100}
    await asyncio.sleep(3600)
    assert sandbox.ledger.sent == dict.fromkeys(ids, 1)


async def test_what_comes_too_late_fails_and_costs_nothing(sandbox: Sandbox, client: FeishuMailClient) -> None:
    """20 a minute, and three minutes to hand them over: what has no turn by then is not sent later by surprise."""
    ids = sandbox.add_drafts("alice", 100)
    async with client.send_drafts(ids, at=ahead(sandbox, minutes=8)) as run:
        outcomes = [outcome async for outcome in run]
    assert run.summary.statuses == {SCHEDULED: 60, FAILED: 40}
    errors = [outcome.error for outcome in outcomes if outcome.status is FAILED]
    assert all(isinstance(error, ScheduleMissed) and not error.attempts for error in errors)
    assert "its turn came too late for " in str(errors[0])
    assert len(sandbox.ledger.sends) == 60
    await asyncio.sleep(3600)
    assert len(sandbox.ledger.sent) == 60


async def test_a_draft_that_waits_for_a_retry_is_not_handed_over_late(
    sandbox: Sandbox, client: FeishuMailClient
) -> None:
    [draft_id] = sandbox.add_drafts("alice", 1)
    sandbox.script(draft_id, Fault.code("FrequencyLimited"))
    sandbox.limit_now(120)
    with pytest.raises(ScheduleMissed):
        await client.send_draft(draft_id, at=ahead(sandbox, minutes=6))
    assert not sandbox.ledger.scheduled


async def test_a_run_that_is_stopped_reads_no_more(sandbox: Sandbox, client: FeishuMailClient) -> None:
    ids = sandbox.add_drafts("alice", 300)
    async with client.send_drafts(ids, at=ahead(sandbox, hours=1)) as run:
        first = await anext(run)
        run.stop()
        rest = [outcome async for outcome in run]
    assert first.status is SCHEDULED
    assert len(rest) == 299
    assert {outcome.status for outcome in rest} <= {SCHEDULED, SKIPPED}
    assert calls(sandbox)["read"] < 50


async def test_a_draft_that_cannot_be_read_is_scheduled_all_the_same(sandbox: Sandbox) -> None:
    [draft_id] = sandbox.add_drafts("alice", 1)
    token = sandbox.renew_token("alice", scopes={"mail:user_mailbox.message:send"})
    async with FeishuMailClient(token, base_url=sandbox.base_url) as client:
        result = await client.send_draft(draft_id, at=ahead(sandbox, hours=1))
    assert (result.status, result.message_id) == (SCHEDULED, None)


async def test_a_deadline_and_a_close_end_it_before_its_turn(sandbox: Sandbox) -> None:
    [draft_id] = sandbox.add_drafts("alice", 1)
    sandbox.script_calls("read", Fault.hang_after())
    async with client_of(sandbox) as client:
        with pytest.raises(NotSent, match="the deadline of 5 s"):
            await client.send_draft(draft_id, at=ahead(sandbox, hours=1), deadline=5)
        sandbox.script_calls("read", Fault.hang_after())
        waiting = asyncio.create_task(client.send_draft(draft_id, at=ahead(sandbox, hours=1)))
        await asyncio.sleep(1)
    with pytest.raises(NotSent):
        await waiting
    assert not sandbox.ledger.sends


async def test_bad_input_costs_no_call(sandbox: Sandbox, client: FeishuMailClient) -> None:
    now = ahead(sandbox)
    for at, message in (
        (now.replace(tzinfo=None) + timedelta(hours=1), "^at: it names no time zone"),
        (now - timedelta(hours=1), "^at: .* is less than five minutes ahead"),
        (now + timedelta(minutes=4), "^at: .* is less than five minutes ahead"),
    ):
        with pytest.raises(ValueError, match=message):
            await client.send_draft("d1", at=at)
        with pytest.raises(ValueError, match=message):
            client.send_drafts(["d1"], at=at)
    with pytest.raises(TypeError, match=r"^at: give a datetime with a time zone, not str"):
        await client.send_draft("d1", at="09:00")  # type: ignore[arg-type]
    assert not sandbox.ledger.arrivals


@pytest.mark.parametrize("patience", [None, 0.0])
async def test_closing_ends_all_that_is_read_first(patience: float | None, sandbox: Sandbox) -> None:
    ids = sandbox.add_drafts("alice", 3100)
    client, at = client_of(sandbox), ahead(sandbox, hours=1)
    single = [asyncio.create_task(client.send_draft(draft_id, at=at)) for draft_id in ids[:3000]]
    run = client.send_drafts(ids[3000:], at=at)
    reading = asyncio.ensure_future(anext(run))
    await asyncio.sleep(5)
    await client.close(patience)
    assert [task.get_name() for task in asyncio.all_tasks() if "prepare" in task.get_name()] == []
    ends = await asyncio.gather(*single, return_exceptions=True)
    assert all(isinstance(end, SendResult | NotSent) for end in ends)
    assert len([await reading, *[outcome async for outcome in run]]) == 100
