"""What is on record of a send that the server is to make later."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from feishu_mail_async import Draft, OutcomeStatus
from feishu_mail_async.ledger import DraftState
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.ledgers import open_client, until


def ahead(**time: float) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + timedelta(**time)


@pytest.mark.parametrize("lost", [False, True])
async def test_what_is_on_record_as_scheduled_costs_no_call(lost: bool, url: str, sandbox: Sandbox) -> None:
    [draft_id] = sandbox.add_drafts("alice", 1)
    draft, at = Draft(draft_id, user="alice"), ahead(hours=1)
    sandbox.script(draft_id, *[Fault.gateway(accepted=True)] * lost)
    async with open_client(sandbox, url) as client:
        before = await client.send_draft(draft, at=at)
    assert (before.status, before.message_id) == (OutcomeStatus.SCHEDULED, sandbox.message_id(draft_id))
    made = len(sandbox.ledger.arrivals)
    async with open_client(sandbox, url) as client:
        [record] = await client.records([draft])
        assert record is not None
        assert (record.state, record.scheduled_for) == (DraftState.SCHEDULED, at.timestamp())
        for again in (at, ahead(hours=2), None):
            result = await client.send_draft(draft, at=again)
            assert (result.status, result.scheduled_for) == (OutcomeStatus.SCHEDULED, at)
            assert result.message_id == before.message_id
        [outcome] = [one async for one in client.send_drafts([draft], at=at)]
        assert outcome.status is OutcomeStatus.SCHEDULED
    assert len(sandbox.ledger.arrivals) == made
    assert sandbox.ledger.scheduled == {draft_id: 1}


@pytest.mark.parametrize("by", ["result", "draft", "id"])
async def test_what_was_cancelled_can_be_sent(by: str, url: str, sandbox: Sandbox) -> None:
    [draft_id] = sandbox.add_drafts("alice", 1)
    draft = Draft(draft_id, user="alice")
    async with open_client(sandbox, url) as client:
        result = await client.send_draft(draft, at=ahead(hours=1))
    async with open_client(sandbox, url) as client:
        if by == "id":
            assert result.message_id is not None
            await client.cancel_scheduled(result.message_id, user="alice")
        else:
            await client.cancel_scheduled(result if by == "result" else draft)
        [record] = await client.records([draft])
        assert record is not None
        assert (record.state, record.scheduled_for) == (DraftState.SKIPPED, None)
        assert (await client.send_draft(draft)).status is OutcomeStatus.SENT
    assert sandbox.ledger.sent == {draft_id: 1}


async def test_a_cancellation_whose_end_nobody_has_seen_leaves_it_in_doubt(url: str, sandbox: Sandbox) -> None:
    [draft_id] = sandbox.add_drafts("alice", 1)
    draft = Draft(draft_id, user="alice")
    async with open_client(sandbox, url) as client:
        await client.send_draft(draft, at=ahead(hours=1))
        sandbox.script_calls("cancel", Fault.hang_after())
        cancelling = asyncio.create_task(client.cancel_scheduled(draft))
        await until(lambda: sandbox.ledger.cancelled[draft_id])
        cancelling.cancel()
        await client.close(0.0)
    async with open_client(sandbox, url) as client:
        [record] = await client.records([draft])
        assert record is not None
        assert (record.state, record.in_doubt) == (DraftState.WAITING, True)
        assert (await client.send_draft(draft)).status is OutcomeStatus.SENT
    assert sandbox.ledger.sent == {draft_id: 1}
