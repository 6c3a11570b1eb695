"""What the tests of the ledger are given."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from feishu_mail_async.sandbox import Sandbox
from tests.helpers.ledgers import HOMES, home_url


@pytest.fixture(params=HOMES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return home_url(request, tmp_path)


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(users=["alice", "bob"], latency=0, calls=100_000) as one:
        yield one
