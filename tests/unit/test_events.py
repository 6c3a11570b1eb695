"""What clients tell of themselves: events to subscribers and readers, and log records."""

import asyncio
import contextvars
import gc
import json
import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

from feishu_mail_async import (
    ApiError,
    ClientClosed,
    Draft,
    FeishuMailClient,
    FeishuMailError,
    NotSent,
    OutcomeStatus,
    Priority,
    RateLimit,
    RetryPolicy,
    Snapshot,
    Suspended,
    codes,
    open_ledger,
)
from feishu_mail_async._api.protocol import CallEnd
from feishu_mail_async.events import (
    AppPaused,
    AppResumed,
    AttemptEnded,
    AttemptStarted,
    DraftDone,
    DraftQueued,
    Event,
    EventsLost,
    RetryPlanned,
    SuspensionEnded,
    SuspensionStarted,
    TokenRefreshed,
    TurnGranted,
    UserCooled,
)
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.clock import now
from tests.helpers.story import check_story, jobs_of
from tests.helpers.support import FREE, ONCE, TOKEN, begins_with, scene, settle

pytestmark = pytest.mark.looptime(start=0)

E = TypeVar("E", bound=Event)

RECORD: Final = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime"}


def only(events: list[Event], kind: type[E]) -> list[E]:
    return [event for event in events if isinstance(event, kind)]


def kinds(events: list[Event]) -> list[type[Event]]:
    return [type(event) for event in events]


# --- one draft ---------------------------------------------------------------------------------------------


async def test_a_draft_is_queued_has_its_turn_is_sent_and_done() -> None:
    async with scene() as (sandbox, client, [draft_id]):
        told: list[Event] = []
        client.subscribe(told.append)
        result = await client.send_draft(Draft(draft_id, user="alice", tag="mine"))
        queued, granted, started, ended, done = told
        assert isinstance(queued, DraftQueued)
        assert isinstance(granted, TurnGranted)
        assert isinstance(started, AttemptStarted)
        assert isinstance(ended, AttemptEnded)
        assert isinstance(done, DraftDone)
        assert {(event.job, event.endpoint, event.user) for event in (queued, granted, started, ended, done)} == {
            (queued.job, "send", "alice")
        }
        assert queued.draft == done.draft == Draft(draft_id, user="alice")
        assert done.draft is not None
        assert done.draft.tag == "mine"
        assert (granted.attempt, granted.waited, granted.probe) == (1, 0.0, False)
        assert (ended.attempt, ended.end, ended.verdict) == (1, CallEnd.ANSWERED, codes.Verdict.SENT)
        assert (ended.code, ended.http_status, ended.log_id) == (0, 200, sandbox.ledger.sends[0].log_id)
        assert ended.seconds == pytest.approx(0.1, abs=0.01)
        assert ended.error is None
        assert (done.status, done.attempts, done.joined) == (OutcomeStatus.SENT, 1, False)
        assert done.result == result
        assert done.error is None
        assert done.lasted == pytest.approx(0.1, abs=0.01)
        check_story(told, sandbox.ledger)


async def test_the_wait_for_a_turn_is_told() -> None:
    limit = RateLimit(calls=1, per=60, spacing=0, margin=0)
    async with scene(drafts=2, rate_limit=limit) as (_, client, ids):
        told: list[Event] = []
        client.subscribe(told.append)
        await asyncio.gather(*(client.send_draft(draft_id) for draft_id in ids))
        assert [round(event.waited, 1) for event in only(told, TurnGranted)] == [0.0, 60.1]
        assert [round(event.waited, 1) for event in only(told, DraftDone)] == [0.0, 60.1]
        assert [round(event.lasted, 1) for event in only(told, DraftDone)] == [0.1, 60.2]


