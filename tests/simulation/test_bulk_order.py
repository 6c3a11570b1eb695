"""Bulk runs as the server sees them: fast to the limit, fair, and still while it asks for it."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pytest

from feishu_mail_async import (
    Draft,
    FeishuMailClient,
    OutcomeStatus,
    Priority,
    RateLimit,
    Suspended,
    UserDailyQuota,
    UserExternalQuota,
)
from feishu_mail_async.sandbox import Arrival, Fault, Sandbox
from feishu_mail_async.sandbox.server import Latency
from tests.helpers.clock import now
from tests.helpers.scenes import Scene, drain
from tests.models.bulk_model import End, Mishap, Rules, bulk_end, check_true

pytestmark = pytest.mark.looptime(start=0, noop_cycles=10)

ROUND_TRIP: Final = 0.1
ONE_WAY: Final = ROUND_TRIP / 2
WINDOW: Final = 60.0 + 0.1 + ROUND_TRIP
"""Seconds after which a permit is back: `per`, `margin`, and the round trip it was away."""

HAIR: Final = 1e-3

SENT, ALREADY, FAILED, UNKNOWN, SKIPPED = (
    OutcomeStatus.SENT,
    OutcomeStatus.ALREADY_SENT,
    OutcomeStatus.FAILED,
    OutcomeStatus.UNKNOWN,
    OutcomeStatus.SKIPPED,
)


async def play(
    sizes: dict[str, int], act: Callable[[Scene], Awaitable[None]], latency: Latency = ROUND_TRIP
) -> None:
    """Set a scene, let a test act on it, and see that nothing was refused that nobody had scripted."""
    async with Sandbox(users=list(sizes), latency=latency) as sandbox:
        scene = Scene(sandbox)
        for user, size in sizes.items():
            scene.drafts += scene.more(size, user)
        try:
            await act(scene)
        finally:
            await scene.close()
        scene.check()


# --- the whole thing ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trouble:
    """Something that goes wrong with a draft on the way, and what becomes of the draft then."""

    faults: tuple[Fault, ...]
    mishaps: tuple[Mishap, ...]
    status: OutcomeStatus = SENT


ATTEMPT_TIMEOUT: Final = 30.0
OWN, LOST, USER = Mishap(End.DRAFT), Mishap(End.LOST), Mishap(End.USER)
TIMED_OUT: Final = Mishap(End.LOST, takes=ATTEMPT_TIMEOUT)

UNREADABLE: Final = (Fault.gateway, Fault.broken, Fault.empty, Fault.null, Fault.array, Fault.nulls)
FINAL: Final = (
    "InvalidRequest",
    "TooManyRecipients",
    "TooManyAttachments",
    "ContentRisk",
    "SenderCheckFailed",
    "ReceiverCheckFailed",
    "PermissionDenied",
    "DraftNotFound",
    "UserExternalQuota",
    "TenantExternalQuota",
)
TROUBLES: Final = (
    *(Trouble((make(),), (OWN,)) for make in UNREADABLE),
    *(Trouble((make(accepted=True),), (OWN,), ALREADY) for make in UNREADABLE),
    Trouble((Fault.huge(300_000, declared=True), Fault.huge(300_000)), (OWN, OWN)),
    Trouble((Fault.redirect("https://login.example.com/"),), (OWN,)),
    Trouble((Fault.code("InternalError"), Fault.code("InternalError")), (OWN, OWN)),
    Trouble((Fault.code("InternalError", accepted=True),), (OWN,), ALREADY),
    Trouble((Fault.unknown(7, 503), Fault.gateway(504), Fault.unknown(7, 500)), (OWN, OWN, OWN)),
    Trouble((Fault.reset_before(),), (LOST,)),
    Trouble((Fault.reset_after(),), (LOST,), ALREADY),
    Trouble((Fault.reset_before(), Fault.reset_after()), (LOST, LOST), ALREADY),
    Trouble((Fault.hang_before(),), (TIMED_OUT,)),
    Trouble((Fault.hang_after(),), (TIMED_OUT,), ALREADY),
    # One that comes late, but comes: within the timeout, and after it.
    Trouble((Fault.delay(8, 4),), (Mishap(End.DONE, takes=12.0),)),
    Trouble((Fault.delay(33, 2),), (TIMED_OUT,), ALREADY),
    Trouble((Fault.code("ConcurrentWrite"),), (USER,)),
    Trouble((Fault.code("MailThrottled"),) * 3, (USER,) * 3),
    Trouble((Fault.unknown(7, 429),), (USER,)),
    Trouble((Fault.frequency(),), (Mishap(End.APP, reset=30),)),
    Trouble((Fault.frequency(400, "5"),), (Mishap(End.APP, reset=5),)),
    Trouble(
        (Fault.bare_429("12"), Fault.frequency(reset=None)),
        (Mishap(End.APP, reset=12), Mishap(End.APP, reset=60)),
    ),
    *(Trouble((Fault.code(name),), (Mishap(End.FATAL),), FAILED) for name in FINAL),
    Trouble((Fault.unknown(7, 400),), (Mishap(End.FATAL),), FAILED),
    Trouble((Fault.reset_before(), Fault.code("DraftNotFound")), (LOST, Mishap(End.FATAL)), UNKNOWN),
    Trouble((Fault.gateway(accepted=True), Fault.code("ContentRisk")), (OWN, Mishap(End.FATAL)), UNKNOWN),
    Trouble(
        (Fault.code("ConcurrentWrite"), Fault.code("InternalError"), Fault.reset_after()),
        (USER, OWN, LOST),
        ALREADY,
    ),
)

SHARES: Final = (0.40, 0.24, 0.16, 0.10, 0.06, 0.03, 0.01)
"""How unequal the seven users are."""


def ways(draw: random.Random) -> tuple[float, float]:
    return draw.uniform(0.05, 0.8), draw.uniform(0.05, 0.8)


async def whole(count: int, seed: int, share: float = 0.05) -> None:
    """Send `count` drafts of seven users, and compare with the ledger and the event model."""
    draw = random.Random(f"the whole {seed}")
    random.seed(seed)  # the jitter's
    sizes = {f"user{number}": round(count * part) for number, part in enumerate(SHARES)}
    assert sum(sizes.values()) == count

    async def act(scene: Scene) -> None:
        given = [Draft(one.draft_id, user=one.user, tag=object()) for one in scene.drafts]
        draw.shuffle(given)
        troubled = draw.sample(given, round(count * share))
        troubles = {one.draft_id: TROUBLES[number % len(TROUBLES)] for number, one in enumerate(troubled)}
        for draft_id, trouble in troubles.items():
            scene.sandbox.script(draft_id, *trouble.faults)
        outcomes = await drain(scene.open(attempt_timeout=ATTEMPT_TIMEOUT).send_drafts(given))
        end = now()

        ledger = scene.sandbox.ledger
        check_true(given, outcomes, ledger)
        expected = {draft_id: trouble.status for draft_id, trouble in troubles.items()}
        for outcome in outcomes:
            assert outcome.status is expected.get(outcome.draft.draft_id, SENT), outcome
        assert ledger.busiest_window() <= 20
        assert ledger.paused_refusals == 0
        # No scripted fault is left: each call was made that was to be made, and no other.
        assert len(ledger.sends) == count + sum(
            len(trouble.mishaps) - (trouble.mishaps[-1].end in {End.FATAL, End.DONE})
            for trouble in troubles.values()
        )

        mishaps: dict[str, list[Sequence[Mishap]]] = {user: [] for user in sizes}
        for one in given:
            assert one.user is not None
            mishaps[one.user].append(troubles[one.draft_id].mishaps if one.draft_id in troubles else ())
        model_draw = random.Random(seed)
        expected_end = bulk_end(mishaps, lambda: ways(model_draw), Rules())
        assert end == pytest.approx(expected_end, rel=0.01)

    await play(sizes, act, latency=ways)


@pytest.mark.soak
async def test_5000_drafts_of_7_users_with_faults_of_all_kinds_end_when_they_ought_to() -> None:
    await whole(5000, seed=1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 8))
async def test_the_same_with_other_faults_at_other_places(seed: int) -> None:
    await whole(5000, seed=seed, share=(0.02, 0.05, 0.1)[seed % 3])


async def test_without_faults_it_is_as_fast_as_the_limit_allows() -> None:
    async def act(scene: Scene) -> None:
        outcomes = await drain(scene.open().send_drafts(scene.drafts))
        assert {outcome.status for outcome in outcomes} == {SENT}
        # 300 drafts are 15 windows of 20: fourteen waits, and 20 calls in the last.
        assert now() == pytest.approx(14 * WINDOW + 19 * 0.2 + ROUND_TRIP, abs=1)

    await play({"alice": 200, "bob": 100}, act)


# --- priority ----------------------------------------------------------------------------------------------


async def bulk_and_urgent(
    scene: Scene, client: FeishuMailClient, moments: Sequence[tuple[float, str]]
) -> list[tuple[float, float, str]]:
    """Send an urgent draft at each of these moments during a run of all there is.

    Returns:
        when each was asked for, when it was done, and its id.
    """
    done = []
    run = client.send_drafts(scene.drafts)
    async with run:
        consumer = asyncio.create_task(drain(run))
        for moment, user in moments:
            await asyncio.sleep(moment - now())
            draft_id = scene.sandbox.add_draft(user)
            asked = now()
            await client.send_draft(draft_id, user=user, priority=Priority.INTERACTIVE)
            done.append((asked, now(), draft_id))
            assert not consumer.done()
    await consumer
    return done


@pytest.mark.parametrize("priority", [Priority.INTERACTIVE, Priority.NORMAL])
async def test_an_urgent_send_takes_the_next_permit_that_comes(priority: Priority) -> None:
    async def act(scene: Scene) -> None:
        client = scene.open()
        draw = random.Random(4)
        # Of a user who has drafts in the run, and of one who has none.
        moments = [(60.0 * number + draw.uniform(0, 58), draw.choice(["u0", "urgent"])) for number in range(2, 32)]
        for asked, _, draft_id in await bulk_and_urgent(scene, client, moments):
            # What arrives later than one way after the asking was dispatched after it.
            after = [send.draft_id for send in scene.sandbox.ledger.sends if send.time > asked + ONE_WAY + HAIR]
            assert after[0] == draft_id

    sizes = {f"u{number}": 100 for number in range(10)}
    await play({**sizes, "urgent": 0}, act)


async def test_an_urgent_send_overtakes_its_own_users_drafts_though_calls_are_slow() -> None:
    async def act(scene: Scene) -> None:
        client = scene.open()
        moments = [(20.0 * number + 3.3, "alice") for number in range(1, 12)]
        for asked, _, draft_id in await bulk_and_urgent(scene, client, moments):
            after = [send.draft_id for send in scene.sandbox.ledger.sends if send.time > asked + 4.5 + HAIR]
            assert after[0] == draft_id

    await play({"alice": 120}, act, latency=9.0)


async def test_with_a_smooth_limit_an_urgent_send_waits_for_one_interval_at_most() -> None:
    async def act(scene: Scene) -> None:
        client = scene.open(rate_limit=RateLimit.smooth())
        draw = random.Random(5)
        moments = [(13.0 * number + draw.uniform(0, 9), f"u{number % 3}") for number in range(5, 80)]
        waits = [end - asked for asked, end, _ in await bulk_and_urgent(scene, client, moments)]
        # Three seconds and a round trip; where the window wraps, its permit is a round trip and the margin late.
        assert max(waits) <= 3.0 + ROUND_TRIP + (ROUND_TRIP + 0.1) + HAIR
        assert sum(wait > 3.0 + ROUND_TRIP + HAIR for wait in waits) <= len(waits) / 20

    await play({f"u{number}": 334 for number in range(3)}, act)


async def test_reserved_permits_let_two_urgent_sends_of_a_window_go_at_once() -> None:
    async def act(scene: Scene) -> None:
        client = scene.open(rate_limit=RateLimit(reserve=2, spacing=0.2))
        run = client.send_drafts(scene.drafts)
        consumer = asyncio.create_task(drain(run))
        waits = []
        for window in range(2, 16):
            await asyncio.sleep(window * 63.0 - now())
            asked = now()

            async def urgent(user: str, asked: float = asked) -> float:
                draft_id = scene.sandbox.add_draft(user)
                await client.send_draft(draft_id, user=user, priority=Priority.INTERACTIVE)
                return now() - asked

            waits.append(sorted(await asyncio.gather(urgent("u0"), urgent("u1"))))
        assert not consumer.done()
        # At once is: after the spacing to the call before, one spacing apart, and after a call of the same user.
        assert max(first for first, _ in waits) <= 0.2 + ROUND_TRIP + HAIR
        assert max(second for _, second in waits) <= 0.4 + ROUND_TRIP + HAIR
        assert {outcome.status for outcome in await consumer} == {SENT}

    await play({f"u{number}": 40 for number in range(10)}, act)


async def test_nothing_but_urgent_sends_takes_reserved_permits() -> None:
    async def act(scene: Scene) -> None:
        client = scene.open(rate_limit=RateLimit(reserve=2))
        await drain(client.send_drafts(scene.of("bob")[:100]))
        assert scene.sandbox.ledger.busiest_window() == 18
        await drain(client.send_drafts(scene.of("bob")[100:], priority=Priority.INTERACTIVE))
        assert scene.sandbox.ledger.busiest_window() == 20

    await play({"bob": 200}, act)


# --- fairness ----------------------------------------------------------------------------------------------

ORDERS: Final[dict[str, Callable[[list[Draft]], list[Draft]]]] = {
    "shuffled": lambda drafts: random.Random(6).sample(drafts, len(drafts)),
    "sorted by user": list,
    "sorted by user, backwards": lambda drafts: drafts[::-1],
}


@pytest.mark.parametrize("order", ORDERS)
async def test_users_with_equal_work_finish_within_one_window_of_each_other(order: str) -> None:
    async def act(scene: Scene) -> None:
        await drain(scene.open().send_drafts(ORDERS[order](scene.drafts)))
        ends = [scene.times(user)[-1] for user in scene.sandbox.users]
        assert max(ends) - min(ends) <= 60.0
        # At no moment is anybody more than one call ahead of another.
        counts: Counter[str | None] = Counter(dict.fromkeys(scene.sandbox.users, 0))
        for user in scene.order():
            counts[user] += 1
            assert max(counts.values()) - min(counts.values()) <= 1

    await play({f"u{number}": 20 for number in range(10)}, act)


@pytest.mark.parametrize("order", ORDERS)
async def test_one_users_thousand_drafts_do_not_delay_anothers_ten(order: str) -> None:
    async def act(scene: Scene) -> None:
        run = scene.open().send_drafts(ORDERS[order](scene.drafts))
        async with run:
            async for _ in run:
                if scene.order().count("bob") == 10 and scene.order().count("carol") == 10:
                    break
        # Ten rounds of three users, and who is first in the first of them.
        assert len(scene.order()) <= 10 * 3 + 2

    await play({"alice": 1000, "bob": 10, "carol": 10}, act)


async def test_an_input_sorted_by_user_is_fair_among_what_is_read_ahead() -> None:
    async def act(scene: Scene) -> None:
        run = scene.open().send_drafts((draft for draft in scene.drafts), read_ahead=60)
        async with run:
            async for _ in run:
                pass
        order = scene.order()
        # bob's first draft is the 101st of the input: it can be read when 41 outcomes have been fetched.
        first = order.index("bob")
        assert 41 <= first <= 44
        assert set(order[first : first + 40 : 2]) in ({"alice"}, {"bob"})
        assert set(order[first + 1 : first + 40 : 2]) in ({"alice"}, {"bob"})

    await play({"alice": 100, "bob": 100}, act)


async def test_fairness_reaches_beyond_one_run() -> None:
    """A user who has waited goes before one who was served just now, whichever run asks."""

    async def act(scene: Scene) -> None:
        client = scene.open()
        async with asyncio.TaskGroup() as group:
            group.create_task(drain(client.send_drafts(scene.of("alice"))))
            await asyncio.sleep(100)
            group.create_task(drain(scene.open().send_drafts(scene.of("bob"))))
        times = scene.times("bob")
        # From bob's first on they take turns.
        between = [send.user for send in scene.sandbox.ledger.sends if times[0] <= send.time <= times[-1]]
        assert between.count("alice") == pytest.approx(len(times), abs=1)

    await play({"alice": 100, "bob": 20}, act)


async def test_two_runs_at_once_share_the_limit_evenly() -> None:
    async def act(scene: Scene) -> None:
        client = scene.open()
        async with asyncio.TaskGroup() as group:
            for user in ("alice", "bob"):
                group.create_task(drain(client.send_drafts(scene.of(user))))
        assert len(scene.order()) == 160
        assert now() == pytest.approx(7 * WINDOW, abs=10)
        for start in range(0, 160, 20):
            assert scene.order()[start : start + 20].count("alice") == pytest.approx(10, abs=1)

    await play({"alice": 80, "bob": 80}, act)


async def test_two_runs_of_the_same_user_go_on_side_by_side() -> None:
    async def act(scene: Scene) -> None:
        client = scene.open()
        halves = [scene.of("alice")[:60], scene.of("alice")[60:]]
        first, second = await asyncio.gather(*(drain(client.send_drafts(half)) for half in halves))
        assert len(first) == len(second) == 60
        half = {draft.draft_id for draft in halves[0]}
        places = [number for number, send in enumerate(scene.sandbox.ledger.sends) if send.draft_id in half]
        # Neither waits for the other to end.
        assert places[-1] > 60
        assert places[0] < 60

    await play({"alice": 120}, act)


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
