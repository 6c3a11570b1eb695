"""Bulk runs under random inputs, faults, paces, stops and endings: each input read has one true outcome."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feishu_mail_async import (
    Draft,
    FeishuMailClient,
    FeishuMailError,
    Outcome,
    Priority,
    RateLimit,
    RetryPolicy,
)
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.clock import SEEDED, run_virtual
from tests.models.bulk_model import check_one, check_true

FEW: Final = settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MANY: Final = settings(FEW, max_examples=1_500, derandomize=SEEDED)

FAULTS: Final[dict[str, Callable[[], Fault]]] = {
    "sent, no answer": Fault.reset_after,
    "not sent, no answer": Fault.reset_before,
    "hangs": Fault.hang_after,
    "server error": lambda: Fault.code("InternalError"),
    "server error, sent": lambda: Fault.code("InternalError", accepted=True),
    "gateway": Fault.gateway,
    "slow": lambda: Fault.delay(3, 4),
    "busy": lambda: Fault.code("ConcurrentWrite"),
    "too many": lambda: Fault.frequency(reset="7"),
    "not found": lambda: Fault.code("DraftNotFound"),
    "content": lambda: Fault.code("ContentRisk"),
    "external": lambda: Fault.code("UserExternalQuota"),
    "quota": lambda: Fault.code("UserDailyQuota"),
    "automation": Fault.automation_disabled,
    "storage": lambda: Fault.code("TenantStorageFull"),
}
LIMITS: Final = [
    RateLimit(calls=50, per=1.0, spacing=0.0, grace=1.0),
    RateLimit(calls=3, per=5.0, spacing=0.2, grace=1.0),
    RateLimit(calls=5, per=5.0, spacing=0.0, grace=4.0, reserve=2),
    RateLimit.smooth(calls=4, per=8.0),
]


@dataclass(frozen=True)
class Run:
    """One run and how it is treated."""

    items: tuple[int, ...]
    form: str
    read_ahead: int
    pace: float
    end: str
    when: float
    starts: float = 0.0


@dataclass(frozen=True)
class Single:
    """A single send of one of the drafts, given up after a while."""

    item: int
    at: float
    priority: Priority
    patience: float


@dataclass(frozen=True)
class Plan:
    """All that happens in one example."""

    owners: tuple[int, ...]
    faults: dict[int, list[str]]
    limit: RateLimit
    runs: tuple[Run, ...]
    singles: tuple[Single, ...]


@dataclass
class Done:
    """What came of a run."""

    run: Run
    read: list[Draft] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    whole: bool = False
    stopped_at: float | None = None


MOMENTS: Final = st.sampled_from([0.0, 0.01, 0.07, 0.12, 0.3, 1.0, 3.3, 8.0, 30.0])


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    owners = draw(st.lists(st.integers(0, 2), min_size=1, max_size=14))
    items = st.integers(0, len(owners) - 1)
    faults = draw(
        st.dictionaries(items, st.lists(st.sampled_from(sorted(FAULTS)), min_size=1, max_size=4), max_size=5)
    )
    runs = draw(
        st.lists(
            st.builds(
                Run,
                items=st.lists(items, max_size=20).map(tuple),
                form=st.sampled_from(["list", "generator", "async generator"]),
                read_ahead=st.sampled_from([1, 2, 5, 100]),
                pace=st.sampled_from([0.0, 0.0, 0.15, 4.0]),
                end=st.sampled_from(["", "", "stop", "leave", "cancel", "close"]),
                when=MOMENTS,
                starts=MOMENTS,
            ),
            min_size=1,
            max_size=2,
        )
    )
    singles = draw(
        st.lists(
            st.builds(
                Single,
                item=items,
                at=MOMENTS,
                priority=st.sampled_from(list(Priority)),
                patience=st.sampled_from([0.05, 0.5, 5.0, 10_000.0]),
            ),
            max_size=3,
        )
    )
    return Plan(tuple(owners), faults, draw(st.sampled_from(LIMITS)), tuple(runs), tuple(singles))


class Theatre:
    """Plays a plan, and looks at what came of it."""

    def __init__(self, plan: Plan, sandbox: Sandbox, client: FeishuMailClient) -> None:
        self.plan = plan
        self.sandbox = sandbox
        self.client = client
        self.drafts = [(sandbox.add_draft(f"u{owner}"), f"u{owner}") for owner in plan.owners]
        for item, names in plan.faults.items():
            sandbox.script(self.drafts[item][0], *(FAULTS[name]() for name in names))

    def source(self, done: Done) -> Any:
        given = []
        for item in done.run.items:
            draft_id, user = self.drafts[item]
            given.append(Draft(draft_id, user=user, tag=object()))
        if done.run.form == "list":
            done.read = given  # whatever becomes of the run, all of a list has an outcome
            return list(given)

        def reading() -> Iterator[Draft]:
            for draft in given:
                done.read.append(draft)
                yield draft

        async def reading_async() -> AsyncIterator[Draft]:
            for draft in given:
                await asyncio.sleep(0.01)
                done.read.append(draft)
                yield draft

        return reading() if done.run.form == "generator" else reading_async()

    async def play_run(self, done: Done) -> None:
        await asyncio.sleep(done.run.starts)
        loop = asyncio.get_running_loop()
        try:
            run = self.client.send_drafts(self.source(done), read_ahead=done.run.read_ahead)
        except FeishuMailError:
            done.read = []
            return  # the other run has closed the client

        def stop() -> None:
            done.stopped_at = loop.time()
            run.stop()

        async def consume() -> None:
            async with run:
                async for outcome in run:
                    done.outcomes.append(outcome)
                    await asyncio.sleep(done.run.pace)
                    if done.run.end == "leave" and len(done.outcomes) >= 3:
                        return
            done.whole = True

        consumer = asyncio.create_task(consume())
        handle = None
        if done.run.end == "stop":
            handle = loop.call_later(done.run.when, stop)
        elif done.run.end == "cancel":
            handle = loop.call_later(done.run.when, consumer.cancel)
        elif done.run.end == "close":
            await asyncio.sleep(done.run.when)
            await self.client.close()
        with contextlib.suppress(asyncio.CancelledError):
            await consumer
        if handle is not None:
            handle.cancel()
        if done.whole:
            assert run.summary.total == len(done.outcomes)
            assert run.waiting == 0

    async def play_single(self, single: Single) -> None:
        await asyncio.sleep(single.at)
        draft_id, user = self.drafts[single.item]
        try:
            async with asyncio.timeout(single.patience):
                result = await self.client.send_draft(draft_id, user=user, priority=single.priority)
        except (FeishuMailError, TimeoutError):
            return
        assert result.draft.draft_id == draft_id
        assert self.sandbox.ledger.sent[draft_id] == 1

    async def play(self) -> None:
        dones = [Done(run) for run in self.plan.runs]
        # If anything waits for ever, virtual time does not.
        async with asyncio.timeout(100_000):
            await asyncio.gather(
                *(self.play_run(done) for done in dones),
                *(self.play_single(single) for single in self.plan.singles),
            )
            await self.client.close()
        left = [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("feishu-mail")]
        assert left == []
        ledger = self.sandbox.ledger
        calls = len(ledger.sends)
        await asyncio.sleep(1000)
        assert len(ledger.sends) == calls
        assert (ledger.refusals, ledger.conflicts) == (0, 0)
        assert max(ledger.sent.values(), default=0) <= 1
        for done in dones:
            self.check(done, dones)

    def check(self, done: Done, dones: list[Done]) -> None:
        others = {item for other in dones if other is not done for item in other.run.items}
        others |= {single.item for single in self.plan.singles}
        shared = {self.drafts[item][0] for item in others}
        ledger = self.sandbox.ledger
        if done.whole:
            check_true(done.read, done.outcomes, ledger, shared=shared)
        else:
            times = [outcome.draft.draft_id for outcome in done.outcomes]
            for outcome in done.outcomes:
                # Of what was not fetched nothing is known, so another input of the same id may have sent it.
                twice = [draft.draft_id for draft in done.read].count(outcome.draft.draft_id) > 1
                check_one(outcome, ledger, alone=not twice and outcome.draft.draft_id not in shared)
            assert len(times) <= len(done.read)
        if done.stopped_at is not None:
            # What arrives later than a slow way after the stop was dispatched after it.
            mine = {draft.draft_id for draft in done.read} - shared
            late = [send for send in ledger.sends if send.time > done.stopped_at + 3.01 and send.draft_id in mine]
            assert late == []


async def perform(plan: Plan) -> None:
    limit = plan.limit
    users = ["u0", "u1", "u2"]
    async with Sandbox(users=users, latency=(0.02, 0.06), calls=limit.calls, per=limit.per) as sandbox:
        client = FeishuMailClient(
            sandbox.tokens,
            base_url=sandbox.base_url,
            rate_limit=limit,
            retry=RetryPolicy(attempts=3),
            attempt_timeout=10.0,
        )
        async with client:
            await Theatre(plan, sandbox, client).play()


@FEW
@given(plan=plans())
def test_each_input_has_one_true_outcome_whatever_happens(plan: Plan) -> None:
    run_virtual(perform(plan), noop_cycles=12)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@MANY
@given(plan=plans())
def test_each_input_has_one_true_outcome_whatever_happens_at_length(plan: Plan) -> None:
    run_virtual(perform(plan), noop_cycles=12)
