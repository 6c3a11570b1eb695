"""Subscribers and readers: who hears what, in which order, and that none harms or holds up another."""

import asyncio
import contextvars
import gc
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from feishu_mail_async import (
    ApiError,
    ClientClosed,
    Draft,
    FeishuMailClient,
    FeishuMailError,
    OutcomeStatus,
    Priority,
    RateLimit,
    Snapshot,
    Suspended,
)
from feishu_mail_async.events import (
    AttemptEnded,
    AttemptStarted,
    DraftDone,
    DraftQueued,
    Event,
    EventsLost,
    SuspensionEnded,
    SuspensionStarted,
    TurnGranted,
)
from feishu_mail_async.sandbox import Fault
from tests.helpers.canary import TOKEN
from tests.helpers.clock import now
from tests.helpers.events import kinds, only
from tests.helpers.scenes import FREE, ONCE, scene
from tests.helpers.story import check_story, jobs_of
from tests.helpers.tasks import settle
from tests.helpers.wrong import begins_with

pytestmark = pytest.mark.looptime(start=0)


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
        assert client._binding._subscriptions
        del reader
        gc.collect()
        assert not client._binding._subscriptions
        await client.send_draft(draft_id)


async def test_jobs_have_numbers_of_their_own() -> None:
    async with scene(drafts=10, rate_limit=FREE) as (_, client, ids):
        told: list[Event] = []
        client.subscribe(told.append)
        await asyncio.gather(*(client.send_draft(one, priority=Priority.INTERACTIVE) for one in ids))
        assert len(jobs_of(told)) == 10
