"""Random sends, joins, cancels, deadlines, stops and closes, with a subscriber that meddles in them."""

import asyncio
import random
from collections.abc import Callable

import pytest

from feishu_mail_async import Draft, FeishuMailClient, FeishuMailError, Priority, RateLimit, RetryPolicy
from feishu_mail_async._calls.bulk import BulkRun
from feishu_mail_async.events import DraftDone, Event, SuspensionStarted
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.clock import SEEDED, run_virtual
from tests.helpers.story import check_story, jobs_of

USERS = ("alice", "bob", "carol")
FAULTS: tuple[Callable[[], Fault], ...] = (
    lambda: Fault.code("InternalError"),
    lambda: Fault.code("ConcurrentWrite"),
    lambda: Fault.code("MailThrottled"),
    lambda: Fault.code("ContentRisk"),
    lambda: Fault.code("UserDailyQuota"),
    lambda: Fault.code("FrequencyLimited"),
    Fault.reset_after,
)
DEADLINES = (None, None, 0, 1e-9, 0.1, 0.2, 0.3, 5.0, 70.0)


class Story:
    """What happens in one run, all of it drawn from a seed."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.meddling = random.Random(-seed)
        self.sends: list[asyncio.Task[object]] = []
        self.runs: list[BulkRun] = []
        self.readers: list[asyncio.Task[None]] = []
        self.told: list[Event] = []

    async def play(self) -> None:
        draw = self.draw
        users = USERS[: draw.randint(1, 3)]
        limit = RateLimit(draw.choice([1, 3, 20]), draw.choice([1.0, 60.0]), draw.choice([0, 0.2]))
        latency = draw.choice([0, 0.1])
        async with Sandbox(users=users, calls=limit.calls, per=limit.per, latency=latency) as sandbox:
            self.drafts = {user: sandbox.add_drafts(user, 6) for user in users}
            for draft_id in (one for some in self.drafts.values() for one in some):
                if draw.random() < 0.35:
                    sandbox.script(draft_id, draw.choice(FAULTS)())
            self.client = FeishuMailClient(
                sandbox.tokens, base_url=sandbox.base_url, rate_limit=limit, retry=RetryPolicy(attempts=3)
            )
            self.client.subscribe(self.told.append)
            if draw.random() < 0.5:
                self.client.subscribe(self.meddle)
            for _ in range(draw.randint(3, 14)):
                await self.act()
            closing = asyncio.create_task(self.client.close(0.05)) if draw.random() < 0.2 else None
            _, hanging = await asyncio.wait(
                [*self.sends, *self.readers, asyncio.create_task(asyncio.sleep(0))], timeout=20_000
            )
            assert not hanging
            if closing is None:
                await asyncio.sleep(200)
                self.check_rest(limit)
            await self.client.close()
            await asyncio.sleep(1)
            self.check(sandbox)

    async def act(self) -> None:
        draw = self.draw
        user = draw.choice(list(self.drafts))
        what = draw.random()
        if what < 0.55:
            draft, priority, deadline = (
                Draft(draw.choice(self.drafts[user]), user=user),
                draw.choice(list(Priority)),
                draw.choice(DEADLINES),
            )
            sending = self.client.send_draft(draft, priority=priority, deadline=deadline)
            self.sends.append(asyncio.create_task(sending))
        elif what < 0.75:
            drafts = [
                Draft(one, user=whose) for whose, some in self.drafts.items() for one in draw.sample(some, 3)
            ]
            run = self.client.send_drafts(
                [*drafts, drafts[0]] if draw.random() < 0.5 else iter([*drafts, drafts[0]])
            )
            self.runs.append(run)
            self.readers.append(asyncio.create_task(self.read(run)))
        elif what < 0.85 and self.sends:
            draw.choice(self.sends).cancel()
        elif what < 0.92 and self.runs:
            draw.choice(self.runs).stop()
        for _ in range(draw.choice([0, 0, 1, 2, 3, 5])):
            await asyncio.sleep(0)
        if draw.random() < 0.3:
            await asyncio.sleep(draw.choice([0.05, 0.1, 0.2, 1, 61]))

    @staticmethod
    async def read(run: BulkRun) -> None:
        async for _ in run:
            pass

    def meddle(self, event: Event) -> None:
        if self.meddling.random() < 0.03 and self.runs:
            self.meddling.choice(self.runs).stop()
        if self.meddling.random() < 0.03 and self.sends:
            self.meddling.choice(self.sends).cancel()
        if self.meddling.random() < 0.05 and isinstance(event, SuspensionStarted):
            self.client.resume(event.subject)

    def check_rest(self, limit: RateLimit) -> None:
        """Nothing is held any more by anybody."""
        snapshot = self.client.snapshot()
        assert (snapshot.in_flight, snapshot.permits) == (0, limit.calls)
        assert not any(snapshot.waiting.values())
        assert not self.client._binding._intakes["send"].jobs
        assert not self.client._binding._intakes["send"].tasks

    def check(self, sandbox: Sandbox) -> None:
        for told in jobs_of(self.told).values():
            assert sum(isinstance(event, DraftDone) and not event.joined for event in told) == 1
        check_story(self.told, sandbox.ledger, cut=True)
        assert all(times == 1 for times in sandbox.ledger.sent.values())
        assert sandbox.ledger.refusals == sandbox.ledger.conflicts == 0
        for send in self.sends:
            error = None if send.cancelled() else send.exception()
            assert error is None or isinstance(error, FeishuMailError)


def play(seed: int) -> None:
    random.seed(seed)
    try:
        run_virtual(Story(seed).play())
    except Exception as error:
        error.add_note(f"seed {seed}")
        raise


@pytest.mark.parametrize("ten", range(3))
def test_whatever_callers_do_each_draft_ends_once_and_nothing_is_left(ten: int) -> None:
    for seed in range(10 * ten, 10 * ten + 10):
        play(seed)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_soak_whatever_callers_do_each_draft_ends_once_and_nothing_is_left() -> None:
    first = 1000 if SEEDED else random.SystemRandom().randrange(10**9)
    for seed in range(first, first + 400):
        play(seed)
