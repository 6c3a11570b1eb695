"""A session of the caller's own changes nothing."""

import asyncio
import contextlib
import gzip
from typing import Any

import aiohttp
import pytest

from feishu_mail_async import ClientClosed, FeishuMailClient, OutcomeUnknown
from tests.helpers.canary import TOKEN
from tests.helpers.exchanges import talking_to
from tests.helpers.raw_server import SENT, Request, always, http, raw_server
from tests.helpers.scenes import ONCE

pytestmark = [pytest.mark.looptime(start=0), pytest.mark.usefixtures("no_proxies")]


async def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("called")


async def forbidden(_: aiohttp.ClientResponse) -> None:
    raise AssertionError("called")


async def test_the_callers_session_changes_nothing() -> None:
    repeated = http(409, b'{"code":1236005,"msg":"send mail repeatedly"}', ("X-Tt-Logid", "log1"))
    for raise_for_status in (True, forbidden):
        async with (
            aiohttp.ClientSession(
                "https://elsewhere.invalid/base/",
                raise_for_status=raise_for_status,
                middlewares=(never,),
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=0.001),
                cookies={"mine": "1"},
                headers={"Authorization": "Bearer another", "Accept": "text/html", "X-Mine": "1"},
            ) as session,
            talking_to(repeated, session=session) as (server, client),
        ):
            result = await client.send_draft("d1")
            assert (result.already_sent, result.attempts, result.log_id) == (True, 1, "log1")
            (request,) = server.requests
            assert request.headers["authorization"] == f"Bearer {TOKEN}"
            assert request.headers["accept"] == "application/json"
            await client.close()
            assert not session.closed


async def test_the_callers_session_reads_what_is_packed() -> None:
    answer = http(200, gzip.compress(b'{"code":0,"data":{"message_id":"m1"}}'), ("Content-Encoding", "gzip"))
    async with (
        aiohttp.ClientSession(auto_decompress=False) as session,
        talking_to(answer, session=session) as (_, client),
    ):
        assert (await client.send_draft("d1")).message_id == "m1"


async def test_the_callers_session_waits_as_long_as_the_client() -> None:
    async def handler(_: Request, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(20)
        writer.write(SENT)

    timeout = aiohttp.ClientTimeout(total=1, sock_read=1)
    async with (
        raw_server(handler) as server,
        aiohttp.ClientSession(timeout=timeout) as session,
        FeishuMailClient(TOKEN, base_url=server.base_url, session=session, retry=ONCE) as client,
    ):
        assert (await client.send_draft("d1")).message_id == "m1"


async def test_the_callers_netrc_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """trust_env=True makes aiohttp look a password up for every host; it must not stand in the token's way."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login someone password something\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    async with (
        aiohttp.ClientSession(trust_env=True) as session,
        talking_to(SENT, session=session) as (server, client),
    ):
        assert (await client.send_draft("d1")).message_id == "m1"
        assert server.requests[0].headers["authorization"] == f"Bearer {TOKEN}"


async def test_the_callers_auth_changes_nothing() -> None:
    with pytest.warns(DeprecationWarning, match="auth"):
        session = aiohttp.ClientSession(auth=aiohttp.BasicAuth("someone", "something"))
    async with session, talking_to(SENT, session=session) as (server, client):
        assert (await client.send_draft("d1")).message_id == "m1"
        assert server.requests[0].headers["authorization"] == f"Bearer {TOKEN}"


async def test_a_closed_session_is_refused() -> None:
    async with aiohttp.ClientSession() as session:
        pass
    with pytest.raises(ValueError, match=r"^session: it is closed"):
        FeishuMailClient(TOKEN, session=session)


@pytest.mark.parametrize("session", ["session", 7, object()])
async def test_what_is_no_session(session: Any) -> None:
    with pytest.raises(TypeError, match=r"^session\b"):
        FeishuMailClient(TOKEN, session=session)


async def test_a_session_that_is_closed_later() -> None:
    async with aiohttp.ClientSession() as session, talking_to(SENT, session=session) as (server, client):
        await client.send_draft("d1")
        await session.close()
        with pytest.raises(ClientClosed, match=r"^session\b"):
            await client.send_draft("d2")
        assert len(server.requests) == 1


async def test_a_session_that_is_closed_while_a_draft_waits() -> None:
    async with aiohttp.ClientSession() as session, talking_to(SENT, session=session) as (server, client):
        first, second, third = [asyncio.create_task(client.send_draft(f"d{number}")) for number in range(3)]
        await first
        await session.close()
        # One may have been in flight by then; for the last one it is certain.
        with contextlib.suppress(OutcomeUnknown, ClientClosed):
            await second
        with pytest.raises(ClientClosed, match=r"^session\b"):
            await third
        assert client.snapshot().in_flight == 0
        assert len(server.requests) <= 2


async def test_two_clients_share_a_session() -> None:
    async with aiohttp.ClientSession() as session, raw_server(always(SENT)) as server:
        for _ in range(2):
            async with FeishuMailClient(TOKEN, base_url=server.base_url, session=session) as client:
                await client.send_draft("d1")
        assert len(server.requests) == 2
