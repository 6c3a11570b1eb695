"""What keeps calls from leaving: certificates, proxies, handshakes. What lasts is told at once."""

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from feishu_mail_async import (
    FeishuMailClient,
    FeishuMailError,
    Misconfigured,
    NotSent,
    OutcomeStatus,
    RefreshingTokens,
    TransportError,
)
from feishu_mail_async._api.protocol import CallEnd
from feishu_mail_async._auth.store import MemoryTokens, StoredToken
from feishu_mail_async._secrecy import Hidden
from feishu_mail_async._transport import Failure, Transport
from tests.helpers.canary import TOKEN, holds
from tests.helpers.certificates import Authority
from tests.helpers.cli import run_here
from tests.helpers.clock import now
from tests.helpers.raw_server import SENT, Handler, RawServer, Request, always, http, raw_server

pytestmark = pytest.mark.looptime(start=0)

FEISHU: Final = "https://open.feishu.cn"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy of the machine's, and no network."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    async def resolve(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "no network in this test")

    monkeypatch.setattr(aiohttp.resolver.ThreadedResolver, "resolve", resolve)
    monkeypatch.setattr(aiohttp.resolver.AsyncResolver, "resolve", resolve)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def trusting(authority: Authority) -> aiohttp.ClientSession:
    """A session that knows the authority."""
    context = ssl.create_default_context(cafile=authority.file)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context))


async def failure(base_url: str, method: str = "POST") -> Failure:
    async with Transport(base_url, 30, None) as transport:
        answer = await transport.exchange(method, "/x", Hidden(TOKEN))
    assert isinstance(answer, Failure)
    return answer


async def error_of(base_url: str, session: aiohttp.ClientSession | None = None) -> FeishuMailError:
    """The error of one send, with all the patience there is."""
    async with FeishuMailClient(TOKEN, base_url=base_url, session=session) as client:
        with pytest.raises(TransportError) as caught:
            await client.send_draft("d1")
        assert client.snapshot().in_flight == 0
        assert client.snapshot().permits == 20
    assert caught.value.attempts == 0
    assert caught.value.status is OutcomeStatus.FAILED
    assert holds(caught.value, TOKEN) == []
    return caught.value


# -- certificates ------------------------------------------------------------------------------------------


async def test_a_certificate_nobody_vouches_for_is_told_at_once(authority: Authority) -> None:
    async with raw_server(always(SENT), authority.server()) as server:
        error = await error_of(server.base_url)
        assert isinstance(error, Misconfigured)
        for word in ("certificate", "authority", "SSL_CERT_FILE", f"127.0.0.1:{server.port}"):
            assert word in str(error)
        assert "not permitted" not in str(error)
        assert now() < 1
        async with (
            trusting(authority) as session,
            FeishuMailClient(TOKEN, base_url=server.base_url, session=session) as client,
        ):
            assert (await client.send_draft("d1")).message_id == "m1"


async def test_a_run_does_not_wait_either(authority: Authority) -> None:
    async with (
        raw_server(always(SENT), authority.server()) as server,
        FeishuMailClient(TOKEN, base_url=server.base_url) as client,
    ):
        async with client.send_drafts(f"d{number}" for number in range(500)) as outcomes:
            found = [outcome async for outcome in outcomes]
        assert {type(outcome.error) for outcome in found} == {Misconfigured}
        assert len(found) == 500
        assert now() < 5
        assert client.snapshot().paused is None


async def test_other_clients_of_the_app_go_on(authority: Authority) -> None:
    """What is wrong with one client's session is not another's business."""
    async with (
        raw_server(always(SENT), authority.server()) as server,
        trusting(authority) as session,
        FeishuMailClient(TOKEN, base_url=server.base_url, app="one") as strict,
        FeishuMailClient(TOKEN, base_url=server.base_url, app="one", session=session) as knowing,
    ):
        sends = [knowing.send_draft(f"d{number}") for number in range(5)]
        found = await asyncio.gather(strict.send_draft("e1"), *sends, return_exceptions=True)
    assert [type(one).__name__ for one in found] == ["Misconfigured"] + ["SendResult"] * 5


async def test_another_hosts_certificate_is_told_at_once(authority: Authority) -> None:
    async with (
        raw_server(always(SENT), authority.server("login.hotel.example")) as server,
        trusting(authority) as session,
    ):
        error = await error_of(server.base_url, session)
    assert isinstance(error, Misconfigured)
    assert "certificate is another host's" in str(error)
    assert now() < 1


@pytest.mark.parametrize(("since", "days"), [(10, 20), (-20, 10)], ids=["not yet valid", "expired"])
async def test_a_certificate_out_of_its_time_may_pass(authority: Authority, since: int, days: int) -> None:
    """This machine's clock may be set right, or the certificate renewed."""
    async with (
        raw_server(always(SENT), authority.server(since=since, days=days)) as server,
        trusting(authority) as session,
    ):
        error = await error_of(server.base_url, session)
    assert not isinstance(error, Misconfigured)
    assert "certificate" in str(error)
    assert "clock" in str(error)
    assert now() == pytest.approx(600, abs=5)


async def test_a_fingerprint_of_the_callers_that_does_not_fit_is_told_at_once(authority: Authority) -> None:
    async with (
        raw_server(always(SENT), authority.server()) as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=aiohttp.Fingerprint(bytes(32)))) as session,
    ):
        assert isinstance(await error_of(server.base_url, session), Misconfigured)


