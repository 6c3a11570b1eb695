"""Whatever cancels a closing does not break it off: all that is held is given back, soon, and by itself."""

import asyncio
import gc
import socket
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import anyio
import pytest

from feishu_mail_async import FeishuMailClient, OutcomeUnknown, RateLimit, RefreshingTokens, SendResult
from feishu_mail_async.events import AttemptStarted, DraftDone, Event
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.ledgers import client_of, ledger_on, until
from tests.helpers.tasks import our_tasks

USER: Final = "alice"
QUICK: Final = RateLimit(calls=100_000, per=1.0, spacing=0, margin=0, grace=0.1)


class Watched:
    """A client, and what it holds.

    Attributes:
        read: what a reader of its events has read so far.
        ended: set when the reader has ended.
        told: how often a subscriber was told that there is no more.
    """

    def __init__(self, client: FeishuMailClient) -> None:
        self.client = client
        self.read: list[Event] = []
        self.told = 0
        events = client.events()

        async def read() -> None:
            self.read.extend([event async for event in events])

        client.subscribe(lambda _: None, closed=self._closed)
        self.ended = asyncio.create_task(read())

    def _closed(self) -> None:
        self.told += 1

    async def all_given_back(self, sandbox: Sandbox, seconds: float = 10.0) -> None:
        """Within that time nothing of the client is left: readers, subscriptions, session, tasks, its place."""
        await asyncio.wait_for(self.ended, seconds)
        assert self.told == 1
        assert self.client._binding._transport.closed
        await until(lambda: not our_tasks())


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(users=[USER], latency=0, calls=100_000) as one:
        yield one


def threads_of_sqlite() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if "_connection_worker" in one.name]


def in_anyio(scope_left: asyncio.Event) -> Callable[[FeishuMailClient, asyncio.Event], Any]:
    async def leave(client: FeishuMailClient, flying: asyncio.Event) -> None:
        with anyio.CancelScope() as scope:
            async with client:
                await flying.wait()
                scope.cancel()
                await anyio.sleep(60)
        scope_left.set()

    return leave


def cancelled(times: int) -> Callable[[FeishuMailClient, asyncio.Event], Any]:
    async def leave(client: FeishuMailClient, flying: asyncio.Event) -> None:
        await flying.wait()
        closing = asyncio.create_task(client.close())
        for _ in range(times):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing

    return leave


def everything(passes: int) -> Callable[[FeishuMailClient, asyncio.Event], Any]:
    async def leave(client: FeishuMailClient, flying: asyncio.Event) -> None:
        await flying.wait()
        closing = asyncio.create_task(client.close())
        for _ in range(passes):
            await asyncio.sleep(0)
        for task in {*our_tasks(), closing}:
            task.cancel()
        await asyncio.gather(closing, return_exceptions=True)

    return leave


LEAVING: Final = {
    "level": in_anyio(asyncio.Event()),
    "once": cancelled(1),
    "twice": cancelled(2),
    "ten times": cancelled(10),
    **{f"everything after {passes}": everything(passes) for passes in (1, 2, 3, 5, 8)},
}


@pytest.mark.parametrize("leave", LEAVING.values(), ids=LEAVING.keys())
@pytest.mark.parametrize("hangs", [False, True])
@pytest.mark.parametrize("kept", [False, True])
async def test_a_client(kept: bool, hangs: bool, leave: Any, sandbox: Sandbox, tmp_path: Path) -> None:
    """With a call under way, and others that wait."""
    drafts = sandbox.add_drafts(USER, 3)
    sandbox.script(drafts[0], Fault.hang_after() if hangs else Fault.delay(0, 1.0))
    ledger = f"sqlite:///{tmp_path / 'mail.db'}" if kept else None
    client = client_of(sandbox, ledger, rate_limit=QUICK, attempt_timeout=3.0)
    watched = Watched(client)
    flying = asyncio.Event()
    sends = [asyncio.create_task(client.send_draft(draft, user=USER)) for draft in drafts]
    leaving = asyncio.create_task(leave(client, flying))
    await until(lambda: sandbox.ledger.calls(drafts[0]))
    flying.set()
    await leaving
    await watched.all_given_back(sandbox)
    first, *_ = await asyncio.gather(*sends, return_exceptions=True)
    assert isinstance(first, OutcomeUnknown | SendResult | asyncio.CancelledError)
    assert sum(isinstance(event, DraftDone) for event in watched.read) == 3
    await until(lambda: not threads_of_sqlite())
    # Its place is free: another one of the same app may have another limit, and nothing is held.
    async with client_of(sandbox, ledger, rate_limit=RateLimit(calls=7, per=1.0, grace=0.1)) as another:
        for draft in drafts:
            await asyncio.wait_for(another.send_draft(draft, user=USER), 60)
    assert sandbox.ledger.sent == dict.fromkeys(drafts, 1)


