"""Loops in threads of their own, and a server whose loop goes on while those of its clients come and go."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

from feishu_mail_async import (
    FeishuMailClient,
    RateLimit,
    SendResult,
)
from feishu_mail_async.sandbox import Sandbox

if TYPE_CHECKING:
    from concurrent.futures import Future

T = TypeVar("T")
Work = Coroutine[Any, Any, T]

LIMIT: Final = RateLimit(calls=5, per=1.0, spacing=0.0, grace=0.5)
WIDE: Final = RateLimit(calls=100, per=1.0, spacing=0.0, grace=0.5)
"""A limit that is never reached."""


class LoopThread:
    """A loop that runs in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def begin(self, work: "Work[T]") -> "Future[T]":
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def do(self, work: "Work[T]") -> T:
        return self.begin(work).result(60)

    def stop(self) -> None:
        """Stop it in the midst of whatever it does."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    def end(self) -> None:
        """End it as `asyncio.run` does: what is left is cancelled first."""
        if self.loop.is_closed():
            return
        if self.thread.is_alive():
            self.do(cancel_others())
            self.stop()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()


async def cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


@contextlib.contextmanager
def loops(count: int) -> Iterator[list[LoopThread]]:
    running = [LoopThread() for _ in range(count)]
    try:
        yield running
    finally:
        for one in running:
            one.end()


class Server:
    """A sandbox whose loop is nobody else's."""

    def __init__(self, sandbox: Sandbox, home: LoopThread) -> None:
        self.sandbox = sandbox
        self.ledger = sandbox.ledger
        self.home = home

    def do(self, act: Callable[[], T]) -> T:
        """Do something to the sandbox in its own thread."""

        async def acting() -> T:
            return act()

        return self.home.do(acting())

    def client(self, **settings: Any) -> FeishuMailClient:
        return FeishuMailClient(
            self.sandbox.tokens, base_url=self.sandbox.base_url, **({"rate_limit": LIMIT} | settings)
        )

    @contextlib.asynccontextmanager
    async def unclosed(self, tokens: Any, **settings: Any) -> AsyncIterator[FeishuMailClient]:
        """A client that nobody closes, but for its connections."""
        client = FeishuMailClient(tokens, base_url=self.sandbox.base_url, rate_limit=LIMIT, **settings)
        try:
            yield client
        finally:
            await client._binding._transport.close()

    def wait_for(self, calls: int) -> None:
        """Wait until so many sends have arrived."""

        while len(self.ledger.sends) < calls:
            time.sleep(0.005)

    def check(self, sent: int) -> None:
        """Nothing was refused or sent twice, and all of it was sent."""
        assert self.ledger.refusals == 0
        assert self.ledger.conflicts == 0
        assert len(self.ledger.sent) == sent
        assert set(self.ledger.sent.values()) == {1}

    def times(self) -> list[float]:
        return [call.time for call in self.ledger.sends]


@contextlib.contextmanager
def server(*users: str, limit: RateLimit = LIMIT, latency: float = 0.02, **settings: Any) -> Iterator[Server]:
    with loops(1) as [home]:
        calls, per = limit.calls, limit.per
        sandbox = Sandbox(users=users or ("alice",), calls=calls, per=per, latency=latency, **settings)
        home.do(sandbox.start())
        yield Server(sandbox, home)
        home.do(sandbox.close())


async def send(client: FeishuMailClient, *drafts: str, **how: Any) -> list[SendResult]:
    async with client:
        return await asyncio.gather(*(client.send_draft(draft, **how) for draft in drafts))
