"""Runs whose users are suspended or whose app is paused: skipped at once, still while it is asked for."""

import asyncio
import itertools
from collections import Counter
from typing import Any, Final

import pytest

from feishu_mail_async import (
    Draft,
    FeishuMailClient,
    InvalidToken,
    OutcomeStatus,
    Priority,
    RateLimit,
    Suspended,
    UserDailyQuota,
    UserExternalQuota,
)
from feishu_mail_async.sandbox import Arrival, Fault, Sandbox
from tests.helpers.clock import now
from tests.helpers.runs import FAILED, SENT, SKIPPED
from tests.helpers.scenes import HAIR, ONE_WAY, ROUND_TRIP, WINDOW, Scene, drain, play
from tests.models.bulk_model import check_true

pytestmark = pytest.mark.looptime(start=0, noop_cycles=10)


# --- suspensions -----------------------------------------------------------------------------------------


async def test_a_user_whose_daily_quota_is_spent_costs_one_call() -> None:
    async def act(scene: Scene) -> None:
        scene.sandbox.set_quota("alice", 0)
        outcomes = await drain(scene.open().send_drafts(scene.drafts))
        scene.true(outcomes)
        assert scene.order().count("alice") == 1
        mine = [outcome for outcome in outcomes if outcome.draft.user == "alice"]
        assert Counter(outcome.status for outcome in mine) == {FAILED: 1, SKIPPED: 199}
        for outcome in mine:
            if outcome.status is FAILED:
                assert isinstance(outcome.error, UserDailyQuota)
            else:
                assert isinstance(outcome.error, Suspended)
                assert outcome.error.subject == "user:alice"
                assert isinstance(outcome.error.__cause__, UserDailyQuota)
        assert all(outcome.status is SENT for outcome in outcomes if outcome.draft.user != "alice")
        # 201 calls are made as fast as 201 calls can be.
        assert len(scene.order()) == 201
        assert now() == pytest.approx(10 * WINDOW, abs=1)
        for start in range(0, 200, 20):
            assert scene.times()[start + 19] - scene.times()[start] == pytest.approx(19 * 0.2, abs=0.1)

    await play({"alice": 200, "bob": 100, "carol": 100}, act)


async def test_the_skipped_are_told_at_once_not_when_their_turn_would_have_come() -> None:
    async def act(scene: Scene) -> None:
        scene.sandbox.set_quota("alice", 3)
        at: dict[OutcomeStatus, list[float]] = {SENT: [], FAILED: [], SKIPPED: []}
        async for outcome in scene.open().send_drafts(scene.drafts):
            if outcome.draft.user == "alice":
                at[outcome.status].append(now())
        assert [len(times) for times in at.values()] == [3, 1, 196]
        assert at[SKIPPED][0] == at[SKIPPED][-1] == at[FAILED][0]

    await play({"alice": 200, "bob": 20}, act)


async def test_an_hour_later_one_probe_goes() -> None:
    async def act(scene: Scene) -> None:
        client = scene.open()
        scene.sandbox.set_quota("alice", 0)

        async def offer() -> Counter[OutcomeStatus]:
            outcomes = await drain(client.send_drafts(scene.of("alice")))
            return Counter(outcome.status for outcome in outcomes)

        assert await offer() == {FAILED: 1, SKIPPED: 29}
        closed_at = now()
        await asyncio.sleep(closed_at + 3590 - now())
        assert await offer() == {SKIPPED: 30}
        assert len(scene.order()) == 1

        await asyncio.sleep(closed_at + 3600 - now())
        assert await offer() == {FAILED: 1, SKIPPED: 29}
        assert len(scene.order()) == 2
        closed_at = now()

        scene.sandbox.set_quota("alice", None)
        await asyncio.sleep(closed_at + 3600 - now())
        assert await offer() == {SENT: 30}
        assert len(scene.order()) == 32

    await play({"alice": 30}, act)


