"""One contestant of cost.py, in a process of its own: it sends drafts and says what that took.

Each is written as its library's documents have it, with one client or session for all calls, as far as the library
lets one. Run with a Python that has the library; nothing else is imported.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Final

from children import obey

if TYPE_CHECKING:
    from aiohttp import ClientSession

USERS: Final = 50
"""As many as there are calls at once, for a user makes one call at a time."""

TOKENS: Final = [f"u-{number:02d}6JHvzYtBa9XcDnRmQ8sWkLpEfG3hTiVoUb5qZy" for number in range(USERS)]

_TICK: Final = 0.001

Send = Callable[[str, int], Awaitable[None]]
"""Sends a draft, given by its id, of the user of that number."""


@contextlib.asynccontextmanager
async def with_aiohttp(base_url: str) -> AsyncIterator[Send]:
    """The plain call, by which the others are measured: a connection for each, as ours has, too."""
    import aiohttp  # noqa: PLC0415 - only what is measured is imported

    async with _plain(base_url, aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))) as send:
        yield send


@contextlib.asynccontextmanager
async def with_pool(base_url: str) -> AsyncIterator[Send]:
    """The plain call with aiohttp's own pool, where an answer can be taken for another call's."""
    import aiohttp  # noqa: PLC0415 - as above

    async with _plain(base_url, aiohttp.ClientSession()) as send:
        yield send


@contextlib.asynccontextmanager
async def _plain(base_url: str, session: "ClientSession") -> AsyncIterator[Send]:
    async with session:

        async def send(draft_id: str, user: int) -> None:
            headers = {"Authorization": f"Bearer {TOKENS[user]}"}
            async with session.post(_url(base_url, draft_id), headers=headers) as response:
                _check((await response.json())["code"])

        yield send


@contextlib.asynccontextmanager
async def with_ours(base_url: str) -> AsyncIterator[Send]:
    """The client, with its limit lifted and its users known."""
    from common import LIFTED  # noqa: PLC0415 - as above

    from feishu_mail_async import FeishuMailClient  # noqa: PLC0415 - as above

    names = [f"user{number}" for number in range(USERS)]
    tokens = dict(zip(names, TOKENS, strict=True))
    async with FeishuMailClient(tokens, base_url=base_url, rate_limit=LIFTED) as client:

        async def send(draft_id: str, user: int) -> None:
            await client.send_draft(draft_id, user=names[user])

        yield send


@contextlib.asynccontextmanager
async def with_httpx(base_url: str) -> AsyncIterator[Send]:
    """The plain call with httpx."""
    import httpx  # noqa: PLC0415 - as above

    async with httpx.AsyncClient() as client:

        async def send(draft_id: str, user: int) -> None:
            headers = {"Authorization": f"Bearer {TOKENS[user]}"}
            response = await client.post(_url(base_url, draft_id), headers=headers)
            _check(response.json()["code"])

        yield send


@contextlib.asynccontextmanager
async def with_lark_oapi(base_url: str) -> AsyncIterator[Send]:
    """The official SDK's asynchronous call. One client, but it makes an httpx client of its own for each call."""
    import lark_oapi as lark  # noqa: PLC0415 - as above
    from lark_oapi.api.mail.v1 import SendUserMailboxDraftRequest  # noqa: PLC0415 - as above

    client = lark.Client.builder().domain(base_url).enable_set_token(True).build()
    drafts = client.mail.v1.user_mailbox_draft

    async def send(draft_id: str, user: int) -> None:
        request = SendUserMailboxDraftRequest.builder().user_mailbox_id("me").draft_id(draft_id).build()
        option = lark.RequestOption.builder().user_access_token(TOKENS[user]).build()
        _check((await drafts.asend(request, option)).code)

    yield send


CONTESTANTS: Final[dict[str, Callable[[str], AbstractAsyncContextManager[Send]]]] = {
    "aiohttp": with_aiohttp,
    "aiohttp-pool": with_pool,
    "ours": with_ours,
    "httpx": with_httpx,
    "lark-oapi": with_lark_oapi,
}


def _url(base_url: str, draft_id: str) -> str:
    return f"{base_url}/open-apis/mail/v1/user_mailboxes/me/drafts/{draft_id}/send"


def _check(code: object) -> None:
    if code != 0:
        raise SystemExit(f"the server answered {code}")


async def measure(send: Send, drafts: list[str], at_once: int) -> dict[str, float]:
    """Send drafts, so many at once, and say what each took: seconds by the clock, and of this process."""
    left = iter(drafts)
    clock, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(_work(send, left, user) for user in range(at_once)))
    return {
        "wall": (time.perf_counter() - clock) / len(drafts),
        "cpu": (time.process_time() - cpu) / len(drafts),
    }


async def _work(send: Send, drafts: Iterator[str], user: int) -> None:
    for draft_id in drafts:
        await send(draft_id, user)


async def watch(send: Send, drafts: list[str], at_once: int) -> dict[str, float]:
    """Send drafts, so many at once, and say how late the loop woke another task at the worst, in seconds."""
    stalled = 0.0

    async def tick() -> None:
        nonlocal stalled
        while True:
            due = time.perf_counter() + _TICK
            await asyncio.sleep(_TICK)
            stalled = max(stalled, time.perf_counter() - due)

    ticking = asyncio.create_task(tick())
    await measure(send, drafts, at_once)
    ticking.cancel()
    await asyncio.wait([ticking])
    return {"stall": stalled}


async def main(name: str, base_url: str) -> None:
    """Do what cost.py asks for, and answer."""
    async with CONTESTANTS[name](base_url) as send:

        async def act(command: dict[str, Any]) -> dict[str, Any]:
            work = watch if command["watch"] else measure
            return await work(send, command["drafts"], command["at_once"])

        await obey(act)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
