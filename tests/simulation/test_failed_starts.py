"""Whatever is raised while a send begins leaves nothing of it behind: the same draft can be sent afterwards."""

import asyncio
import contextlib
import functools
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest

from feishu_mail_async import Draft, FeishuMailClient, NotSent, OutcomeUnknown, Priority
from feishu_mail_async._calls.intake import check_stack
from feishu_mail_async._tasks import start_task
from feishu_mail_async.events import DraftQueued, Event
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.ledgers import client_of
from tests.helpers.samples import PACKAGE
from tests.helpers.scenes import FREE, drain
from tests.helpers.tasks import our_tasks, settle

USER: Final = "alice"
CALLS: Final = "feishu_mail_async._calls"
_SEARCHED: Final = 200
"""Depths tried below the one at which nothing can be called any more."""


class Surprise(BaseException):
    """What nobody expects, and nobody catches."""


@contextlib.asynccontextmanager
async def scene(
    drafts: int, ledger: str | None = None
) -> AsyncIterator[tuple[Sandbox, FeishuMailClient, list[Draft]]]:
    async with Sandbox(users=[USER], latency=0, calls=100_000) as sandbox:
        made = [Draft(draft_id, user=USER) for draft_id in sandbox.add_drafts(USER, drafts)]
        async with client_of(sandbox, ledger, rate_limit=FREE) as client:
            yield sandbox, client, made


async def nothing_is_left(client: FeishuMailClient) -> None:
    """Nothing waits, nothing is held, and no task is left."""
    await settle()
    snapshot = client.snapshot()
    assert not any(snapshot.waiting.values())
    assert snapshot.in_flight == 0
    assert not [task for task in our_tasks() if task.get_name() != "feishu-mail-ledger"]


