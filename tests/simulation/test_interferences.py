"""Whatever happens in the midst of a step of the package: each draft ends once, and its user can go on."""

import asyncio
import contextlib
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import pytest

from feishu_mail_async import (
    ClientClosed,
    Draft,
    FeishuMailClient,
    LoginRequired,
    Misconfigured,
    NotSent,
    OutcomeUnknown,
    SendResult,
    UserDailyQuota,
)
from feishu_mail_async.events import (
    AttemptEnded,
    AttemptStarted,
    DraftDone,
    DraftQueued,
    Event,
    RetryPlanned,
    SuspensionEnded,
    TurnGranted,
    UserCooled,
)
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.clock import VirtualLoop
from tests.helpers.ledgers import client_of, ledger_on
from tests.helpers.runs import FAILED, SKIPPED
from tests.helpers.scenes import FREE, drain
from tests.helpers.tasks import our_tasks, settle

USER: Final = "alice"
VIRTUAL: Final = pytest.mark.looptime(start=0)
HOUR: Final = 3600.0


class Surprise(BaseException):
    """What nobody expects, and nobody catches."""


class OwnLoginRequired(LoginRequired):
    """A source's own, which is not made of a message."""

    def __init__(self, user: str, *, url: str) -> None:
        super().__init__(f"{user}: log in at {url}")


@contextlib.asynccontextmanager
async def scene(
    *users: str, each: int = 1, **settings: Any
) -> AsyncIterator[tuple[Sandbox, FeishuMailClient, list[Draft]]]:
    """A client of these users, and so many drafts of each."""
    users = users or (USER,)
    settings = {"ledger": None, "rate_limit": FREE} | settings
    async with Sandbox(users=users, latency=0.1, calls=100_000) as sandbox:
        drafts = [Draft(one, user=user) for user in users for one in sandbox.add_drafts(user, each)]
        client = client_of(sandbox, settings.pop("ledger"), **settings)
        async with client:
            yield sandbox, client, drafts
        assert max(sandbox.ledger.sent.values(), default=0) <= 1


def reported() -> list[BaseException | None]:
    """What the loop's exception handler is told from now on."""
    errors: list[BaseException | None] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context.get("exception")))
    return errors


def refuse(error: BaseException) -> Callable[[Event], None]:
    def refusing(_: Event) -> None:
        raise error

    return refusing


def at(client: FeishuMailClient, kind: type[Event], act: Callable[[Any], object]) -> Callable[[], None]:
    """Have a subscriber act at every event of a kind; return how to end that."""

    def hear(event: Event) -> None:
        if isinstance(event, kind):
            act(event)

    return client.subscribe(hear)


def ends_of(client: FeishuMailClient) -> Counter[str]:
    """How often each draft is told to have ended."""
    ends: Counter[str] = Counter()
    at(client, DraftDone, lambda event: ends.update([event.draft.draft_id]))
    return ends


async def results(client: FeishuMailClient, drafts: list[Draft]) -> list[Any]:
    """What became of drafts that were sent at the same time, or why not."""
    sends = asyncio.gather(*(client.send_draft(draft) for draft in drafts), return_exceptions=True)
    return await asyncio.wait_for(sends, 60)


async def sent(client: FeishuMailClient, draft: Draft) -> SendResult:
    """See that nothing holds up the user of a draft."""
    await settle()
    assert client.snapshot().in_flight == 0
    return await asyncio.wait_for(client.send_draft(draft), 60)


# --- a subscriber that stops its run -----------------------------------------------------------------------


def once_each(run_of: list[Draft], ends: Counter[str], outcomes: list[Any]) -> bool:
    ids = [draft.draft_id for draft in run_of]
    return sorted(one.draft.draft_id for one in outcomes) == sorted(ids) and [ends[one] for one in ids] == [
        1
    ] * len(ids)


@VIRTUAL
async def test_stopped_as_a_mistake_in_the_settings_ends_all_that_wait() -> None:
    async with scene("alice", "bob", each=3) as (sandbox, _, drafts):
        errors = reported()
        wrong = sandbox.base_url.replace("http:", "https:")
        async with client_of(sandbox, None, rate_limit=FREE, base_url=wrong) as client:
            ends, run = ends_of(client), client.send_drafts(drafts)
            at(client, DraftDone, lambda _: run.stop())
            outcomes = await asyncio.wait_for(drain(run), 60)
        assert once_each(drafts, ends, outcomes)
        # The calls of both users may have been under way.
        assert {(one.status, type(one.error)) for one in outcomes} == {(FAILED, Misconfigured), (SKIPPED, NotSent)}
        assert errors == []


