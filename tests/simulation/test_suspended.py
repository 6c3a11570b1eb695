"""Invariant 7: which user, mailbox or draft waits or is suspended, for how long, and how it ends."""

import asyncio
import itertools
from collections.abc import Sequence

import pytest

from feishu_mail_async import (
    AutomatedSendDisabled,
    Draft,
    FeishuMailError,
    OutcomeUnknown,
    RateLimit,
    RetryPolicy,
    SendResult,
    Suspended,
    errors,
)
from feishu_mail_async.sandbox import Fault
from tests.helpers.outages import HOUR, MANY, gaps_of, kinds, outcomes, stage

pytestmark = pytest.mark.looptime(start=0)


# --- one user waits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [Fault.code("ConcurrentWrite"), Fault.code("MailThrottled"), Fault.unknown(1299999, 429)],
    ids=["1236006", "1236010", "unknown-429"],
)
async def test_a_user_cools_down_for_longer_and_longer_and_a_success_forgets_it(fault: Fault) -> None:
    async with stage(("alice", "bob"), 20, retry=RetryPolicy(attempts=1)) as here:
        one, two = here.ids("alice")[:2]
        here.sandbox.script(one, *[fault] * 5)
        bobs = here.send_all("bob")
        assert (await here.send("alice")).attempts == 6
        here.sandbox.script(two, fault)
        assert (await here.send("alice", 1)).attempts == 2
        await outcomes(bobs)
        calls = [call.time for draft in (one, two) for call in here.sandbox.ledger.calls(draft)]
        gaps = [b - a - 0.02 for a, b in itertools.pairwise(calls)]
        for gap, longest in zip((*gaps[:5], gaps[6]), (1, 2, 4, 8, 16, 1), strict=True):
            assert longest / 2 - 1e-3 <= gap <= longest + 0.21  # another's dispatch may come first
        times = [call.time for call in here.sandbox.ledger.sends if call.user == "bob"]
        assert max(gaps_of(times)) <= 0.4 + 1e-3  # undisturbed


async def test_a_users_cool_down_holds_all_of_the_users_drafts() -> None:
    async with stage(("alice",), 4) as here:
        here.script_calls(Fault.code("MailThrottled"), Fault.code("MailThrottled"))
        tasks = here.send_all()
        await asyncio.sleep(0.1)
        assert here.client.snapshot().cooling.keys() == {"alice"}
        await outcomes(tasks)
        gaps = gaps_of(here.times())
        assert 0.5 <= gaps[0] <= 1.1
        assert 1.0 <= gaps[1] <= 2.1
        assert max(gaps[2:]) < 0.3


async def test_refusals_have_an_end() -> None:
    async with stage(retry=RetryPolicy(attempts=1, refusals=2)) as here:
        here.script_calls(*[Fault.code("ConcurrentWrite")] * 3)
        with pytest.raises(errors.ConcurrentWrite):
            await here.send("alice")
        assert len(here.times()) == 3


@pytest.mark.parametrize(
    "fault",
    [Fault.code("InternalError"), Fault.gateway(502), Fault.gateway(504), Fault.broken(), Fault.reset_before()],
    ids=["1236019", "502", "504", "broken", "reset"],
)
async def test_a_failure_of_the_servers_delays_its_draft_alone(fault: Fault) -> None:
    limit = RateLimit(calls=1000, spacing=0.2, grace=0)
    async with stage(("alice",), 10, retry=RetryPolicy(initial=20), rate_limit=limit) as here:
        here.sandbox.script(here.ids("alice")[0], fault)
        found = await outcomes(here.send_all())
        assert [isinstance(one, SendResult) and one.attempts for one in found] == [2] + [1] * 9
        assert here.times()[9] == pytest.approx(0.01 + 9 * 0.2, abs=0.02)  # the others did not wait
        assert 10 <= here.times()[10] <= 21


# --- suspensions -----------------------------------------------------------------------------------------