async def test_a_retry_is_told_with_its_reason_and_its_delay() -> None:
    async with scene() as (sandbox, client, [draft_id]):
        sandbox.script(draft_id, Fault.code("InternalError"), Fault.reset_after())
        told: list[Event] = []
        client.subscribe(told.append)
        await client.send_draft(draft_id)
        first, second = only(told, RetryPlanned)
        assert (first.attempts, first.subject) == (1, codes.Subject.DRAFT)
        assert isinstance(first.error, ApiError)
        assert first.error.code == 1236019
        assert 0.5 <= first.delay <= 1
        assert second.attempts == 2
        _, _, third = only(told, AttemptStarted)
        assert third.time >= second.time + second.delay
        [done] = only(told, DraftDone)
        assert (done.status, done.attempts) == (OutcomeStatus.ALREADY_SENT, 3)
        assert done.waited < done.lasted - first.delay - second.delay + 1e-6
        check_story(told, sandbox.ledger)


async def test_a_refused_draft_is_done_with_its_error_and_code() -> None:
    async with scene() as (sandbox, client, [draft_id]):
        sandbox.script(draft_id, Fault.code("ContentRisk"))
        told: list[Event] = []
        client.subscribe(told.append)
        with pytest.raises(ApiError):
            await client.send_draft(draft_id)
        [done] = only(told, DraftDone)
        assert (done.status, done.code, done.result) == (OutcomeStatus.FAILED, 1236014, None)
        assert done.error is not None
        assert done.error.__traceback__ is None, "an event that is kept would keep its caller's frames"


async def test_a_call_that_never_left_is_an_attempt_that_does_not_count() -> None:
    async with scene() as (sandbox, client, [draft_id]):
        told: list[Event] = []
        client.subscribe(told.append)
        async with sandbox.outage():
            send = asyncio.create_task(client.send_draft(draft_id))
            await asyncio.sleep(0.1)
        await send
        first, second = only(told, AttemptEnded)
        assert (first.end, first.attempt, first.log_id, first.code) == (CallEnd.NEVER_LEFT, 1, None, None)
        assert (second.end, second.attempt) == (CallEnd.ANSWERED, 1)
        assert only(told, TurnGranted)[1].probe
        check_story(told, sandbox.ledger)


async def test_who_joins_a_draft_under_way_is_told_apart() -> None:
    async with scene() as (_, client, [draft_id]):
        told: list[Event] = []
        client.subscribe(told.append)
        await asyncio.gather(client.send_draft(Draft(draft_id, tag=1)), client.send_draft(Draft(draft_id, tag=2)))
        first, second = only(told, DraftDone)
        assert (first.status, first.joined, first.attempts) == (OutcomeStatus.SENT, False, 1)
        assert (second.status, second.joined, second.attempts) == (OutcomeStatus.ALREADY_SENT, True, 0)
        assert [event.draft.tag for event in (first, second) if event.draft] == [1, 2]
        assert [event.result.already_sent for event in (first, second) if event.result] == [False, True]
        assert first.job == second.job


async def test_a_draft_that_its_caller_gives_up_is_done_all_the_same() -> None:
    async with scene(drafts=2, rate_limit=RateLimit(calls=1)) as (sandbox, client, ids):
        told: list[Event] = []
        client.subscribe(told.append)
        under_way, waiting = (asyncio.create_task(client.send_draft(draft_id)) for draft_id in ids)
        await asyncio.sleep(0.1)
        under_way.cancel()
        waiting.cancel()
        await asyncio.sleep(1)
        done = {event.draft.draft_id: event for event in only(told, DraftDone) if event.draft}
        assert done[ids[0]].status is OutcomeStatus.SENT, "the client finishes the call"
        assert done[ids[1]].status is OutcomeStatus.SKIPPED
        assert isinstance(done[ids[1]].error, NotSent)
        check_story(told, sandbox.ledger)


async def test_a_draft_without_a_token_is_done_at_once() -> None:
    async def token(_: str | None) -> str:
        raise RuntimeError

    told: list[Event] = []
    async with FeishuMailClient(token) as client:
        client.subscribe(told.append)
        with pytest.raises(NotSent):
            await client.send_draft("d1", user="alice")
        async with client.send_drafts([Draft("d2", user="alice"), Draft("d3", user="bob")]) as run:
            assert [outcome.status async for outcome in run] == [OutcomeStatus.SKIPPED] * 2
    assert kinds(told) == [DraftDone] * 3
    assert {(event.user, event.status) for event in only(told, DraftDone)} == {
        ("alice", OutcomeStatus.SKIPPED),
        ("bob", OutcomeStatus.SKIPPED),
    }


