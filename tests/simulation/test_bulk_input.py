"""What can be given to a BulkRun, what it reads of it and when, and what is wrong with it."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, cast

import pytest

from feishu_mail_async import Draft, FeishuMailClient, NotSent, Outcome, Priority, UnknownUser
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.runs import FORMS, SENT, SKIPPED, OwnError, play, raising
from tests.helpers.scenes import Scene, drain
from tests.models.bulk_model import check_true, fetch

pytestmark = pytest.mark.looptime(start=0, noop_cycles=12)


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
