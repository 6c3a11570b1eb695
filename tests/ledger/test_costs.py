"""What a draft costs in transactions, and what is written together."""

import asyncio

from feishu_mail_async import Draft, NotSent, OutcomeStatus, RateLimit
from feishu_mail_async.ledger import DraftKey, open_ledger
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.ledgers import fleet, ledger_on, mark_sent, open_client, outcomes, transactions, until
from tests.helpers.scenes import FREE


async def test_a_sent_draft_costs_three_transactions(url: str, sandbox: Sandbox) -> None:
    drafts = sandbox.add_drafts("alice", 6)
    async with open_client(sandbox, url) as client:
        await client.send_draft(drafts[0], user="alice")
        with transactions() as counted:
            for draft in drafts[1:]:
                await client.send_draft(draft, user="alice")
        assert len(counted) == 3 * 5  # look-up, take, settle


async def test_a_run_looks_up_many_at_once(url: str, sandbox: Sandbox) -> None:
    drafts = [Draft(one, user="alice") for one in sandbox.add_drafts("alice", 20)]
    async with open_client(sandbox, url) as client:
        with transactions() as counted:
            await outcomes(client, drafts)
        # The first one opens the ledger; then take and settle for each, and a look-up or two for all.
        assert 2 * 20 < len(counted) <= 2 * 20 + 3
        with transactions() as counted:
            known = await client.records([*drafts, *(Draft(f"other{n}", user="bob") for n in range(480))])
        assert len(counted) == 1
        assert [one is not None for one in known] == [True] * 20 + [False] * 480


async def test_a_rerun_of_500_costs_a_few_transactions(url: str, sandbox: Sandbox) -> None:
    ledger = ledger_on(url)
    async with open_client(sandbox, ledger) as client:
        drafts = [Draft(f"d{n}", user="alice") for n in range(500)]
        await client.records(drafts[:1])
        await mark_sent(ledger, drafts)
        with transactions() as counted:
            results = await outcomes(client, drafts)
    await ledger.close()
    assert {one.status for one in results.values()} == {OutcomeStatus.ALREADY_SENT}
    assert len(results) == 500
    assert len(counted) <= 5  # 200 at once; the first look-up begins as soon as the first few are read
    assert sandbox.ledger.sends == []


async def test_waiting_for_a_permit_costs_nothing(url: str, sandbox: Sandbox) -> None:
    """What time alone brings is not asked for again and again: a permit, the spacing, a pause, a cool-down."""
    drafts = sandbox.add_drafts("alice", 4)
    limit = RateLimit(calls=1, per=1.2, spacing=0, margin=0)
    async with open_client(sandbox, url, rate_limit=limit) as client:
        await client.send_draft(drafts[0], user="alice")
        with transactions() as counted:
            await client.send_draft(drafts[1], user="alice")
        assert len(counted) <= 4  # look-up, take, settle; and one more look, where the clocks differ by a hair
    sandbox.script(drafts[2], Fault.frequency(reset="1.2"))
    async with open_client(sandbox, url) as client:
        with transactions() as counted:
            await client.send_draft(drafts[2], user="alice")
        assert len(counted) <= 1 + 1 + 2 * 2 + 1
        assert len(sandbox.ledger.calls(drafts[2])) == 2


async def test_a_lock_of_another_process_is_looked_at_seldom(url: str, sandbox: Sandbox) -> None:
    """Its end is not told: it is looked for, soon for a young call, and then no more than once a second."""
    one, two = sandbox.add_drafts("alice", 2)
    sandbox.script(one, Fault.delay(1.5))
    other = open_ledger(url)
    async with open_client(sandbox, url) as here, open_client(sandbox, other) as there:
        first = asyncio.create_task(there.send_draft(one, user="alice"))
        await until(lambda: there.snapshot().in_flight == 1)
        with transactions() as counted:
            await here.send_draft(two, user="alice")
        await first
    await other.close()
    assert sandbox.ledger.conflicts == 0
    assert len(counted) <= 1 + 1 + 2 + 30


async def test_whoever_closes_a_ledger_finds_it_closed(url: str) -> None:
    ledger = open_ledger(url)
    assert await ledger.apps() == []
    await asyncio.gather(*(ledger.close() for _ in range(3)))
    assert await ledger.apps() == []  # it is opened again
    await ledger.close()


async def test_many_that_end_together_are_all_on_record(url: str, sandbox: Sandbox) -> None:
    async with open_client(sandbox, url, app="cli_a") as client:
        ids = sandbox.add_drafts("alice", 450)
        sandbox.script(ids[0], Fault.automation_disabled())
        ended = await outcomes(client, [Draft(one, user="alice") for one in ids])
        records = await client.records([Draft(one, user="alice") for one in ids])
    assert ended[ids[0]].status is OutcomeStatus.FAILED
    assert {ended[one].status for one in ids[1:]} == {OutcomeStatus.SKIPPED}
    assert [record and record.state.value for record in records] == [ended[one].status.value for one in ids]


async def test_what_has_ended_is_on_record_before_it_is_asked_for(url: str) -> None:
    """However many drafts end together: whoever asks afterwards hears of all of them."""
    async with fleet(url, FREE) as house:
        store = house.start().store
        keys = [DraftKey("a", "me/a", f"d{number}") for number in range(900)]
        for key in keys:
            store.note(key, OutcomeStatus.SKIPPED, NotSent("stopped"))
        assert set(await store.records(keys)) == set(keys)


async def test_many_single_sends_are_looked_up_together(url: str, sandbox: Sandbox) -> None:
    async with open_client(sandbox, url, app="cli_a") as client:
        ids = sandbox.add_drafts("alice", 50)
        async with client.send_drafts([Draft(one, user="alice") for one in ids]) as run:
            async for _ in run:
                pass
    async with open_client(sandbox, url, app="cli_a") as client:
        await client.records([Draft(ids[0], user="alice")])
        with transactions() as counted:
            results = await asyncio.gather(*(client.send_draft(one, user="alice") for one in ids))
    assert all(result.already_sent and result.message_id for result in results)
    assert len(counted) <= 3
