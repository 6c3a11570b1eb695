"""Invariant 1, as the server sees it: never over its limit, and never slower than need be."""

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import pytest

from feishu_mail_async import FeishuMailClient, RateLimit, RetryPolicy, SendResult
from feishu_mail_async.sandbox import Fault, Sandbox, Window
from tests.helpers.clock import now
from tests.helpers.scenes import Scene
from tests.helpers.servers import SERVERS, WAYS, Server, Ways, far, near, stragglers
from tests.models.event_model import Limit, Post, Trip, end_of

# Sends by the thousand let the loop look for input less often between two moments; whatever it finds resets
# the count, and a moment more or less is nothing to what these tests measure.
many_sends = pytest.mark.looptime(start=0, noop_cycles=8)
virtual = pytest.mark.looptime(start=0)
USERS: Final = {"one": 1, "many": 25}


GIVEN_UP: Final = 2.0
"""Seconds after which a call is given up where calls are lost on purpose."""


@dataclass
class Timetable(Scene):
    """A scene whose every call's delays are known beforehand: of each draft's owner, and of each draft's trips."""

    owners: dict[str, str] = field(default_factory=dict)
    trips: dict[str, list[Trip]] = field(default_factory=dict)

    def posts(self) -> list[Post]:
        return [Post(user, self.trips[draft]) for draft, user in self.owners.items()]

    def check(self) -> None:
        super().check()
        assert self.sandbox.ledger.busiest_window() <= RateLimit().calls


@contextlib.asynccontextmanager
async def scene(
    server: Server, ways: Ways, users: int, drafts: int, *, seed: int, lost: float = 0.0
) -> AsyncIterator[Timetable]:
    """Drafts of several users in no order, the first call of each with delays of its own.

    Of the share `lost`, the first call arrives long after it was given up, and the second is an ordinary one.
    """
    draw = random.Random(seed)
    random.seed(seed)  # of the package's jitter
    async with Sandbox(
        window=server.window, count_refusals=server.count_refusals, latency=ways, seed=seed
    ) as sandbox:
        names = [f"user{number}" for number in range(users)]
        for name in names:
            sandbox.add_user(name)
        owners = {sandbox.add_draft(user): user for user in draw.choices(names, k=drafts)}
        stage = Timetable(sandbox, owners=owners)
        for draft in owners:
            trip = Trip(*ways(draw))
            stage.trips[draft] = [trip]
            if draw.random() < lost:
                sandbox.script(draft, Fault.delay(GIVEN_UP + 5))
                stage.trips[draft].insert(0, Trip(0, GIVEN_UP, lost=True))
            sandbox.script(draft, Fault.delay(trip.there, trip.back))
        yield stage


# --- never over the limit, and no slower than that ---------------------------------------------------------


MATRIX: Final = list(itertools.product(SERVERS, WAYS, USERS))
"""Every server, all delays, one user and many."""

PAIRS: Final = [MATRIX[number] for number in (0, 3, 4, 7, 8, 11, 12, 15, 16, 19, 20, 23)]
"""Of those as many as it takes to have every two of them together; `make soak` has them all."""


def cells(chosen: Sequence[tuple[Server, Ways, str]]) -> pytest.MarkDecorator:
    names = ("server", "ways", "users")
    return pytest.mark.parametrize(names, chosen, ids=lambda value: getattr(value, "__name__", str(value)))


async def greedy_run(server: Server, ways: Ways, users: int, drafts: int, seed: int) -> None:
    async with scene(server, ways, users, drafts, seed=seed) as stage, stage.open() as client:
        sends = (client.send_draft(draft, user=user) for draft, user in stage.owners.items())
        results = await asyncio.gather(*sends)
        end = now()
        assert {result.draft.draft_id for result in results if not result.already_sent} == set(stage.owners)
        assert {result.attempts for result in results} == {1}
        assert stage.sandbox.ledger.sent == dict.fromkeys(stage.owners, 1)
        stage.check()
        assert client.snapshot().in_flight == 0
        assert end == pytest.approx(end_of(stage.posts(), Limit()), rel=0.005)


