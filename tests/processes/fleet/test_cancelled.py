"""A worker of the queue whose own tasks a stranger cancels."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from feishu_mail_async import FeishuMailClient, RateLimit
from feishu_mail_async.fleet import DraftWorker, Queue, QueueTrouble, Times, prepare
from feishu_mail_async.sandbox import Sandbox

LIMIT = RateLimit(calls=100, per=1.0)


@pytest.fixture
async def worker(postgres_url: str) -> AsyncIterator[DraftWorker]:
    await prepare(postgres_url)
    async with Sandbox(users=("alice",)) as sandbox:
        tokens, base_url = sandbox.tokens, sandbox.base_url
        async with FeishuMailClient(
            tokens, app="cli_a", base_url=base_url, ledger=postgres_url, rate_limit=LIMIT
        ) as client:
            yield DraftWorker(
                postgres_url,
                Queue(base_url, "cli_a"),
                client,
                user_of=lambda user: user,
                limit=LIMIT,
                at_once=2,
                times=Times(),
                tell=lambda _: None,
                note=lambda _: None,
            )


@pytest.mark.parametrize("name", ["feishu-mail-tend", "feishu-mail-watch"])
async def test_without_its_signs_of_life_it_does_not_go_on(name: str, worker: DraftWorker) -> None:
    working = asyncio.ensure_future(worker.run(until_empty=True))

    async def found() -> asyncio.Task[object]:
        while not working.done():
            for task in asyncio.all_tasks():
                if task.get_name() == name:
                    return task
            await asyncio.sleep(0)
        raise AssertionError(f"it ended without {name}")

    (await found()).cancel()
    with pytest.raises(QueueTrouble, match=name):
        await asyncio.wait_for(working, 60)
