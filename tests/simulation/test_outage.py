"""Invariant 7: who waits, who is suspended, for how long, and how it ends."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any, Final

import aiohttp
import pytest

from feishu_mail_async import (
    AutomatedSendDisabled,
    Draft,
    FeishuMailClient,
    FeishuMailError,
    OutcomeUnknown,
    RateLimit,
    RetryPolicy,
    SendResult,
    Suspended,
    TransportError,
    errors,
)
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.clock import now
from tests.helpers.scenes import Scene

pytestmark = pytest.mark.looptime(start=0)

PLENTY: Final = RateLimit(calls=1000, spacing=0.2)
"""No window that a test would notice."""

HOUR: Final = 3600.0


@contextlib.asynccontextmanager
async def stage(
    users: Sequence[str] = ("alice",), drafts: int = 1, *, latency: float = 0.02, **settings: Any
) -> AsyncIterator[Scene]:
    settings.setdefault("rate_limit", PLENTY)
    async with Sandbox(users=users, latency=latency, calls=settings["rate_limit"].calls) as sandbox:
        scene = Scene(sandbox)
        for user in users:
            scene.drafts += scene.more(drafts, user)
        async with scene.open(**settings):
            yield scene


async def outcomes(tasks: Sequence["asyncio.Task[SendResult]"]) -> list[SendResult | FeishuMailError]:
    """What became of each; anything but a result or an error of the package is raised."""
    found = await asyncio.gather(*tasks, return_exceptions=True)
    for one in found:
        if not isinstance(one, SendResult | FeishuMailError):
            raise one
    return [one for one in found if isinstance(one, SendResult | FeishuMailError)]


def kinds(found: Sequence[SendResult | FeishuMailError]) -> dict[str, int]:
    names = [type(one).__name__ for one in found]
    return {name: names.count(name) for name in names}


def gaps_of(times: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(times)]


# --- nothing is reachable ----------------------------------------------------------------------------------


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


# --- the whole app waits -----------------------------------------------------------------------------------

MANY: Final = [f"user{number}" for number in range(10)]


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


# --- one user waits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [Fault.code("ConcurrentWrite"), Fault.code("MailThrottled"), Fault.unknown(1299999, 429)],
    ids=["1236006", "1236010", "unknown-429"],
)
async def test_a_user_cools_down_for_longer_and_longer_and_a_success_forgets_it(fault: Fault) -> None:
    async with stage(("alice", "bob"), 20, retry=RetryPolicy(attempts=1)) as here:
        one, two = here.ids("alice")[:2]
        here.sandbox.script(one, *[fault] * 5)
        bobs = here.send_all("bob")
        assert (await here.send("alice")).attempts == 6
        here.sandbox.script(two, fault)
        assert (await here.send("alice", 1)).attempts == 2
        await outcomes(bobs)
        calls = [call.time for draft in (one, two) for call in here.sandbox.ledger.calls(draft)]
        gaps = [b - a - 0.02 for a, b in itertools.pairwise(calls)]
        for gap, longest in zip((*gaps[:5], gaps[6]), (1, 2, 4, 8, 16, 1), strict=True):
            assert longest / 2 - 1e-3 <= gap <= longest + 0.21  # another's dispatch may come first
        times = [call.time for call in here.sandbox.ledger.sends if call.user == "bob"]
        assert max(gaps_of(times)) <= 0.4 + 1e-3  # undisturbed


async def test_a_users_cool_down_holds_all_of_the_users_drafts() -> None:
    async with stage(("alice",), 4) as here:
        here.script_calls(Fault.code("MailThrottled"), Fault.code("MailThrottled"))
        tasks = here.send_all()
        await asyncio.sleep(0.1)
        assert here.client.snapshot().cooling.keys() == {"alice"}
        await outcomes(tasks)
        gaps = gaps_of(here.times())
        assert 0.5 <= gaps[0] <= 1.1
        assert 1.0 <= gaps[1] <= 2.1
        assert max(gaps[2:]) < 0.3


async def test_refusals_have_an_end() -> None:
    async with stage(retry=RetryPolicy(attempts=1, refusals=2)) as here:
        here.script_calls(*[Fault.code("ConcurrentWrite")] * 3)
        with pytest.raises(errors.ConcurrentWrite):
            await here.send("alice")
        assert len(here.times()) == 3


@pytest.mark.parametrize(
    "fault",
    [Fault.code("InternalError"), Fault.gateway(502), Fault.gateway(504), Fault.broken(), Fault.reset_before()],
    ids=["1236019", "502", "504", "broken", "reset"],
)
async def test_a_failure_of_the_servers_delays_its_draft_alone(fault: Fault) -> None:
    limit = RateLimit(calls=1000, spacing=0.2, grace=0)
    async with stage(("alice",), 10, retry=RetryPolicy(initial=20), rate_limit=limit) as here:
        here.sandbox.script(here.ids("alice")[0], fault)
        found = await outcomes(here.send_all())
        assert [isinstance(one, SendResult) and one.attempts for one in found] == [2] + [1] * 9
        assert here.times()[9] == pytest.approx(0.01 + 9 * 0.2, abs=0.02)  # the others did not wait
        assert 10 <= here.times()[10] <= 21


# --- suspensions -----------------------------------------------------------------------------------------


def closed(found: Sequence[SendResult | FeishuMailError], scope: str) -> list[Suspended]:
    """The drafts that were skipped, all of them because of that scope."""
    skipped = [one for one in found if isinstance(one, Suspended)]
    assert {one.subject for one in skipped} <= {scope}
    return skipped


async def test_a_spent_daily_quota_closes_the_user_for_an_hour() -> None:
    async with stage(("alice", "bob"), 5) as here:
        here.sandbox.set_quota("alice", 0)
        found = await outcomes(here.send_all())
        assert kinds(found) == {"UserDailyQuota": 1, "SendResult": 5, "Suspended": 4}
        for one in closed(found, "user:alice"):
            assert isinstance(one.__cause__, errors.UserDailyQuota)
            assert one.until is not None
            assert HOUR - 2 < one.until <= HOUR
            assert one.attempts == 0
        assert len(here.times("alice")) == 1
        assert here.client.snapshot().suspended[0].subject == "user:alice"
        await asyncio.sleep(HOUR - 60)
        assert kinds(await outcomes(here.send_all("alice"))) == {"Suspended": 5}
        await asyncio.sleep(70)
        # Its time is over: one probes, and closes the user again.
        assert kinds(await outcomes(here.send_all("alice"))) == {"UserDailyQuota": 1, "Suspended": 4}
        assert len(here.times("alice")) == 2
        here.sandbox.set_quota("alice", None)
        await asyncio.sleep(HOUR)
        assert kinds(await outcomes(here.send_all("alice"))) == {"SendResult": 5}
        assert here.client.snapshot().suspended == ()


@pytest.mark.parametrize("how", ["not-found", "automation"])
@pytest.mark.parametrize("own", [True, False], ids=["own", "shared"])
async def test_a_closed_mailbox_stays_closed_until_it_is_reopened(how: str, own: bool) -> None:
    # A capital letter, because scopes and addresses compare in their own ways.
    async with stage(("Alice",), 2) as here:
        here.sandbox.share_mailbox("Team@example.com", "Alice")
        address, name = ("Alice@example.com", "me") if own else ("Team@example.com", "Team@example.com")
        drafts = [Draft(id_, name, "Alice") for id_ in here.sandbox.add_drafts("Alice", 4, mailbox=name)]
        other = "Team@example.com" if own else "me"
        if how == "automation":
            here.sandbox.disable_automation(address, "no robots", "https://mail.example.com/x")
        else:
            here.sandbox.close_mailbox(address)

        def send(what: Sequence[Draft]) -> list["asyncio.Task[SendResult]"]:
            return [asyncio.create_task(here.client.send_draft(draft)) for draft in what]

        found = await outcomes(send(drafts))
        first = "AutomatedSendDisabled" if how == "automation" else "MailboxNotFound"
        assert kinds(found) == {first: 1, "Suspended": 3}
        if how == "automation":
            assert isinstance(found[0], AutomatedSendDisabled)
            assert (found[0].reason, found[0].reference) == ("no robots", "https://mail.example.com/x")
        assert len(here.times()) == 1
        assert here.sandbox.ledger.sent.total() == 0
        skipped = found[1]
        assert isinstance(skipped, Suspended)
        assert skipped.subject.startswith("mailbox:")
        assert skipped.until is None
        # The user's other mailbox is open.
        elsewhere = Draft(here.sandbox.add_draft("Alice", mailbox=other), other, "Alice")
        assert kinds(await outcomes(send([elsewhere]))) == {"SendResult": 1}
        here.sandbox.open_mailbox(address)
        await asyncio.sleep(10 * HOUR)
        assert kinds(await outcomes(send(drafts))) == {"Suspended": 4}
        here.client.resume(skipped.subject)
        assert kinds(await outcomes(send(drafts))) == {"SendResult": 4}


@pytest.mark.parametrize("code", ["TenantStorageFull", "AppQuotaSpent"])
@pytest.mark.parametrize("mended", [True, False], ids=["mended", "still-full"])
async def test_a_full_storage_or_a_spent_quota_closes_the_app_for_an_hour(code: str, mended: bool) -> None:
    async with stage(MANY, 2, rate_limit=RateLimit(spacing=2.0), latency=1.0) as here:
        here.script_calls(Fault.code(code))
        found = await outcomes(here.send_all())
        assert kinds(found) == {code: 1, "Suspended": 19}
        assert all(one.until is not None and one.until > HOUR - 5 for one in closed(found, "app"))
        assert len(here.times()) == 1
        await asyncio.sleep(HOUR + 5)
        if not mended:
            here.script_calls(Fault.code(code))
        here.client.set_rate_limit(RateLimit(spacing=0.1))
        found = await outcomes(here.send_all())
        # However many wait, one of them tries.
        if mended:
            assert kinds(found) == {"SendResult": 20}
            assert here.times()[2] - here.times()[1] >= 1.0 - 1e-3
        else:
            assert kinds(found) == {code: 1, "Suspended": 19}
            assert len(here.times()) == 2


@pytest.mark.parametrize("code", ["UserExternalQuota", "TenantExternalQuota", "PermissionDenied", "ContentRisk"])
async def test_what_is_the_drafts_own_fails_the_draft_alone(code: str) -> None:
    async with stage(("alice", "bob"), 3) as here:
        here.sandbox.script(here.ids("alice")[0], Fault.code(code))
        found = await outcomes(here.send_all())
        assert kinds(found) == {code: 1, "SendResult": 5}
        assert here.client.snapshot().suspended == ()


async def test_a_token_refused_is_replaced_by_the_one_the_mapping_has_now() -> None:
    async with stage(("alice",), 4, latency=1.0) as here:
        here.sandbox.expire_token("alice")
        tasks = here.send_all()
        await asyncio.sleep(0.2)  # the call is on its way with the old token
        here.tokens["alice"] = here.sandbox.renew_token("alice")
        found = await outcomes(tasks)
        assert [isinstance(one, SendResult) and one.attempts for one in found] == [2, 1, 1, 1]


async def test_a_token_refused_and_not_changed_closes_the_user_until_it_changes() -> None:
    async with stage(("alice", "bob"), 4) as here:
        here.sandbox.expire_token("alice")
        found = await outcomes(here.send_all())
        assert kinds(found) == {"InvalidToken": 1, "Suspended": 3, "SendResult": 4}
        assert all(one.until is None for one in closed(found, "user:alice"))
        calls = len(here.times())
        await asyncio.sleep(10 * HOUR)
        assert kinds(await outcomes(here.send_all("alice"))) == {"Suspended": 4}
        assert len(here.times()) == calls
        here.tokens["alice"] = here.sandbox.renew_token("alice")
        assert kinds(await outcomes(here.send_all("alice"))) == {"SendResult": 4}
        assert here.client.snapshot().suspended == ()


async def test_a_missing_scope_closes_the_user_until_reopened() -> None:
    async with stage(("alice", "bob"), 3) as here:
        here.tokens["alice"] = here.sandbox.renew_token("alice", scopes=[])
        found = await outcomes(here.send_all())
        assert kinds(found) == {"ScopeMissing": 1, "Suspended": 2, "SendResult": 3}
        here.tokens["alice"] = here.sandbox.renew_token("alice")
        here.client.resume(closed(found, "user:alice")[0].subject)
        assert kinds(await outcomes(here.send_all("alice"))) == {"SendResult": 3}


async def test_a_closure_does_not_call_uncertain_drafts_failed() -> None:
    """One whose first reply was lost, and whose user is suspended before it can ask again, may have been sent."""
    async with stage(("alice",), 2, rate_limit=RateLimit(calls=1000, spacing=0.2, grace=0)) as here:
        here.sandbox.script(here.ids("alice")[0], Fault.reset_after())
        here.sandbox.script(here.ids("alice")[1], Fault.code("UserDailyQuota"))
        first, second = await outcomes(here.send_all())
        assert isinstance(first, OutcomeUnknown)
        assert isinstance(first.__cause__, Suspended)
        assert isinstance(second, errors.UserDailyQuota)
