"""Invariant 7: the whole app waits for as long as the server says, then probes."""

import asyncio

import pytest

from feishu_mail_async import RateLimit, RetryPolicy, errors
from feishu_mail_async.sandbox import Fault
from tests.helpers.clock import now
from tests.helpers.outages import MANY, gaps_of, kinds, outcomes, stage

pytestmark = pytest.mark.looptime(start=0)


async def test_a_pause_stops_all_then_one_probes_then_the_rest_follow_smoothly() -> None:
    async with stage(MANY, 6, latency=2.0, rate_limit=RateLimit(calls=60)) as here:
        here.script_calls(Fault.frequency(reset="30"))
        found = await outcomes(here.send_all())
        assert kinds(found) == {"SendResult": 60}
        refused_at = 2.0  # the first call left at 0, arrived at 1, and its answer was back at 2
        early = [time for time in here.times() if time <= refused_at + 1]
        assert len(early) == 10  # those that had left by then
        probe, *rest = here.times()[len(early) :]
        assert probe == pytest.approx(refused_at + 30 + 1, abs=0.01)
        accepted_at = probe + 1
        assert rest[0] >= accepted_at + 1 - 1e-3
        smooth = [time for time in rest if time < accepted_at + 60]
        gaps = gaps_of(smooth)
        assert len(smooth) >= 40
        assert min(gaps) >= 60 / 60 - 1e-3
        assert max(gaps) <= 60 / 60 + 0.2
        after = [time for time in rest if time > accepted_at + 62]
        assert not after or min(gaps_of(after)) < 0.9


async def test_after_one_window_the_smooth_rate_ends() -> None:
    async with stage(MANY, 5, rate_limit=RateLimit(calls=30, spacing=0.2)) as here:
        here.script_calls(Fault.frequency(reset="5"))
        tasks = here.send_all()
        await outcomes(tasks[:25])
        assert min(gaps_of(here.times()[:25])) >= 2 - 1e-3
        for task in tasks[25:]:
            task.cancel()
        await asyncio.sleep(200)
        before = len(here.times())
        await outcomes([here.send(user, 4) for user in MANY])
        assert gaps_of(here.times()[before:]) == pytest.approx([0.2] * 9, abs=1e-3)


async def test_every_refused_probe_is_followed_by_another_pause() -> None:
    async with stage(MANY, 2, rate_limit=RateLimit(calls=20, spacing=1.0)) as here:
        here.script_calls(*[Fault.frequency(reset="30")] * 4)
        found = await outcomes(here.send_all())
        assert kinds(found) == {"SendResult": 20}
        pauses = gaps_of(here.times()[:5])
        assert pauses == pytest.approx([30.02] * 4, abs=1e-3)
        assert here.times()[5] - here.times()[4] >= 0.02


@pytest.mark.parametrize("status", [429, 400])
@pytest.mark.parametrize(
    ("reset", "seconds"),
    [
        ("12", 12),
        ("0.5", 0.5),
        (None, 60),
        ("-5", 60),
        ("NaN", 60),
        ("garbage", 60),
        ("200", 200),
        ("3600", 240),
        ("1e99", 240),
        ("inf", 240),
        ("30000", 30),
        ("1764000000", 60),
    ],
)
async def test_a_pause_lasts_as_the_server_says_within_reason(
    reset: str | None, seconds: float, status: int
) -> None:
    async with stage(("alice", "bob"), 2, rate_limit=RateLimit(spacing=0.1)) as here:
        here.script_calls(Fault.frequency(status, reset))
        assert kinds(await outcomes(here.send_all())) == {"SendResult": 4}
        assert here.times()[1] - here.times()[0] == pytest.approx(0.02 + seconds, abs=1e-3)


@pytest.mark.parametrize(("per", "seconds"), [(1.0, 60), (20.0, 80), (60.0, 240), (1000.0, 3600)])
async def test_a_pause_is_bounded_by_the_window(per: float, seconds: float) -> None:
    limit = RateLimit(per=per, spacing=0.1)
    async with stage(("alice", "bob"), 2, rate_limit=limit) as here:
        here.script_calls(Fault.frequency(reset="3600"))
        assert kinds(await outcomes(here.send_all())) == {"SendResult": 4}
        assert here.times()[1] - here.times()[0] == pytest.approx(0.02 + seconds, abs=1e-3)


