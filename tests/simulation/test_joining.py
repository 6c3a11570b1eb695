"""Several who want one draft at once share one call, and each gets what it asked for."""

import asyncio

import pytest

from feishu_mail_async import ContentRisk, Draft, FeishuMailClient, FeishuMailError, Priority
from feishu_mail_async.sandbox import Fault
from tests.helpers.scenes import scene
from tests.helpers.sends import order, send
from tests.helpers.tasks import settle

pytestmark = pytest.mark.looptime(start=0)


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