@VIRTUAL
async def test_stopped_as_a_draft_ends_that_never_could_wait() -> None:
    """There is no token for it; a draft of another caller waits for the same one."""

    async def source(_: str | None) -> str:
        await asyncio.sleep(1)
        raise LoginRequired("log in again")

    async with scene(each=3, tokens=source) as (_, client, drafts):
        errors = reported()
        ends, run = ends_of(client), client.send_drafts(drafts[:2])
        at(client, DraftDone, lambda _: run.stop())
        draining = asyncio.create_task(drain(run))
        await asyncio.sleep(0.5)
        [single] = await results(client, drafts[2:])
        outcomes = await asyncio.wait_for(draining, 60)
        assert isinstance(single, LoginRequired)
        assert {type(one.error) for one in outcomes} == {LoginRequired, NotSent}
        assert once_each(drafts[:2], ends, outcomes)
        assert errors == []


@VIRTUAL
async def test_stopped_as_its_next_draft_finds_a_suspension_over() -> None:
    """The draft is about to queue, and must not: its job has ended."""
    async with scene(each=4) as (sandbox, client, drafts):
        errors = reported()
        sandbox.script(drafts[0].draft_id, Fault.code("UserDailyQuota"))
        [refusal] = await results(client, drafts[:1])
        assert isinstance(refusal, UserDailyQuota)
        await asyncio.sleep(1.1 * HOUR)
        ends, run = ends_of(client), client.send_drafts(drafts[1:3])
        at(client, SuspensionEnded, lambda _: run.stop())
        outcomes = await asyncio.wait_for(drain(run), 60)
        assert once_each(drafts[1:3], ends, outcomes)
        assert {one.status for one in outcomes} == {SKIPPED}
        await sent(client, drafts[3])
        assert not any(client.snapshot().waiting.values())
        assert sandbox.ledger.sent == {drafts[3].draft_id: 1}
        assert errors == []


# --- what is raised while others wait for the same user ----------------------------------------------------


@VIRTUAL
@pytest.mark.parametrize(
    ("error", "told"),
    [(OwnLoginRequired(USER, url="https://x"), OwnLoginRequired), (Surprise(), NotSent)],
    ids=["its own", "anything"],
)
async def test_a_source_that_raises(error: BaseException, told: type[Exception]) -> None:
    """All that wait for the token are told."""

    async def source(_: str | None) -> str:
        await asyncio.sleep(1)
        raise error

    async with scene(each=3, tokens=source) as (_, client, drafts):
        reported()
        ended = await results(client, drafts)
        assert [type(one) for one in ended] == [told] * 3


@VIRTUAL
async def test_a_subscriber_that_raises_as_the_first_of_many_queues() -> None:
    async with scene(each=4) as (sandbox, _, drafts):

        async def source(user: str | None) -> str:
            await asyncio.sleep(1)
            return sandbox.tokens[user or USER]

        async with client_of(sandbox, None, tokens=source, rate_limit=FREE) as client:
            reported()
            end = at(client, DraftQueued, refuse(Surprise()))
            ended = await results(client, drafts[:3])
            assert [type(one) for one in ended] == [NotSent] * 3
            end()
            await sent(client, drafts[3])


# --- what is raised in a step of a job ---------------------------------------------------------------------


@VIRTUAL
@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        (TurnGranted, None),
        (AttemptStarted, None),
        (AttemptEnded, None),
        (DraftDone, None),
        (RetryPlanned, Fault.gateway()),
        (UserCooled, Fault.code("ConcurrentWrite")),
    ],
    ids=lambda one: one.__name__ if isinstance(one, type) else "",
)
async def test_a_subscriber_that_raises(kind: type[Event], fault: Fault | None) -> None:
    async with scene(each=2) as (sandbox, client, drafts):
        errors = reported()
        if fault is not None:
            sandbox.script(drafts[0].draft_id, fault)
        surprise = Surprise()
        end = at(client, kind, refuse(surprise))
        [ended] = await results(client, drafts[:1])
        assert isinstance(ended, SendResult | OutcomeUnknown)
        end()
        await sent(client, drafts[1])
        await asyncio.sleep(HOUR)  # no timer of the first one is left
        assert set(errors) == {surprise}