async def at_depth(depth: int, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Await something from that many frames down."""
    return await (at_depth(depth - 1, work) if depth else work())


@pytest.mark.parametrize("heard", [False, True], ids=["unheard", "heard"])
@pytest.mark.parametrize("kept", ["memory", "source", pytest.param("ledger", marks=pytest.mark.soak)])
async def test_from_ever_deeper_down(kept: str, heard: bool, tmp_path: Path) -> None:
    """Near the recursion limit a send fails, or it does not: both are whole."""
    ledger = f"sqlite:///{tmp_path / 'mail.db'}" if kept == "ledger" else None
    async with scene(_SEARCHED, ledger=ledger) as (sandbox, client, drafts):
        if heard:
            client.subscribe(deaf)  # and what a subscriber raises is logged, which takes frames of its own

        async def fresh(user: str | None) -> str:
            await asyncio.sleep(0)
            return sandbox.tokens[user or USER]

        failed = 0
        deepest = await deepest_possible()
        for depth, draft in zip(range(deepest - _SEARCHED, deepest), drafts, strict=True):
            # Nobody has fetched the tokens of a new source yet.
            new = kept == "source"
            sender = client_of(sandbox, None, tokens=fresh, rate_limit=FREE) if new else client
            try:
                await asyncio.wait_for(at_depth(depth, functools.partial(sender.send_draft, draft)), 60)
            except RecursionError:
                failed += 1
                await nothing_is_left(sender)
            await asyncio.wait_for(sender.send_draft(draft), 60)
            if sender is not client:
                await sender.close()
        assert 0 < failed < _SEARCHED
        assert sandbox.ledger.sent == {draft.draft_id: 1 for draft in drafts}


def deaf(_: Event) -> None:
    raise ValueError


async def deepest_possible() -> int:
    """From how many frames down something can be awaited at all."""

    async def nothing() -> None:
        pass

    depth = 100
    while True:
        try:
            await asyncio.ensure_future(at_depth(depth, nothing))
        except RecursionError:
            return depth
        depth += 1


@pytest.mark.looptime(start=0)
async def test_a_subscriber_that_raises_what_nobody_catches() -> None:
    async with scene(1) as (sandbox, client, [draft]):

        def hear(event: Event) -> None:
            if isinstance(event, DraftQueued):
                raise Surprise

        end = client.subscribe(hear)
        with pytest.raises(Surprise):
            await client.send_draft(draft)
        end()
        await nothing_is_left(client)
        assert not (await asyncio.wait_for(client.send_draft(draft), 60)).already_sent
        assert sandbox.ledger.sent == {draft.draft_id: 1}


@pytest.mark.looptime(start=0)
async def test_a_run_whose_draft_cannot_begin() -> None:
    """It has its outcome like all the others, and the run ends."""
    async with scene(3) as (_, client, drafts):

        def hear(event: Event) -> None:
            if isinstance(event, DraftQueued) and event.draft == drafts[1]:
                raise Surprise

        client.subscribe(hear)
        outcomes = {}
        run = client.send_drafts(drafts)

        async def consume() -> None:
            async for outcome in run:
                outcomes[outcome.draft] = outcome

        with pytest.raises(Surprise):
            await asyncio.wait_for(consume(), 60)
        assert [outcomes[draft].status for draft in drafts[:2]] == ["sent", "skipped"]
        assert isinstance(outcomes[drafts[1]].error, NotSent)
        await nothing_is_left(client)


class Interruption:
    """Raises at the nth call of the package's functions, once.

    Args:
        at: which one.
    """

    def __init__(self, at: int) -> None:
        self.left = at
        self.where: str | None = None

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(PACKAGE)) and "/sandbox/" not in code.co_filename:
            if self.left == 0:
                self.where = code.co_qualname
                raise MemoryError
            self.left -= 1


# A task that cannot be made leaves the coroutine that it was to run.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.looptime(start=0)
@pytest.mark.parametrize("waiting", [0, 1, 3])
async def test_at_every_call(waiting: int) -> None:
    """Wherever memory runs out while a send begins, alone or among others that wait."""
    async with scene(200) as (sandbox, client, drafts):
        for number, draft in enumerate(drafts):
            others = [asyncio.create_task(client.send_draft(other)) for other in drafts[number + 1 :][:waiting]]
            if others:
                await asyncio.sleep(0)
            interruption = Interruption(number)
            send = client.send_draft(draft, priority=Priority.INTERACTIVE)
            tracer = sys.gettrace()
            sys.settrace(interruption)
            try:
                send.send(None)
            except MemoryError:
                pass
            else:
                break
            finally:
                sys.settrace(tracer)
                send.close()
            await asyncio.wait_for(asyncio.gather(*others), 60)
            await nothing_is_left(client)
            await asyncio.wait_for(client.send_draft(draft), 60)
        else:
            pytest.fail("it never came to its end")
        await settle()
        assert number > 20
        assert max(sandbox.ledger.sent.values()) == 1


# --- what the package itself starts ------------------------------------------------------------------------


def broken(step: Callable[..., Any], error: Exception, only: str = "") -> Callable[..., Any]:
    """A step that fails the first time, or the first time that it is to start the task of that name."""
    left = [error]

    def stepping(*arguments: Any, **more: Any) -> Any:
        if left and (not only or only in arguments):
            for one in arguments:
                if isinstance(one, Coroutine):
                    one.close()
            raise left.pop()
        return step(*arguments, **more)

    return stepping


async def results(client: FeishuMailClient, drafts: list[Draft]) -> list[Any]:
    sends = asyncio.gather(*(client.send_draft(draft) for draft in drafts), return_exceptions=True)
    return await asyncio.wait_for(sends, 60)


@pytest.mark.looptime(start=0)
async def test_a_call_whose_task_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene(2) as (_, client, drafts):
        told: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
        error = MemoryError()
        monkeypatch.setattr(f"{CALLS}.job.start_task", broken(start_task, error, "feishu-mail-call"))
        [ended] = await results(client, drafts[:1])
        assert isinstance(ended, OutcomeUnknown)
        assert told == [error]
        await nothing_is_left(client)
        await asyncio.wait_for(client.send_draft(drafts[1]), 60)


async def test_a_fetch_whose_task_cannot_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """For a draft that was looked up in a ledger, among others."""
    async with scene(4) as (sandbox, _, drafts):

        async def source(user: str | None) -> str:
            return sandbox.tokens[user or USER]

        async with client_of(
            sandbox, f"sqlite:///{tmp_path / 'mail.db'}", tokens=source, rate_limit=FREE
        ) as client:
            asyncio.get_running_loop().set_exception_handler(lambda *_: None)
            start = broken(start_task, MemoryError(), "feishu-mail-prepare")
            monkeypatch.setattr(f"{CALLS}.intake.start_task", start)
            ended = await results(client, drafts[:3])
            # Those whose records were not read yet may have been sent earlier.
            assert isinstance(ended[0], NotSent)
            assert {type(one) for one in ended} <= {NotSent, OutcomeUnknown}
            await nothing_is_left(client)
            await asyncio.wait_for(client.send_draft(drafts[3]), 60)


@pytest.mark.looptime(start=0)
@pytest.mark.parametrize(("name", "step"), [("start_task", start_task), ("check_stack", check_stack)])
async def test_a_run_that_cannot_submit_what_it_has_read(
    name: str, step: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends, and says why."""
    async with scene(3) as (sandbox, _, drafts):

        async def source(user: str | None) -> str:
            return sandbox.tokens[user or USER]

        async with client_of(sandbox, None, tokens=source, rate_limit=FREE) as client:
            monkeypatch.setattr(f"{CALLS}.intake.{name}", broken(step, RecursionError("no room")))
            with pytest.raises(RecursionError, match="no room"):
                await asyncio.wait_for(drain(client.send_drafts(drafts[:2])), 60)
            await nothing_is_left(client)
            await asyncio.wait_for(client.send_draft(drafts[2]), 60)