@pytest.mark.parametrize(("reset", "seconds"), [(None, 60), ("7", 7)])
async def test_a_429_without_a_body_pauses_the_app(reset: str | None, seconds: float) -> None:
    async with stage(("alice", "bob"), 2, rate_limit=RateLimit(spacing=0.1)) as here:
        here.script_calls(Fault.bare_429(reset))
        assert kinds(await outcomes(here.send_all())) == {"SendResult": 4}
        assert here.times()[1] - here.times()[0] == pytest.approx(0.02 + seconds, abs=1e-3)


async def test_a_pause_uses_up_refusals_and_not_attempts() -> None:
    async with stage(retry=RetryPolicy(attempts=1, refusals=3)) as here:
        here.script_calls(*[Fault.frequency(reset="5")] * 3)
        assert (await here.send("alice")).attempts == 4
    async with stage(retry=RetryPolicy(attempts=1, refusals=2)) as here:
        here.script_calls(*[Fault.frequency(reset="5")] * 3)
        with pytest.raises(errors.FrequencyLimited):
            await here.send("alice")


async def test_a_probe_without_an_answer_leaves_it_to_the_next() -> None:
    async with stage(MANY, 1, rate_limit=RateLimit(spacing=0.5), attempt_timeout=5.0) as here:
        here.script_calls(Fault.frequency(reset="30"), Fault.hang_before(), Fault.hang_after())
        found = await outcomes(here.send_all())
        assert kinds(found) == {"SendResult": 10}
        assert gaps_of(here.times()[:4]) == pytest.approx([30.02, 5.0, 5.0], abs=0.02)
        assert here.times()[4] - here.times()[3] >= 3 - 1e-3  # that one was answered: the smooth rate
        assert here.sandbox.ledger.conflicts == 0


async def test_an_answer_to_a_call_made_before_the_pause_ends_nothing() -> None:
    async with stage(("alice", "bob", "carol"), 2, rate_limit=RateLimit(spacing=0.1)) as here:
        here.sandbox.script(here.ids("alice")[0], Fault.delay(0.0, 10.0))  # a success, at 10 s
        here.sandbox.script(here.ids("bob")[0], Fault.frequency(reset="30"))  # at 0.12 s
        first = here.send("alice"), here.send("bob")
        await asyncio.sleep(0.15)
        rest = [here.send("carol"), here.send("carol", 1)]
        assert not (await first[0]).already_sent
        assert now() == pytest.approx(10, abs=0.01)
        await outcomes([first[1], *rest])
        assert here.times()[2] == pytest.approx(30.13, abs=0.01)


@pytest.mark.parametrize("resets", [("30", "10"), ("10", "30")])
async def test_the_latest_end_of_a_pause_wins(resets: tuple[str, str]) -> None:
    async with stage(("alice", "bob", "carol"), 1, rate_limit=RateLimit(spacing=0.1), latency=1.0) as here:
        here.sandbox.script(here.ids("alice")[0], Fault.frequency(reset=resets[0]))  # known at 1.0 s
        here.sandbox.script(here.ids("bob")[0], Fault.frequency(reset=resets[1]))  # known at 1.1 s
        tasks = [here.send("alice"), here.send("bob")]
        await asyncio.sleep(0.15)
        await outcomes([*tasks, here.send("carol")])
        after = [time for time in here.times() if time > 1.7]
        known = {"30": 1.0 if resets[0] == "30" else 1.1}
        assert after[0] == pytest.approx(known["30"] + 30 + 0.5, abs=0.01)


async def test_a_pause_by_other_programs_is_waited_out() -> None:
    """The server refuses all sends for 40 s, as if others had used up the window, and says so each time."""
    async with stage(MANY, 2, rate_limit=RateLimit()) as here:
        here.sandbox.limit_now(40)
        assert kinds(await outcomes(here.send_all())) == {"SendResult": 20}
        assert here.sandbox.ledger.paused_refusals <= 2
        assert here.sandbox.ledger.refusals == 0
