"""Events of pauses, outages, cool-downs and suspensions: each beginning, and each end."""

import asyncio
from pathlib import Path

import pytest

from feishu_mail_async import ApiError, FeishuMailClient, OutcomeStatus, Suspended, codes, open_ledger
from feishu_mail_async.events import (
    AppPaused,
    AppResumed,
    AttemptEnded,
    DraftDone,
    Event,
    RetryPlanned,
    SuspensionEnded,
    SuspensionStarted,
    TokenRefreshed,
    TurnGranted,
    UserCooled,
)
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.clock import now
from tests.helpers.events import kinds, only
from tests.helpers.scenes import scene
from tests.helpers.story import check_story

pytestmark = pytest.mark.looptime(start=0)


async def test_a_pause_of_the_app_is_told_from_its_beginning_to_its_end() -> None:
    async with scene(drafts=2) as (sandbox, client, ids):
        sandbox.script(ids[0], Fault.frequency(reset="30"))
        told: list[Event] = []
        client.subscribe(told.append)
        await asyncio.gather(*(client.send_draft(draft_id) for draft_id in ids))
        [paused] = only(told, AppPaused)
        [resumed] = only(told, AppResumed)
        assert paused.endpoint == "send"
        assert paused.seconds == pytest.approx(30)
        assert "99991400" in paused.reason
        assert resumed.lasted == pytest.approx(30.1, abs=0.05)
        assert [event.probe for event in only(told, TurnGranted)] == [False, True, False]
        ended = told.index(only(told, AttemptEnded)[0])
        assert told.index(paused) > ended


async def test_an_outage_is_told_at_each_probe() -> None:
    async with scene() as (sandbox, client, [draft_id]):
        told: list[Event] = []
        client.subscribe(told.append)
        async with sandbox.outage():
            send = asyncio.create_task(client.send_draft(draft_id))
            await asyncio.sleep(10)
        await send
        pauses = only(told, AppPaused)
        assert len(pauses) == len(only(told, AttemptEnded)) - 1 >= 3
        assert "cannot be reached" in pauses[0].reason
        [resumed] = only(told, AppResumed)
        assert resumed.lasted >= 10


async def test_a_user_who_cools_down_is_told() -> None:
    async with scene("alice", "bob") as (sandbox, client, [draft_id]):
        sandbox.script(draft_id, Fault.code("ConcurrentWrite"), Fault.code("MailThrottled"))
        told: list[Event] = []
        client.subscribe(told.append)
        await client.send_draft(draft_id, user="alice")
        first, second = only(told, UserCooled)
        assert (first.user, first.times, second.times) == ("alice", 1, 2)
        assert 0.5 <= first.seconds <= 1
        assert 1 <= second.seconds <= 2
        retry = only(told, RetryPlanned)[0]
        assert (retry.subject, retry.delay) == (codes.Subject.USER, 0)
        assert only(told, TurnGranted)[1].waited == pytest.approx(first.seconds, abs=0.01)


async def test_a_closure_is_told_before_the_drafts_that_it_skips_and_reopening_ends_it() -> None:
    async with scene("alice", drafts=3) as (sandbox, client, ids):
        sandbox.script(ids[0], Fault.automation_disabled())
        told: list[Event] = []
        client.subscribe(told.append)
        outcomes = await asyncio.gather(*(client.send_draft(one) for one in ids), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes[1:]] == [Suspended] * 2
        [suspension] = only(told, SuspensionStarted)
        assert (suspension.subject, suspension.seconds) == ("mailbox:me/alice", None)
        assert suspension.until is codes.ResumeWhen.RESUMED
        [place] = [place for place, event in enumerate(told) if event is suspension]
        assert all(
            event.status is OutcomeStatus.FAILED or told.index(event) > place for event in only(told, DraftDone)
        )
        client.resume(suspension.subject)
        client.resume(suspension.subject)
        assert told[-1] == SuspensionEnded(now(), "send", suspension.subject)
        assert len(only(told, SuspensionEnded)) == 1


async def test_a_closure_that_time_ends_is_told_when_the_next_draft_comes() -> None:
    async with scene("alice", drafts=2) as (sandbox, client, ids):
        sandbox.script(ids[0], Fault.code("UserDailyQuota"))
        told: list[Event] = []
        client.subscribe(told.append)
        with pytest.raises(ApiError):
            await client.send_draft(ids[0])
        assert only(told, SuspensionStarted)[0].seconds == pytest.approx(3600)
        await asyncio.sleep(3601)
        assert not only(told, SuspensionEnded)
        await client.send_draft(ids[1])
        assert [event.subject for event in only(told, SuspensionEnded)] == ["user:alice"]


