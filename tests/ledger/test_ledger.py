"""What a ledger on a database promises: the rerun, turns over several processes, limits, tables, costs."""

# ruff: noqa: ASYNC221, ASYNC240 - a look at a file of the test's own may block its loop

import asyncio
import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from feishu_mail_async import (
    AutomatedSendDisabled,
    Draft,
    DraftNotFound,
    FeishuMailClient,
    LedgerError,
    NotSent,
    OutcomeStatus,
    OutcomeUnknown,
    Priority,
    RateLimit,
    RetryPolicy,
    Suspended,
    TooManyRecipients,
    UserDailyQuota,
)
from feishu_mail_async._api.endpoints import SEND
from feishu_mail_async._scheduling.suspensions import SuspensionKey
from feishu_mail_async.ledger import DraftKey, DraftState, check_url, open_ledger, schema
from feishu_mail_async.ledger.opening import open_stores
from feishu_mail_async.ledger.sql import SqlLedger
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.ledgers import (
    APP,
    HOMES,
    LOST,
    NEVER,
    Process,
    ask,
    client_of,
    fleet,
    home_url,
    ledger_on,
    nothing_held,
    refused,
    rows,
    transactions,
    until,
)
from tests.helpers.postgres import DATABASE_PASSWORD
from tests.helpers.support import FREE, ONCE, TOKEN, holds