async def test_a_run_that_outlasts_the_closing_offers_what_it_reads_later() -> None:
    """Read ahead is short, so that some drafts of alice's are read while she is closed and some after it."""

    async def act(scene: Scene) -> None:
        scene.sandbox.set_quota("alice", 0)
        mixed = [one for pair in zip(scene.of("alice"), scene.of("bob"), strict=True) for one in pair]
        client = scene.open(rate_limit=RateLimit(calls=2))
        outcomes = await drain(client.send_drafts((one for one in mixed), read_ahead=10))
        check_true(mixed, outcomes, scene.sandbox.ledger)
        # 140 calls of bob's, two a minute, take 70 minutes: one probe at the beginning, and one after an hour.
        assert scene.order().count("alice") == 2
        assert scene.times("alice")[1] - scene.times("alice")[0] == pytest.approx(3600, abs=70)

    await play({"alice": 140, "bob": 140}, act)


async def test_the_external_quota_fails_its_own_draft_only() -> None:
    async def act(scene: Scene) -> None:
        external = scene.of("alice")[::5]
        for draft in external:
            scene.sandbox.script(draft.draft_id, Fault.code("UserExternalQuota"))
        outcomes = await drain(scene.open().send_drafts(scene.drafts))
        scene.true(outcomes)
        assert len(scene.order()) == 50
        failed = [outcome for outcome in outcomes if outcome.status is FAILED]
        assert {outcome.draft for outcome in failed} == set(external)
        assert all(isinstance(outcome.error, UserExternalQuota) for outcome in failed)
        assert sum(outcome.status is SENT for outcome in outcomes) == 40

    await play({"alice": 50}, act)


# --- the app paused by the server --------------------------------------------------------------------------


def crowd(scene: Scene, **settings: Any) -> list[asyncio.Task[Any]]:
    """Two clients with a run each, and single sends of both: all that there is, from all sides."""
    first, second = scene.open(**settings), scene.open(**settings)
    users = list(scene.sandbox.users)
    tasks: list[asyncio.Task[Any]] = []
    for client, mine in ((first, users[:2]), (second, users[2:4])):
        given = [one for user in mine for one in scene.of(user)]
        tasks.append(asyncio.create_task(drain(client.send_drafts(given))))
    for number, one in enumerate(scene.of(users[4])):
        client, priority = (first, Priority.NORMAL) if number % 2 else (second, Priority.INTERACTIVE)
        tasks.append(asyncio.create_task(client.send_draft(one, priority=priority)))
    return tasks


CROWD: Final = {"u0": 40, "u1": 40, "u2": 40, "u3": 40, "u4": 10}


@pytest.mark.parametrize("round_trip", [ROUND_TRIP, 3.0])
@pytest.mark.parametrize("start", [0.0, 1.5, 121.5])
async def test_a_server_that_pauses_the_app_sees_no_call_until_its_reset_has_passed(
    start: float, round_trip: float
) -> None:
    one_way = round_trip / 2

    async def act(scene: Scene) -> None:
        asyncio.get_running_loop().call_later(start, scene.sandbox.limit_now, 30.0)
        outcomes = await asyncio.gather(*crowd(scene))
        assert {outcome.status for some in outcomes[:2] for outcome in some} == {SENT}
        ledger = scene.sandbox.ledger
        refused = [send.time for send in ledger.sends if not send.accepted]
        assert refused
        assert len(refused) == ledger.paused_refusals
        # Only those that were under way when the first refusal came back are refused as well.
        assert refused[-1] <= refused[0] + round_trip + HAIR
        quiet = [time for time in scene.times() if refused[0] + round_trip + HAIR < time < start + 29]
        assert quiet == []
        rest = [time for time in scene.times() if time >= start + 29]
        # The reset is in whole seconds, rounded up, and counts from the answer.
        assert start + 30 + round_trip - HAIR <= rest[0] <= start + 31 + round_trip + HAIR
        # One probe, and nothing until it has been answered; then the smooth rate for one window.
        assert rest[1] - rest[0] >= round_trip
        within = [time for time in rest if time < rest[0] + one_way + 60]
        assert len(within) <= 21
        assert all(later - earlier >= 3 - HAIR for earlier, later in itertools.pairwise(within[1:]))
        assert len(scene.order()) == 170 + len(refused)

    await play(CROWD, act, latency=round_trip)