async def test_calls_under_way_are_finished_all_the_same(sandbox: Sandbox) -> None:
    [draft] = sandbox.add_drafts(USER, 1)
    sandbox.script(draft, Fault.delay(0, 1.0))
    client = client_of(sandbox, None)
    send = asyncio.create_task(client.send_draft(draft, user=USER))
    await until(lambda: sandbox.ledger.calls(draft))
    with anyio.move_on_after(0.05):
        await client.close()
    assert not send.done()
    assert isinstance(await asyncio.wait_for(send, 60), SendResult)


async def test_a_run_that_is_left(sandbox: Sandbox) -> None:
    drafts = sandbox.add_drafts(USER, 300)
    sandbox.script(drafts[0], Fault.delay(0, 1.0))
    async with client_of(sandbox, None, rate_limit=QUICK) as client:
        with anyio.CancelScope() as scope:
            async with client.send_drafts(drafts) as run:
                await until(lambda: sandbox.ledger.calls(drafts[0]))
                scope.cancel()
                await anyio.sleep(60)
        await until(lambda: not our_tasks())
        assert run.waiting == 0
        snapshot = client.snapshot()
        assert (sum(snapshot.waiting.values()), snapshot.in_flight) == (0, 0)
        await asyncio.wait_for(client.send_draft(drafts[-1], user=USER), 60)
    assert sandbox.ledger.sent == {drafts[0]: 1, drafts[-1]: 1}


async def test_tokens_that_renew_themselves(sandbox: Sandbox) -> None:
    tokens = RefreshingTokens("cli_x", "secret", base_url=sandbox.base_url)
    tokens._transport._open()
    with anyio.CancelScope() as scope:
        async with tokens:
            scope.cancel()
            await anyio.sleep(60)
    await until(lambda: tokens._transport.closed)


@pytest.mark.parametrize("passes", range(1, 8))
async def test_a_ledger(passes: int, tmp_path: Path) -> None:
    """Its threads end, though all tasks are cancelled while it closes."""
    ledger = ledger_on(f"sqlite:///{tmp_path / 'mail.db'}")
    await ledger.apps()
    closing = asyncio.create_task(ledger.close())
    for _ in range(passes):
        await asyncio.sleep(0)
    for task in {*our_tasks(), closing}:
        task.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    await until(lambda: not threads_of_sqlite())
    assert sqlite3.connect(ledger.where).execute("SELECT count(*) FROM feishu_mail_app").fetchall() == [(0,)]


@pytest.mark.parametrize("ending", ["closing", "closing in a scope"])
def test_the_end_of_a_program(ending: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """asyncio.run cancels all tasks once: nothing is left, and nobody is warned of anything."""
    held: list[FeishuMailClient] = []
    url = f"sqlite:///{tmp_path / 'mail.db'}"

    async def main(port: int) -> None:
        client = FeishuMailClient("u-x", app="cli_x", base_url=f"http://127.0.0.1:{port}", ledger=url)
        held.append(client)
        begun: list[Event] = []
        client.subscribe(begun.append)
        send = asyncio.create_task(client.send_draft("d1"))
        await until(lambda: any(isinstance(event, AttemptStarted) for event in begun))
        if ending == "closing":
            held_tasks.append(asyncio.create_task(client.close()))
            await asyncio.sleep(0.01)
        else:
            with anyio.move_on_after(0.01):
                await client.close()
        assert not send.done()

    held_tasks: list[asyncio.Task[None]] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        asyncio.run(main(silent.getsockname()[1]))
    [client] = held
    assert client._binding._transport.closed
    for thread in threads_of_sqlite():  # it was told to end, and may need a moment for it
        thread.join(30)
    assert not threads_of_sqlite()
    held.clear()
    del client
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
