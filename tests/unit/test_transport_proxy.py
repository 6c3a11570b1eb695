"""Proxies: whose are asked, and what they are told."""

import base64
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from feishu_mail_async import FeishuMailClient, FeishuMailError, NotSent, TransportError
from tests.helpers.canary import TOKEN, holds
from tests.helpers.exchanges import closed_port, one_error, talking_to
from tests.helpers.raw_server import SENT, RawServer, always, raw_server
from tests.helpers.scenes import ONCE

pytestmark = [pytest.mark.looptime(start=0), pytest.mark.usefixtures("no_proxies")]


FEISHU_PORT = "open.feishu.cn:443"


@asynccontextmanager
async def proxy(
    answer: bytes = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
) -> AsyncIterator[RawServer]:
    """A proxy that answers every CONNECT in the same way."""
    async with raw_server(always(answer)) as server:
        yield server


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "no network in this test")

    monkeypatch.setattr(aiohttp.resolver.ThreadedResolver, "resolve", resolve)
    monkeypatch.setattr(aiohttp.resolver.AsyncResolver, "resolve", resolve)


async def connect_through(
    value: str, monkeypatch: pytest.MonkeyPatch, name: str = "HTTPS_PROXY"
) -> FeishuMailError:
    monkeypatch.setenv(name, value)
    async with FeishuMailClient(TOKEN, base_url="https://open.feishu.cn", retry=ONCE) as client:
        return await one_error(client)


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
async def test_the_environments_proxy_is_asked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxy() as server:
        error = await connect_through(server.base_url, monkeypatch, name)
        assert isinstance(error, TransportError)
        (request,) = server.requests
        assert request.line.startswith(f"CONNECT {FEISHU_PORT} ")
        assert "proxy-authorization" not in request.headers
        assert "authorization" not in request.headers
        assert TOKEN not in repr(request)


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("user:secret", "user:secret"),
        ("user", "user:"),
        ("us%40er:p%3Ass%2Fword", "us@er:p:ss/word"),
        ("user:p%C3%A4ss", "user:päss"),
        ("user:%E5%AF%86%E7%A0%81", "user:密码"),
    ],
)
async def test_the_proxys_credentials_go_to_the_proxy(
    written: str, read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxy(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n") as server:
        error = await connect_through(f"http://{written}@127.0.0.1:{server.port}", monkeypatch)
        assert isinstance(error, TransportError)
        assert "407" in str(error)
        assert holds(error, "secret") == []
        (request,) = server.requests
        scheme, _, credentials = request.headers["proxy-authorization"].partition(" ")
        raw = base64.b64decode(credentials)
        assert scheme == "Basic"
        assert read in {raw.decode("utf-8", "replace"), raw.decode("latin-1")}


@pytest.mark.usefixtures("_no_network")
async def test_a_proxy_without_a_scheme_is_http(monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxy() as server:
        await connect_through(f"127.0.0.1:{server.port}", monkeypatch)
        assert len(server.requests) == 1


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("hosts", ["open.feishu.cn", "feishu.cn", ".feishu.cn", "example.com,open.feishu.cn", "*"])
async def test_no_proxy_is_honoured(hosts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxy() as server:
        monkeypatch.setenv("NO_PROXY", hosts)
        error = await connect_through(server.base_url, monkeypatch)
        assert isinstance(error, TransportError)
        assert server.requests == []


@pytest.mark.usefixtures("_no_network")
async def test_a_no_proxy_of_others_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxy() as server:
        monkeypatch.setenv("NO_PROXY", "localhost,notfeishu.cn,open.feishu.cn.example")
        await connect_through(server.base_url, monkeypatch)
        assert len(server.requests) == 1


async def test_loopback_never_goes_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxy() as server:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, server.base_url)
        async with talking_to(SENT) as (direct, client):
            assert (await client.send_draft("d1")).message_id == "m1"
            assert len(direct.requests) == 1
        assert server.requests == []


async def test_loopback_goes_through_no_proxy_of_the_callers_session_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There is no TLS on loopback: a proxy would see the token."""
    async with proxy() as server:
        monkeypatch.setenv("HTTP_PROXY", server.base_url)
        monkeypatch.setenv("http_proxy", server.base_url)
        async with (
            aiohttp.ClientSession(trust_env=True) as session,
            talking_to(SENT, session=session) as (direct, client),
        ):
            assert (await client.send_draft("d1")).message_id == "m1"
            assert len(direct.requests) == 1
        assert TOKEN not in repr(server.requests)


async def test_a_proxy_that_is_not_there_never_left(monkeypatch: pytest.MonkeyPatch) -> None:
    error = await connect_through(f"http://user:secret@127.0.0.1:{closed_port()}", monkeypatch)
    assert isinstance(error, TransportError)
    assert holds(error, "secret") == []


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("value", ["socks5://user:secret@127.0.0.1:1080", "ftp://127.0.0.1:21", "http://[bad"])
async def test_a_proxy_that_cannot_be_used_never_left(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can have been sent, so nothing else may be claimed; and the proxy must be named as the reason."""
    monkeypatch.setenv("HTTPS_PROXY", value)
    with pytest.raises((ValueError, TransportError, NotSent), match=r"(?i)proxy") as caught:
        async with FeishuMailClient(TOKEN, base_url="https://open.feishu.cn", retry=ONCE) as client:
            await client.send_draft("d1")
    assert "secret" not in str(caught.value)
