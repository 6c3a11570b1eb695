"""Strangers cancel tasks that are not theirs, as clean-ups do that cancel all but their own: nobody waits in vain.

Here those who wait are not cancelled with them: they have their turn all the same, or an error that says why.
"""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from feishu_mail_async import (
    ClientClosed,
    FeishuMailClient,
    FeishuMailError,
    NotSent,
    Outcome,
    OutcomeUnknown,
    RateLimit,
    RefreshingTokens,
    SendResult,
)
from feishu_mail_async._auth.store import MemoryTokens, StoredToken
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.scenes import scene
from tests.helpers.tasks import our_tasks, settle

virtual = pytest.mark.looptime(start=0)

FEW: RateLimit = RateLimit(calls=2, per=10.0, spacing=0.0)


def background() -> list[asyncio.Task[Any]]:
    """Our tasks but those of the callers."""
    return [task for task in our_tasks() if task.get_name().startswith("feishu-mail-")]


def cancel(name: str) -> int:
    """Cancel our tasks of this name; how many there were."""
    found = [task for task in background() if task.get_name() == name]
    for task in found:
        task.cancel()
    return len(found)


def all_but_own() -> None:
    """What people write to clean up."""
    for task in background():
        task.cancel()


async def ends(works: Iterable[asyncio.Future[SendResult]]) -> list[SendResult | FeishuMailError]:
    """How these sends end: never with a CancelledError that nobody wanted of them, and never not at all."""
    found = await asyncio.wait_for(asyncio.gather(*works, return_exceptions=True), 30)
    for one in found:
        assert isinstance(one, SendResult | FeishuMailError), repr(one)
    return found  # type: ignore[return-value]


def begin(client: FeishuMailClient, drafts: Iterable[str]) -> list[asyncio.Future[SendResult]]:
    return [asyncio.ensure_future(client.send_draft(draft)) for draft in drafts]


# --- the dispatcher ----------------------------------------------------------------------------------------


@virtual
async def test_whoever_waits_has_its_turn_without_a_task_that_could_be_cancelled() -> None:
    async with scene(drafts=6, rate_limit=FEW) as (sandbox, client, ids):
        sends = begin(client, ids)
        for _ in range(3):
            await asyncio.sleep(5)
            assert not background()
        assert all(isinstance(one, SendResult) for one in await ends(sends))
        assert sandbox.ledger.sent == dict.fromkeys(ids, 1)
        assert sandbox.ledger.refusals == 0


@virtual
async def test_cancelling_until_no_task_of_ours_is_left_comes_to_an_end() -> None:
    async with scene(drafts=5, rate_limit=FEW) as (_, client, ids):
        run = client.send_drafts(ids)
        await anext(run)
        for _ in range(100):
            if not background():
                break
            all_but_own()
            await settle()
        assert not background()


@virtual
@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.15, 5.0, 15.0])
async def test_a_run_goes_on_when_all_tasks_but_its_consumers_are_cancelled(seconds: float) -> None:
    async with scene(drafts=6, rate_limit=FEW) as (sandbox, client, ids):
        consumer = asyncio.ensure_future(drained(client, ids))
        await asyncio.sleep(seconds)
        all_but_own()
        outcomes = await asyncio.wait_for(consumer, 100)
        assert sorted(outcome.draft.draft_id for outcome in outcomes) == sorted(ids)
        for outcome in outcomes:
            assert outcome.error is None or outcome.error.attempts or isinstance(outcome.error, NotSent)
        assert set(sandbox.ledger.sent.values()) == {1}


# --- tokens ------------------------------------------------------------------------------------------------


