"""One limit for a client per request, and limits that are changed."""

import asyncio

import pytest

from feishu_mail_async import FeishuMailClient, RateLimit, SendResult
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.clock import now
from tests.helpers.crowds import crowd, send_all

# Sends by the thousand let the loop look for input less often between two moments; whatever it finds resets
# the count, and a moment more or less is nothing to what these tests measure.
many_sends = pytest.mark.looptime(start=0, noop_cycles=8)
virtual = pytest.mark.looptime(start=0)


# --- many clients of one app, and more than one app --------------------------------------------------------


@many_sends
async def test_a_client_per_request_keeps_one_limit_one_after_another() -> None:
    async with Sandbox(users=("alice",), latency=(0.02, 0.1)) as sandbox:
        for draft in sandbox.add_drafts("alice", 100):
            async with FeishuMailClient(sandbox.token("alice"), base_url=sandbox.base_url, app="cli_a") as client:
                await client.send_draft(draft)
        assert sandbox.ledger.refusals == sandbox.ledger.conflicts == 0
        assert sandbox.ledger.busiest_window() == 20
        assert now() < 4 * 60.1 + 60


@many_sends
async def test_a_client_per_request_keeps_one_limit_all_at_once() -> None:
    async with Sandbox(users=("alice", "bob"), latency=(0.02, 0.1)) as sandbox:

        async def request(user: str, draft: str) -> SendResult:
            tokens = {user: sandbox.token(user)}
            async with FeishuMailClient(tokens, base_url=sandbox.base_url, app="cli_a") as client:
                return await client.send_draft(draft)

        drafts = [(user, draft) for user in ("alice", "bob") for draft in sandbox.add_drafts(user, 15)]
        await asyncio.gather(*(request(user, draft) for user, draft in drafts))
        assert sandbox.ledger.refusals == sandbox.ledger.conflicts == 0
        assert sandbox.ledger.busiest_window() == 20
        assert sandbox.ledger.sent.total() == 30


@many_sends
@pytest.mark.parametrize("what", ["app", "base_url"])
async def test_two_budgets_do_not_share(what: str) -> None:
    """Forty calls take one window where there are two budgets, and two where there is one."""
    async with Sandbox(users=("alice", "bob"), calls=40) as one, Sandbox(users=("alice", "bob")) as other:
        second = other if what == "base_url" else one
        first_client = FeishuMailClient({"alice": one.token("alice")}, base_url=one.base_url, app="cli_a")
        second_client = FeishuMailClient(
            {"bob": second.token("bob")},
            base_url=second.base_url,
            app="cli_b" if what == "app" else "cli_a",
        )
        async with first_client, second_client:
            await asyncio.gather(
                *(first_client.send_draft(draft) for draft in one.add_drafts("alice", 20)),
                *(second_client.send_draft(draft) for draft in second.add_drafts("bob", 20)),
            )
        assert now() < 10
        assert one.ledger.refusals == other.ledger.refusals == 0


# --- the limit changes -------------------------------------------------------------------------------------


@virtual
async def test_a_lower_limit_counts_the_calls_already_made() -> None:
    async with crowd(40, 1, RateLimit(spacing=0)) as (sandbox, client, drafts):
        sends = asyncio.create_task(send_all(client, drafts))
        await asyncio.sleep(30)
        client.set_rate_limit(RateLimit(calls=5, spacing=0))
        await sends
    times = [call.time for call in sandbox.ledger.sends]
    assert times[19] < 1
    assert times[20] == pytest.approx(60.13, abs=1e-3)
    later = times[20:]
    assert all(sum(time - 60 < other <= time for other in later) <= 5 for time in later)
    assert times[-1] == pytest.approx(60.13 + 3 * 60.12, abs=1e-3), "slower than need be"


@virtual
async def test_a_higher_limit_lets_more_go_at_once() -> None:
    async with crowd(40, 1, RateLimit(calls=5, spacing=0)) as (sandbox, client, drafts):
        sends = asyncio.create_task(send_all(client, drafts))
        await asyncio.sleep(30)
        assert len(sandbox.ledger.sends) == 5
        client.set_rate_limit(RateLimit(calls=20, spacing=0))
        await asyncio.sleep(0.5)
        assert len(sandbox.ledger.sends) == 20
        assert client.snapshot().permits == 0
        await sends
    assert sandbox.ledger.busiest_window() <= 20


@virtual
async def test_a_longer_window_holds_for_the_calls_already_made() -> None:
    async with crowd(4, 1, RateLimit(calls=2, per=60, spacing=0)) as (sandbox, client, drafts):
        sends = asyncio.create_task(send_all(client, drafts))
        await asyncio.sleep(30)
        client.set_rate_limit(RateLimit(calls=2, per=120, spacing=0))
        await sends
    assert sandbox.ledger.sends[2].time == pytest.approx(120.13, abs=1e-3)