def closed(found: Sequence[SendResult | FeishuMailError], scope: str) -> list[Suspended]:
    """The drafts that were skipped, all of them because of that scope."""
    skipped = [one for one in found if isinstance(one, Suspended)]
    assert {one.subject for one in skipped} <= {scope}
    return skipped


async def test_a_spent_daily_quota_closes_the_user_for_an_hour() -> None:
    async with stage(("alice", "bob"), 5) as here:
        here.sandbox.set_quota("alice", 0)
        found = await outcomes(here.send_all())
        assert kinds(found) == {"UserDailyQuota": 1, "SendResult": 5, "Suspended": 4}
        for one in closed(found, "user:alice"):
            assert isinstance(one.__cause__, errors.UserDailyQuota)
            assert one.until is not None
            assert HOUR - 2 < one.until <= HOUR
            assert one.attempts == 0
        assert len(here.times("alice")) == 1
        assert here.client.snapshot().suspended[0].subject == "user:alice"
        await asyncio.sleep(HOUR - 60)
        assert kinds(await outcomes(here.send_all("alice"))) == {"Suspended": 5}
        await asyncio.sleep(70)
        # Its time is over: one probes, and closes the user again.
        assert kinds(await outcomes(here.send_all("alice"))) == {"UserDailyQuota": 1, "Suspended": 4}
        assert len(here.times("alice")) == 2
        here.sandbox.set_quota("alice", None)
        await asyncio.sleep(HOUR)
        assert kinds(await outcomes(here.send_all("alice"))) == {"SendResult": 5}
        assert here.client.snapshot().suspended == ()


@pytest.mark.parametrize("how", ["not-found", "automation"])
@pytest.mark.parametrize("own", [True, False], ids=["own", "shared"])
async def test_a_closed_mailbox_stays_closed_until_it_is_reopened(how: str, own: bool) -> None:
    # A capital letter, because scopes and addresses compare in their own ways.
    async with stage(("Alice",), 2) as here:
        here.sandbox.share_mailbox("Team@example.com", "Alice")
        address, name = ("Alice@example.com", "me") if own else ("Team@example.com", "Team@example.com")
        drafts = [Draft(id_, name, "Alice") for id_ in here.sandbox.add_drafts("Alice", 4, mailbox=name)]
        other = "Team@example.com" if own else "me"
        if how == "automation":
            here.sandbox.disable_automation(address, "no robots", "https://mail.example.com/x")
        else:
            here.sandbox.close_mailbox(address)

        def send(what: Sequence[Draft]) -> list["asyncio.Task[SendResult]"]:
            return [asyncio.create_task(here.client.send_draft(draft)) for draft in what]

        found = await outcomes(send(drafts))
        first = "AutomatedSendDisabled" if how == "automation" else "MailboxNotFound"
        assert kinds(found) == {first: 1, "Suspended": 3}
        if how == "automation":
            assert isinstance(found[0], AutomatedSendDisabled)
            assert (found[0].reason, found[0].reference) == ("no robots", "https://mail.example.com/x")
        assert len(here.times()) == 1
        assert here.sandbox.ledger.sent.total() == 0
        skipped = found[1]
        assert isinstance(skipped, Suspended)
        assert skipped.subject.startswith("mailbox:")
        assert skipped.until is None
        # The user's other mailbox is open.
        elsewhere = Draft(here.sandbox.add_draft("Alice", mailbox=other), other, "Alice")
        assert kinds(await outcomes(send([elsewhere]))) == {"SendResult": 1}
        here.sandbox.open_mailbox(address)
        await asyncio.sleep(10 * HOUR)
        assert kinds(await outcomes(send(drafts))) == {"Suspended": 4}
        here.client.resume(skipped.subject)
        assert kinds(await outcomes(send(drafts))) == {"SendResult": 4}