async def test_the_token_endpoint_is_asked_once(authority: Authority) -> None:
    store = MemoryTokens()
    await store.save("me", StoredToken("u-1", 0.0, 7200.0, "ur-1"), None)
    async with (
        raw_server(always(SENT), authority.server()) as server,
        RefreshingTokens("cli_a", "secret", store, base_url=server.base_url) as tokens,
    ):
        with pytest.raises(NotSent, match=r"certificate.*authority.*SSL_CERT_FILE"):
            await tokens.token("me")
    assert now() == 0


@pytest.mark.usefixtures("own_state")
async def test_the_doctor_says_the_same(
    authority: Authority, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEISHU_USER_ACCESS_TOKEN", TOKEN)
    async with raw_server(always(SENT), authority.server()) as server:
        ended = await asyncio.to_thread(
            run_here, capfd, ["doctor", "--json", "--base-url", server.base_url], [TOKEN]
        )
    told = {check["check"]: check for check in json.loads(ended.out)["checks"]}
    assert told["host"]["status"] == "problem"
    for word in ("certificate", "authority", "SSL_CERT_FILE"):
        assert word in told["host"]["told"]
    assert "check the network" not in told["host"]["told"]


# -- handshakes --------------------------------------------------------------------------------------------


@asynccontextmanager
async def listening(act: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]) -> AsyncIterator[str]:
    """A port that is spoken to in TLS, and what it does with each connection."""

    tasks: list[asyncio.Task[Any] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.current_task())
        await reader.read(1)
        await act(reader, writer)
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()
        await asyncio.gather(*filter(None, tasks), return_exceptions=True)


async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


async def say_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


@pytest.mark.parametrize("act", [hang_up, reset, say_nothing])
@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_a_handshake_that_breaks_off_never_left_and_may_pass(act: Any, method: str) -> None:
    async with listening(act) as base_url:
        found = await failure(base_url, method)
    assert (found.end, found.lasting) == (CallEnd.NEVER_LEFT, False)
    assert now() <= 10


async def test_where_no_tls_is_spoken_is_told_at_once() -> None:
    async def act(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(http(400, b"The plain HTTP request was sent to HTTPS port"))

    async with listening(act) as base_url:
        error = await error_of(base_url)
    assert isinstance(error, Misconfigured)
    assert "no TLS" in str(error)


# -- proxies -----------------------------------------------------------------------------------------------


async def through(
    handler: Handler, monkeypatch: pytest.MonkeyPatch, method: str = "POST"
) -> tuple[Failure, RawServer]:
    """What a call to Feishu comes to through such a proxy."""
    async with raw_server(handler) as server:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:secret@127.0.0.1:{server.port}")
        found = await failure(FEISHU, method)
    assert TOKEN not in repr(server.requests)
    assert "secret" not in found.reason
    return found, server


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (407, ["HTTPS_PROXY", "USER:PASSWORD", "credentials"]),
        (403, ["forbids", "NO_PROXY"]),
        (302, ["HTTPS_PROXY"]),
        (401, ["HTTPS_PROXY"]),
        (404, ["HTTPS_PROXY"]),
        (405, ["HTTPS_PROXY"]),
    ],
)
async def test_a_proxy_that_refuses_is_told_at_once(
    status: int, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = await through(always(http(status, b"<html>no</html>")), monkeypatch)
    assert (found.end, found.lasting) == (CallEnd.NEVER_LEFT, True)
    for word in (*words, str(status), "proxy"):
        assert word in found.reason


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_a_proxy_that_cannot_just_now_may_pass(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = await through(always(http(status, b"")), monkeypatch)
    assert (found.end, found.lasting) == (CallEnd.NEVER_LEFT, False)


async def test_a_proxy_that_signs_for_the_host_is_told_at_once(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = authority.server("open.feishu.cn")

    async def handler(_: Request, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        try:
            await writer.start_tls(context)
        except ssl.SSLError:
            writer.close()

    found, _ = await through(handler, monkeypatch)
    assert (found.end, found.lasting) == (CallEnd.NEVER_LEFT, True)
    for word in ("certificate", "authority", "SSL_CERT_FILE", "open.feishu.cn:443"):
        assert word in found.reason


def breaking(start: bytes, end: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]) -> Handler:
    """A proxy that says this much, and then ends in this way."""

    async def handler(_: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        await writer.drain()
        if start.endswith(b"\r\n\r\n"):
            await reader.read(1)  # there is a tunnel, and the handshake begins
        await end(reader, writer)

    return handler


@pytest.mark.parametrize("end", [hang_up, reset, say_nothing])
@pytest.mark.parametrize(
    "start",
    [b"", b"HTTP/1.1 200 Conn", b"no HTTP at all\r\n", b"HTTP/1.1 200 Connection established\r\n\r\n"],
    ids=["nothing", "half an answer", "no HTTP", "a tunnel"],
)
@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_a_proxy_that_breaks_off_before_there_is_tls_never_left(
    start: bytes, end: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, server = await through(breaking(start, end), monkeypatch, method)
    assert (found.end, found.lasting) == (CallEnd.NEVER_LEFT, False)
    assert len(server.requests) == 1
    assert now() <= 10
