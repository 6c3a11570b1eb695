"""One of the processes that share a ledger in crowd.py: it takes turns without calls, or sends drafts."""

import asyncio
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final

from children import obey
from common import LIFTED

from feishu_mail_async import Draft, FeishuMailClient, FeishuMailError, Priority, RateLimit
from feishu_mail_async._api.base_url import FEISHU
from feishu_mail_async._api.protocol import Judgement
from feishu_mail_async._calls.retry import PolicyDelays
from feishu_mail_async._scheduling.memory import MemoryStore
from feishu_mail_async._scheduling.process import ProcessStore
from feishu_mail_async._scheduling.store import SchedulerStore, of
from feishu_mail_async._scheduling.waiters import CallLock, Turn, Waiter
from feishu_mail_async.codes import Verdict
from feishu_mail_async.ledger import Record
from feishu_mail_async.ledger.opening import open_stores
from feishu_mail_async.model import RetryPolicy

APP: Final = "cli_benchmark"
SENT: Final = Judgement(Verdict.DONE, data={"message_id": "m", "thread_id": "t"}, log_id="log")
DELAYS: Final = PolicyDelays(RetryPolicy())
_LEAST: Final = 3
"""Turns that are measured at least, however slow the machine is."""
_OPENING: Final = 0.05
"""Seconds of turns that open a ledger, before those that are measured."""


class Nobody:
    """Is told of turns, and does nothing about it."""

    def granted(self, turn: Turn) -> None: ...

    def refused(self, error: FeishuMailError) -> None: ...

    def recorded(self, record: Record) -> None: ...


async def turns(store: SchedulerStore, whose: str, *, seconds: float) -> list[float]:
    """Take and settle turns for a while; the seconds that each took."""
    loop = asyncio.get_running_loop()
    taker, took, drafts = Nobody(), list[float](), uuid.uuid4().hex
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end or len(took) < _LEAST:
        ask = Waiter(whose, whose, Priority.BULK, taker, draft_id=f"{drafts}-{len(took)}")
        taken = await of(store.take([ask], loop.time()))
        if taken.granted is None:
            continue  # the window of a thousandth of a second was full
        turn = Turn(CallLock(whose), CallLock(whose), ask, taken.granted[1])
        await of(store.settle(turn, SENT, DELAYS, loop.time(), renewing=False))
        took.append(time.perf_counter() - began)
    return took


async def take_turns(url: str | None, user: str, seconds: float) -> list[float]:
    """The same on a ledger, which is opened first; None: in memory."""
    if url is None:
        return await turns(MemoryStore(ProcessStore(), LIFTED), user, seconds=seconds)
    ledger = open_stores(url)
    try:
        store = ledger.store(FEISHU, APP, LIFTED)
        await turns(store, user, seconds=_OPENING)
        return await turns(store, user, seconds=seconds)
    finally:
        await ledger.close()


async def send(drafts: Sequence[tuple[str, str]], limit: dict[str, Any], **settings: Any) -> dict[str, int]:
    """Send drafts, each given with its user, and count what became of them."""
    client = FeishuMailClient(app=APP, rate_limit=RateLimit(**limit), **settings)
    async with client, client.send_drafts([Draft(draft_id, user=user) for draft_id, user in drafts]) as run:
        async for _ in run:
            pass
    return {status.value: count for status, count in run.summary.statuses.items()}


async def act(command: dict[str, Any]) -> Mapping[str, Any]:
    """Do what crowd.py asks for."""
    if command.pop("do") == "send":
        return await send(**command)
    return {"took": await take_turns(**command)}


if __name__ == "__main__":
    asyncio.run(obey(act))