@many_sends
@cells([(SERVERS[1], far, "one"), (SERVERS[3], stragglers, "many")])  # the hardest
async def test_many_sends_are_never_refused_and_lose_no_time(server: Server, ways: Ways, users: str) -> None:
    await greedy_run(server, ways, USERS[users], 500, seed=1)


@many_sends
@cells(PAIRS)
async def test_sends_are_never_refused_and_lose_no_time(server: Server, ways: Ways, users: str) -> None:
    await greedy_run(server, ways, USERS[users], 120, seed=2)


@many_sends
@pytest.mark.soak
@cells(MATRIX)
async def test_soak_a_thousand_sends_are_never_refused_and_lose_no_time(
    server: Server, ways: Ways, users: str
) -> None:
    await greedy_run(server, ways, USERS[users], 1000, seed=3)


async def disturbed_run(server: Server, ways: Ways, users: int, drafts: int, seed: int) -> None:
    """Calls time out and arrive all the same, callers give up, and now and then nothing is reachable."""
    draw = random.Random(seed)
    async with scene(server, ways, users, drafts, seed=seed) as stage:
        # A straggler is given up after 3 s, and arrives within the 10 s of grace that follow.
        async with stage.open(attempt_timeout=3.0, retry=RetryPolicy(initial=0.5)) as client:
            sends = {
                draft: asyncio.create_task(client.send_draft(draft, user=user))
                for draft, user in stage.owners.items()
            }
            given_up = set(draw.sample(list(stage.owners), drafts // 10))

            async def give_up() -> None:
                for draft in draw.sample(sorted(given_up), len(given_up)):
                    await asyncio.sleep(draw.uniform(0, 5.4 * drafts / len(given_up) / 2))
                    sends[draft].cancel()

            async def outages() -> None:
                for _ in range(4):
                    await asyncio.sleep(draw.uniform(0, drafts / 2))
                    async with stage.sandbox.outage():
                        await asyncio.sleep(draw.uniform(1, 20))

            others = [asyncio.create_task(give_up()), asyncio.create_task(outages())]
            results = await asyncio.gather(*sends.values(), return_exceptions=True)
            await asyncio.gather(*others)
        await asyncio.sleep(20)  # what is still on its way arrives
        stage.check()
        assert any(call.draft_id in given_up for call in stage.sandbox.ledger.sends), "some were given up too late"
        for draft, result in zip(stage.owners, results, strict=True):
            if isinstance(result, SendResult):
                assert stage.sandbox.ledger.sent[draft] == 1
            else:
                assert isinstance(result, asyncio.CancelledError), repr(result)
                assert draft in given_up
        assert sum(isinstance(result, SendResult) for result in results) < drafts, "none was given up in time"


@many_sends
@cells(PAIRS)
async def test_limit_holds_through_timeouts_cancellations_and_outages(
    server: Server, ways: Ways, users: str
) -> None:
    await disturbed_run(server, ways, USERS[users], 120, seed=11)


@many_sends
@pytest.mark.soak
@cells(MATRIX)
async def test_soak_limit_holds_through_timeouts_cancellations_and_outages(
    server: Server, ways: Ways, users: str
) -> None:
    await disturbed_run(server, ways, USERS[users], 1000, seed=12)


@many_sends
@pytest.mark.parametrize("users", USERS)
async def test_lost_calls_cost_what_they_must_and_no_more(users: str) -> None:
    """A tenth of the calls is given up after 2 s and arrives 7 s after it set out: grace is kept, no more."""
    async with scene(Server(Window.SLIDING), near, USERS[users], 400, seed=5, lost=0.1) as stage:
        policy = RetryPolicy(initial=0.001, maximum=0.001)
        async with stage.open(attempt_timeout=GIVEN_UP, retry=policy) as client:
            sends = (client.send_draft(draft, user=user) for draft, user in stage.owners.items())
            results = await asyncio.gather(*sends)
            end = now()
        for result in results:
            trips = stage.trips[result.draft.draft_id]
            assert result.attempts == len(trips)
            assert result.already_sent == trips[0].lost  # the second attempt finds what the first one did
        stage.check()
        assert end == pytest.approx(end_of(stage.posts(), Limit()), rel=0.005)


# --- grace: what is given up may still be on its way -------------------------------------------------------


@virtual
async def test_a_permit_of_a_lost_call_comes_back_only_after_grace() -> None:
    async with Sandbox(latency=0.02) as sandbox:
        users = [f"user{number}" for number in range(20)]
        for user in users:
            sandbox.add_user(user)
        first = {sandbox.add_draft(user): user for user in users}
        for draft in first:
            sandbox.script(draft, Fault.delay(9.0))  # given up after 1 s, it arrives after 9
        client = FeishuMailClient(
            sandbox.tokens, base_url=sandbox.base_url, attempt_timeout=1.0, rate_limit=RateLimit(spacing=0)
        )
        async with client:
            results = await asyncio.gather(*(client.send_draft(draft, user=user) for draft, user in first.items()))
        assert all(result.already_sent and result.attempts == 2 for result in results)
        times = [call.time for call in sandbox.ledger.sends]
        assert times[:20] == pytest.approx([9.0] * 20)
        assert times[20] == pytest.approx(1 + 10 + 60.1 + 0.01, abs=1e-4)
        assert sandbox.ledger.refusals == 0


@virtual
@pytest.mark.parametrize(
    ("user", "mailbox"), [("alice", "team@example.com"), ("bob", "bob@example.com")], ids=["user", "mailbox"]
)
async def test_the_locks_of_a_lost_call_come_back_only_after_grace(user: str, mailbox: str) -> None:
    """A call given up after 1 s arrives after 5 and is carried out until 8: nobody may run into it.

    It is alice's, in bob's mailbox; the others are alice's in another one, or bob's in his own.
    """
    async with Sandbox(latency=0.02, users=("alice",)) as sandbox:
        sandbox.add_user("bob", address="bob@example.com")
        sandbox.share_mailbox("bob@example.com", "alice")
        sandbox.share_mailbox("team@example.com", "alice")
        late = sandbox.add_draft("alice", mailbox="bob@example.com")
        sandbox.script(late, Fault.delay(5.0, 3.0))
        others = sandbox.add_drafts(user, 15, mailbox=mailbox)
        limit = RateLimit(spacing=0.3)
        async with FeishuMailClient(
            sandbox.tokens, base_url=sandbox.base_url, attempt_timeout=1.0, rate_limit=limit
        ) as client:
            first = asyncio.create_task(client.send_draft(late, user="alice", mailbox="bob@example.com"))
            await asyncio.sleep(0)
            await asyncio.gather(
                first, *(client.send_draft(draft, user=user, mailbox=mailbox) for draft in others)
            )
        assert sandbox.ledger.conflicts == 0
        assert sandbox.ledger.sends[0].draft_id == late
        assert sandbox.ledger.sends[1].time == pytest.approx(1 + 10 + 0.01, abs=1e-4)


@virtual
async def test_a_permit_of_a_call_that_never_left_comes_back_at_once() -> None:
    async with Sandbox(latency=0.02, users=("alice",)) as sandbox:
        drafts = sandbox.add_drafts("alice", 3)
        limit = RateLimit(calls=1, spacing=0)
        async with FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url, rate_limit=limit) as client:
            async with sandbox.outage():
                first = asyncio.create_task(client.send_draft(drafts[0]))
                await asyncio.sleep(0.5)
                snapshot = client.snapshot()
                assert (snapshot.permits, snapshot.in_flight) == (1, 0)
            await first
            assert now() < 5
