"""The fixture, for where pytest-asyncio runs; its own decorator makes it work in strict and in auto mode."""

from collections.abc import AsyncIterator

import pytest_asyncio

from .server import Sandbox


@pytest_asyncio.fixture
async def feishu_sandbox() -> AsyncIterator[Sandbox]:
    """A started Feishu sandbox with one user, "alice", closed after the test."""
    async with Sandbox(users=("alice",)) as sandbox:
        yield sandbox
