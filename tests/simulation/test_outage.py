"""Invariant 7: where nothing is reachable, all wait, one probes, and it ends."""

import asyncio
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from feishu_mail_async import FeishuMailClient, RateLimit, RetryPolicy, SendResult, TransportError
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.clock import now
from tests.helpers.outages import HOUR, gaps_of, kinds, outcomes, stage

pytestmark = pytest.mark.looptime(start=0)


async def test_ten_minutes_of_outage_lose_nothing_and_use_up_no_attempts() -> None:
    users = [f"user{number}" for number in range(10)]
    policy = RetryPolicy(attempts=1, refusals=0, outage=None)
    async with stage(users, 50, rate_limit=RateLimit(), retry=policy) as here:
        tasks = here.send_all()
        await asyncio.sleep(12.5 * 60.1)  # between two bursts: nothing is on its way that could be lost
        before = len(here.times())
        assert 200 <= before <= 300
        assert here.client.snapshot().in_flight == 0
        async with here.sandbox.outage():
            await asyncio.sleep(600)
            assert len(here.times()) == before
            assert here.client.snapshot().paused is not None
        found = await outcomes(tasks)
        assert kinds(found) == {"SendResult": 500}
        assert all(isinstance(one, SendResult) and one.attempts == 1 for one in found)
        assert here.sandbox.ledger.sent == dict.fromkeys(here.ids(), 1)
        assert here.sandbox.ledger.refusals == here.sandbox.ledger.conflicts == 0


async def test_replies_lost_as_an_outage_begins_are_asked_for_again() -> None:
    users = [f"user{number}" for number in range(10)]
    async with stage(users, 4, latency=3.0, rate_limit=RateLimit()) as here:
        tasks = here.send_all()
        await asyncio.sleep(2.5)  # some have arrived and not been answered, some are on their way
        in_flight = here.client.snapshot().in_flight
        assert in_flight == 10
        async with here.sandbox.outage():
            await asyncio.sleep(300)
        found = [one for one in await outcomes(tasks) if isinstance(one, SendResult)]
        assert len(found) == 40
        assert sum(one.attempts == 2 for one in found) == in_flight
        assert sum(one.already_sent for one in found) == in_flight  # they had been carried out, all of them
        assert set(here.sandbox.ledger.sent.values()) == {1}
        assert here.sandbox.ledger.refusals == here.sandbox.ledger.conflicts == 0


async def test_an_outage_that_lasts_too_long_ends_what_waits_in_transport_error() -> None:
    async with stage(("alice", "bob"), 25, retry=RetryPolicy(outage=120)) as here:
        async with here.sandbox.outage():
            ended: list[float] = []
            tasks = here.send_all()
            for task in tasks:
                task.add_done_callback(lambda _: ended.append(now()))
            found = await outcomes(tasks)
            assert kinds(found) == {"TransportError": 50}
            assert all(isinstance(one, TransportError) and one.attempts == 0 for one in found)
            assert 120 <= min(ended) <= max(ended) <= 125
            # What comes now need not wait for another `outage` seconds.
            assert kinds(await outcomes([here.send("alice")])) == {"TransportError": 1}
            assert now() <= 120 + 70
        assert kinds(await outcomes(here.send_all("bob"))) == {"SendResult": 25}


class Requests:
    """When a session's requests set out, and how many are under way at once at most."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.most = 0
        self._running = 0
        self.trace = aiohttp.TraceConfig()
        self.trace.on_request_start.append(self._started)
        self.trace.on_request_end.append(self._ended)
        self.trace.on_request_exception.append(self._ended)

    async def _started(self, *_: Any) -> None:
        self.times.append(now())
        self._running += 1
        self.most = max(self.most, self._running)

    async def _ended(self, _: aiohttp.ClientSession, __: SimpleNamespace, ___: Any) -> None:
        self._running -= 1


async def test_probes_go_one_at_a_time_and_grow_rare() -> None:
    seen = Requests()
    async with (
        Sandbox(users=("alice", "bob"), latency=0.02) as sandbox,
        aiohttp.ClientSession(trace_configs=[seen.trace]) as session,
    ):
        drafts = [(draft, user) for user in ("alice", "bob") for draft in sandbox.add_drafts(user, 10)]
        # Two clients of one app probe no more than one does.
        clients = {
            user: FeishuMailClient(
                {user: sandbox.token(user)},
                base_url=sandbox.base_url,
                session=session,
                retry=RetryPolicy(outage=None),
            )
            for user in ("alice", "bob")
        }
        async with clients["alice"], clients["bob"]:
            async with sandbox.outage():
                tasks = [asyncio.create_task(clients[user].send_draft(draft)) for draft, user in drafts]
                await asyncio.sleep(900)
                gaps = gaps_of(seen.times)
                assert seen.most == 1
                for number, gap in enumerate(gaps):
                    longest = min(60.0, 2.0**number)
                    assert longest / 2 - 1e-3 <= gap <= longest + 1e-3
                assert len(gaps) >= 6 + 780 / 60
            back = now()
            await asyncio.gather(*tasks)
            # The probe, then the rest at the smooth rate.
            assert sandbox.ledger.sends[0].time <= back + 61
            times = [call.time for call in sandbox.ledger.sends]
            assert min(gaps_of(times)) >= 3 - 1e-3
            assert len(times) == 20


async def test_each_client_waits_out_an_outage_as_long_as_its_own_policy_says() -> None:
    async with Sandbox(users=("alice", "bob"), latency=0.02) as sandbox:
        alice = FeishuMailClient(
            {"alice": sandbox.token("alice")}, base_url=sandbox.base_url, retry=RetryPolicy(outage=60)
        )
        bob = FeishuMailClient(
            {"bob": sandbox.token("bob")}, base_url=sandbox.base_url, retry=RetryPolicy(outage=None)
        )
        async with alice, bob:
            async with sandbox.outage():
                impatient = [
                    asyncio.create_task(alice.send_draft(draft)) for draft in sandbox.add_drafts("alice", 3)
                ]
                patient = [asyncio.create_task(bob.send_draft(draft)) for draft in sandbox.add_drafts("bob", 3)]
                assert kinds(await outcomes(impatient)) == {"TransportError": 3}
                assert 60 <= now() <= 60 + 61  # bob's probes are as good as alice's own
                await asyncio.sleep(600)
            assert kinds(await outcomes(patient)) == {"SendResult": 3}


async def test_an_outage_that_nobody_saw_the_end_of_is_not_counted_on() -> None:
    """A moment's outage, a day in which nothing is sent, and another moment's: neither lasted `outage`."""
    async with stage(("alice", "bob"), 1, retry=RetryPolicy(outage=120)) as here:
        async with here.sandbox.outage():
            given_up = here.send("alice")
            await asyncio.sleep(5)
            given_up.cancel()
            await asyncio.sleep(5)
        await asyncio.sleep(24 * HOUR)
        async with here.sandbox.outage():
            task = here.send("bob")
            await asyncio.sleep(10)
        assert (await task).attempts == 1