async def test_the_closed_app_probes_after_its_hour() -> None:
    async with scene(drafts=2) as (sandbox, client, ids):
        sandbox.script(ids[0], Fault.code("AppQuotaSpent"))
        told: list[Event] = []
        client.subscribe(told.append)
        with pytest.raises(ApiError):
            await client.send_draft(ids[0])
        await asyncio.sleep(3601)
        await client.send_draft(ids[1])
        changes = [
            event
            for event in told
            if isinstance(event, SuspensionStarted | SuspensionEnded | AppPaused | AppResumed)
        ]
        assert [type(event) for event in changes] == [SuspensionStarted, AppPaused, SuspensionEnded, AppResumed]


async def test_a_new_token_is_told() -> None:
    async with Sandbox(users=("alice",)) as sandbox:
        first, second = sandbox.add_drafts("alice", 2)

        async def token(_: str | None) -> str:
            return sandbox.token("alice")

        told: list[Event] = []
        async with FeishuMailClient(token, base_url=sandbox.base_url) as client:
            client.subscribe(told.append)
            await client.send_draft(first, user="alice")
            assert not only(told, TokenRefreshed)
            sandbox.renew_token("alice")
            await asyncio.sleep(61)
            await client.send_draft(second, user="alice")
        assert [event.user for event in only(told, TokenRefreshed)] == ["alice"]
        check_story(told, sandbox.ledger)


async def test_a_token_that_comes_after_the_user_was_closed_is_told_too() -> None:
    async with Sandbox(users=("alice",)) as sandbox:
        first, second = sandbox.add_drafts("alice", 2)
        told: list[Event] = []

        async def token(_: str | None) -> str:
            return sandbox.token("alice")

        async with FeishuMailClient(token, base_url=sandbox.base_url) as client:
            client.subscribe(told.append)
            sandbox.expire_token("alice")
            with pytest.raises(ApiError):
                await client.send_draft(first, user="alice")
            sandbox.renew_token("alice")
            await client.send_draft(second, user="alice")
        changes = [
            event for event in told if isinstance(event, SuspensionStarted | TokenRefreshed | SuspensionEnded)
        ]
        assert [type(event) for event in changes] == [SuspensionStarted, TokenRefreshed, SuspensionEnded]


async def test_a_token_for_which_nobody_has_another_closes_the_user() -> None:
    async with scene("alice", drafts=1) as (sandbox, client, [draft_id]):
        told: list[Event] = []
        client.subscribe(told.append)
        sandbox.expire_token("alice")
        with pytest.raises(ApiError):
            await client.send_draft(draft_id)
        [suspension] = only(told, SuspensionStarted)
        assert (suspension.subject, suspension.until) == ("user:alice", codes.ResumeWhen.TOKEN)
        assert kinds(told)[-2:] == [SuspensionStarted, DraftDone]


async def test_what_another_process_pauses_or_closes_is_told_here_too(tmp_path: Path) -> None:
    """Two ledgers on one file stand for two processes."""
    async with Sandbox(users=("alice", "bob"), latency=0.1) as sandbox:
        draft_a, [draft_b, draft_c] = sandbox.add_draft("alice"), sandbox.add_drafts("bob", 2)
        sandbox.script(draft_a, Fault.code("AppQuotaSpent"))
        one, other = (open_ledger(f"sqlite:///{tmp_path}/mail.db") for _ in range(2))
        told: list[Event] = []
        async with (
            FeishuMailClient(sandbox.tokens, app="a", base_url=sandbox.base_url, ledger=one) as here,
            FeishuMailClient(sandbox.tokens, app="a", base_url=sandbox.base_url, ledger=other) as there,
        ):
            there.subscribe(told.append)
            await there.send_draft(draft_b, user="bob")
            with pytest.raises(ApiError):
                await here.send_draft(draft_a, user="alice")
            assert not only(told, SuspensionStarted)
            with pytest.raises(Suspended):
                await there.send_draft(draft_c, user="bob")
            assert [event.subject for event in only(told, SuspensionStarted)] == ["app"]
        for ledger in (one, other):
            await ledger.close()
