"""Events: what clients tell of drafts and calls, held against what the sandbox saw."""

import asyncio
import json
import logging
from collections import Counter
from typing import Final

import pytest

from feishu_mail_async import (
    ApiError,
    Draft,
    FeishuMailClient,
    NotSent,
    OutcomeStatus,
    RateLimit,
    RetryPolicy,
    codes,
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
    RetryPlanned,
    SuspensionStarted,
    TurnGranted,
    UserCooled,
)
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.events import kinds, only
from tests.helpers.scenes import scene
from tests.helpers.story import check_story

pytestmark = pytest.mark.looptime(start=0)

RECORD: Final = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime"}


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
        assert (ended.attempt, ended.end, ended.verdict) == (1, CallEnd.ANSWERED, codes.Verdict.DONE)
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
        assert {*statuses, OutcomeStatus.SCHEDULED} == set(OutcomeStatus), "the run has every kind of outcome"
        assert {*kinds(told)} >= {AppPaused, AppResumed, UserCooled, SuspensionStarted, RetryPlanned, DraftDone}
        assert listed
        assert not any(sandbox.ledger.sent[draft.draft_id] for draft in listed)
        assert sandbox.ledger.refusals == sandbox.ledger.conflicts == 0
        for event in told:
            assert str(event)
            assert not any(token in str(event) + repr(event) for token in sandbox.tokens.values())
            assert not set(event.extra()) & RECORD
            json.dumps(event.extra())