async def test_a_list_of_drafts_is_calls_without_a_draft() -> None:
    async with scene(drafts=3) as (sandbox, client, ids):
        told: list[Event] = []
        client.subscribe(told.append)
        assert [draft.draft_id async for draft in client.list_drafts()] == ids
        assert kinds(told) == [TurnGranted, AttemptStarted, AttemptEnded]
        assert {(event.endpoint, event.draft) for event in only(told, AttemptEnded)} == {("list", None)}
        assert "a list of drafts" in str(told[-1])
        check_story(told, sandbox.ledger)


# --- who waits, and who is suspended --------------------------------------------------------------------------


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


# --- all together ------------------------------------------------------------------------------------------


LAST: Final = [
    Fault.code(row.name)
    for row in codes.CODES.values()
    if row.subject is codes.Subject.APP and row.verdict is codes.Verdict.FATAL
]
"""Faults after which nothing goes any more: they close the app."""


def all_faults() -> list[Fault]:
    """Each kind of fault, every code of the table among them."""
    rows = [row for row in codes.CODES.values() if row.verdict in {codes.Verdict.RETRY, codes.Verdict.FATAL}]
    return [
        Fault.frequency(),
        Fault.frequency(400, None),
        Fault.bare_429(),
        Fault.unknown(1299999),
        Fault.unknown(1299998, 503, accepted=True),
        Fault.automation_disabled(),
        Fault.gateway(),
        Fault.gateway(504, accepted=True),
        Fault.redirect("http://127.0.0.1:9/elsewhere"),
        Fault.broken(),
        Fault.empty(accepted=True),
        Fault.null(),
        Fault.array(),
        Fault.nulls(accepted=True),
        Fault.huge(300_000),
        Fault.huge(300_000, declared=True, accepted=True),
        Fault.reset_before(),
        Fault.reset_after(),
        Fault.hang_before(),
        Fault.hang_after(),
        Fault.delay(7, 3),
        *(Fault.code(row.name) for row in rows),
    ]


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.soak)])
async def test_with_all_faults_on_the_events_tell_what_the_sandbox_saw(seed: int) -> None:
    faults = all_faults()
    users = [f"user{number}" for number in range(len(faults))]
    async with Sandbox(users=users, latency=(0.05, 0.5), seed=seed) as sandbox:
        drafts = []
        for user, fault in zip(users, faults, strict=True):
            first, *rest = sandbox.add_drafts(user, 3)
            sandbox.script(rest[-1] if fault in LAST else first, fault)
            drafts += [Draft(one, "me", user) for one in (first, *rest, first)]
        told: list[Event] = []
        async with FeishuMailClient(
            sandbox.tokens, base_url=sandbox.base_url, attempt_timeout=5.0, retry=RetryPolicy(attempts=3)
        ) as client:
            client.subscribe(told.append)
            statuses: Counter[OutcomeStatus] = Counter()
            async with client.send_drafts(drafts) as run:
                async for outcome in run:
                    statuses[outcome.status] += 1
                    if statuses.total() == 20:
                        sandbox.limit_now(20)
            listed = [draft async for draft in client.list_drafts(user=users[0])]
        check_story(told, sandbox.ledger)
        done = only(told, DraftDone)
        assert Counter(event.status for event in done) == statuses == run.summary.statuses
        assert sum(event.attempts for event in done) == run.summary.calls == len(sandbox.ledger.sends)
        assert set(statuses) == set(OutcomeStatus), "the run has every kind of outcome"
        assert {*kinds(told)} >= {AppPaused, AppResumed, UserCooled, SuspensionStarted, RetryPlanned, DraftDone}
        assert listed
        assert not any(sandbox.ledger.sent[draft.draft_id] for draft in listed)
        assert sandbox.ledger.refusals == sandbox.ledger.conflicts == 0
        for event in told:
            assert str(event)
            assert not any(token in str(event) + repr(event) for token in sandbox.tokens.values())
            assert not set(event.extra()) & RECORD
            json.dumps(event.extra())


# --- subscribers -------------------------------------------------------------------------------------------


