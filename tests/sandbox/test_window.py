"""Windows: which call is let in, which is counted, and what a refusal says."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feishu_mail_async.sandbox import Arrival, CallLog, Window
from feishu_mail_async.sandbox.window import make_window
from tests.helpers.callers import number, running
from tests.helpers.clock import now

pytestmark = pytest.mark.looptime


# --- windows ---------------------------------------------------------------------------------------------


def test_fixed_window_starts_anew_at_multiples() -> None:
    window = make_window(Window.FIXED, 2, 60.0)
    assert [window.arrive(t) for t in (58.0, 59.0, 59.5, 60.0, 61.0)] == [None, None, 0.5, None, None]
    assert window.arrive(62.0) == 58.0


def test_sliding_window_forgets_a_call_after_per() -> None:
    window = make_window(Window.SLIDING, 2, 60.0)
    assert [window.arrive(t) for t in (0.0, 30.0, 59.0, 60.0, 61.0)] == [None, None, 1.0, None, 29.0]


def test_sliding_window_may_count_refusals() -> None:
    window = make_window(Window.SLIDING, 1, 60.0, count_refusals=True)
    assert [window.arrive(t) for t in (0.0, 59.0, 60.0, 119.0, 179.0)] == [None, 60.0, 60.0, 60.0, None]


def test_token_bucket_refills_continuously() -> None:
    window = make_window(Window.TOKEN_BUCKET, 2, 60.0)
    assert [window.arrive(t) for t in (0.0, 0.0, 29.0, 30.0)] == [None, None, pytest.approx(1.0), None]


def test_token_bucket_may_count_refusals_and_its_debt_ends() -> None:
    window = make_window(Window.TOKEN_BUCKET, 2, 60.0, count_refusals=True)
    for _ in range(100):
        wait = window.arrive(0.0)
    assert wait == pytest.approx(90.0)
    assert window.arrive(90.0) is None


@given(st.lists(st.floats(0.0, 40.0), max_size=60), st.sampled_from(list(Window)))
def test_no_window_refuses_whom_the_sliding_one_admits(gaps: list[float], kind: Window) -> None:
    sliding, other = make_window(Window.SLIDING, 4, 60.0), make_window(kind, 4, 60.0)
    at = 0.0
    for gap in gaps:
        at += gap
        if sliding.arrive(at) is None:
            assert other.arrive(at) is None


@pytest.mark.parametrize(("calls", "per"), [(0, 60.0), (1, 0.0), (1, float("inf"))])
def test_a_window_without_sense_is_refused(calls: int, per: float) -> None:
    with pytest.raises(ValueError, match="give"):
        make_window(Window.FIXED, calls, per)


@pytest.mark.parametrize("window", list(Window))
async def test_the_21st_call_is_refused_with_limit_and_reset(window: Window) -> None:
    async with running(window=window, latency=0.0) as (sandbox, caller):
        drafts = sandbox.add_drafts("alice", 21)
        answers = [await caller.send(draft) for draft in drafts]
        assert [answer.status for answer in answers] == [200] * 20 + [429]
        assert answers[20].code == number("FrequencyLimited")
        assert answers[20].headers["x-ogw-ratelimit-limit"] == "20"
        await asyncio.sleep(float(answers[20].headers["x-ogw-ratelimit-reset"]))
        assert (await caller.send(drafts[20])).code == 0
        assert sandbox.ledger.refusals == 1
        assert sandbox.ledger.sent.total() == 21


async def test_a_call_is_counted_when_it_arrives_not_when_it_sets_out() -> None:
    ways = iter([(59.0, 0.0), (0.5, 0.0)])
    async with running(calls=1, latency=lambda _: next(ways)) as (sandbox, caller):
        first, second = sandbox.add_drafts("alice", 2)
        assert (await caller.send(first)).code == 0
        await asyncio.sleep(1.5)
        # 61 s after the first set out, and 2 s after it arrived.
        assert (await caller.send(second)).code == number("FrequencyLimited")
        assert [arrival.time for arrival in sandbox.ledger.sends] == pytest.approx([59.0, 61.0])


async def test_refused_calls_take_the_way_back_too() -> None:
    async with running(calls=1, latency=4.0) as (sandbox, caller):
        for draft in sandbox.add_drafts("alice", 2):
            await caller.send(draft)
        assert now() == pytest.approx(8.0)


async def test_a_call_given_up_by_its_client_still_arrives() -> None:
    async with running(latency=10.0) as (sandbox, caller):
        draft = sandbox.add_draft("alice")
        with pytest.raises(TimeoutError):
            await caller.send(draft, patience=1.0)
        assert sandbox.ledger.sends == []
        await asyncio.sleep(9.5)
        assert sandbox.ledger.sent[draft] == 1


async def test_limit_now_refuses_and_counts_apart() -> None:
    async with running(latency=0.0) as (sandbox, caller):
        draft = sandbox.add_draft("alice")
        sandbox.limit_now(12.3)
        answer = await caller.send(draft)
        assert answer.code == number("FrequencyLimited")
        assert answer.headers["x-ogw-ratelimit-reset"] == "13"
        await asyncio.sleep(12.3)
        assert (await caller.send(draft)).code == 0
        assert (sandbox.ledger.refusals, sandbox.ledger.paused_refusals) == (0, 1)
        assert [arrival.accepted for arrival in sandbox.ledger.calls(draft)] == [False, True]


# --- the ledger ------------------------------------------------------------------------------------------


def arrival(time: float, *, accepted: bool = True, endpoint: str = "send") -> Arrival:
    return Arrival(time, endpoint, "alice", "a@example.com", "d", None, 0, 200, False, accepted, "log")


@given(st.lists(st.floats(0.0, 300.0), max_size=40))
def test_busiest_window_is_what_counting_them_all_gives(times: list[float]) -> None:
    ledger = CallLog(60.0)
    for time in sorted(times):
        ledger.record(arrival(time))
    slow = max((sum(start <= time < start + 60.0 - 1e-9 for time in times) for start in times), default=0)
    assert ledger.busiest_window() == slow


def test_busiest_window_is_half_open_and_of_sends_that_were_let_in() -> None:
    ledger = CallLog(60.0)
    ledger.record(arrival(0.0))
    ledger.record(arrival(1.0, endpoint="list"))
    ledger.record(arrival(2.0, accepted=False))
    ledger.record(arrival(60.0))
    assert ledger.busiest_window() == 1
    assert ledger.busiest_window(61.0) == 2
    assert ledger.busiest_window(accepted_only=False) == 2
