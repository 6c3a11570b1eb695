"""What a BulkRun tells: each outcome as soon as it is known, and of duplicates what the server would."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from feishu_mail_async import ContentRisk, Draft
from feishu_mail_async._causes import root_cause
from feishu_mail_async.sandbox import Fault
from tests.helpers.clock import now
from tests.helpers.runs import ALREADY, FAILED, FORMS, SENT, play
from tests.helpers.scenes import Scene, drain
from tests.models.bulk_model import check_one

pytestmark = pytest.mark.looptime(start=0, noop_cycles=12)


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
