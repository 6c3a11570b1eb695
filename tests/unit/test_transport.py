"""One exchange: what goes over the wire, what never does, and that nothing on it can hang, flood or mislead us."""

import asyncio
import base64
import contextlib
import gzip
import json
import socket
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from feishu_mail_async import (
    BadReply,
    ClientClosed,
    ContentRisk,
    FeishuMailClient,
    FeishuMailError,
    FrequencyLimited,
    Misconfigured,
    NotSent,
    OutcomeStatus,
    OutcomeUnknown,
    TransportError,
)
from feishu_mail_async._api.protocol import LONGEST_REPLY, CallEnd, Reply
from feishu_mail_async._transport import Failure, Transport
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.clock import now
from tests.helpers.support import FREE, ONCE, SENT, TOKEN, RawServer, Request, always, holds, http, raw_server

pytestmark = pytest.mark.looptime(start=0)

PROXIES = ["http_proxy", "https_proxy", "all_proxy", "no_proxy"]


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine's own environment says."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


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


# -- what is asked -----------------------------------------------------------------------------------------


async def test_the_request_is_the_documented_one() -> None:
    async with talking_to(SENT) as (server, client):
        result = await client.send_draft("268dce11", mailbox="aba@aac.com")
        assert (result.message_id, result.thread_id, result.log_id) == ("m1", "t1", "log1")
        (request,) = server.requests
        assert request.line == (
            "POST /open-apis/mail/v1/user_mailboxes/aba%40aac.com/drafts/268dce11/send HTTP/1.1"
        )
        assert request.headers["authorization"] == f"Bearer {TOKEN}"
        assert request.headers["host"] == f"127.0.0.1:{server.port}"
        assert request.headers.get("content-length", "0") == "0"


async def test_a_path_prefix_is_kept() -> None:
    async with raw_server(always(SENT)) as server:
        async with FeishuMailClient(TOKEN, base_url=f"{server.base_url}/gate/way/") as client:
            await client.send_draft("d1")
        assert server.requests[0].target.startswith("/gate/way/open-apis/mail/v1/")


async def test_a_long_token_goes_through() -> None:
    token = "eyJ" + "x" * 4000
    async with raw_server(always(SENT)) as server:
        async with FeishuMailClient(token, base_url=server.base_url) as client:
            await client.send_draft("d1")
        assert server.requests[0].headers["authorization"] == f"Bearer {token}"


async def test_cookies_are_not_kept() -> None:
    answer = SENT.replace(b"\r\n\r\n", b"\r\nSet-Cookie: session=1; Path=/\r\n\r\n", 1)
    async with talking_to(answer) as (server, client):
        await client.send_draft("d1")
        await client.send_draft("d2")
        assert "cookie" not in server.requests[1].headers


# -- redirects ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(status: int) -> None:
    async with raw_server(always(SENT)) as elsewhere:
        answer = http(status, b"", ("Location", f"{elsewhere.base_url}/here"))
        async with talking_to(answer) as (server, client):
            error = await one_error(client)
            if status in {301, 308}:  # the call is to be made there, so it was not made here
                assert isinstance(error, Misconfigured)
            else:
                assert isinstance(error, OutcomeUnknown)
                assert isinstance(error.__cause__, BadReply)
                assert error.__cause__.http_status == status
            assert len(server.requests) == 1
        assert elsewhere.requests == []


@pytest.mark.parametrize("status", [404, 405])
async def test_a_wrong_address_is_told_at_once_and_to_all_that_wait(status: int) -> None:
    page = http(status, b"<html>nginx</html>", ("Content-Type", "text/html"))
    async with (
        raw_server(always(page)) as server,
        FeishuMailClient(TOKEN, base_url=f"{server.base_url}/nowhere") as client,
    ):
        async with client.send_drafts(f"d{number}" for number in range(100)) as outcomes:
            found = [outcome async for outcome in outcomes]
        assert {(type(one.error), one.status) for one in found} == {(Misconfigured, OutcomeStatus.FAILED)}
        assert len(found) == 100
        assert f"base_url {server.base_url}/nowhere" in str(found[0].error)
        assert len(server.requests) <= 2
        assert now() < 5
        with pytest.raises(Misconfigured):
            await anext(aiter(client.list_drafts()))


