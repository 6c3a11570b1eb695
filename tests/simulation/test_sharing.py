"""Clients, loops and tokens of one app share its limit, its locks and its suspensions."""

import asyncio
import threading

import pytest

from feishu_mail_async import FeishuMailClient, OutcomeUnknown, RateLimit, Suspended, UserDailyQuota
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.canary import TOKEN
from tests.helpers.clock import now
from tests.helpers.scenes import scene
from tests.helpers.sends import SLOW, at, send
from tests.helpers.wrong import begins_with

pytestmark = pytest.mark.looptime(start=0)


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


async def test_two_sources_without_names_are_two_people() -> None:
    async with Sandbox(users=["alice", "bob"], latency=0.1) as sandbox:

        async def of_alice(_: str | None) -> str:
            return sandbox.token("alice")

        async def of_bob(_: str | None) -> str:
            return sandbox.token("bob")

        draft = sandbox.add_draft("alice")
        sandbox.script(draft, Fault.code("UserDailyQuota"))
        async with (
            FeishuMailClient(of_alice, base_url=sandbox.base_url) as first,
            FeishuMailClient(of_bob, base_url=sandbox.base_url) as second,
            FeishuMailClient(of_alice, base_url=sandbox.base_url) as third,
        ):
            with pytest.raises(UserDailyQuota):
                await first.send_draft(draft)
            await second.send_draft(sandbox.add_draft("bob"))
            with pytest.raises(Suspended):
                await third.send_draft(sandbox.add_draft("alice"))