async def test_a_subscriber_that_raises_is_logged_once_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: Event) -> None:
        raise RuntimeError("a mistake of theirs")

    def cancelled(_: Event) -> None:
        raise asyncio.CancelledError

    async def run(*callbacks: Callable[[Event], object]) -> tuple[float, list[Event]]:
        told: list[Event] = []
        began = now()
        async with scene("alice", "bob", drafts=50, app=f"app{len(callbacks)}") as (sandbox, client, ids):
            sandbox.script(ids[3], Fault.reset_after())
            for callback in (*callbacks, told.append):
                client.subscribe(callback)
            async with client.send_drafts([Draft(one, user="alice") for one in ids]) as sent:
                async for outcome in sent:
                    assert outcome.status in {OutcomeStatus.SENT, OutcomeStatus.ALREADY_SENT}
            assert sandbox.ledger.sent.total() == 50
        return now() - began, told

    quiet, expected = await run()
    with caplog.at_level(logging.ERROR):
        disturbed, told = await run(broken, cancelled, broken)
    assert disturbed == pytest.approx(quiet, abs=2), "a retry's jitter apart"
    assert kinds(told) == kinds(expected)
    assert [record.getMessage() for record in caplog.records] == [
        "a subscriber failed at draft_queued; it goes on being called"
    ] * 3
    assert "a mistake of theirs" in caplog.text


async def test_a_subscriber_may_meddle() -> None:
    """What it calls from within an event is done, and the client does not stumble."""
    async with scene(drafts=30, rate_limit=FREE) as (sandbox, client, ids):
        sandbox.script(ids[4], Fault.automation_disabled())
        seen: list[Snapshot] = []

        def meddle(event: Event) -> None:
            seen.append(client.snapshot())
            if isinstance(event, SuspensionStarted):
                client.resume(event.subject)
            if isinstance(event, TurnGranted) and event.draft and event.draft.draft_id == ids[20]:
                run.stop()
            if isinstance(event, DraftDone) and event.draft and event.draft.draft_id == ids[2]:
                unsubscribe()
                client.subscribe(meddle)

        unsubscribe = client.subscribe(meddle)
        async with client.send_drafts(ids) as run:
            outcomes = {outcome.draft.draft_id: outcome async for outcome in run}
        assert [outcomes[one].status for one in ids[:20]] == [
            OutcomeStatus.FAILED if number == 4 else OutcomeStatus.SENT for number in range(20)
        ]
        assert {outcomes[one].status for one in ids[20:]} == {OutcomeStatus.SKIPPED}
        assert len(sandbox.ledger.sends) == 20
        assert seen


async def test_a_subscriber_that_stops_the_run_at_its_first_event_costs_no_call() -> None:
    async with scene(drafts=5) as (sandbox, client, ids):
        client.subscribe(lambda event: run.stop() if isinstance(event, DraftQueued) else None)
        async with client.send_drafts(ids) as run:
            assert [outcome.status async for outcome in run] == [OutcomeStatus.SKIPPED] * 5
        assert sandbox.ledger.sends == []


async def test_a_run_stopped_at_a_refused_draft_tells_each_draft_once() -> None:
    async with scene(drafts=4) as (sandbox, client, ids):
        sandbox.script(ids[0], Fault.code("UserDailyQuota"))
        first: list[Event] = []
        second: list[Event] = []

        def meddle(event: Event) -> None:
            first.append(event)
            if isinstance(event, DraftDone) and isinstance(event.error, Suspended):
                run.stop()

        client.subscribe(meddle)
        client.subscribe(second.append)
        async with client.send_drafts(ids) as run:
            outcomes = {outcome.draft.draft_id: type(outcome.error) async for outcome in run}
        assert first == second
        done = {event.draft.draft_id: type(event.error) for event in only(first, DraftDone) if event.draft}
        assert len(only(first, DraftDone)) == 4
        assert done == outcomes
        check_story(first, sandbox.ledger)


async def test_a_run_stopped_while_its_draft_begins_makes_no_call() -> None:
    async with scene(drafts=3) as (sandbox, client, ids):
        sandbox.script(ids[0], Fault.code("UserDailyQuota"))
        with pytest.raises(ApiError):
            await client.send_draft(ids[0])
        await asyncio.sleep(3700)
        client.subscribe(lambda event: run.stop() if isinstance(event, SuspensionEnded) else None)
        async with client.send_drafts(ids[1:]) as run:
            assert [outcome.status async for outcome in run] == [OutcomeStatus.SKIPPED] * 2
        assert len(sandbox.ledger.sends) == 1


