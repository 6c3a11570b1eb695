"""Who goes first in runs, as the server sees them: the urgent, then all users by turns."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import pytest

from feishu_mail_async import Draft, FeishuMailClient, OutcomeStatus, Priority, RateLimit
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.clock import now
from tests.helpers.runs import SENT
from tests.helpers.scenes import HAIR, ONE_WAY, ROUND_TRIP, WINDOW, Scene, drain, play

pytestmark = pytest.mark.looptime(start=0, noop_cycles=10)


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


async def test_a_slow_token_holds_up_nobody_else() -> None:
    async with Sandbox(users=["alice", "bob"], latency=0.1) as sandbox:

        async def tokens(user: str | None) -> str:
            await asyncio.sleep(3000 if user == "alice" else 0)
            return sandbox.token(user or "")

        drafts = [Draft(sandbox.add_draft(user), user=user) for user in ("alice", "alice", "bob", "bob")]
        ends: dict[str | None, float] = {}
        async with FeishuMailClient(tokens, base_url=sandbox.base_url) as client:
            async for outcome in client.send_drafts(drafts):
                assert outcome.status is OutcomeStatus.SENT
                ends.setdefault(outcome.draft.user, asyncio.get_running_loop().time())
        assert ends["bob"] < 2
        assert ends["alice"] > 3000