# -- how much is read --------------------------------------------------------------------------------------

NARROW = 8 * 1024


@asynccontextmanager
async def flooding(head: bytes, chunk: bytes, total: int) -> AsyncIterator[tuple[RawServer, list[int]]]:
    """A server that writes `chunk` until `total` bytes are out or the client hangs up; counts what it wrote."""
    written = [0]

    async def handler(_: Request, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, NARROW)
        writer.transport.set_write_buffer_limits(0)
        writer.write(head)
        while written[0] < total:
            writer.write(chunk)
            await writer.drain()
            written[0] += len(chunk)

    async with raw_server(handler) as server:
        yield server, written


def narrow_socket(address: Any) -> socket.socket:
    """A socket that takes little in advance, so that what the server wrote is what the client read."""
    family, kind, protocol = address[:3]
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NARROW)
    return made


FIFTY_MB = 50_000_000


def chunked(body: bytes) -> bytes:
    return f"{len(body):x}\r\n".encode() + body + b"\r\n"


@pytest.mark.parametrize("declared", [True, False])
async def test_a_flood_is_cut_off(declared: bool) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Tt-Logid: log1\r\n"
    piece = b" " * 16_384
    if declared:
        head += f"Content-Length: {FIFTY_MB}\r\n\r\n".encode()
    else:
        head += b"Transfer-Encoding: chunked\r\n\r\n"
        piece = chunked(piece)
    async with (
        flooding(head, piece, FIFTY_MB) as (server, written),
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=narrow_socket)) as session,
        FeishuMailClient(TOKEN, base_url=server.base_url, retry=ONCE, session=session) as client,
    ):
        error = await one_error(client)
        assert isinstance(error, OutcomeUnknown)
        assert isinstance(error.__cause__, BadReply)
        assert error.log_id == "log1"
        # The bound, what aiohttp buffers ahead (twice 64 KiB, and a chunk), and both sockets' own.
        assert written[0] <= LONGEST_REPLY + 2 * 65_536 + 8 * 16_384
        if declared:
            assert written[0] <= 2 * 65_536 + 8 * 16_384


@pytest.mark.parametrize("declared", [True, False])
async def test_a_flood_of_the_sandbox(declared: bool) -> None:
    async with Sandbox(users=("alice",), latency=0) as sandbox:
        draft_id = sandbox.add_draft("alice")
        sandbox.script(draft_id, Fault.huge(declared=declared, accepted=True))
        async with FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url) as client:
            result = await client.send_draft(draft_id)
        assert (result.already_sent, result.attempts) == (True, 2)


def padded(size: int) -> bytes:
    body = b'{"code":0,"data":{"message_id":"m1"}}'
    return body + b" " * (size - len(body))


@pytest.mark.parametrize(("size", "read"), [(LONGEST_REPLY, True), (LONGEST_REPLY + 1, False)])
async def test_the_bound_is_exact(size: int, read: bool) -> None:
    for answer in (
        http(200, padded(size)),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(padded(size)) + b"0\r\n\r\n",
    ):
        async with talking_to(answer) as (_, client):
            if read:
                assert (await client.send_draft("d1")).message_id == "m1"
            else:
                assert isinstance(await one_error(client), OutcomeUnknown)


async def test_headers_without_end_are_cut_off() -> None:
    head = b"HTTP/1.1 200 OK\r\n"
    async with flooding(head, b"X-Padding: " + b"x" * 4000 + b"\r\n", 20_000_000) as (server, written):
        async with FeishuMailClient(TOKEN, base_url=server.base_url, retry=ONCE, attempt_timeout=5) as client:
            assert isinstance(await one_error(client), OutcomeUnknown)
        assert written[0] < 20_000_000


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_bomb_does_not_go_off(encoding: str) -> None:
    plain = b'{"code":0,"data":{"message_id":"' + b"0" * 20_000_000 + b'"}}'
    packed = gzip.compress(plain, 9) if encoding == "gzip" else zlib.compress(plain, 9)
    assert len(packed) < LONGEST_REPLY
    async with talking_to(http(200, packed, ("Content-Encoding", encoding))) as (server, client):
        tracemalloc.start()
        try:
            assert isinstance(await one_error(client), OutcomeUnknown)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 8 * LONGEST_REPLY
        # We had not asked for it.
        assert server.requests[0].headers["accept-encoding"] == "identity"