async def test_what_a_subscriber_brings_about_is_told_to_all_in_the_same_order() -> None:
    async with scene(drafts=2) as (sandbox, client, ids):
        sandbox.script(ids[0], Fault.automation_disabled())
        told: list[Event] = []
        client.subscribe(
            lambda event: client.resume(event.subject) if isinstance(event, SuspensionStarted) else None
        )
        client.subscribe(told.append)
        with pytest.raises(FeishuMailError):
            await client.send_draft(ids[0])
        suspensions = [event for event in told if isinstance(event, SuspensionStarted | SuspensionEnded)]
        assert [type(event) for event in suspensions] == [SuspensionStarted, SuspensionEnded]


async def test_a_run_that_is_left_tells_of_the_drafts_that_had_not_begun() -> None:
    async def token(_: str | None) -> str:
        await asyncio.sleep(60)
        return TOKEN

    told: list[Event] = []
    async with FeishuMailClient(token) as client:
        client.subscribe(told.append)
        async with client.send_drafts([Draft(name, user="alice") for name in "abc"]) as run:
            await asyncio.sleep(1)
            assert run.waiting == 3
    assert [event.status for event in only(told, DraftDone)] == [OutcomeStatus.SKIPPED] * 3


async def test_events_come_in_the_context_of_whoever_gave_the_draft() -> None:
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")
    async with scene(drafts=4, rate_limit=RateLimit(calls=2)) as (sandbox, client, ids):
        sandbox.script(ids[1], Fault.reset_before())
        seen: dict[str, set[str]] = {}

        def look(event: Event) -> None:
            draft = getattr(event, "draft", None)
            if draft is not None:
                seen.setdefault(draft.draft_id, set()).add(request.get())

        client.subscribe(look)

        async def handle(draft_id: str) -> None:
            request.set(f"request of {draft_id}")
            await client.send_draft(draft_id)

        await asyncio.gather(*(handle(draft_id) for draft_id in ids))
        assert seen == {draft_id: {f"request of {draft_id}"} for draft_id in ids}


async def test_all_clients_of_an_app_hear_the_same_and_others_nothing() -> None:
    async with scene(app="one", drafts=2) as (sandbox, client, ids):
        told: dict[str, list[Event]] = {"same": [], "beside": [], "other": []}
        async with (
            FeishuMailClient(sandbox.tokens, app="one", base_url=sandbox.base_url) as beside,
            FeishuMailClient(sandbox.tokens, app="two", base_url=sandbox.base_url) as other,
        ):
            for name, listening in (("same", client), ("beside", beside), ("other", other)):
                listening.subscribe(told[name].append)
            await client.send_draft(ids[0])
        assert told["same"] == told["beside"]
        assert len(told["same"]) == 5
        assert told["other"] == []
        await client.send_draft(ids[1])
        assert len(told["same"]) == 10
        assert len(told["beside"]) == 5, "it was closed"


async def test_a_subscription_ends_when_asked_to() -> None:
    async with scene(drafts=2) as (_, client, ids):
        told: list[Event] = []
        end = client.subscribe(told.append)
        await client.send_draft(ids[0])
        end()
        end()
        await client.send_draft(ids[1])
        assert len(told) == 5


async def test_closing_tells_what_becomes_of_those_that_wait() -> None:
    async with scene(drafts=3, rate_limit=RateLimit(calls=1)) as (_, client, ids):
        told: list[Event] = []
        client.subscribe(told.append)
        sends = [asyncio.create_task(client.send_draft(one)) for one in ids]
        await asyncio.sleep(0.1)
        await client.close()
        await asyncio.gather(*sends, return_exceptions=True)
        assert Counter(event.status for event in only(told, DraftDone)) == {
            OutcomeStatus.SENT: 1,
            OutcomeStatus.SKIPPED: 2,
        }


