"""What a BulkRun promises to whoever iterates it: every input, every way of leaving, every pace."""

import asyncio
import contextlib
import gc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, Final, cast

import pytest

from feishu_mail_async import (
    ClientClosed,
    ContentRisk,
    Draft,
    FeishuMailClient,
    NotSent,
    Outcome,
    OutcomeStatus,
    Priority,
    RateLimit,
    UnknownUser,
)
from feishu_mail_async.errors import root_cause
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.clock import now
from tests.helpers.scenes import Scene, drain
from tests.helpers.support import FREE, cancel_all, scene, settle
from tests.models.bulk_model import check_one, check_true, fetch

pytestmark = pytest.mark.looptime(start=0, noop_cycles=12)

SENT, ALREADY, FAILED, SKIPPED = (
    OutcomeStatus.SENT,
    OutcomeStatus.ALREADY_SENT,
    OutcomeStatus.FAILED,
    OutcomeStatus.SKIPPED,
)
BACKLOG: Final = 100
"""Outcomes that may wait for the consumer."""


class OwnError(Exception):
    """What the caller's own iterable raises."""


def the_tasks() -> set[asyncio.Task[Any]]:
    """The package's own tasks; the others are the test's and the servers'."""
    return {task for task in asyncio.all_tasks() if task.get_name().startswith("feishu-mail")}


async def play(
    act: Callable[[Scene], Awaitable[None]],
    drafts: int = 10,
    *users: str,
    limit: RateLimit = FREE,
    **settings: Any,
) -> None:
    """Let a test act on a stage with drafts of the first user; then nothing must be left over."""
    users = users or ("alice",)
    async with Sandbox(users=users, latency=0.1, calls=1_000_000) as sandbox:
        stage = Scene(sandbox)
        stage.open(rate_limit=limit, **settings)
        stage.drafts = stage.more(drafts, users[0])
        try:
            await act(stage)
        finally:
            await stage.close()
        assert the_tasks() == set()
        calls = stage.calls
        await asyncio.sleep(1000)
        assert stage.calls == calls, "a call was made after the client was closed"
        assert sandbox.ledger.conflicts == 0
        assert max(sandbox.ledger.sent.values(), default=0) <= 1


# --- what can be given -------------------------------------------------------------------------------------


