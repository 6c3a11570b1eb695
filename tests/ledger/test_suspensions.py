"""Pauses, suspensions and limits that hold in every process."""

import asyncio
from typing import Any

import pytest

from feishu_mail_async import (
    AutomatedSendDisabled,
    Draft,
    NotSent,
    OutcomeStatus,
    Priority,
    RateLimit,
    Suspended,
    UserDailyQuota,
)
from feishu_mail_async._api.endpoints import SEND
from feishu_mail_async._scheduling.scheduler import Scheduler
from feishu_mail_async._scheduling.suspensions import SuspensionKey
from feishu_mail_async._scheduling.waiters import Turn, Waiter
from feishu_mail_async.errors import FeishuMailError
from feishu_mail_async.ledger import Record, open_ledger, schema, turns
from feishu_mail_async.ledger.database import Database
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.canary import TOKEN
from tests.helpers.ledgers import APP, ask, fleet, ledger_on, open_client, outcomes, refused, rows, until
from tests.helpers.scenes import FREE

TWO = RateLimit(calls=2, per=60, spacing=0, margin=0)


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


class Timed:
    """Notes when it is granted its turn."""

    def __init__(self) -> None:
        self.granted_at: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def granted(self, _: Turn) -> None:
        self.granted_at.set_result(asyncio.get_running_loop().time())

    def refused(self, error: FeishuMailError) -> None:
        self.granted_at.set_exception(error)

    def recorded(self, record: Record) -> None:
        raise AssertionError(record)


async def test_calls_of_one_process_are_spaced_however_long_a_commit_takes(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger's row has the time of the transaction, and its call goes after the commit."""
    ledger, slow = ledger_on(url), [0.4]

    async def transact(*arguments: Any) -> Any:
        done = await Database._transact(ledger.database, *arguments)
        await asyncio.sleep(slow.pop() if slow else 0.0)
        return done

    monkeypatch.setattr(ledger.database, "_transact", transact)
    scheduler = Scheduler(ledger.store("http://x", APP, RateLimit(spacing=0.5)))
    first, second = Timed(), Timed()
    for user, timed in ("a", first), ("b", second):
        scheduler.submit(Waiter(user, f"me/{user}", Priority.NORMAL, timed))
    assert await second.granted_at - await first.granted_at >= 0.5
    await ledger.close()


async def test_a_database_is_asked_for_one_turn_at_a_time(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes while it is asked is offered to it the next time, and then the most urgent one goes first."""
    take, under_way, most = turns.take, 0, 0

    async def slow(*arguments: Any, **options: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.05)
        try:
            return await take(*arguments, **options)
        finally:
            under_way -= 1

    monkeypatch.setattr(turns, "take", slow)
    ledger = ledger_on(url)
    scheduler = Scheduler(ledger.store("http://x", APP, FREE))
    ranks = Priority.NORMAL, Priority.BULK, Priority.INTERACTIVE
    timed = [Timed() for _ in ranks]
    for user, (priority, one) in enumerate(zip(ranks, timed, strict=True)):
        scheduler.submit(Waiter(str(user), str(user), priority, one))
        await asyncio.sleep(0.01)
    first, last, urgent = await asyncio.gather(*(one.granted_at for one in timed))
    assert first < urgent < last
    assert most == 1
    await ledger.close()