def test_a_client_made_outside_a_loop_can_be_subscribed_to() -> None:
    client = FeishuMailClient(TOKEN, retry=ONCE, base_url="http://127.0.0.1:9")
    told: list[Event] = []
    client.subscribe(told.append)
    client.subscribe(print)()

    async def main() -> None:
        async with client:
            with pytest.raises(FeishuMailError):
                await client.send_draft("d1")

    asyncio.run(main())
    assert kinds(told)[0] is DraftQueued
    assert isinstance(told[-1], DraftDone)


async def test_what_cannot_be_a_subscriber_is_refused() -> None:
    async with scene() as (_, client, _ids):

        async def waits(_: Event) -> None: ...

        class Waits:
            async def __call__(self, _: Event) -> None: ...

        wrong: Any
        for wrong in (waits, Waits()):
            with pytest.raises(TypeError, match=begins_with("callback") + r".* events\(\)"):
                client.subscribe(wrong)
        wrong = "print"
        with pytest.raises(TypeError, match=begins_with("callback")):
            client.subscribe(wrong)
        for wrong, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)):
            with pytest.raises(error, match=begins_with("buffer")):
                client.events(buffer=wrong)
    with pytest.raises(ClientClosed):
        client.subscribe(print)
    with pytest.raises(ClientClosed):
        client.events()


# --- readers -----------------------------------------------------------------------------------------------


async def test_a_reader_gets_all_events_and_ends_with_the_client() -> None:
    told: list[Event] = []
    async with scene(drafts=5) as (_, client, ids):
        client.subscribe(told.append)
        reader = client.events()
        read: list[Event] = []

        async def follow() -> None:
            async for event in reader:
                await asyncio.sleep(0.05)
                read.append(event)

        following = asyncio.create_task(follow())
        async with client.send_drafts(ids) as run:
            async for _ in run:
                pass
    await following
    assert read == told
    with pytest.raises(StopAsyncIteration):
        await anext(reader)


async def test_a_reader_that_never_reads_costs_no_time_and_a_bounded_memory() -> None:
    async def run(*, read: bool) -> tuple[float, list[Event]]:
        began = now()
        async with scene(drafts=100, app=f"app{read}") as (_, client, ids):
            reader = client.events(buffer=7) if read else None
            async with client.send_drafts(ids) as sent:
                async for outcome in sent:
                    assert outcome.status is OutcomeStatus.SENT
            took = now() - began
        return took, [] if reader is None else [event async for event in reader]

    alone, _ = await run(read=False)
    beside, (lost, *rest) = await run(read=True)
    assert beside == pytest.approx(alone, abs=1e-3)
    assert lost == EventsLost(lost.time, 500 - 7)
    assert len(rest) == 7
    assert "493" in str(lost)


async def test_a_reader_that_falls_behind_reads_where_it_missed_something() -> None:
    async with scene(drafts=3, rate_limit=FREE) as (_, client, ids):
        reader = client.events(buffer=6)
        await client.send_draft(ids[0])
        first = await anext(reader)
        assert isinstance(first, DraftQueued)
        await client.send_draft(ids[1])
        lost = await anext(reader)
        assert isinstance(lost, EventsLost)
        assert lost.number == 3
        assert [type(await anext(reader)) for _ in range(6)] == [
            DraftDone,
            DraftQueued,
            TurnGranted,
            AttemptStarted,
            AttemptEnded,
            DraftDone,
        ]


async def test_a_reader_may_be_cancelled_and_go_on() -> None:
    async with scene() as (_, client, [draft_id]):
        reader = client.events()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await anext(reader)
        both = [asyncio.ensure_future(anext(reader)) for _ in range(2)]
        await settle()
        await client.send_draft(draft_id)
        assert {type(event) for event in await asyncio.gather(*both)} == {DraftQueued, TurnGranted}


async def test_a_reader_that_is_dropped_hears_no_more() -> None:
    async with scene() as (_, client, [draft_id]):
        reader = client.events()
        assert client._subscriptions
        del reader
        gc.collect()
        assert not client._subscriptions
        await client.send_draft(draft_id)


# --- the log -----------------------------------------------------------------------------------------------