def test_ctrl_c_in_a_call() -> None:
    """It is raised once: what the program does afterwards is not interrupted by it again."""
    loop = VirtualLoop(start=0, noop_cycles=42)

    async def begin() -> tuple[contextlib.AsyncExitStack, FeishuMailClient, "asyncio.Task[SendResult]"]:
        stack = contextlib.AsyncExitStack()
        _, client, [draft] = await stack.enter_async_context(scene())
        at(client, AttemptStarted, refuse(KeyboardInterrupt()))
        return stack, client, asyncio.create_task(client.send_draft(draft))

    async def end(stack: contextlib.AsyncExitStack, send: "asyncio.Task[SendResult]") -> None:
        with pytest.raises(OutcomeUnknown):
            await asyncio.wait_for(send, 60)
        await stack.aclose()

    try:
        stack, client, send = loop.run_until_complete(begin())
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(send)
        try:
            loop.run_until_complete(client.close(1))
            loop.run_until_complete(end(stack, send))
        except KeyboardInterrupt:
            pytest.fail("it was raised again")
    finally:
        loop.close()


# --- closing -----------------------------------------------------------------------------------------------


@VIRTUAL
@pytest.mark.parametrize("calls", [10, 49, 50, 51, 120])
async def test_a_client_closed_at_once_with_many_calls_in_flight(calls: int) -> None:
    async with scene(*(f"user{number}" for number in range(calls))) as (sandbox, client, drafts):
        for draft in drafts:
            sandbox.script(draft.draft_id, Fault.hang_after())
        sends = asyncio.create_task(results(client, drafts))
        while client.snapshot().in_flight < calls:  # noqa: ASYNC110 - nothing tells when a call has gone out
            await asyncio.sleep(0.01)
        await asyncio.sleep(1)
        await asyncio.wait_for(client.close(0), 10)
        assert {type(one) for one in await sends} == {OutcomeUnknown}
        await settle()
        assert our_tasks() == []


async def test_a_client_closed_while_the_refusal_of_a_token_is_written(tmp_path: Path) -> None:
    """Its user was held until the token would be renewed, which nobody does any more."""
    file = tmp_path / "mail.db"
    ledger = ledger_on(f"sqlite:///{file}")
    async with scene(each=3, ledger=ledger) as (sandbox, other, drafts):
        await other.send_draft(drafts[0])
        client = client_of(sandbox, ledger, tokens=refused_token, rate_limit=FREE)
        writing = asyncio.Event()
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as another:
            at(client, AttemptStarted, lambda _: another.execute("BEGIN IMMEDIATE"))
            at(client, AttemptEnded, lambda _: writing.set())
            send = asyncio.create_task(client.send_draft(drafts[1]))
            await asyncio.wait_for(writing.wait(), 60)
            closing = asyncio.create_task(client.close(0))
            with pytest.raises(ClientClosed):
                await asyncio.wait_for(send, 60)
            another.execute("ROLLBACK")
        await asyncio.wait_for(closing, 60)
        await sent(other, drafts[2])
    await ledger.close()


async def refused_token(_: str | None) -> str:
    return "u-of-nobody-whom-the-server-knows"


# --- a look from outside -----------------------------------------------------------------------------------


@VIRTUAL
async def test_the_task_of_a_call_is_shown_without_what_waits_behind_it() -> None:
    """Debug mode and many monitors show tasks: with 10 000 drafts that took seconds of the loop."""
    async with scene(each=500) as (sandbox, client, drafts):
        sandbox.script(drafts[0].draft_id, Fault.delay(0, 5.0))
        run = client.send_drafts(drafts, read_ahead=len(drafts))
        draining = asyncio.create_task(drain(run))
        while client.snapshot().in_flight < 1 or run.waiting < len(drafts):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
        [call] = [task for task in our_tasks() if task.get_name() == "feishu-mail-call"]
        assert steps_of(lambda: repr(call)) < len(drafts)
        run.stop()
        await draining


def steps_of(act: Callable[[], object]) -> int:
    """How many functions are called meanwhile: what a machine's speed has no part in."""
    steps: list[None] = []
    tracer = sys.gettrace()
    sys.settrace(lambda *_: steps.append(None))
    try:
        act()
    finally:
        sys.settrace(tracer)
    return len(steps)