@pytest.fixture(params=HOMES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return home_url(request, tmp_path)


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(users=["alice", "bob"], latency=0, calls=100_000) as one:
        yield one


def open_client(sandbox: Sandbox, ledger: Any, **settings: Any) -> FeishuMailClient:
    return client_of(sandbox, ledger, **({"rate_limit": FREE} | settings))


async def outcomes(client: FeishuMailClient, drafts: Any) -> dict[str, Any]:
    return {one.draft.draft_id: one async for one in client.send_drafts(drafts)}


async def mark_sent(ledger: SqlLedger, drafts: list[Draft]) -> None:
    """Have it on record that these were sent."""

    async def write(connection: Any) -> None:
        app_id = (await connection.execute(sa.select(schema.app.c.id))).scalar_one()
        row = {"app_id": app_id, "state": "sent", "in_doubt": False, "calls": 1, "changed": 0.0, "message_id": "m"}
        gone = sa.delete(schema.draft).where(schema.draft.c.draft_id.in_([one.draft_id for one in drafts]))
        await connection.execute(gone)
        await connection.execute(
            sa.insert(schema.draft),
            [
                row | {"user_key": one.user, "mailbox_key": f"me/{one.user}", "draft_id": one.draft_id}
                for one in drafts
            ],
        )

    await ledger.database.transact(write)


# --- the rerun --------------------------------------------------------------------------------------------


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
    monkeypatch.setattr("feishu_mail_async.ledger.sqlstore.SLACK", 0.3)


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
    for _ in range(2):  # and it stays doubtful
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


# --- turns over several processes -------------------------------------------------------------------------

TWO = RateLimit(calls=2, per=60, spacing=0, margin=0)


async def test_permits_are_shared(url: str) -> None:
    async with fleet(url, TWO) as house:
        one, two = house.start(), house.start()
        await one.send(ask(user="a"))
        house.clock.now += 1
        turn = await two.turn(ask(user="b"))
        assert (await one.take(ask(user="c"))).granted is None
        assert (await two.take(ask(user="c"))).granted is None
        house.clock.now += 58.999
        assert (await one.take(ask(user="c"))).granted is None
        house.clock.now += 0.001  # the first has left the window, the second is still in flight
        await one.send(ask(user="c"))
        house.clock.now += 1
        assert (await two.take(ask(user="d"))).granted is None
        await two.settle(turn)
        house.clock.now += 58.999
        assert (await two.take(ask(user="d"))).granted is None
        house.clock.now += 0.001
        await two.send(ask(user="d"))


async def test_locks_are_shared(url: str) -> None:
    async with fleet(url, FREE) as house:
        one, two = house.start(), house.start()
        turn = await one.turn(ask(user="a", mailbox="team@x"))
        same_user = await two.take(ask(user="a", mailbox="other@x"))
        same_box = await two.take(ask(user="b", mailbox="TEAM@x"))
        assert same_user.granted is same_box.granted is None
        assert [(kind, key) for kind, key, *_ in same_user.shut] == [("user", "a")]
        assert [(kind, key) for kind, key, *_ in same_box.shut] == [("mailbox", "team@x")]
        await two.send(ask(user="b", mailbox="other@x"))
        await one.settle(turn)
        await two.send(ask(user="b", mailbox="team@x"))
        await two.send(ask(user="a", mailbox="other@x"))


async def test_a_lost_call_keeps_its_locks_and_its_permit_for_grace(url: str) -> None:
    limit = RateLimit(calls=2, per=60, spacing=0, margin=0, grace=10)
    async with fleet(url, limit) as house:
        one, two = house.start(), house.start()
        await one.send(ask(user="a"), judgement=LOST)
        assert (await two.take(ask(user="a"))).granted is None
        house.clock.now += 10
        await two.send(ask(user="a"))
        house.clock.now += 59.9
        assert (await one.take(ask(user="b"))).granted is None  # 69.9 s after the first has ended
        house.clock.now += 0.1
        await one.send(ask(user="b"))
        await two.send(ask(user="c"))
        await nothing_held(one.ledger)


async def test_a_call_that_never_left_gives_its_permit_back(url: str) -> None:
    limit = RateLimit(calls=1, per=60, spacing=0, margin=0)
    async with fleet(url, limit) as house:
        one, two = house.start(), house.start()
        wanted = ask("d", "a")
        await one.send(wanted, judgement=NEVER)
        assert (await two.take(wanted)).granted is None  # an outage: the app waits
        house.clock.now += 1.0
        turn = await two.turn(wanted)
        assert turn.permit.probe
        assert not turn.permit.in_doubt
        await two.settle(turn)
        [row] = await rows(one.ledger, schema.draft)
        assert (row["calls"], row["state"]) == (1, "sent")


async def test_what_a_process_leaves_behind_lapses(url: str) -> None:
    """Permit, locks and the draft's doubt: no earlier than the call can have ended, and then at once."""
    limit = RateLimit(calls=2, per=60, spacing=0, margin=0, grace=10)
    async with fleet(url, limit) as house:
        one, two = house.start(), house.start()
        await one.turn(ask("d", "a", timeout=30))
        await one.ledger.close()
        lapses = 30 + 10 + 5  # the call's timeout, grace, and the time to make it
        house.clock.now += lapses - 0.01
        assert (await two.take(ask("d", "a"))).granted is None
        house.clock.now += 0.02
        turn = await two.turn(ask("d", "a"))
        assert turn.permit.in_doubt
        await two.settle(turn)
        house.clock.now += 59.9
        assert (await two.take(ask(user="b"))).granted is None  # two permits: the first counts from its lapse on
        house.clock.now += 0.2
        await two.send(ask(user="b"))


async def test_one_that_gave_up_does_not_write_over_one_that_goes_on(url: str) -> None:
    """A draft that ends here unsent, and was sent or is being sent by another process."""
    async with fleet(url, FREE) as house:
        one, two = house.start(), house.start()
        await two.send(ask("sent", "a"))
        await two.turn(ask("going", "b"))
        for draft, user in (("sent", "a"), ("going", "b"), ("new", "c")):
            one.store.note(DraftKey(user, f"me/{user}", draft), OutcomeStatus.SKIPPED, NotSent("stopped"))
        await one.store.written()
        states = {row["draft_id"]: row["state"] for row in await rows(one.ledger, schema.draft)}
        assert states == {"sent": "sent", "going": "in_flight", "new": "skipped"}


async def test_a_call_that_ends_after_its_lease_has_lapsed(url: str) -> None:
    """Its process stood still: what another one has taken since is left alone."""
    limit = RateLimit(calls=2, per=60, spacing=0, margin=0, grace=10)
    async with fleet(url, limit) as house:
        one, two = house.start(), house.start()
        late = await one.turn(ask("d", "a"))
        house.clock.now += 46
        turn = await two.turn(ask("d", "a"))
        await one.settle(late, refused("TooManyRecipients"))
        [row] = await rows(one.ledger, schema.draft)
        assert (row["state"], row["turn"], row["in_doubt"]) == ("in_flight", turn.permit.turn, True)
        assert (await one.take(ask(user="a"))).shut != []
        house.clock.now += 59  # the late one counts from when it ended
        assert (await one.take(ask(user="b"))).granted is None
        await two.settle(turn)
        house.clock.now += 1
        await one.send(ask(user="b"))


async def test_a_turn_given_back_leaves_nothing(url: str) -> None:
    limit = RateLimit(calls=1, per=60, spacing=0, margin=0)
    async with fleet(url, limit) as house:
        one, two = house.start(), house.start()
        turn = await one.turn(ask("d", "a"))
        await one.store.give_back(turn.permit)
        await nothing_held(one.ledger)
        [row] = await rows(one.ledger, schema.draft)
        assert (row["calls"], row["state"], row["in_doubt"]) == (0, "waiting", False)
        await two.send(ask("d", "a"))


async def test_a_turn_given_back_keeps_an_older_doubt(url: str) -> None:
    async with fleet(url, FREE) as house:
        one, two = house.start(), house.start()
        await one.turn(ask("d", "a"))
        house.clock.now += 1000
        turn = await two.turn(ask("d", "a"))
        assert turn.permit.in_doubt
        await two.store.give_back(turn.permit)
        again = await two.turn(ask("d", "a"))
        assert again.permit.in_doubt


async def test_a_refusal_does_not_clear_an_older_doubt(url: str) -> None:
    """What was sent by the call that vanished stays sent, whatever the next one is told."""
    async with fleet(url, FREE) as house:
        one, two = house.start(), house.start()
        await one.turn(ask("d", "a"))
        for name in ("TooManyRecipients", "ConcurrentWrite", "DraftNotFound"):
            house.clock.now += 1000
            turn = await two.turn(ask("d", "a"))
            assert turn.permit.in_doubt
            await two.settle(turn, refused(name))
            [row] = await rows(two.ledger, schema.draft)
            assert row["in_doubt"]
            assert row["state"] == ("waiting" if name == "ConcurrentWrite" else "unknown")
        house.clock.now += 1000
        await two.send(ask("d", "a"))
        [row] = await rows(two.ledger, schema.draft)
        assert (row["in_doubt"], row["state"]) == (False, "sent")


async def test_settling_twice_is_settling_once(url: str) -> None:
    limit = RateLimit(calls=5, per=60, spacing=0, margin=0)
    async with fleet(url, limit) as house:
        one = house.start()
        turn = await one.turn(ask("d", "a"))
        await one.settle(turn, refused("ConcurrentWrite"))
        house.clock.now += 0.1
        await one.settle(turn, refused("ConcurrentWrite"))
        [permit] = await rows(one.ledger, schema.permit)
        assert permit["ended"] == permit["taken"]  # no time passed in the first one
        strikes = {(row["kind"], row["consecutive_refusals"]) for row in await rows(one.ledger, schema.lock)}
        assert strikes == {("user", 1)}  # of the mailbox nothing is to be known
        again = await one.take(ask("d", "a"))
        assert again.granted is None
        [draft] = await rows(one.ledger, schema.draft)
        assert (draft["calls"], draft["state"]) == (1, "waiting")


async def test_the_first_that_may_go_is_taken(url: str) -> None:
    """Offered many, it takes the first whose locks are open, and says what keeps the others and what was sent."""
    async with fleet(url, FREE) as house:
        one, two = house.start(), house.start()
        await one.send(ask("sent", "s"))
        await one.turn(ask(user="a"))
        taken = await two.take(ask("sent", "s"), ask(user="a"), ask("third", "b"), ask(user="c"))
        assert taken.granted is not None
        assert taken.granted[0].draft_id == "third"
        [(known, record)] = taken.recorded
        assert (known.draft_id, record.message_id, record.log_id) == ("sent", "m1", "log1")
        assert {(kind, key) for kind, key, *_ in taken.shut} == {("user", "a"), ("mailbox", "me/a")}


async def test_only_urgent_ones_take_what_is_reserved(url: str) -> None:
    limit = RateLimit(calls=2, per=60, spacing=0, margin=0, reserve=1)
    async with fleet(url, limit) as house:
        one, two = house.start(), house.start()
        await one.send(ask(user="a"))
        normal, urgent = ask(user="b"), ask(user="c", priority=Priority.INTERACTIVE)
        assert (await two.take(normal)).granted is None
        taken = await two.take(normal, urgent)
        assert taken.granted is not None
        assert taken.granted[0] is urgent


async def test_spacing_is_kept_over_processes(url: str) -> None:
    limit = RateLimit(calls=100, per=60, spacing=0.5, margin=0)
    async with fleet(url, limit) as house:
        one, two = house.start(), house.start()
        await one.send(ask(user="a"))
        house.clock.now += 0.499
        assert (await two.take(ask(user="b"))).granted is None
        house.clock.now += 0.001
        await two.send(ask(user="b"))


async def test_one_pause_for_all_and_one_probe(url: str) -> None:
    limit = RateLimit(calls=60, per=60, spacing=0, margin=0)
    async with fleet(url, limit) as house:
        one, two = house.start(), house.start()
        await one.send(ask(user="a"), judgement=refused("FrequencyLimited", reset="30"))
        house.clock.now += 29.9
        assert (await two.take(ask(user="b"))).granted is None
        house.clock.now += 0.1
        probe = await two.turn(ask(user="b"))
        assert probe.permit.probe
        for other in (one, two):
            assert (await other.take(ask(user="c"))).granted is None
        await two.settle(probe)
        assert (await one.take(ask(user="c"))).granted is None  # the minute after it goes at an even pace
        house.clock.now += 1.0
        await one.send(ask(user="c"))
        assert (await two.take(ask(user="d"))).granted is None
        house.clock.now += 59.5
        await two.send(ask(user="d"))
        await one.send(ask(user="e"))  # and then no longer


async def test_a_probe_that_vanishes_lapses(url: str) -> None:
    limit = RateLimit(calls=60, per=60, spacing=0, margin=0, grace=10)
    async with fleet(url, limit) as house:
        one, two = house.start(), house.start()
        await one.send(ask(user="a"), judgement=refused("FrequencyLimited", reset="30"))
        house.clock.now += 30
        assert (await two.turn(ask(user="b", timeout=20))).permit.probe
        await two.ledger.close()
        house.clock.now += 20 + 10 + 5 - 0.01
        assert (await one.take(ask(user="c"))).granted is None
        house.clock.now += 0.02
        again = await one.turn(ask(user="c"))
        assert again.permit.probe
        assert (await one.take(ask(user="d"))).granted is None


async def test_a_probe_without_an_answer_leaves_it_to_the_next(url: str) -> None:
    async with fleet(url, FREE) as house:
        one, two = house.start(), house.start()
        await one.send(ask(user="a"), judgement=refused("FrequencyLimited", reset="30"))
        house.clock.now += 30
        probe = await two.turn(ask(user="b"))
        await two.settle(probe, LOST)
        again = await one.turn(ask(user="c"))
        assert again.permit.probe
        await one.store.give_back(again.permit)
        assert (await two.turn(ask(user="d"))).permit.probe


async def test_a_user_that_cools_down_does_so_everywhere(url: str) -> None:
    async with fleet(url, FREE) as house:
        one, two = house.start(), house.start()
        for wait in (1.0, 2.0):  # longer while it repeats
            await one.send(ask(user="a"), judgement=refused("ConcurrentWrite"))
            house.clock.now += wait - 0.01
            assert (await two.take(ask(user="a"))).granted is None
            house.clock.now += 0.01
        await two.send(ask(user="a"))
        await one.send(ask(user="a"), judgement=refused("MailThrottled"))
        house.clock.now += 1.0
        await two.send(ask(user="a"))


@pytest.mark.parametrize(
    ("name", "subject", "closed", "open_"),
    [
        ("UserDailyQuota", "user:a", ("a", "x@x"), ("b", "me")),
        ("TenantStorageFull", "app", ("b", "me"), None),
    ],
)
async def test_a_closure_for_an_hour(
    url: str, name: str, subject: str, closed: tuple[str, str], open_: tuple[str, str] | None
) -> None:
    """It holds in every process, also in one that starts later; then one call probes."""
    async with fleet(url, FREE) as house:
        one, two = house.start(), house.start()
        settled = await one.settle(await one.turn(ask(user="a")), refused(name))
        key = SuspensionKey(subject, SEND.name)
        assert settled.suspended == key
        house.clock.now += 3599
        for process in (two, house.start()):
            assert (await process.take(ask(user=closed[0], mailbox=closed[1]))).granted is None
            error = process.store.state.suspensions.refusal(key, asyncio.get_running_loop().time())
            assert error.until is not None
            assert error.until <= 1
            assert str(codes_of(name)) in str(error)
        if open_ is not None:
            await two.send(ask(user=open_[0], mailbox=open_[1]))
        house.clock.now += 1.001
        probe = await two.turn(ask(user=closed[0], mailbox=closed[1]))
        if subject == "app":
            assert probe.permit.probe
            assert (await one.take(ask(user="z"))).granted is None
        await two.settle(probe)
        house.clock.now += 1
        await one.send(ask(user=closed[0], mailbox=closed[1]))
        assert await rows(one.ledger, schema.suspension) == []


def codes_of(name: str) -> int:
    from feishu_mail_async import codes  # noqa: PLC0415

    return codes.named(name).number


async def test_what_is_closed_until_reopened(url: str) -> None:
    async with fleet(url, FREE) as house:
        one, two = house.start(), house.start()
        await one.settle(await one.turn(ask(user="a", mailbox="Box@x")), refused("MailboxNotFound"))
        house.clock.now += 1e6
        wanted = ask(user="b", mailbox="box@X")
        assert (await two.take(wanted)).granted is None
        two.store.resume("mailbox:box@x")
        await two.store.written()
        assert await rows(one.ledger, schema.suspension) == []
        await one.send(wanted)
        await two.send(ask(user="b", mailbox="box@X"))


# --- the limit --------------------------------------------------------------------------------------------


async def test_the_limit_given_last_takes_its_place(url: str) -> None:
    wide, narrow = RateLimit(calls=5, per=60, spacing=0, margin=0), TWO
    async with fleet(url, wide) as house:
        one = house.start()
        await one.send(ask(user="a"))
        await one.send(ask(user="b"))
        two = house.start(narrow)
        assert (await two.take(ask(user="c"))).granted is None  # the calls made count
        assert (await one.take(ask(user="c"))).granted is None
        assert one.store.state.budget.limit == narrow
        one.store.set_limit(wide)
        assert one.store.state.budget.limit == wide
        await two.store.records([])
        await one.store.written()
        await two.send(ask(user="c"))
        assert two.store.state.budget.limit == wide


async def test_set_rate_limit_reaches_the_other_process(url: str, sandbox: Sandbox) -> None:
    drafts = sandbox.add_drafts("alice", 3)
    closed = RateLimit(calls=1, per=3600, spacing=0, margin=0)
    other = open_ledger(url)
    async with open_client(sandbox, url) as here, open_client(sandbox, other) as there:
        await here.send_draft(drafts[0], user="alice")
        there.set_rate_limit(closed)
        await until(lambda: there.snapshot().limit == closed)
        await there.records([Draft("any", user="alice")])  # what is set is on record before what comes after it
        with pytest.raises(NotSent):
            await here.send_draft(drafts[1], user="alice", deadline=0.5)
        assert here.snapshot().limit == closed
        here.set_rate_limit(FREE)
        await here.send_draft(drafts[1], user="alice")
        await there.send_draft(drafts[2], user="alice")
    await other.close()


async def test_a_narrower_limit_counts_the_calls_made(url: str, sandbox: Sandbox) -> None:
    drafts = sandbox.add_drafts("alice", 6)
    async with open_client(sandbox, url, rate_limit=RateLimit(calls=5, per=1.5, spacing=0, margin=0)) as client:
        for draft in drafts[:4]:
            await client.send_draft(draft, user="alice")
        client.set_rate_limit(RateLimit(calls=2, per=1.5, spacing=0, margin=0))
        await client.send_draft(drafts[4], user="alice")
    times = [call.time for call in sandbox.ledger.sends]
    assert times[4] - times[2] >= 1.5


# --- tokens that were refused -----------------------------------------------------------------------------


async def test_a_refused_token_closes_its_user_everywhere_until_it_changes(url: str, sandbox: Sandbox) -> None:
    one, two, three = sandbox.add_drafts("alice", 3)
    bad = dict(sandbox.tokens)
    sandbox.revoke("alice")
    other = open_ledger(url)
    async with open_client(sandbox, url, tokens=bad) as here, open_client(sandbox, other, tokens=bad) as there:
        with pytest.raises(Exception, match=r"9999166|99991677"):
            await here.send_draft(one, user="alice")
        calls = len(sandbox.ledger.sends)
        with pytest.raises(Suspended) as caught:
            await there.send_draft(two, user="alice")
        assert caught.value.subject == "user:alice"
        assert caught.value.until is None
        [outcome] = [item async for item in there.send_drafts([Draft(two, user="alice")])]
        assert isinstance(outcome.error, Suspended)
    async with open_client(sandbox, url, tokens=bad) as restarted:
        with pytest.raises(Suspended):
            await restarted.send_draft(two, user="alice")
        assert len(sandbox.ledger.sends) == calls
    good = dict(sandbox.tokens) | {"alice": sandbox.renew_token("alice")}
    async with open_client(sandbox, url, tokens=good) as restarted:
        assert (await restarted.send_draft(two, user="alice")).attempts == 1
    async with open_client(sandbox, other, tokens=good) as there:
        assert (await outcomes(there, [Draft(three, user="alice")]))[three].status is OutcomeStatus.SENT
        assert there.snapshot().suspended == ()
    await other.close()


async def test_no_token_is_in_the_tables(url: str, sandbox: Sandbox) -> None:
    sandbox.renew_token("alice", token=TOKEN)
    good, bad = sandbox.add_drafts("alice", 2)
    async with open_client(sandbox, url) as client:
        await client.send_draft(good, user="alice")
    sandbox.revoke("alice")
    async with open_client(sandbox, url) as client:
        with pytest.raises(Exception, match=r"9999166|99991677"):
            await client.send_draft(bad, user="alice")
    ledger = ledger_on(url)
    tables = [await rows(ledger, table) for table in schema.metadata.tables.values()]
    await ledger.close()
    assert any("user:alice" in str(found) for found in tables)
    assert TOKEN not in str(tables)


# --- closing and reopening, with clients ------------------------------------------------------------------


async def test_reopen_reaches_the_other_process(url: str, sandbox: Sandbox) -> None:
    drafts = sandbox.add_drafts("alice", 3)
    other = open_ledger(url)
    address = sandbox.users["alice"]
    sandbox.disable_automation(address, reason="不允许", reference="https://mail.example.com/d")
    async with open_client(sandbox, url) as here, open_client(sandbox, other) as there:
        with pytest.raises(AutomatedSendDisabled):
            await here.send_draft(drafts[0], user="alice", mailbox=address)
        with pytest.raises(Suspended) as caught:
            await there.send_draft(drafts[1], user="alice", mailbox=address)
        reason = caught.value.__cause__
        assert isinstance(reason, AutomatedSendDisabled)
        assert (reason.reason, reason.reference) == ("不允许", "https://mail.example.com/d")
        assert [one.subject for one in there.snapshot().suspended] == [f"mailbox:{address}"]
        sandbox.open_mailbox(address)
        there.resume(caught.value.subject)
        assert not (await there.send_draft(drafts[1], user="alice", mailbox=address)).already_sent
        assert not (await here.send_draft(drafts[2], user="alice", mailbox=address)).already_sent
    await other.close()


async def test_what_waits_hears_that_another_process_closed_its_user(url: str, sandbox: Sandbox) -> None:
    """The quota is spent by a call of another process: what waits here ends as skipped, without a call."""
    first, spent, *waiting = sandbox.add_drafts("alice", 5)
    sandbox.script(spent, Fault.code("UserDailyQuota"))
    limit = RateLimit(calls=2, per=1.0, spacing=0, margin=0)
    other = open_ledger(url)
    async with (
        open_client(sandbox, url, rate_limit=limit) as here,
        open_client(sandbox, other, rate_limit=limit) as there,
    ):
        await there.send_draft(first, user="alice")
        with pytest.raises(UserDailyQuota):
            await there.send_draft(spent, user="alice")
        there_closed = there.snapshot().suspended
        results = await outcomes(here, [Draft(one, user="alice") for one in waiting])
    await other.close()
    assert [one.subject for one in there_closed] == ["user:alice"]
    assert {one.status for one in results.values()} == {OutcomeStatus.SKIPPED}
    assert all(isinstance(one.error.__cause__, UserDailyQuota) for one in results.values())
    assert len(sandbox.ledger.sends) == 2


# --- the tables -------------------------------------------------------------------------------------------


async def test_two_make_the_tables_at_once(url: str) -> None:
    ledgers = [ledger_on(url) for _ in range(5)]
    assert await asyncio.gather(*(ledger.apps() for ledger in ledgers)) == [[]] * 5
    [row] = await rows(ledgers[0], schema.schema)
    assert row["version"] == schema.VERSION
    for ledger in ledgers:
        await ledger.close()


async def test_tables_of_a_newer_version_are_left_alone(url: str, sandbox: Sandbox) -> None:
    ledger = ledger_on(url)

    async def newer(connection: Any) -> None:
        await connection.execute(sa.update(schema.schema).values(version=schema.VERSION + 1))

    await ledger.database.transact(newer)
    await ledger.close()
    [draft] = sandbox.add_drafts("alice", 1)
    for _ in range(2):
        async with open_client(sandbox, url) as client:
            with pytest.raises(OutcomeUnknown, match="upgrade") as caught:
                await client.send_draft(draft, user="alice")
            assert not holds(caught.value, DATABASE_PASSWORD)
    async with open_client(sandbox, ledger) as client:  # the same ledger, opened again
        with pytest.raises(OutcomeUnknown, match="upgrade"):
            await client.send_draft(draft, user="alice")
    await ledger.close()
    assert sandbox.ledger.sends == []


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_the_file_is_for_its_owner_alone(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "mail.db"
    wanted = {"mail.db", "mail.db-wal", "mail.db-shm"}
    seen: dict[str, set[int]] = {}
    looking = True

    def look() -> None:
        while looking:
            time.sleep(0)
            for one in tmp_path.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    seen.setdefault(one.name, set()).add(stat.S_IMODE(one.stat().st_mode))

    before = os.umask(umask)
    watcher = asyncio.create_task(asyncio.to_thread(look))
    try:
        ledger = ledger_on(f"sqlite:///{path}")
        for _ in range(5):
            await Process(ledger, ledger.store("https://x", APP, FREE)).send(ask())
        await until(lambda: wanted <= seen.keys())
        await ledger.close()
    finally:
        os.umask(before)
        looking = False
        await watcher
    assert {(name, oct(mode)) for name, modes in seen.items() for mode in modes} == {
        (name, "0o600") for name in seen
    }


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
async def test_a_file_that_others_may_read_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "it's mail.db"
    keeper = ledger_on(f"sqlite:///{path}")
    await keeper.apps()  # keeps the files beside it there
    loose = Path(f"{path}{suffix}")
    loose.chmod(0o640)
    ledger = ledger_on(f"sqlite:///{path}")
    with pytest.raises(LedgerError) as caught:
        await ledger.apps()
    remedy = str(caught.value).rpartition(": ")[2]
    assert remedy.startswith("chmod 600 ")
    subprocess.run(remedy, shell=True, check=True)  # the advice works as it stands
    assert stat.S_IMODE(loose.stat().st_mode) == 0o600
    assert await ledger.apps() == []
    await ledger.close()
    await keeper.close()


async def test_a_file_that_others_may_read_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    with contextlib.closing(sqlite3.connect(path)) as notes:
        notes.execute("CREATE TABLE mine (x)")
    path.chmod(0o644)
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="others may read it"):
        await ledger_on(f"sqlite:///{path}").apps()
    assert path.read_bytes() == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


async def test_the_tables_live_beside_others(url: str, tmp_path: Path) -> None:
    """The database may hold other things, which stay."""
    ledger = ledger_on(url)

    async def mine(connection: Any) -> None:
        await connection.exec_driver_sql("CREATE TABLE app (x integer)")
        await connection.exec_driver_sql("INSERT INTO app VALUES (5)")

    async def still(connection: Any) -> Any:
        return (await connection.exec_driver_sql("SELECT x FROM app")).scalar_one()

    await ledger.database.transact(mine)
    process = Process(ledger, ledger.store("https://x", APP, FREE))
    await process.send(ask())
    assert await ledger.database.transact(still) == 5
    await ledger.close()


# --- addresses, packages ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("", "sqlite:///PATH"),
        ("mail.db", "sqlite:///PATH"),
        ("/var/lib/mail.db", "sqlite:///PATH"),
        ("redis://localhost", "not redis://"),
        ("mysql+aiomysql://h/db", "not mysql+aiomysql://"),
        ("sqlite+aiosqlite:///mail.db", "not sqlite+aiosqlite://"),
        ("postgresql+psycopg://h/db", "not postgresql+psycopg://"),
        ("sqlite://", "slashes"),
        ("sqlite:///", "needs a path"),
        ("sqlite:////", "needs a path"),
        ("sqlite://mail.db", "three slashes"),
        ("sqlite:///:memory:", "memory"),
        ("sqlite:///mail.db?mode=ro", ""),
        ("postgresql://u:pass@word@h/db", "%40"),
        ("postgresql://u:pw@h:port/db", "%40"),
        ("postgresql://u:pw:5433/db", ""),
        (f"mongodb://u:{DATABASE_PASSWORD}@h/db", "not mongodb://"),
        (f"postgresql://u:x@{DATABASE_PASSWORD}@h/db", "%40"),
        (f"postgresql://u:{DATABASE_PASSWORD}:h/db", ""),
        (f"postgresql://u:{DATABASE_PASSWORD}@h:{DATABASE_PASSWORD}/db", "%40"),
    ],
)
async def test_a_wrong_address_gets_a_sentence(wrong: str, says: str, tmp_path: Path) -> None:
    for attempt in (
        lambda: check_url(wrong),
        lambda: open_ledger(wrong),
        lambda: FeishuMailClient("u-x", app=APP, ledger=wrong),
    ):
        with pytest.raises(ValueError, match=r"^ledger: ") as caught:
            attempt()
        assert says in str(caught.value)
        assert not holds(caught.value, DATABASE_PASSWORD)
        assert "pass" not in str(caught.value).replace("password", "")


