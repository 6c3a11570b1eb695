"""A connection carries one exchange, so an answer is that of its request; and a turn makes one request."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
import pytest

from feishu_mail_async import BadReply, ContentRisk, FeishuMailClient, RetryPolicy, SendResult
from feishu_mail_async._api.bodies import secret_body
from feishu_mail_async._api.protocol import CallEnd, Reply
from feishu_mail_async._secrecy import Hidden
from feishu_mail_async._transport import Failure, Transport
from feishu_mail_async.oauth import TOKEN_PATH
from tests.helpers.canary import TOKEN
from tests.helpers.raw_server import SENT, Handler, Request, always, http, raw_server
from tests.helpers.scenes import FREE, ONCE
from tests.helpers.tasks import settle

pytestmark = pytest.mark.looptime(start=0)

EACH: Final = range(60)
PATIENT: Final = RetryPolicy(attempts=3, initial=0.01)


def draft_of(request: Request) -> str:
    return request.target.split("/")[-2]


def refused(draft_id: str) -> bool:
    """Every third draft is."""
    return int(draft_id.removeprefix("d")) % 3 == 0


def answer_to(draft_id: str, log_id: str = "log1") -> bytes:
    if refused(draft_id):
        return http(400, b'{"code":1236014,"msg":"no"}', ("X-Tt-Logid", log_id))
    return http(
        200, json.dumps({"code": 0, "data": {"message_id": f"m-{draft_id}"}}).encode(), ("X-Tt-Logid", log_id)
    )


# -- answers that come twice -------------------------------------------------------------------------------


class Gateway:
    """Answers each request rightly, and passes on more than was asked for, in a way of its own."""

    def __init__(self, *, after: float | None, half: bool, log_id: str) -> None:
        self._after = after  # seconds; None: as the next request comes in
        self._half = half
        self._log_id = log_id
        self._owed: Callable[[], None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, request: Request, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._owed is not None:
            self._owed()  # while this request is under way
            self._owed = None
            await settle()
        draft_id = draft_of(request)
        surplus = answer_to(draft_id, self._log_id)
        surplus = surplus[: len(surplus) // 2] if self._half else surplus
        if self._after == 0:
            writer.write(answer_to(draft_id) + surplus)
            return
        writer.write(answer_to(draft_id))
        if self._after is None:
            self._owed = lambda: writer.write(surplus)
        else:
            task = asyncio.create_task(self._later(self._after, surplus, writer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _later(self, seconds: float, surplus: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(seconds)
        writer.write(surplus)


@asynccontextmanager
async def no_session() -> AsyncIterator[None]:
    yield None


SESSIONS: Final[dict[str, Callable[[], Any]]] = {"our session": no_session, "the caller's": aiohttp.ClientSession}


async def outcome(client: FeishuMailClient, draft_id: str) -> str | None:
    """The message's id; None if the draft was refused."""
    try:
        return (await client.send_draft(draft_id)).message_id
    except ContentRisk:
        return None


@pytest.mark.parametrize("session_of", SESSIONS.values(), ids=SESSIONS)
@pytest.mark.parametrize("log_id", ["log1", "log2"])
@pytest.mark.parametrize("half", [False, True], ids=["whole", "half"])
@pytest.mark.parametrize("after", [0, 0.02, None], ids=["at once", "20 ms later", "with the next request"])
async def test_an_answer_is_that_of_its_request(
    after: float | None, half: bool, log_id: str, session_of: Callable[[], Any]
) -> None:
    """The gateway passes every answer on twice: what is told must be what the server did all the same."""
    gateway = Gateway(after=after, half=half, log_id=log_id)
    async with (
        session_of() as session,
        raw_server(gateway) as server,
        FeishuMailClient(
            TOKEN, base_url=server.base_url, rate_limit=FREE, retry=PATIENT, session=session
        ) as client,
    ):
        told = {}
        for number in EACH:
            told[f"d{number}"] = await outcome(client, f"d{number}")
            await asyncio.sleep(0.03)
    assert told == {draft: None if refused(draft) else f"m-{draft}" for draft in told}
    assert [draft_of(request) for request in server.requests] == list(told)


