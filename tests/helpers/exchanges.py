"""Clients that talk to a server made by hand."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from feishu_mail_async import FeishuMailClient, FeishuMailError
from tests.helpers.canary import TOKEN, holds
from tests.helpers.raw_server import RawServer, always, raw_server
from tests.helpers.scenes import FREE, ONCE


@asynccontextmanager
async def talking_to(
    *answers: bytes, session: aiohttp.ClientSession | None = None, **settings: Any
) -> AsyncIterator[tuple[RawServer, FeishuMailClient]]:
    """A raw server that gives these answers, and a client that makes one attempt."""
    async with (
        raw_server(always(*answers)) as server,
        FeishuMailClient(
            TOKEN, base_url=server.base_url, retry=ONCE, rate_limit=FREE, session=session, **settings
        ) as client,
    ):
        yield server, client


async def one_error(client: FeishuMailClient, draft_id: str = "d1") -> FeishuMailError:
    """The error of one send, which must hold no token."""
    with pytest.raises(FeishuMailError) as caught:
        await client.send_draft(draft_id)
    assert holds(caught.value, TOKEN) == []
    return caught.value


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