async def test_the_log_is_useful_at_info_and_complete_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    limit = RateLimit(calls=1, per=60, spacing=0, margin=0)
    async with scene(drafts=2, rate_limit=limit) as (sandbox, client, ids):
        told: list[Event] = []
        client.subscribe(told.append)
        with caplog.at_level(logging.INFO, "feishu_mail_async"):
            await asyncio.gather(*(client.send_draft(draft_id) for draft_id in ids))
        records = [record for record in caplog.records if record.name.startswith("feishu_mail_async")]
        assert [record.getMessage() for record in records] == [
            f"draft {ids[0]}: sent after 0.1 s (0.0 s waiting, 1 call)",
            f"draft {ids[1]}: sent after 60.2 s (60.1 s waiting, 1 call)",
        ]
        second = vars(records[1])
        assert second["event"] == "draft_done"
        assert second["draft_id"] == ids[1]
        assert second["user"] == "alice"
        assert second["waited"] == pytest.approx(60.1, abs=0.01)
        assert (second["status"], second["attempts"], second["endpoint"]) == ("sent", 1, "send")
        assert second["message_id"]
        assert second["log_id"] == sandbox.ledger.sends[-1].log_id
        assert "time" not in second
        caplog.clear()
        told.clear()
        sandbox.script(ids[1], Fault.frequency(reset="5"), Fault.code("MailThrottled"))
        with caplog.at_level(logging.DEBUG, "feishu_mail_async"):
            await client.send_draft(ids[1])
        logged = [record for record in caplog.records if record.name == "feishu_mail_async.events"]
        assert [vars(record)["event"] for record in logged] == [event.name for event in told]
        assert [record.getMessage() for record in logged] == [str(event) for event in told]
        levels = {vars(record)["event"]: record.levelname for record in logged}
        assert levels["app_paused"] == "WARNING"
        assert levels["retry_planned"] == levels["user_cooled"] == levels["app_resumed"] == "INFO"
        assert levels["attempt_started"] == levels["turn_granted"] == "DEBUG"
        assert not any(token in caplog.text for token in sandbox.tokens.values())


@pytest.mark.parametrize(
    "event", ["draft_queued", "turn_granted", "attempt_started", "attempt_ended", "draft_done"]
)
async def test_a_log_filter_that_raises_holds_nothing_up(event: str) -> None:
    class Broken(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            if vars(record)["event"] == event:
                raise RuntimeError
            return False

    logger, broken = logging.getLogger("feishu_mail_async.events"), Broken()
    level = logger.level
    logger.addFilter(broken)
    logger.setLevel(logging.DEBUG)
    try:
        async with scene(drafts=2) as (_, client, ids):
            for draft_id in ids:
                assert (await client.send_draft(draft_id, deadline=60)).attempts == 1
            assert client.snapshot().in_flight == 0
    finally:
        logger.setLevel(level)
        logger.removeFilter(broken)


async def test_two_clients_of_an_app_log_an_event_once(caplog: pytest.LogCaptureFixture) -> None:
    async with scene(app="one") as (sandbox, client, [draft_id]):
        async with FeishuMailClient(sandbox.tokens, app="one", base_url=sandbox.base_url):
            with caplog.at_level(logging.INFO, "feishu_mail_async"):
                await client.send_draft(draft_id)
        assert len([record for record in caplog.records if record.name == "feishu_mail_async.events"]) == 1


def test_nothing_is_printed_unless_the_program_sets_up_logging() -> None:
    program = """
import asyncio
from feishu_mail_async import FeishuMailClient, FeishuMailError, RetryPolicy

async def main():
    async with FeishuMailClient("u-token", base_url="http://127.0.0.1:9", retry=RetryPolicy(outage=0)) as client:
        client.subscribe(lambda event: 1 / 0)
        try:
            await client.send_draft("d1")
        except FeishuMailError:
            print("refused")

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == ("refused\n", "")


async def test_jobs_have_numbers_of_their_own() -> None:
    async with scene(drafts=10, rate_limit=FREE) as (_, client, ids):
        told: list[Event] = []
        client.subscribe(told.append)
        await asyncio.gather(*(client.send_draft(one, priority=Priority.INTERACTIVE) for one in ids))
        assert len(jobs_of(told)) == 10
