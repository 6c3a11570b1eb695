"""Answers that flood, break off or take their time: nothing on the wire can hang or mislead a client."""

import asyncio
import gzip
import socket
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from feishu_mail_async import BadReply, FeishuMailClient, FrequencyLimited, OutcomeUnknown, TransportError
from feishu_mail_async._api.protocol import LONGEST_REPLY, CallEnd, Reply
from feishu_mail_async._secrecy import Hidden
from feishu_mail_async._transport import Failure, Transport
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.canary import TOKEN
from tests.helpers.clock import now
from tests.helpers.exchanges import closed_port, one_error, talking_to
from tests.helpers.raw_server import SENT, RawServer, Request, http, raw_server
from tests.helpers.scenes import ONCE

pytestmark = [pytest.mark.looptime(start=0), pytest.mark.usefixtures("no_proxies")]


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
        answer = await transport.exchange("POST", "/x", Hidden(TOKEN))
        assert isinstance(answer, Failure)
        assert answer.end is CallEnd.LOST


@pytest.mark.parametrize("body", [b"", b'{"code":0,"data":{"mess'])
async def test_a_reset_within_the_answer_is_an_unreadable_answer(body: bytes) -> None:
    async with (
        breaking(http(200, body, ("X-Tt-Logid", "log1"), length=500)) as server,
        Transport(server.base_url, 30, None) as transport,
    ):
        assert await transport.exchange("POST", "/x", Hidden(TOKEN)) == Reply(200, None, log_id="log1")


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
        answer = await transport.exchange("POST", "/x", Hidden(TOKEN))
        assert isinstance(answer, Failure)
        assert answer.end is CallEnd.NEVER_LEFT
        assert now() == pytest.approx(taken, abs=1e-3)


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