@pytest.mark.parametrize("code", ["TenantStorageFull", "AppQuotaSpent"])
@pytest.mark.parametrize("mended", [True, False], ids=["mended", "still-full"])
async def test_a_full_storage_or_a_spent_quota_closes_the_app_for_an_hour(code: str, mended: bool) -> None:
    async with stage(MANY, 2, rate_limit=RateLimit(spacing=2.0), latency=1.0) as here:
        here.script_calls(Fault.code(code))
        found = await outcomes(here.send_all())
        assert kinds(found) == {code: 1, "Suspended": 19}
        assert all(one.until is not None and one.until > HOUR - 5 for one in closed(found, "app"))
        assert len(here.times()) == 1
        await asyncio.sleep(HOUR + 5)
        if not mended:
            here.script_calls(Fault.code(code))
        here.client.set_rate_limit(RateLimit(spacing=0.1))
        found = await outcomes(here.send_all())
        # However many wait, one of them tries.
        if mended:
            assert kinds(found) == {"SendResult": 20}
            assert here.times()[2] - here.times()[1] >= 1.0 - 1e-3
        else:
            assert kinds(found) == {code: 1, "Suspended": 19}
            assert len(here.times()) == 2


@pytest.mark.parametrize("code", ["UserExternalQuota", "TenantExternalQuota", "PermissionDenied", "ContentRisk"])
async def test_what_is_the_drafts_own_fails_the_draft_alone(code: str) -> None:
    async with stage(("alice", "bob"), 3) as here:
        here.sandbox.script(here.ids("alice")[0], Fault.code(code))
        found = await outcomes(here.send_all())
        assert kinds(found) == {code: 1, "SendResult": 5}
        assert here.client.snapshot().suspended == ()


async def test_a_token_refused_is_replaced_by_the_one_the_mapping_has_now() -> None:
    async with stage(("alice",), 4, latency=1.0) as here:
        here.sandbox.expire_token("alice")
        tasks = here.send_all()
        await asyncio.sleep(0.2)  # the call is on its way with the old token
        here.tokens["alice"] = here.sandbox.renew_token("alice")
        found = await outcomes(tasks)
        assert [isinstance(one, SendResult) and one.attempts for one in found] == [2, 1, 1, 1]


async def test_a_token_refused_and_not_changed_closes_the_user_until_it_changes() -> None:
    async with stage(("alice", "bob"), 4) as here:
        here.sandbox.expire_token("alice")
        found = await outcomes(here.send_all())
        assert kinds(found) == {"InvalidToken": 1, "Suspended": 3, "SendResult": 4}
        assert all(one.until is None for one in closed(found, "user:alice"))
        calls = len(here.times())
        await asyncio.sleep(10 * HOUR)
        assert kinds(await outcomes(here.send_all("alice"))) == {"Suspended": 4}
        assert len(here.times()) == calls
        here.tokens["alice"] = here.sandbox.renew_token("alice")
        assert kinds(await outcomes(here.send_all("alice"))) == {"SendResult": 4}
        assert here.client.snapshot().suspended == ()


async def test_a_missing_scope_closes_the_user_until_reopened() -> None:
    async with stage(("alice", "bob"), 3) as here:
        here.tokens["alice"] = here.sandbox.renew_token("alice", scopes=[])
        found = await outcomes(here.send_all())
        assert kinds(found) == {"ScopeMissing": 1, "Suspended": 2, "SendResult": 3}
        here.tokens["alice"] = here.sandbox.renew_token("alice")
        here.client.resume(closed(found, "user:alice")[0].subject)
        assert kinds(await outcomes(here.send_all("alice"))) == {"SendResult": 3}


async def test_a_suspension_does_not_call_drafts_in_doubt_failed() -> None:
    """One whose first reply was lost, and whose user is suspended before it can ask again, may have been sent."""
    async with stage(("alice",), 2, rate_limit=RateLimit(calls=1000, spacing=0.2, grace=0)) as here:
        here.sandbox.script(here.ids("alice")[0], Fault.reset_after())
        here.sandbox.script(here.ids("alice")[1], Fault.code("UserDailyQuota"))
        first, second = await outcomes(here.send_all())
        assert isinstance(first, OutcomeUnknown)
        assert isinstance(first.__cause__, Suspended)
        assert isinstance(second, errors.UserDailyQuota)
