"""What is on record of a draft, and what the next process makes of it."""

import asyncio

import pytest

from feishu_mail_async import (
    Draft,
    DraftNotFound,
    NotSent,
    OutcomeStatus,
    OutcomeUnknown,
    RateLimit,
    RetryPolicy,
    TooManyRecipients,
)
from feishu_mail_async.ledger import DraftState, open_ledger
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.ledgers import APP, Process, ask, ledger_on, mark_sent, open_client, outcomes, until
from tests.helpers.scenes import FREE, ONCE


async def test_what_was_sent_is_answered_from_the_ledger(url: str, sandbox: Sandbox) -> None:
    [draft] = sandbox.add_drafts("alice", 1)
    async with open_client(sandbox, url) as client:
        first = await client.send_draft(draft, user="alice")
        again = await client.send_draft(draft, user="alice")
    async with open_client(sandbox, url) as client:
        rerun = await client.send_draft(draft, user="alice")
        [outcome] = [one async for one in client.send_drafts([Draft(draft, user="alice", tag=5)])]
        [record] = await client.records([Draft(draft, user="alice")])
    assert not first.already_sent
    assert first.attempts == 1
    for result in (again, rerun, outcome.result):
        assert result is not None
        assert (result.message_id, result.thread_id, result.log_id) == (
            first.message_id,
            first.thread_id,
            first.log_id,
        )
        assert result.already_sent
        assert result.attempts == 0
    assert first.message_id
    assert first.log_id
    assert outcome.status is OutcomeStatus.ALREADY_SENT
    assert outcome.draft.tag == 5
    assert record is not None
    assert (record.state, record.calls, record.message_id) == (DraftState.SENT, 1, first.message_id)
    assert len(sandbox.ledger.calls(draft)) == 1


async def test_a_draft_that_another_process_sends_while_it_waits_here(url: str, sandbox: Sandbox) -> None:
    """It is answered from the ledger when its turn would come: single, in a run, and when it is tried again."""
    single, bulk, retried = sandbox.add_drafts("alice", 3)
    sandbox.script(retried, *[Fault.code("InternalError")] * 5)
    ledger = ledger_on(url)
    there = Process(ledger, ledger.store(sandbox.base_url, APP, FREE))
    async with open_client(sandbox, url, retry=RetryPolicy(initial=0.3, maximum=0.3)) as here:
        tasks = [asyncio.create_task(here.send_draft(retried, user="alice"))]
        await until(lambda: sandbox.ledger.calls(retried))
        taken = await there.take(ask())
        while taken.granted is None:  # between two of its attempts, the user is free
            await asyncio.sleep(0.01)
            taken = await there.take(ask())
        tasks += [asyncio.create_task(here.send_draft(single, user="alice"))]
        run = asyncio.create_task(outcomes(here, [Draft(bulk, user="alice")]))
        await until(lambda: sum(here.snapshot().waiting.values()) == 3)
        await mark_sent(ledger, [Draft(one, user="alice") for one in (single, bulk, retried)])
        await there.store.give_back(taken.granted[1])
        results = [await task for task in tasks]
        outcome = (await run)[bulk]
    await ledger.close()
    assert 1 <= results[0].attempts <= 5
    assert results[1].attempts == 0
    assert outcome.status is OutcomeStatus.ALREADY_SENT
    for result in (*results, outcome.result):
        assert (result.message_id, result.already_sent) == ("m", True)
    assert sandbox.ledger.sent == {}
    assert len(sandbox.ledger.sends) == results[0].attempts


async def vanished(url: str, base_url: str, draft: str, user: str = "alice", limit: RateLimit = FREE) -> None:
    """A process takes a draft's turn and is never heard of again."""
    gone = ledger_on(url)
    await Process(gone, gone.store(base_url, APP, limit)).turn(ask(draft, user, timeout=0.1))
    await gone.close()


BRIEF = RateLimit(calls=100, per=0.2, spacing=0, margin=0, grace=0)
"""A limit under which nothing that a vanished process leaves behind is kept for long."""