async def from_async(items: Sequence[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


class Reiterable:
    """Neither an iterator nor sized."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


class AsyncReiterable(Reiterable):
    """Both: the asynchronous side is taken, since the other one may block."""

    def __aiter__(self) -> AsyncIterator[Any]:
        return from_async(self.items)

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("it can be read without blocking")


FORMS: Final[dict[str, Callable[[list[Any]], Any]]] = {
    "list": list,
    "tuple": tuple,
    "dict": dict.fromkeys,
    "generator": lambda items: (item for item in items),
    "async generator": from_async,
    "iterable": Reiterable,
    "async iterable": AsyncReiterable,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ids", [True, False], ids=["ids", "drafts"])
async def test_every_form_of_input_is_sent(form: str, ids: bool) -> None:
    async def act(stage: Scene) -> None:
        items = [draft.draft_id if ids else draft for draft in stage.drafts]
        outcomes = await drain(stage.client.send_drafts(FORMS[form](items)))
        assert {outcome.status for outcome in outcomes} == {SENT}
        assert stage.calls == 10
        if not ids:
            stage.true(outcomes)
        assert {outcome.draft.draft_id for outcome in outcomes} == {draft.draft_id for draft in stage.drafts}

    await play(act)


@pytest.mark.parametrize("form", FORMS)
async def test_an_empty_input_is_a_run_without_outcomes(form: str) -> None:
    async def act(stage: Scene) -> None:
        run = stage.client.send_drafts(FORMS[form]([]))
        assert await drain(run) == []
        assert (run.summary.total, run.waiting) == (0, 0)

    await play(act)


@pytest.mark.parametrize("what", ["an-id", b"ids", Draft("an-id"), None, 7, 1.5], ids=repr)
async def test_what_is_no_iterable_of_drafts_is_a_type_error_at_once(what: Any) -> None:
    async def act(stage: Scene) -> None:
        with pytest.raises(TypeError, match=r"^drafts: .*send_draft$"):
            stage.client.send_drafts(what)

    await play(act, 0)


@pytest.mark.parametrize("read_ahead", [0, -1, 1.5, True, "7", None])
async def test_a_bad_read_ahead_is_said_at_once(read_ahead: Any) -> None:
    async def act(stage: Scene) -> None:
        with pytest.raises((TypeError, ValueError), match=r"^read_ahead\b"):
            stage.client.send_drafts([], read_ahead=read_ahead)
        with pytest.raises(TypeError, match=r"^priority\b"):
            stage.client.send_drafts([], priority=cast("Priority", "bulk"))

    await play(act, 0)


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (7, TypeError),
        (None, TypeError),
        (b"id", TypeError),
        ("", ValueError),
        ("a\nb", ValueError),
        ("x" * 600, ValueError),
    ],
    ids=repr,
)
@pytest.mark.parametrize("form", ["list", "generator", "async generator"])
async def test_a_bad_item_surfaces_with_its_number_after_what_was_read_before(
    form: str, bad: Any, kind: type[Exception]
) -> None:
    async def act(stage: Scene) -> None:
        run = stage.client.send_drafts(FORMS[form]([*stage.drafts[:5], bad, *stage.drafts[5:]]))
        outcomes: list[Outcome] = []
        with pytest.raises(kind, match=r"^drafts: item 6: "):
            await fetch(run, outcomes)
        stage.true(outcomes, stage.drafts[:5])
        assert {outcome.status for outcome in outcomes} == {SENT}
        with pytest.raises(StopAsyncIteration):
            await anext(run)

    await play(act)


def raising(items: Sequence[Draft], error: BaseException) -> Iterator[Draft]:
    yield from items
    raise error


async def raising_async(items: Sequence[Draft], error: BaseException) -> AsyncIterator[Draft]:
    for item in items:
        yield item
    raise error


@pytest.mark.parametrize("make", [raising, raising_async])
@pytest.mark.parametrize("read", [0, 1, 10])
async def test_an_exception_of_the_callers_iterable_surfaces_after_the_outcomes(
    make: Callable[[Sequence[Draft], BaseException], Any], read: int
) -> None:
    async def act(stage: Scene) -> None:
        error = OwnError("the file ends in the middle of a line")
        run = stage.client.send_drafts(make(stage.drafts[:read], error))
        outcomes: list[Outcome] = []
        with pytest.raises(OwnError) as caught:
            await fetch(run, outcomes)
        assert caught.value is error
        stage.true(outcomes, stage.drafts[:read])
        assert {outcome.status for outcome in outcomes} <= {SENT}

    await play(act)


async def test_a_cancelled_iterable_does_not_pass_for_one_that_has_ended() -> None:
    """Somebody cancels the task that the caller's generator waits for: what was read is not all there is."""

    async def act(stage: Scene) -> None:
        rows: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def read() -> AsyncIterator[Draft]:
            yield stage.drafts[0]
            await rows
            yield stage.drafts[1]

        run = stage.client.send_drafts(read())
        outcomes = [await anext(run)]
        rows.cancel()
        with pytest.raises((asyncio.CancelledError, Exception)) as caught:
            await anext(run)
        assert not isinstance(caught.value, StopAsyncIteration), "the run claims that the input was at its end"
        stage.true(outcomes, stage.drafts[:1])

    await play(act, 2)


async def test_an_iterator_that_cannot_begin_says_so() -> None:
    class Bad:
        def __iter__(self) -> Iterator[str]:
            raise OwnError("no such file")

    async def act(stage: Scene) -> None:
        with pytest.raises(OwnError):
            await drain(stage.client.send_drafts(Bad()))

    await play(act)


async def test_nothing_is_read_or_sent_before_the_run_begins() -> None:
    async def act(stage: Scene) -> None:
        read = []

        def reading() -> Iterator[Draft]:
            for draft in stage.drafts:
                read.append(draft)
                yield draft

        run = stage.client.send_drafts(reading())
        await asyncio.sleep(10)
        assert (read, stage.calls) == ([], 0)
        async with run:
            await asyncio.sleep(10)
            assert (len(read), stage.calls) == (10, 10)

    await play(act)


async def test_a_user_who_is_not_known_is_the_outcome_of_their_draft() -> None:
    async def act(stage: Scene) -> None:
        stranger = Draft("some-draft", user="mallory", tag=object())
        given = [*stage.drafts[:5], stranger, *stage.drafts[5:]]
        outcomes = await drain(stage.client.send_drafts(given))
        stage.true(outcomes, given)
        (odd,) = [outcome for outcome in outcomes if outcome.status is not SENT]
        assert odd.draft.tag is stranger.tag
        assert odd.status is SKIPPED
        assert isinstance(odd.error, UnknownUser)
        assert odd.error.users == ("alice",)
        assert stage.calls == 10

    await play(act)


async def test_a_token_that_cannot_be_had_is_the_outcome_of_its_users_drafts() -> None:
    async def tokens(user: str | None) -> str:
        if user == "bob":
            raise OwnError("the vault is sealed")
        return sandbox.token(user or "")

    async with Sandbox(users=["alice", "bob"], latency=0.1) as sandbox:
        given = [
            Draft(draft_id, user=user) for user in ("alice", "bob") for draft_id in sandbox.add_drafts(user, 3)
        ]
        async with FeishuMailClient(tokens, base_url=sandbox.base_url) as client:
            outcomes = await drain(client.send_drafts(given))
        check_true(given, outcomes, sandbox.ledger)
        assert Counter(outcome.draft.user for outcome in outcomes if outcome.status is SENT) == {"alice": 3}
        for outcome in outcomes:
            if outcome.draft.user == "bob":
                assert isinstance(outcome.error, NotSent)
                assert isinstance(outcome.error.__cause__, OwnError)


# --- outcomes ----------------------------------------------------------------------------------------------


async def test_outcomes_come_as_soon_as_they_are_known_not_in_the_order_of_the_input() -> None:
    async def act(stage: Scene) -> None:
        slow, *rest = stage.drafts
        fast = stage.more(1, "bob")
        stage.sandbox.script(slow.draft_id, Fault.delay(5, 5))
        known = {}
        async for outcome in stage.client.send_drafts([slow, *rest, *fast]):
            known[outcome.draft] = now()
        assert known[fast[0]] == pytest.approx(0.1, abs=0.01)
        assert known[slow] == pytest.approx(10, abs=0.01)
        assert list(known) == [*fast, slow, *rest]

    await play(act, 3, "alice", "bob")


async def test_an_outcome_comes_while_the_input_is_still_being_read() -> None:
    async def act(stage: Scene) -> None:
        async def slowly() -> AsyncIterator[Draft]:
            for draft in stage.drafts:
                yield draft
                await asyncio.sleep(100)

        times = []
        async for outcome in stage.client.send_drafts(slowly()):
            assert outcome.status is SENT
            times.append(now())
        assert times == pytest.approx([100 * number + 0.1 for number in range(5)], abs=0.01)

    await play(act, 5)


async def test_a_tag_comes_back_with_each_input_duplicates_too() -> None:
    async def act(stage: Scene) -> None:
        draft_id = stage.drafts[0].draft_id
        given = [Draft(draft_id, user="alice", tag=[number]) for number in range(4)]
        outcomes = await drain(stage.client.send_drafts(given))
        assert sorted(outcome.draft.tag for outcome in outcomes) == [[0], [1], [2], [3]]
        for outcome in outcomes:
            assert outcome.result is not None
            assert outcome.result.draft.tag is outcome.draft.tag

    await play(act)


async def test_a_failing_draft_does_not_stop_the_others() -> None:
    async def act(stage: Scene) -> None:
        for draft in stage.drafts[::2]:
            stage.sandbox.script(draft.draft_id, Fault.code("ContentRisk"))
        run = stage.client.send_drafts(stage.drafts)
        outcomes = await drain(run)
        stage.true(outcomes)
        assert Counter(outcome.status for outcome in outcomes) == {SENT: 5, FAILED: 5}
        assert run.summary.statuses == {SENT: 5, FAILED: 5}
        assert run.summary.codes == {1236014: 5}
        assert run.summary.errors == {"ContentRisk": 5}

    await play(act)


async def test_the_summary_counts_what_the_outcomes_say() -> None:
    async def act(stage: Scene) -> None:
        script = stage.sandbox.script
        script(stage.drafts[0].draft_id, Fault.code("ContentRisk"))
        script(stage.drafts[1].draft_id, Fault.code("InternalError"))
        script(stage.drafts[2].draft_id, Fault.reset_after())
        script(stage.drafts[3].draft_id, Fault.code("InternalError"), Fault.code("DraftNotFound"))
        script(stage.drafts[9].draft_id, Fault.code("UserDailyQuota"))
        stage.drafts += [stage.drafts[5], Draft("nobody's", user="mallory"), *stage.more(4)]
        run = stage.client.send_drafts(stage.drafts)
        outcomes = []
        async for outcome in run:
            outcomes.append(outcome)
            assert run.summary.total >= len(outcomes)
        stage.true(outcomes)
        assert run.summary.total == len(outcomes) == 16
        assert run.summary.statuses == Counter(outcome.status for outcome in outcomes)
        told = [root_cause(outcome.error) for outcome in outcomes if outcome.error is not None]
        assert run.summary.errors == Counter(type(error).__name__ for error in told)
        assert run.summary.codes == Counter(code for error in told if (code := getattr(error, "code", None)))
        assert run.summary.calls == stage.calls

    await play(act)


# --- duplicates --------------------------------------------------------------------------------------------


async def test_duplicates_while_the_first_is_under_way_cost_no_call() -> None:
    async def act(stage: Scene) -> None:
        given = stage.drafts * 3
        run = stage.client.send_drafts(given)
        outcomes = await drain(run)
        stage.true(outcomes, given)
        assert Counter(outcome.status for outcome in outcomes) == {SENT: 4, ALREADY: 8}
        assert stage.calls == run.summary.calls == 4

    await play(act, 4)


@pytest.mark.parametrize("form", ["list", "generator", "async generator"])
async def test_a_duplicate_that_comes_later_is_what_the_server_says(form: str) -> None:
    async def act(stage: Scene) -> None:
        given = [*stage.drafts, *stage.drafts]
        outcomes = await drain(stage.client.send_drafts(FORMS[form](given), read_ahead=1))
        stage.true(outcomes, given)
        assert [outcome.status for outcome in outcomes] == [SENT] * 3 + [ALREADY] * 3
        assert stage.calls == 6

    await play(act, 3)


async def test_duplicates_of_a_failing_draft_fail_alike() -> None:
    async def act(stage: Scene) -> None:
        stage.sandbox.script(stage.drafts[0].draft_id, Fault.code("ContentRisk"))
        given = [stage.drafts[0]] * 3
        run = stage.client.send_drafts(given)
        outcomes = await drain(run)
        assert [outcome.status for outcome in outcomes] == [FAILED] * 3
        assert all(isinstance(outcome.error, ContentRisk) for outcome in outcomes)
        assert stage.calls == run.summary.calls == 1

    await play(act, 1)


async def test_the_same_id_of_two_users_is_two_drafts() -> None:
    async def act(stage: Scene) -> None:
        draft_id = stage.drafts[0].draft_id
        given = [Draft(draft_id, user="alice"), Draft(draft_id, user="bob")]
        outcomes = await drain(stage.client.send_drafts(given))
        assert {outcome.draft.user: outcome.status for outcome in outcomes} == {"alice": SENT, "bob": FAILED}
        assert stage.calls == 2

    await play(act, 1, "alice", "bob")


async def test_a_draft_in_two_runs_and_a_send_is_one_call() -> None:
    async def act(stage: Scene) -> None:
        given = stage.drafts
        first, second, result = await asyncio.gather(
            drain(stage.client.send_drafts(given)),
            drain(stage.client.send_drafts(given)),
            stage.client.send_draft(given[2]),
        )
        assert stage.calls == 3
        for outcomes in (first, second):
            assert Counter(outcome.draft for outcome in outcomes) == Counter(given)
            for outcome in outcomes:
                check_one(outcome, stage.sandbox.ledger)
        assert result.draft == given[2]

    await play(act, 3)


# --- stop --------------------------------------------------------------------------------------------------


async def test_stop_finishes_what_is_in_flight_and_skips_the_rest() -> None:
    async def act(stage: Scene) -> None:
        more = stage.more(50, "bob")
        run = stage.client.send_drafts([*stage.drafts, *more])
        outcomes = []
        async for outcome in run:
            outcomes.append(outcome)
            if len(outcomes) == 20:
                await stage.in_flight(2)
                begun = stage.calls
                run.stop()
                run.stop()
        stage.true(outcomes, [*stage.drafts, *more])
        sent = [outcome for outcome in outcomes if outcome.status is SENT]
        assert len(sent) == stage.calls <= begun + 2
        assert stage.sandbox.ledger.sent.total() == len(sent)
        for outcome in outcomes:
            if outcome.status is not SENT:
                assert outcome.status is SKIPPED
                assert type(outcome.error) is NotSent
                assert outcome.error.draft == outcome.draft

    await play(act, 50, "alice", "bob")


async def test_stop_does_not_wait_for_a_retry() -> None:
    """A draft whose call has failed and that waits to be tried again is not in flight."""

    async def act(stage: Scene) -> None:
        stage.sandbox.script(stage.drafts[0].draft_id, *[Fault.code("InternalError")] * 5)
        stage.sandbox.script(stage.drafts[1].draft_id, Fault.code("ContentRisk"))
        run = stage.client.send_drafts(stage.drafts[:2])
        consumer = asyncio.create_task(drain(run))
        await asyncio.sleep(0.3)
        assert stage.calls == 2
        run.stop()
        outcomes = {outcome.draft: outcome for outcome in await consumer}
        assert now() == pytest.approx(0.3, abs=0.01)
        # Its call had no clear end, so the mail may be out.
        assert outcomes[stage.drafts[0]].status is OutcomeStatus.UNKNOWN
        assert outcomes[stage.drafts[1]].status is FAILED
        stage.true(list(outcomes.values()), stage.drafts[:2])

    await play(act, 2)


async def test_stop_skips_the_unread_rest_of_a_list() -> None:
    async def act(stage: Scene) -> None:
        run = stage.client.send_drafts(stage.drafts, read_ahead=5)
        outcomes = [await anext(run)]
        run.stop()
        outcomes += [outcome async for outcome in run]
        stage.true(outcomes)
        assert Counter(outcome.status for outcome in outcomes)[SKIPPED] >= 300 - 2
        assert stage.calls <= 2

    await play(act, 300)


@pytest.mark.parametrize("form", ["generator", "async generator"])
async def test_stop_reads_a_generator_no_further_and_lets_it_clean_up(form: str) -> None:
    async def act(stage: Scene) -> None:
        read: list[Draft] = []
        closed = []

        def reading() -> Iterator[Draft]:
            try:
                for draft in stage.drafts:
                    read.append(draft)
                    yield draft
            finally:
                closed.append(True)

        async def reading_async() -> AsyncIterator[Draft]:
            try:
                for draft in stage.drafts:
                    read.append(draft)
                    yield draft
            finally:
                await asyncio.sleep(0)
                closed.append(True)

        run = stage.client.send_drafts(reading() if form == "generator" else reading_async(), read_ahead=5)
        outcomes = [await anext(run)]
        run.stop()
        count = len(read)
        outcomes += [outcome async for outcome in run]
        assert len(read) == count <= 6
        assert len(closed) == 1, "the generator's finally has not run"
        stage.true(outcomes, read)

    await play(act, 100)


async def test_stop_ends_a_run_whose_generator_waits_for_something() -> None:
    async def act(stage: Scene) -> None:
        closed = []

        async def tailing() -> AsyncIterator[Draft]:
            try:
                yield stage.drafts[0]
                await asyncio.Event().wait()
            finally:
                closed.append(True)

        run = stage.client.send_drafts(tailing())
        outcomes = [await anext(run)]
        asyncio.get_running_loop().call_later(7, run.stop)
        outcomes += [outcome async for outcome in run]
        assert now() == pytest.approx(7.1, abs=0.1)
        assert closed == [True]
        stage.true(outcomes, stage.drafts[:1])

    await play(act, 1)


@pytest.mark.parametrize("form", FORMS)
async def test_a_run_stopped_before_it_begins_makes_no_call(form: str) -> None:
    async def act(stage: Scene) -> None:
        run = stage.client.send_drafts(FORMS[form](stage.drafts))
        run.stop()
        outcomes = await drain(run)
        assert {outcome.status for outcome in outcomes} <= {SKIPPED}
        # A list is skipped whole; what has to be read to be known is not read.
        assert len(outcomes) == (10 if form in {"list", "tuple", "dict"} else 0)
        assert stage.calls == 0

    await play(act)


async def test_a_generator_is_read_no_further_when_the_first_draft_s_event_stops_the_run() -> None:
    async def act(stage: Scene) -> None:
        read: list[Draft] = []

        def reading() -> Iterator[Draft]:
            for draft in stage.drafts:
                read.append(draft)
                yield draft

        stage.client.subscribe(lambda _: run.stop())
        run = stage.client.send_drafts(reading())
        assert {outcome.status for outcome in await drain(run)} == {SKIPPED}
        assert read == stage.drafts[:1]

    await play(act)


async def test_a_run_whose_tasks_are_cancelled_as_it_begins_is_read_all_the_same() -> None:
    async with scene(drafts=4) as (sandbox, client, ids):
        run = client.send_drafts(ids)
        consumer = asyncio.create_task(drain(run))
        await asyncio.sleep(0)
        await cancel_all([], 0)
        assert [outcome.draft.draft_id for outcome in await consumer] == ids
        assert sandbox.ledger.sent == dict.fromkeys(ids, 1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("steps", range(6))
async def test_a_run_stopped_just_after_it_began_ends(form: str, steps: int) -> None:
    async def act(stage: Scene) -> None:
        run = stage.client.send_drafts(FORMS[form](stage.drafts))
        consumer = asyncio.create_task(drain(run))
        await settle(steps)
        run.stop()
        outcomes = await asyncio.wait_for(consumer, 100)
        if form in {"list", "tuple", "dict"}:
            stage.true(outcomes)
        for outcome in outcomes:
            check_one(outcome, stage.sandbox.ledger)

    await play(act)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("steps", range(6))
async def test_a_run_whose_client_is_closed_just_after_it_began_ends(form: str, steps: int) -> None:
    async def act(stage: Scene) -> None:
        run = stage.client.send_drafts(FORMS[form](stage.drafts))
        consumer = asyncio.create_task(drain(run))
        await settle(steps)
        await stage.client.close()
        outcomes = await asyncio.wait_for(consumer, 100)
        if form in {"list", "tuple", "dict"}:
            stage.true(outcomes)

    await play(act)


@pytest.mark.parametrize("form", ["generator", "async generator"])
@pytest.mark.parametrize("end", ["stop", "leave", "close"])
async def test_a_generator_whose_cleaning_up_fails_does_not_hold_up_the_end(form: str, end: str) -> None:
    async def act(stage: Scene) -> None:
        def reading() -> Iterator[Draft]:
            try:
                yield from stage.drafts
            finally:
                raise OwnError("the file cannot be closed")

        async def reading_async() -> AsyncIterator[Draft]:
            try:
                for draft in stage.drafts:
                    yield draft
            finally:
                raise OwnError("the file cannot be closed")

        run = stage.client.send_drafts(reading() if form == "generator" else reading_async(), read_ahead=3)
        outcomes = [await anext(run)]
        if end == "leave":
            await asyncio.wait_for(run.leave(), 100)
        elif end == "close":
            await asyncio.wait_for(stage.client.close(), 100)
        else:
            run.stop()
        # What went wrong with the input is the caller's to know, except where they have left.
        with contextlib.ExitStack() as stack:
            if end != "leave":
                stack.enter_context(pytest.raises(OwnError))
            async with asyncio.timeout(100):
                await fetch(run, outcomes)
        for outcome in outcomes:
            check_one(outcome, stage.sandbox.ledger)

    await play(act)


@pytest.mark.parametrize("form", ["list", "generator", "async generator"])
async def test_stop_while_a_token_is_being_fetched_skips_the_draft_it_was_for(form: str) -> None:
    asked = asyncio.Event()

    async def tokens(_: str | None) -> str:
        asked.set()
        await asyncio.sleep(50)
        return sandbox.token("alice")

    async with Sandbox(users=["alice"], latency=0.1) as sandbox:
        given = [Draft(draft_id, tag=object()) for draft_id in sandbox.add_drafts("alice", 5)]
        async with FeishuMailClient(tokens, base_url=sandbox.base_url) as client:
            run = client.send_drafts(FORMS[form](given))
            consumer = asyncio.create_task(drain(run))
            await asked.wait()
            run.stop()
            outcomes = await consumer
            assert {outcome.status for outcome in outcomes} == {SKIPPED}
            check_true(given, outcomes, sandbox.ledger)
            assert sandbox.ledger.sends == []


async def test_stopping_both_runs_that_share_a_draft_stops_the_draft() -> None:
    async def act(stage: Scene) -> None:
        runs = [stage.client.send_drafts(stage.drafts) for _ in range(2)]
        consumers = [asyncio.create_task(drain(run)) for run in runs]
        await asyncio.sleep(1)
        for run in runs:
            run.stop()
        first, second = await asyncio.gather(*consumers)
        assert now() == pytest.approx(1, abs=0.2)
        assert stage.calls <= 2
        stage.true(first)
        stage.true(second)

    await play(act, 50, limit=RateLimit(calls=1))


async def test_a_stopped_run_makes_no_call_for_a_send_that_was_given_up() -> None:
    """A single send wanted the same draft, so the stop left it alone; then the send is cancelled."""

    async def act(stage: Scene) -> None:
        run = stage.client.send_drafts(stage.drafts)
        consumer = asyncio.create_task(drain(run))
        await asyncio.sleep(1)
        assert stage.calls == 1
        last = stage.drafts[-1]
        send = asyncio.create_task(stage.client.send_draft(last, priority=Priority.BULK))
        await asyncio.sleep(1)
        run.stop()
        await asyncio.sleep(1)
        send.cancel()
        outcomes = await consumer
        assert now() == pytest.approx(3, abs=0.2)
        assert stage.calls_of(last) == 0
        stage.true(outcomes)

    await play(act, 5, limit=RateLimit(calls=1))


async def test_stop_leaves_a_draft_to_the_single_send_that_wants_it_too() -> None:
    async def act(stage: Scene) -> None:
        run = stage.client.send_drafts(stage.drafts)
        consumer = asyncio.create_task(drain(run))
        await asyncio.sleep(1)
        send = asyncio.create_task(stage.client.send_draft(stage.drafts[-1]))
        await asyncio.sleep(1)
        run.stop()
        assert (await send).draft == stage.drafts[-1]
        outcomes = await consumer
        assert stage.calls == 2
        assert Counter(outcome.draft for outcome in outcomes) == Counter(stage.drafts)

    await play(act, 5, limit=RateLimit(calls=1))


# --- leaving, cancelling, closing --------------------------------------------------------------------------


async def test_leaving_early_waits_for_calls_in_flight_and_makes_no_more() -> None:
    async def act(stage: Scene) -> None:
        for draft in stage.drafts:
            stage.sandbox.script(draft.draft_id, Fault.delay(2, 3))
        async with stage.client.send_drafts(stage.drafts) as run:
            await stage.in_flight()
            left = now()
        assert now() - left == pytest.approx(5, abs=0.1)
        assert stage.client.snapshot().in_flight == 0
        assert stage.sandbox.ledger.sent.total() == stage.calls == 1
        assert [outcome async for outcome in run] == []
        await settle()
        assert the_tasks() == set()
        await asyncio.sleep(100)
        assert stage.calls == 1

    await play(act)


async def test_an_exception_in_the_body_comes_out_and_ends_the_run() -> None:
    async def act(stage: Scene) -> None:
        async def body() -> None:
            async with stage.client.send_drafts(stage.drafts) as run:
                async for _ in run:
                    raise OwnError

        with pytest.raises(OwnError):
            await body()
        await settle()
        assert the_tasks() == set()
        calls = stage.calls
        assert calls <= 2
        await asyncio.sleep(100)
        assert stage.calls == calls

    await play(act)


@pytest.mark.parametrize("managed", [True, False], ids=["async with", "plain"])
async def test_cancelling_the_task_that_consumes(managed: bool) -> None:
    async def act(stage: Scene) -> None:
        outcomes: list[Outcome] = []

        async def consume() -> None:
            run = stage.client.send_drafts(stage.drafts)
            if managed:
                await run.__aenter__()
            try:
                await fetch(run, outcomes)
            finally:
                if managed:
                    await run.__aexit__(None, None, None)

        consumer = asyncio.create_task(consume())
        await asyncio.sleep(0.25)
        await stage.in_flight()
        consumer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consumer
        assert len(outcomes) == 2
        if managed:
            assert stage.client.snapshot().in_flight == 0
            await settle()
            assert the_tasks() == set()
            assert stage.calls == 3
        await stage.client.close()
        assert stage.sandbox.ledger.sent.total() == stage.calls
        for outcome in outcomes:
            check_one(outcome, stage.sandbox.ledger)

    await play(act, 50)


async def test_cancelling_twice_gives_up_waiting_and_still_leaves_nothing_behind() -> None:
    async def act(stage: Scene) -> None:
        for draft in stage.drafts:
            stage.sandbox.script(draft.draft_id, Fault.delay(2, 3))
        run = stage.client.send_drafts(stage.drafts)
        consumer = asyncio.create_task(drain(run))
        await stage.in_flight()
        consumer.cancel()
        await asyncio.sleep(1)
        assert not consumer.done()
        consumer.cancel()
        await settle()
        assert consumer.cancelled()
        # The call is still under way, in the client's hands.
        assert stage.client.snapshot().in_flight == 1
        await stage.client.close()
        assert now() == pytest.approx(5, abs=0.1)
        assert stage.sandbox.ledger.sent.total() == 1

    await play(act)


async def test_a_break_and_then_closing_the_client() -> None:
    async def act(stage: Scene) -> None:
        async for _ in stage.client.send_drafts(stage.drafts):
            break
        await stage.in_flight()
        calls = stage.calls
        await stage.client.close()
        assert the_tasks() == set()
        assert stage.calls <= calls + 1
        assert stage.sandbox.ledger.sent.total() == stage.calls

    await play(act, 50)


async def test_a_break_and_then_forgetting_the_run() -> None:
    """Nobody holds the run any more; the client still ends what it has begun."""

    async def act(stage: Scene) -> None:
        async def begin() -> None:
            async for _ in stage.client.send_drafts((draft for draft in stage.drafts), read_ahead=5):
                break

        await begin()
        gc.collect()
        await stage.client.close()
        assert the_tasks() == set()
        assert stage.sandbox.ledger.sent.total() == stage.calls <= 7

    await play(act, 50)


async def test_closing_the_client_ends_a_run_that_is_consumed_with_true_outcomes() -> None:
    async def act(stage: Scene) -> None:
        run = stage.client.send_drafts(stage.drafts)
        consumer = asyncio.create_task(drain(run))
        await asyncio.sleep(0.55)
        await stage.in_flight()
        await stage.client.close()
        outcomes = await asyncio.wait_for(consumer, 1)
        stage.true(outcomes)
        assert Counter(outcome.status for outcome in outcomes) == {SENT: 6, SKIPPED: 294}
        assert all(isinstance(outcome.error, NotSent) for outcome in outcomes if outcome.status is SKIPPED)

    await play(act, 300)


@pytest.mark.parametrize("form", ["generator", "async generator"])
async def test_closing_the_client_ends_a_run_whose_input_is_not_read_to_its_end(form: str) -> None:
    async def act(stage: Scene) -> None:
        run = stage.client.send_drafts(FORMS[form](stage.drafts), read_ahead=10)
        first = await anext(run)
        await stage.client.close()
        rest = [outcome async for outcome in run]
        assert len(rest) <= 11
        assert {outcome.status for outcome in rest} <= {SENT, SKIPPED}
        for outcome in (first, *rest):
            check_one(outcome, stage.sandbox.ledger)

    await play(act, 300)


async def test_closing_the_client_with_outcomes_left_behind_and_nobody_who_fetches_them() -> None:
    async def act(stage: Scene) -> None:
        runs = [stage.client.send_drafts(stage.drafts[start::3]) for start in range(3)]
        for run in runs:
            await anext(run)
        await asyncio.sleep(2)
        await asyncio.wait_for(stage.client.close(), 10)
        assert the_tasks() == set()

    await play(act, 60)


async def test_a_run_of_a_closed_client() -> None:
    async def act(stage: Scene) -> None:
        unbegun = stage.client.send_drafts(stage.drafts)
        await stage.client.close()
        with pytest.raises(ClientClosed):
            stage.client.send_drafts(stage.drafts)
        outcomes = await drain(unbegun)
        assert {outcome.status for outcome in outcomes} == {SKIPPED}
        stage.true(outcomes)
        assert stage.calls == 0

    await play(act)


async def test_leaving_does_not_wait_for_a_send_of_somebody_elses() -> None:
    """A single send of a draft of the run waits for a paused app; that is nothing to who leaves the run."""

    async def act(stage: Scene) -> None:
        stage.sandbox.script(stage.drafts[0].draft_id, Fault.frequency(reset="500"))
        async with stage.client.send_drafts(stage.drafts):
            send = asyncio.create_task(stage.client.send_draft(stage.drafts[0]))
            await asyncio.sleep(10)
            assert stage.calls == 1
            assert stage.client.snapshot().in_flight == 0
        assert now() == pytest.approx(10, abs=0.1)
        await send
        assert stage.calls == 2

    await play(act)


async def test_leaving_leaves_a_single_send_of_a_waiting_draft_alone() -> None:
    async def act(stage: Scene) -> None:
        async with stage.client.send_drafts(stage.drafts):
            await stage.in_flight()
            send = asyncio.create_task(stage.client.send_draft(stage.drafts[5]))
            await settle()
        result = await send
        assert result.draft.tag is stage.drafts[5].tag
        assert stage.sandbox.ledger.sent[stage.drafts[5].draft_id] == 1
        assert stage.calls == 2

    await play(act)


# --- a consumer that takes its time ------------------------------------------------------------------------


async def test_a_slow_consumer_holds_back_calls_and_memory() -> None:
    async def act(stage: Scene) -> None:
        read = 0

        def reading() -> Iterator[Draft]:
            nonlocal read
            for draft in stage.drafts:
                read += 1
                yield draft

        async with stage.client.send_drafts(reading(), read_ahead=250) as run:
            outcomes = [await anext(run)]
            await asyncio.sleep(5000)
            # One user, so at most one call was under way when the backlog was full.
            assert BACKLOG <= stage.calls <= BACKLOG + 2
            assert read <= 250 + 1
            assert stage.client.snapshot().in_flight == 0
            for _ in range(5):
                outcomes.append(await anext(run))
                await asyncio.sleep(100)
                assert stage.calls <= len(outcomes) + BACKLOG + 1
                assert read <= len(outcomes) + 250
            outcomes += [outcome async for outcome in run]
        stage.true(outcomes)
        assert {outcome.status for outcome in outcomes} == {SENT}

    await play(act, 400)


async def test_a_slow_consumer_of_many_users_has_one_call_each_in_flight_at_most() -> None:
    async def act(stage: Scene) -> None:
        users = [f"u{number}" for number in range(8)]
        given = [draft for user in users for draft in stage.more(40, user)]
        async with stage.client.send_drafts(given) as run:
            await asyncio.sleep(5000)
            assert BACKLOG <= stage.calls < BACKLOG + 8
            stage.true([outcome async for outcome in run], given)

    await play(act, 0, *(f"u{number}" for number in range(8)))


async def test_what_else_the_client_does_is_not_held_up_by_a_slow_consumer() -> None:
    async def act(stage: Scene) -> None:
        other = stage.more(150)
        urgent = stage.more(1)[0]
        async with stage.client.send_drafts(stage.drafts) as held:
            await asyncio.sleep(5000)
            calls = stage.calls
            assert calls < BACKLOG + 2
            start = now()
            await stage.client.send_draft(urgent, priority=Priority.INTERACTIVE)
            assert now() - start == pytest.approx(0.1, abs=0.01)
            outcomes = await drain(stage.client.send_drafts(other))
            stage.true(outcomes, other)
            assert now() - start == pytest.approx(0.1 + 15, abs=0.1)
            assert stage.calls == calls + 151
            stage.true([outcome async for outcome in held])

    await play(act, 200)


@pytest.mark.parametrize("priority", Priority)
async def test_a_send_goes_though_its_draft_waits_in_a_held_run(priority: Priority) -> None:
    async def act(stage: Scene) -> None:
        async with stage.client.send_drafts(stage.drafts) as held:
            await asyncio.sleep(5000)
            last = stage.drafts[-1]
            assert stage.calls_of(last) == 0
            start = now()
            result = await asyncio.wait_for(stage.client.send_draft(last, priority=priority), 60)
            assert now() - start == pytest.approx(0.1, abs=0.01)
            assert result.draft.tag is last.tag
            outcomes = [outcome async for outcome in held]
        stage.true(outcomes)
        assert stage.calls == 200

    await play(act, 200)


async def test_another_run_goes_though_its_drafts_wait_in_a_held_run() -> None:
    async def act(stage: Scene) -> None:
        async with stage.client.send_drafts(stage.drafts) as held:
            await asyncio.sleep(5000)
            late = stage.drafts[-20:]
            outcomes = await asyncio.wait_for(drain(stage.client.send_drafts(late)), 60)
            stage.true(outcomes, late)
            stage.true([outcome async for outcome in held])
        assert stage.calls == 200

    await play(act, 200)


async def test_stopping_a_held_run_tells_all_that_it_skips() -> None:
    async def act(stage: Scene) -> None:
        async with stage.client.send_drafts(stage.drafts, read_ahead=150) as run:
            await asyncio.sleep(5000)
            run.stop()
            await asyncio.sleep(1)
            outcomes = [outcome async for outcome in run]
        stage.true(outcomes)
        assert Counter(outcome.status for outcome in outcomes)[SKIPPED] >= 200 - BACKLOG - 2

    await play(act, 200)


@pytest.mark.parametrize("read_ahead", [1, 2, 7, 100])
@pytest.mark.parametrize("form", ["generator", "async generator"])
async def test_read_ahead_bounds_what_is_read_and_not_fetched(form: str, read_ahead: int) -> None:
    async def act(stage: Scene) -> None:
        read = fetched = most = 0

        def count() -> None:
            nonlocal read, most
            read += 1
            most = max(most, read - fetched)

        def reading() -> Iterator[Draft]:
            for draft in stage.drafts:
                count()
                yield draft

        async def reading_async() -> AsyncIterator[Draft]:
            for draft in reading():
                yield draft

        run = stage.client.send_drafts(
            reading() if form == "generator" else reading_async(), read_ahead=read_ahead
        )
        outcomes = []
        async for outcome in run:
            outcomes.append(outcome)
            fetched += 1
        stage.true(outcomes)
        assert most == min(read_ahead, 60)

    await play(act, 60)


# --- two consumers, and one that never waits ---------------------------------------------------------------


async def test_two_consumers_of_one_run_share_its_outcomes() -> None:
    async def act(stage: Scene) -> None:
        run = stage.client.send_drafts(stage.drafts)

        async def consume() -> list[Outcome]:
            return [outcome async for outcome in run]

        first, second = await asyncio.wait_for(asyncio.gather(consume(), consume()), 60)
        stage.true([*first, *second])

    await play(act, 60)


async def test_two_consumers_when_the_input_fails() -> None:
    async def act(stage: Scene) -> None:
        run = stage.client.send_drafts(raising(stage.drafts, OwnError()))
        outcomes: list[Outcome] = []

        async def consume() -> None:
            await fetch(run, outcomes)

        ends = await asyncio.wait_for(asyncio.gather(consume(), consume(), return_exceptions=True), 60)
        assert any(isinstance(end, OwnError) for end in ends)
        stage.true(outcomes)

    await play(act, 10)


async def test_a_consumer_that_never_waits_leaves_the_loop_to_others() -> None:
    async def act(stage: Scene) -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticker = asyncio.create_task(tick())
        try:
            run = stage.client.send_drafts(stage.drafts)
            run.stop()
            first = await anext(run)
            await settle(1000)
            assert run.summary.total == 5000  # all are there: the consumer has nothing to wait for
            at = [ticks]
            async for outcome in run:
                assert outcome.status is first.status is SKIPPED
                at.append(ticks)
        finally:
            ticker.cancel()
        assert len(at) == 5000
        gaps = Counter(at)
        assert max(gaps.values()) <= 100, "outcomes fetched while nothing else had its chance"

    await play(act, 5000)


async def test_reading_a_long_list_leaves_the_loop_to_others() -> None:
    async def act(stage: Scene) -> None:
        read: list[int] = []
        ticks = 0

        def reading() -> Iterator[Draft]:
            for draft in stage.drafts:
                read.append(ticks)
                yield draft

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticker = asyncio.create_task(tick())
        async with stage.client.send_drafts(reading()):
            while len(read) < 3000:  # noqa: ASYNC110 - what is measured is who else has a chance
                await asyncio.sleep(0)
            ticker.cancel()
        assert max(Counter(read).values()) <= 100

    await play(act, 3000, limit=RateLimit(calls=1))