async def test_a_connection_of_the_callers_own_requests_is_not_taken() -> None:
    """The caller's pool holds an idle connection, on which an answer comes that nobody asked for."""
    poison: list[asyncio.StreamWriter] = []

    async def handler(request: Request, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if request.target == "/theirs":
            poison.append(writer)
            writer.write(http(200, b"theirs"))
        else:
            poison[0].write(answer_to("d1"))
            await settle()
            writer.write(answer_to(draft_of(request)))

    async with aiohttp.ClientSession() as session, raw_server(handler) as server:
        async with session.get(f"{server.base_url}/theirs") as response:
            assert await response.read() == b"theirs"
        async with FeishuMailClient(
            TOKEN, base_url=server.base_url, rate_limit=FREE, retry=ONCE, session=session
        ) as client:
            assert await outcome(client, "d3") is None
            assert await outcome(client, "d4") == "m-d4"


async def test_a_server_that_speaks_first_is_asked_nothing() -> None:
    """What comes before the request was written cannot be its answer."""
    spoke, ended = asyncio.Event(), asyncio.Event()
    asked = b""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        writer.write(SENT)
        await writer.drain()
        await settle()
        spoke.set()
        asked = await reader.read()
        writer.close()
        ended.set()

    async def hold(*_: Any) -> None:
        await spoke.wait()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    base_url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    trace = aiohttp.TraceConfig()
    trace.on_connection_create_end.append(hold)
    async with (
        aiohttp.ClientSession(trace_configs=[trace]) as session,
        Transport(base_url, 30, session) as transport,
    ):
        answer = await transport.exchange("POST", "/x", Hidden(TOKEN))
        await ended.wait()
    listener.close()
    assert asked == b""
    assert isinstance(answer, Failure)
    assert answer.end is CallEnd.NEVER_LEFT
    assert "before" in answer.reason


# -- connections -------------------------------------------------------------------------------------------


def noting(peers: list[int], handler: Handler) -> Handler:
    """A handler that notes the client's port of each request."""

    async def noted(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(writer.get_extra_info("peername")[1])
        await handler(request, reader, writer)

    return noted


CALLS: Final[dict[str, Callable[[Transport], Awaitable[Any]]]] = {
    "send": lambda transport: transport.exchange("POST", "/x", Hidden(TOKEN)),
    "list": lambda transport: transport.exchange("GET", "/x", Hidden(TOKEN)),
    "token": lambda transport: transport.exchange(
        "POST", TOKEN_PATH, None, secret_body(Hidden({"grant_type": "x"}))
    ),
}


@pytest.mark.parametrize("session_of", SESSIONS.values(), ids=SESSIONS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_every_call_has_a_connection_of_its_own(
    call: Callable[[Transport], Awaitable[Any]], session_of: Callable[[], Any]
) -> None:
    """The server keeps them open, whatever it was asked: we close them."""
    peers: list[int] = []
    async with (
        session_of() as session,
        raw_server(noting(peers, always(SENT))) as server,
        Transport(server.base_url, 30, session) as transport,
    ):
        for _ in range(5):
            assert isinstance(await call(transport), Reply)
        await settle()
        assert len(set(peers)) == 5
        assert server.open == 0
        assert {request.headers["connection"] for request in server.requests} == {"close"}


async def test_the_callers_pool_stays_as_it_was() -> None:
    peers: list[int] = []
    async with aiohttp.ClientSession() as session, raw_server(noting(peers, always(SENT))) as server:

        async def theirs() -> None:
            async with session.get(f"{server.base_url}/theirs") as response:
                assert response.status == 200

        await theirs()
        async with FeishuMailClient(TOKEN, base_url=server.base_url, rate_limit=FREE, session=session) as client:
            for number in range(3):
                await client.send_draft(f"d{number}")
            await theirs()
            await client.send_draft("d3")
        await theirs()
        assert server.requests[0].headers.get("connection") != "close"
    own = peers[0]
    assert peers[4] == peers[6] == own
    assert len({*peers} - {own}) == 4


@pytest.mark.parametrize("limits", [{"limit": 1}, {"limit_per_host": 1}])
async def test_the_limits_of_the_callers_connector_hold(limits: dict[str, Any]) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def handler(_: Request, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await go_on.wait()
        writer.write(SENT)

    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(**limits)) as session,
        raw_server(handler) as server,
        Transport(server.base_url, 30, session) as transport,
    ):
        token = Hidden(TOKEN)
        calls = [asyncio.create_task(transport.exchange("POST", f"/{number}", token)) for number in range(3)]
        await asked.wait()
        await settle(100)
        assert len(server.requests) == 1
        go_on.set()
        for call in calls:
            assert isinstance(await call, Reply)
        assert len(server.requests) == 3


async def test_a_connection_limit_is_shared_with_the_callers_requests() -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def handler(_: Request, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await go_on.wait()
        writer.write(SENT)

    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session,
        raw_server(handler) as server,
        Transport(server.base_url, 30, session) as transport,
    ):
        theirs = asyncio.create_task(session.get(f"{server.base_url}/theirs").__aenter__())
        await asked.wait()
        ours = asyncio.create_task(transport.exchange("POST", "/ours", Hidden(TOKEN)))
        await settle(100)
        assert [request.target for request in server.requests] == ["/theirs"]
        go_on.set()
        (await theirs).release()
        assert isinstance(await ours, Reply)


async def test_a_server_that_hangs_up_on_used_connections_costs_nothing() -> None:
    """The idle time of the server's connections ends as the next call comes: six drafts are six calls."""
    used: set[asyncio.StreamWriter] = set()

    async def handler(_: Request, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if writer in used:
            writer.transport.abort()
        used.add(writer)
        writer.write(SENT)

    async with (
        raw_server(handler) as server,
        FeishuMailClient(TOKEN, base_url=server.base_url) as client,
    ):
        results: list[SendResult] = [await client.send_draft(f"d{number}") for number in range(6)]
        assert len(server.requests) == 6
    assert [(result.attempts, result.already_sent) for result in results] == [(1, False)] * 6


# -- one turn, one call ------------------------------------------------------------------------------------


async def hang_up(_: Request, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def reset(_: Request, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


@pytest.mark.parametrize("session_of", SESSIONS.values(), ids=SESSIONS)
@pytest.mark.parametrize("ending", [hang_up, reset])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_call_that_is_broken_off_is_made_once(
    call: Callable[[Transport], Awaitable[Any]], ending: Handler, session_of: Callable[[], Any]
) -> None:
    """aiohttp repeats a GET whose connection breaks off; a repetition needs a turn."""
    async with (
        session_of() as session,
        raw_server(ending) as server,
        Transport(server.base_url, 30, session) as transport,
    ):
        answer = await call(transport)
        assert len(server.requests) == 1
    assert isinstance(answer, Failure)
    assert answer.end is CallEnd.LOST
    assert "isconnected" in answer.reason or "reset" in answer.reason


async def test_a_list_call_that_is_broken_off_is_counted() -> None:
    async with raw_server(hang_up) as server:
        async with FeishuMailClient(TOKEN, base_url=server.base_url, retry=PATIENT) as client:
            with pytest.raises(BadReply):
                await anext(aiter(client.list_drafts()))
        assert len(server.requests) == PATIENT.attempts