@pytest.mark.parametrize("round_trip", [ROUND_TRIP, 3.0])
async def test_refused_again_it_sees_one_more_call_per_pause(round_trip: float) -> None:
    async def act(scene: Scene) -> None:
        refused: list[float] = []
        probes: list[float] = []

        def on_call(arrival: Arrival) -> Fault | None:
            if arrival.time < 61 or len(probes) == 4:  # 61: in the middle of a window
                return None
            if refused and arrival.time > refused[0] + round_trip + HAIR:
                probes.append(arrival.time)
            else:
                # Under way when the first refusal came back; these are refused too, and prolong the pause.
                refused.append(arrival.time)
            return Fault.frequency(reset="30")

        scene.sandbox.on_call = on_call
        outcomes = await asyncio.gather(*crowd(scene))
        assert {outcome.status for some in outcomes[:2] for outcome in some} == {SENT}
        assert len(probes) == 4
        after = [time for time in scene.times() if time > probes[-1]]
        for earlier, later in itertools.pairwise([refused[-1], *probes, after[0]]):
            assert later - earlier == pytest.approx(30 + round_trip, abs=0.01)
        assert after[1] - after[0] >= round_trip
        assert len(scene.order()) == 170 + len(refused) + len(probes)

    await play(CROWD, act, latency=round_trip)


async def test_a_probe_that_gets_no_answer_leaves_the_pause_to_the_next() -> None:
    async def act(scene: Scene) -> None:
        faults = [Fault.frequency(reset="30"), Fault.hang_before(), Fault.reset_before()]
        scene.sandbox.on_call = lambda _: faults.pop(0) if faults else None
        outcomes = await drain(scene.open(rate_limit=RateLimit(spacing=1.0)).send_drafts(scene.drafts))
        scene.true(outcomes)
        times = scene.times()
        assert times[1] == pytest.approx(30 + ROUND_TRIP + ONE_WAY, abs=0.01)
        # It hangs until the timeout; the next one probes, loses its connection; the third is answered.
        assert times[2] == pytest.approx(times[1] - ONE_WAY + 30 + ONE_WAY, abs=0.01)
        assert times[3] == pytest.approx(times[2] + ROUND_TRIP, abs=1.01)
        assert times[4] >= times[3] + ROUND_TRIP
        assert times[5] - times[4] >= 3 - HAIR

    await play({f"u{number}": 4 for number in range(6)}, act)


async def test_a_stop_during_a_pause_needs_no_call_and_no_wait() -> None:
    async def act(scene: Scene) -> None:
        scene.sandbox.limit_now(1000)
        run = scene.open().send_drafts(scene.drafts)
        async with run:
            consumer = asyncio.create_task(drain(run))
            await asyncio.sleep(50)
            run.stop()
            outcomes = await consumer
        assert now() == pytest.approx(50)
        assert {outcome.status for outcome in outcomes} == {SKIPPED}
        scene.true(outcomes)

    await play({"u0": 30, "u1": 30}, act)


async def test_a_user_closed_by_its_token_costs_a_run_one_question() -> None:
    async with Sandbox(users=["alice", "bob"], latency=0.1) as sandbox:
        asked: list[str | None] = []

        async def tokens(user: str | None) -> str:
            asked.append(user)
            await asyncio.sleep(1)
            return sandbox.token(user or "")

        async with FeishuMailClient(tokens, base_url=sandbox.base_url) as client:
            sandbox.expire_token("alice")
            with pytest.raises(InvalidToken):
                await client.send_draft(sandbox.add_draft("alice"), user="alice")
            asked.clear()
            drafts = [Draft(draft_id, user="alice") for draft_id in sandbox.add_drafts("alice", 100)]
            drafts.append(Draft(sandbox.add_draft("bob"), user="bob"))
            run = client.send_drafts(drafts)
            statuses = [outcome.status async for outcome in run]
        assert asked.count("alice") == 1
        assert statuses.count(OutcomeStatus.SKIPPED) == 100
        assert statuses.count(OutcomeStatus.SENT) == 1