async def test_what_is_packed_all_the_same_is_read() -> None:
    body = b'{"code":0,"data":{"message_id":"m1"}}'
    async with talking_to(http(200, gzip.compress(body), ("Content-Encoding", "gzip"))) as (_, client):
        assert (await client.send_draft("d1")).message_id == "m1"


async def test_what_is_packed_wrongly_is_unreadable() -> None:
    async with talking_to(http(200, b"no gzip at all", ("Content-Encoding", "gzip"))) as (_, client):
        assert isinstance(await one_error(client), OutcomeUnknown)


# -- connections that break --------------------------------------------------------------------------------


@asynccontextmanager
async def breaking(start: bytes) -> AsyncIterator[RawServer]:
    """A server that writes `start`, and then resets the connection."""

    async def handler(_: Request, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        await writer.drain()
        if start:
            await asyncio.sleep(0.1)  # so that what was written is read before the reset comes
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    async with raw_server(handler) as server:
        yield server


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 ", b"HTTP/1.1 200 OK\r\nContent-Le"])
async def test_a_reset_before_the_answer_is_a_lost_call(start: bytes) -> None:
    async with breaking(start) as server, Transport(server.base_url, 30, None) as transport:
        answer = await transport.exchange("POST", "/x", TOKEN)
        assert isinstance(answer, Failure)
        assert answer.end is CallEnd.LOST


@pytest.mark.parametrize("body", [b"", b'{"code":0,"data":{"mess'])
async def test_a_reset_within_the_answer_is_an_unreadable_answer(body: bytes) -> None:
    async with (
        breaking(http(200, body, ("X-Tt-Logid", "log1"), length=500)) as server,
        Transport(server.base_url, 30, None) as transport,
    ):
        assert await transport.exchange("POST", "/x", TOKEN) == Reply(200, None, log_id="log1")


async def test_a_429_that_breaks_off_still_pauses_the_app() -> None:
    start = http(429, b"{", ("x-ogw-ratelimit-reset", "7"), length=500)
    async with (
        breaking(start) as server,
        FeishuMailClient(TOKEN, base_url=server.base_url, retry=ONCE) as client,
    ):
        assert isinstance(await one_error(client), FrequencyLimited)
        paused = client.snapshot().paused
        assert paused is not None
        assert 6.5 < paused <= 7


@pytest.mark.parametrize(
    "headers",
    [
        [("Retry-After", "7")],
        [("Retry-After", "Wed, 21 Oct 2026 07:28:07 GMT"), ("Date", "Wed, 21 Oct 2026 07:28:00 GMT")],
        [
            ("x-ogw-ratelimit-reset", "1792567687"),
            ("Date", "Wed, 21 Oct 2026 07:28:00 GMT"),
            ("Retry-After", "50"),
        ],
        [("x-ogw-ratelimit-reset", "7000")],
    ],
    ids=["Retry-After", "a date", "a moment", "milliseconds"],
)
async def test_a_429_says_in_many_ways_for_how_long_to_wait(headers: list[tuple[str, str]]) -> None:
    async with talking_to(http(429, b"", *headers)) as (_, client):
        assert isinstance(await one_error(client), FrequencyLimited)
        paused = client.snapshot().paused
        assert paused is not None
        assert 6.5 < paused <= 7


@pytest.mark.parametrize(
    "answer",
    [
        b"\0\1\2\3 no HTTP\r\n\r\n",
        b"220 mail.example.com ESMTP\r\n",
        b"HTTP/9.9 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnot-a-length\r\n",
        b"HTTP/1.1 200 OK\r\nBad Header\r\n\r\n",
    ],
    ids=repr,
)
async def test_what_is_no_http_may_have_been_sent(answer: bytes) -> None:
    async with talking_to(answer, attempt_timeout=5.0) as (_, client):
        assert isinstance(await one_error(client), OutcomeUnknown)
        assert client.snapshot().in_flight == 0


# -- time --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.5, 5, 7.3, 30, 61.7])
async def test_a_server_that_hangs_costs_the_timeout_exactly(seconds: float) -> None:
    async def handler(_: Request, __: asyncio.StreamReader, ___: asyncio.StreamWriter) -> None:
        await asyncio.sleep(10_000)

    async with (
        raw_server(handler) as server,
        FeishuMailClient(TOKEN, base_url=server.base_url, retry=ONCE, attempt_timeout=seconds) as client,
    ):
        start = now()
        error = await one_error(client)
        assert now() - start == pytest.approx(seconds, abs=1e-3)
        assert isinstance(error, OutcomeUnknown)
        assert f"{seconds:g} s" in str(error)


async def test_a_server_that_dribbles_costs_no_more() -> None:
    async def handler(_: Request, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            writer.write(b" ")
            await asyncio.sleep(1)

    async with (
        raw_server(handler) as server,
        FeishuMailClient(TOKEN, base_url=server.base_url, retry=ONCE, attempt_timeout=12.5) as client,
    ):
        error = await one_error(client)
        assert now() == pytest.approx(12.5, abs=1e-3)
        assert isinstance(error, OutcomeUnknown)
        assert isinstance(error.__cause__, BadReply)
        assert error.__cause__.http_status == 200


async def test_an_answer_in_time_is_in_time() -> None:
    async def handler(_: Request, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(29.9)
        writer.write(SENT)

    async with (
        raw_server(handler) as server,
        FeishuMailClient(TOKEN, base_url=server.base_url, retry=ONCE) as client,
    ):
        assert (await client.send_draft("d1")).message_id == "m1"


@asynccontextmanager
async def deaf() -> AsyncIterator[str]:
    """An address where connections are neither accepted nor refused: the queue of the listener is full."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    fillers = []
    for _ in range(8):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
        fillers.append(filler)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        for one in (*fillers, listener):
            one.close()


@pytest.mark.parametrize(("seconds", "taken"), [(30.0, 10.0), (8.0, 4.0)])
async def test_connecting_has_a_limit_of_its_own(seconds: float, taken: float) -> None:
    async with deaf() as base_url, Transport(base_url, seconds, None) as transport:
        answer = await transport.exchange("POST", "/x", TOKEN)
        assert isinstance(answer, Failure)
        assert answer.end is CallEnd.NEVER_LEFT
        assert now() == pytest.approx(taken, abs=1e-3)


# -- calls that never left ---------------------------------------------------------------------------------


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


async def test_a_refused_connection_never_left() -> None:
    async with FeishuMailClient(TOKEN, base_url=f"http://127.0.0.1:{closed_port()}", retry=ONCE) as client:
        error = await one_error(client)
        assert isinstance(error, TransportError)
        assert error.attempts == 0
        assert client.snapshot().permits == 20


async def test_a_name_that_does_not_resolve_never_left(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def resolve(_: Any, host: str, *__: Any, **___: Any) -> Any:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(aiohttp.resolver.ThreadedResolver, "resolve", resolve)
    monkeypatch.setattr(aiohttp.resolver.AsyncResolver, "resolve", resolve)
    async with FeishuMailClient(TOKEN, base_url="https://open.feishu.invalid", retry=ONCE) as client:
        error = await one_error(client)
    assert isinstance(error, TransportError)
    assert "open.feishu.invalid" in str(error)
    assert asked == ["open.feishu.invalid"]


async def test_what_speaks_no_tls_never_left() -> None:
    async def handler(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with FeishuMailClient(TOKEN, base_url=f"https://127.0.0.1:{port}", retry=ONCE) as client:
        error = await one_error(client)
    server.close()
    assert isinstance(error, TransportError)


# -- the caller's own session ------------------------------------------------------------------------------


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


# -- proxies -----------------------------------------------------------------------------------------------

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


# -- an echo of the token ----------------------------------------------------------------------------------

ESCAPED = "".join(f"\\u{ord(character):04x}" for character in TOKEN)


def echoes(shown: str) -> dict[str, bytes]:
    """Answers that show the token in every place an answer has."""
    return {
        "msg": http(400, f'{{"code":1236014,"msg":"no {shown}"}}'.encode()),
        "unknown": http(400, f'{{"code":7,"msg":"{shown}"}}'.encode()),
        "ids": http(200, f'{{"code":0,"data":{{"message_id":"{shown}","thread_id":"x{shown}x"}}}}'.encode()),
        "reason": http(
            200,
            f'{{"code":0,"data":{{"automation_send_disable":{{"reason":"{shown}",'
            f'"reference":"https://a.example/?t={shown}"}}}}}}'.encode(),
        ),
        "page": http(502, f"<html>{shown}</html>".encode()),
    }


ECHOES = {
    **{f"plain {name}": answer for name, answer in echoes(TOKEN).items()},
    **{f"escaped {name}": answer for name, answer in echoes(ESCAPED).items() if name != "page"},
    "twice": http(400, f'{{"code":1236014,"msg":"{TOKEN}{TOKEN}"}}'.encode()),
    "utf-16": http(400, f'{{"code":1236014,"msg":"{TOKEN}"}}'.encode("utf-16")),
    "long": http(400, f'{{"code":1236014,"msg":"{"x" * 290}{TOKEN}"}}'.encode()),
    "log id": http(400, b'{"code":1236014}', ("X-Tt-Logid", f"log {TOKEN}")),
    "long log id": http(400, b'{"code":1236014}', ("X-Tt-Logid", "x" * 190 + TOKEN)),
    "reset": http(429, b"", ("x-ogw-ratelimit-reset", TOKEN)),
    "status line": f"HTTP/1.1 200 {TOKEN}\r\nContent-Length: 0\r\n\r\n".encode(),
    "no status": f"HTTP/1.1 {TOKEN}\r\n\r\n".encode(),
    "no header": f"HTTP/1.1 200 OK\r\n{TOKEN}\r\n\r\n".encode(),
    "location": http(302, b"", ("Location", f"https://{TOKEN}.example/")),
    "cookie": http(200, b"", ("Set-Cookie", f"{TOKEN}={TOKEN}")),
    "packed": http(400, gzip.compress(f'{{"code":7,"msg":"{TOKEN}"}}'.encode()), ("Content-Encoding", "gzip")),
}


@pytest.mark.parametrize("name", ECHOES)
async def test_an_echo_of_the_token_goes_no_further(
    name: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")
    async with talking_to(ECHOES[name]) as (_, client):
        try:
            result = await client.send_draft("d1")
        except FeishuMailError as error:
            assert holds(error, TOKEN) == []  # noqa: PT017 - either way is fine
            # Nor a piece of it long enough to be of use.
            assert holds(error, TOKEN[:12]) == []  # noqa: PT017
        else:
            assert TOKEN[:12] not in repr(result)
        assert TOKEN not in repr(client.snapshot())
    assert TOKEN not in caplog.text
    assert TOKEN not in "".join(capfd.readouterr())


async def test_a_long_log_id_is_shortened() -> None:
    async with talking_to(http(400, b'{"code":1236014}', ("X-Tt-Logid", "x" * 5000))) as (_, client):
        assert len(str(await one_error(client))) < 1000


async def test_the_rest_of_an_echo_is_kept() -> None:
    async with talking_to(ECHOES["plain msg"]) as (_, client):
        error = await one_error(client)
        assert isinstance(error, ContentRisk)
        assert error.msg.startswith("no ")


def test_the_samples_of_this_file_are_what_they_claim() -> None:
    assert json.loads(f'"{ESCAPED}"') == TOKEN
