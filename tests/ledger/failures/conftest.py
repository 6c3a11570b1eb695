"""What the tests of failures are given: short leases, and a look whether anything is left."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from feishu_mail_async.sandbox import Sandbox
from tests.helpers.ledger_clients import USERS, workers
from tests.helpers.ledgers import until


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mail.db"


@pytest.fixture(autouse=True)
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feishu_mail_async.ledger.turns.SLACK", 0.5)
    monkeypatch.setattr("feishu_mail_async._binding._LEAST_WRITING", 0.2)


@pytest.fixture(autouse=True)
async def nothing_left() -> AsyncIterator[None]:
    """No test leaves a thread or a task behind."""
    before = asyncio.all_tasks()
    yield
    await until(lambda: not workers())
    await until(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()})


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(users=USERS, latency=0, calls=100_000) as one:
        yield one