@pytest.mark.parametrize("right", ["sqlite:///mail.db", "sqlite:////var/mail.db", "postgresql://h/db"])
def test_a_right_address(right: str) -> None:
    assert check_url(right) == right.partition(":")[0]


def test_a_ledger_wants_the_app() -> None:
    with pytest.raises(ValueError, match=r"^app: "):
        FeishuMailClient("u-x", ledger="sqlite:///mail.db")
    with pytest.raises(TypeError, match=r"^ledger: "):
        FeishuMailClient("u-x", app=APP, ledger=5)  # type: ignore[arg-type]


def test_a_missing_package_names_its_extra(tmp_path: Path) -> None:
    script = """
        import sys
        from feishu_mail_async import FeishuMailClient, LedgerError, open_ledger
        FeishuMailClient("u-x")  # needs none of it
        needed = {"sqlite:///mail.db": ("sqlalchemy", "aiosqlite"), "postgresql://h/db": ("sqlalchemy", "psycopg")}
        for url, packages in needed.items():
            for package in packages:
                sys.modules[package] = None
                try:
                    open_ledger(url)
                except LedgerError as error:
                    print(error)
                del sys.modules[package]
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    advice = "ledger: {} is missing; install it with: pip install 'feishu-mail-async[{}]'"
    wanted = [("sqlalchemy", "ledger"), ("aiosqlite", "ledger"), ("sqlalchemy", "fleet"), ("psycopg", "fleet")]
    assert done.stdout.splitlines() == [advice.format(*pair) for pair in wanted]
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_opened_before_it_is_used(tmp_path: Path) -> None:
    ledger = open_stores(f"sqlite:///{tmp_path / 'no' / 'mail.db'}")
    ledger.store("https://x", APP, FREE)
    FeishuMailClient("u-x", app=APP, ledger=f"sqlite:///{tmp_path / 'no' / 'mail.db'}")
    assert "CANARY" not in repr(
        open_ledger(f"postgresql://u:{DATABASE_PASSWORD}@h/db?password={DATABASE_PASSWORD}")
    )


# --- what it costs ----------------------------------------------------------------------------------------


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


async def test_a_reopened_scope_stays_open_though_a_transaction_was_under_way(url: str, sandbox: Sandbox) -> None:
    """What it read before is what the suspension was before; this process must not go by it afterwards."""
    async with open_client(sandbox, url, app="cli_a") as client:
        first, second = sandbox.add_drafts("alice", 2)
        sandbox.script(first, Fault.automation_disabled())
        with pytest.raises(AutomatedSendDisabled):
            await client.send_draft(first, user="alice")
        (closed,) = client.snapshot().suspended
        looking = asyncio.ensure_future(client.records([Draft(first, user="alice")]))
        for _ in range(3):
            await asyncio.sleep(0)
        client.resume(closed.subject)
        await looking
        await client.records([])
        assert not client.snapshot().suspended
        assert (await client.send_draft(second, user="alice")).message_id


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