class Slow:
    """A source that takes a second."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def token(self, user: str | None) -> str:
        await asyncio.sleep(1)
        return self._token

    async def refused(self, user: str | None, token: str) -> None:
        pass


@pytest.fixture
async def slow() -> AsyncIterator[tuple[FeishuMailClient, list[str]]]:
    async with Sandbox(users=("alice",)) as sandbox:
        drafts = sandbox.add_drafts("alice", 3)
        source = Slow(sandbox.token("alice"))
        async with FeishuMailClient(source, base_url=sandbox.base_url) as client:
            yield client, drafts


@virtual
async def test_a_fetch_of_a_token_that_is_cancelled_is_told_for_what_it_is(
    slow: tuple[FeishuMailClient, list[str]],
) -> None:
    client, drafts = slow
    sends = begin(client, drafts)
    await settle()
    assert cancel("feishu-mail-token") == 1
    for error in await ends(sends):
        assert isinstance(error, NotSent)
        assert not isinstance(error, ClientClosed)
    assert all(isinstance(one, SendResult) for one in await ends(begin(client, drafts)))


@virtual
@pytest.mark.parametrize("name", ["feishu-mail-prepare", "feishu-mail-token"])
async def test_a_run_whose_token_is_not_fetched_ends(name: str, slow: tuple[FeishuMailClient, list[str]]) -> None:
    client, drafts = slow
    consumer = asyncio.ensure_future(drained(client, drafts))
    await settle()
    assert cancel(name) == 1
    outcomes = await asyncio.wait_for(consumer, 100)
    assert [type(outcome.error) for outcome in outcomes] == 3 * [NotSent]
    assert all(isinstance(one, SendResult) for one in await ends(begin(client, drafts)))


@virtual
async def test_a_refresh_that_is_cancelled_is_told_to_whoever_waits_for_the_token() -> None:
    async with Sandbox(users=("alice",), latency=1.0) as sandbox:
        store = MemoryTokens()
        issued = sandbox.issue_tokens("alice")
        await store.save("alice", StoredToken(issued["access_token"], 0, 1, issued["refresh_token"]))
        async with RefreshingTokens(
            sandbox.client_id,
            sandbox.client_secret,
            store,
            base_url=sandbox.base_url,
            clock=asyncio.get_running_loop().time,
        ) as tokens:
            wanted = [asyncio.ensure_future(tokens.token("alice")) for _ in range(2)]
            await settle(2)  # the request has not left yet
            assert cancel("feishu-mail-refresh") == 1
            for error in await asyncio.gather(*wanted, return_exceptions=True):
                assert isinstance(error, NotSent)
            assert await tokens.token("alice")


# --- calls, and the reading of a run -----------------------------------------------------------------------


@virtual
async def test_a_call_that_is_cancelled_is_told() -> None:
    async with scene(drafts=2) as (sandbox, client, ids):
        sends = begin(client, ids)
        await asyncio.sleep(0.06)
        assert cancel("feishu-mail-call")
        assert all(isinstance(one, FeishuMailError) for one in (await ends(sends))[:1])
        assert all(isinstance(one, SendResult) for one in await ends(begin(client, ids)))
        assert sandbox.ledger.sent == dict.fromkeys(ids, 1)


@virtual
async def test_a_run_whose_reading_is_cancelled_says_so_after_what_was_read() -> None:
    async with scene(drafts=3) as (_, client, ids):

        async def drafts() -> AsyncIterator[str]:
            for draft in ids:
                yield draft
            await asyncio.sleep(1000)

        found: list[Outcome] = []

        async def consume() -> None:
            async for outcome in client.send_drafts(drafts()):
                found.append(outcome)  # noqa: PERF401 - those before the error count

        consumer = asyncio.ensure_future(consume())
        await asyncio.sleep(0.05)
        assert cancel("feishu-mail-read") == 1
        with pytest.raises(RuntimeError, match="drafts"):
            await asyncio.wait_for(consumer, 100)
        assert len(found) == 3


# --- the ledger --------------------------------------------------------------------------------------------


async def drained(client: FeishuMailClient, drafts: list[str]) -> list[Outcome]:
    return [outcome async for outcome in client.send_drafts(drafts)]


def of_the_ledger() -> None:
    cancel("feishu-mail-ledger")


@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
@pytest.mark.parametrize("whose", [of_the_ledger, all_but_own])
@pytest.mark.parametrize("passes", [1, 3, 8, 20, 60])
async def test_whoever_waits_on_a_ledger_has_its_turn_or_is_told(
    passes: int, whose: Callable[[], None], tmp_path: Path
) -> None:
    async with Sandbox(users=("alice",), latency=0.01) as sandbox:
        drafts = sandbox.add_drafts("alice", 6)
        async with FeishuMailClient(
            sandbox.token("alice"),
            app="cli_a",
            base_url=sandbox.base_url,
            ledger=f"sqlite:///{tmp_path / 'mail.db'}",
            attempt_timeout=1.0,
            rate_limit=RateLimit(calls=100, per=1.0, spacing=0.0, grace=0.5),
        ) as client:
            sends = begin(client, drafts[:3])
            run = asyncio.ensure_future(drained(client, drafts[3:]))
            for _ in range(passes):
                await asyncio.sleep(0)
            whose()
            # aiosqlite leaves a connection that is cancelled as it opens to the garbage collector, locks and all.
            asyncio.get_running_loop().call_later(1.0, gc.collect)
            await ends(sends)
            outcomes = await asyncio.wait_for(run, 60)
            assert len(outcomes) == 3
            for outcome in outcomes:
                assert outcome.error is None or isinstance(outcome.error, FeishuMailError)
            assert all(isinstance(one, SendResult) for one in await ends(begin(client, drafts)))
        assert sandbox.ledger.sent == dict.fromkeys(drafts, 1)


@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
async def test_a_run_whose_look_into_the_ledger_is_cancelled_ends(tmp_path: Path) -> None:
    async with Sandbox(users=("alice",), latency=0.01) as sandbox:
        drafts = sandbox.add_drafts("alice", 3)
        url = f"sqlite:///{tmp_path / 'mail.db'}"
        async with FeishuMailClient(
            sandbox.token("alice"), app="cli_a", base_url=sandbox.base_url, ledger=url
        ) as client:
            run = asyncio.ensure_future(drained(client, drafts))
            await settle(2)  # now it looks
            assert cancel("feishu-mail-look-up") == 1
            outcomes = await asyncio.wait_for(run, 60)
            assert [type(outcome.error) for outcome in outcomes] == 3 * [OutcomeUnknown]
            assert [outcome.error for outcome in await drained(client, drafts)] == 3 * [None]