@pytest.fixture
def no_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases lapse a moment after the call has timed out."""
    monkeypatch.setattr("feishu_mail_async.ledger.turns.SLACK", 0.3)


@pytest.mark.usefixtures("no_slack")
async def test_what_was_in_flight_is_asked_again(url: str, sandbox: Sandbox) -> None:
    """The mail may have gone out when its process died: the server says whether it did."""
    went, stayed = sandbox.add_drafts("alice", 2)
    async with open_client(sandbox, None) as before:
        await before.send_draft(went, user="alice")
    for draft in (went, stayed):
        await vanished(url, sandbox.base_url, draft, "alice" if draft == went else "bob", BRIEF)
    sandbox.share_mailbox(sandbox.users["alice"], "bob")
    async with open_client(sandbox, url, rate_limit=BRIEF) as client:
        box = sandbox.users["alice"]
        first, second = await asyncio.gather(
            client.send_draft(went, user="alice"), client.send_draft(stayed, user="bob", mailbox=box)
        )
        [record] = await client.records([Draft(went, user="alice")])
    assert first.already_sent
    assert not second.already_sent
    assert record is not None
    assert (record.state, record.calls, record.in_doubt) == (DraftState.ALREADY_SENT, 2, False)
    assert sandbox.ledger.sent == {went: 1, stayed: 1}


@pytest.mark.usefixtures("no_slack")
async def test_not_found_after_a_call_that_vanished_is_unknown(url: str, sandbox: Sandbox) -> None:
    gone = "of-a-process-that-died"
    await vanished(url, sandbox.base_url, gone, limit=BRIEF)
    for _ in range(2):  # and it stays in doubt
        async with open_client(sandbox, url, rate_limit=BRIEF) as client:
            with pytest.raises(OutcomeUnknown) as caught:
                await client.send_draft(gone, user="alice")
            assert isinstance(caught.value.__cause__, DraftNotFound)
            [outcome] = [one async for one in client.send_drafts([Draft(gone, user="alice")])]
            assert outcome.status is OutcomeStatus.UNKNOWN
            [record] = await client.records([Draft(gone, user="alice")])
        assert record is not None
        assert (record.state, record.in_doubt) == (DraftState.UNKNOWN, True)
    async with open_client(sandbox, url, rate_limit=BRIEF) as client:
        with pytest.raises(DraftNotFound):
            await client.send_draft("nobody-ever-had-this", user="alice")


async def test_failed_ones_are_tried_again(url: str, sandbox: Sandbox) -> None:
    failed, unknown, skipped = sandbox.add_drafts("alice", 3)
    sandbox.script(failed, Fault.code("TooManyRecipients"))
    sandbox.script(unknown, Fault.reset_after())
    async with open_client(sandbox, url, retry=ONCE, rate_limit=BRIEF) as client:
        with pytest.raises(TooManyRecipients):
            await client.send_draft(failed, user="alice")
        with pytest.raises(OutcomeUnknown):
            await client.send_draft(unknown, user="alice")
    async with open_client(sandbox, url, rate_limit=RateLimit(calls=1, per=600, spacing=600)) as client:
        with pytest.raises(NotSent):
            await client.send_draft(skipped, user="alice", deadline=2.0)
    async with open_client(sandbox, url) as client:
        before = await client.records([Draft(one, user="alice") for one in (failed, unknown, skipped)])
        results = await outcomes(client, [Draft(one, user="alice") for one in (failed, unknown, skipped)])
    assert [None if one is None else (one.state, one.calls, one.in_doubt) for one in before] == [
        ("failed", 1, False),
        ("unknown", 1, True),
        ("skipped", 0, False),
    ]
    assert before[0] is not None
    assert "1236003" in str(before[0].error)
    assert [results[one].status for one in (failed, unknown, skipped)] == ["sent", "already_sent", "sent"]
    assert sandbox.ledger.sent == {failed: 1, unknown: 1, skipped: 1}


async def test_the_unnamed_user_is_the_same_with_another_token(url: str, sandbox: Sandbox) -> None:
    draft, other = sandbox.add_drafts("alice", 2)
    async with open_client(sandbox, url, tokens=sandbox.token("alice")) as client:
        await client.send_draft(draft)
    sandbox.renew_token("alice")
    async with open_client(sandbox, url, tokens=sandbox.token("alice")) as client:
        assert (await client.send_draft(draft)).attempts == 0
        assert not (await client.send_draft(other)).already_sent
    # A named one is another: the server is asked, and knows.
    async with open_client(sandbox, url, tokens={"alice": sandbox.token("alice")}) as client:
        assert (await client.send_draft(draft)).attempts == 1
        assert (await client.records([Draft(draft)]))[0] is not None


async def test_a_named_user_is_the_same_with_another_token(url: str, sandbox: Sandbox) -> None:
    [draft] = sandbox.add_drafts("alice", 1)
    async with open_client(sandbox, url) as client:
        await client.send_draft(draft, user="alice")
    sandbox.renew_token("alice")
    async with open_client(sandbox, url) as client:
        assert (await client.send_draft(draft, user="alice")).attempts == 0
        assert await client.records([Draft(draft, user="bob"), Draft("unheard-of", user="alice")]) == [None, None]


async def test_a_mailbox_is_the_same_in_any_case(url: str, sandbox: Sandbox) -> None:
    sandbox.share_mailbox("team@example.com", "alice")
    draft = sandbox.add_draft("alice", mailbox="team@example.com")
    async with open_client(sandbox, url) as client:
        await client.send_draft(draft, user="alice", mailbox="Team@Example.com")
        result = await client.send_draft(draft, user="alice", mailbox="TEAM@example.COM")
        records = await client.records([Draft(draft, mailbox="team@EXAMPLE.com", user="alice")])
    assert result.attempts == 0
    assert records[0] is not None


async def test_a_rehearsal_shares_nothing(url: str, sandbox: Sandbox) -> None:
    """Another host or another app has permits, records, suspensions and a limit of its own."""
    [draft] = sandbox.add_drafts("alice", 1)
    async with Sandbox(users=["alice"], latency=0) as other:
        other.add_draft("alice", draft)
        one = RateLimit(calls=1, per=600, spacing=0)
        async with open_client(sandbox, url, rate_limit=one) as client:
            await client.send_draft(draft, user="alice")
            client.set_rate_limit(one)
        async with open_client(other, url) as rehearsal:
            assert await rehearsal.records([Draft(draft, user="alice")]) == [None]
            assert (await rehearsal.send_draft(draft, user="alice", deadline=60)).attempts == 1
        async with open_client(sandbox, url, app="cli_y") as another:
            assert (await another.send_draft(draft, user="alice", deadline=60)).attempts == 1
        ledger = open_ledger(url)
        assert sorted(await ledger.apps()) == sorted(
            [(sandbox.base_url, APP), (other.base_url, APP), (sandbox.base_url, "cli_y")]
        )
        view = await ledger.overview(sandbox.base_url, APP)
        assert view is not None
        assert (view.limit, view.in_use, view.drafts) == (one, 1, {"sent": 1})
        assert await ledger.overview("https://nowhere.example", APP) is None
        await ledger.close()


async def test_without_a_ledger_nothing_is_recalled(sandbox: Sandbox) -> None:
    [draft] = sandbox.add_drafts("alice", 1)
    async with open_client(sandbox, None) as client:
        await client.send_draft(draft, user="alice")
        assert await client.records([Draft(draft, user="alice")]) == [None]
