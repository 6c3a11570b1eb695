"""Snapshots: how things stand, at rest and at work."""

import asyncio

import pytest

from feishu_mail_async import FeishuMailClient, Priority, RateLimit, RetryPolicy, UserDailyQuota
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.canary import TOKEN
from tests.helpers.scenes import scene
from tests.helpers.sends import SLOW, at, send

pytestmark = pytest.mark.looptime(start=0)


async def test_a_snapshot_at_rest() -> None:
    async with FeishuMailClient(TOKEN) as client:
        shot = client.snapshot()
        assert shot.waiting == {Priority.INTERACTIVE: 0, Priority.NORMAL: 0, Priority.BULK: 0}
        assert (shot.in_flight, shot.permits, shot.limit) == (0, 20, RateLimit())
        assert shot.next_permit == 0
        assert (shot.paused, shot.pause_reason, shot.cooling, shot.suspended) == (
            None,
            None,
            {},
            (),
        )


async def test_a_snapshot_at_work() -> None:
    limit = RateLimit(calls=2, per=60)
    async with scene("alice", "bob", drafts=4, rate_limit=limit) as (sandbox, client, ids):
        sandbox.latency = SLOW
        sends = [send(client, draft_id, user="alice") for draft_id in ids[:2]]
        sends.append(send(client, ids[2], user="alice", priority=Priority.BULK))
        sends.append(send(client, sandbox.add_draft("bob"), user="bob", priority=Priority.INTERACTIVE))
        await asyncio.sleep(1)
        shot = client.snapshot()
        assert shot.waiting == {Priority.INTERACTIVE: 0, Priority.NORMAL: 1, Priority.BULK: 1}
        assert (shot.in_flight, shot.permits) == (2, 0)
        # That depends on when those in flight end.
        assert shot.next_permit is None
        await asyncio.sleep(2)
        shot = client.snapshot()
        assert (shot.in_flight, shot.permits) == (0, 0)
        assert shot.next_permit == at(60.1 + SLOW - 3)
        for task in sends:
            task.cancel()
        await asyncio.gather(*sends, return_exceptions=True)
        assert sum(client.snapshot().waiting.values()) == 0


async def test_a_snapshot_of_a_pause() -> None:
    async with scene(drafts=2) as (sandbox, client, (one, _)):
        sandbox.script(one, Fault.frequency(429, "30"))
        task = send(client, one)
        await asyncio.sleep(10)
        shot = client.snapshot()
        assert shot.paused == at(20.1)
        assert shot.pause_reason is not None
        assert "frequency limit" in shot.pause_reason
        await task
        assert client.snapshot().paused is None
        assert client.snapshot().pause_reason is None


async def test_a_snapshot_of_a_cool_down() -> None:
    policy = RetryPolicy(initial=40, maximum=40)
    async with scene("alice", "bob", retry=policy) as (sandbox, client, (one,)):
        sandbox.script(one, Fault.code("ConcurrentWrite"))
        task = send(client, one, user="alice")
        await asyncio.sleep(1)
        cooling = client.snapshot().cooling
        assert set(cooling) == {"alice"}
        assert 19 <= cooling["alice"] <= 39.2
        await task
        assert client.snapshot().cooling == {}


async def test_a_snapshot_is_a_copy() -> None:
    async with FeishuMailClient(TOKEN) as client:
        shot = client.snapshot()
        shot.waiting[Priority.BULK] = 99
        assert client.snapshot().waiting[Priority.BULK] == 0
        with pytest.raises(AttributeError):
            shot.permits = 99  # type: ignore[misc]


async def test_an_hour_that_is_over_is_not_shown_as_closed() -> None:
    async with Sandbox(users=["alice"], latency=0.1) as sandbox:
        draft = sandbox.add_draft("alice")
        sandbox.script(draft, Fault.code("UserDailyQuota"))
        async with FeishuMailClient(sandbox.token("alice"), base_url=sandbox.base_url) as client:
            with pytest.raises(UserDailyQuota):
                await client.send_draft(draft)
            assert len(client.snapshot().suspended) == 1
            await asyncio.sleep(3601)
            assert client.snapshot().suspended == ()
