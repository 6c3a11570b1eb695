"""A raw server on loopback, which knows nothing of HTTP."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final


def http(status: int, body: bytes, *headers: tuple[str, str], length: int | None = None) -> bytes:
    """An HTTP answer as it goes over the wire; `length` is what it says of itself."""
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body) if length is None else length}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


SENT: Final = http(
    200,
    b'{"code":0,"msg":"success","data":{"message_id":"m1","thread_id":"t1"}}',
    ("Content-Type", "application/json"),
    ("X-Tt-Logid", "log1"),
)


@dataclass
class Request:
    """One request, as it came over the wire."""

    line: str
    headers: dict[str, str]

    @property
    def target(self) -> str:
        return self.line.split(" ")[1]


Handler = Callable[[Request, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """The head of the next request; None where the connection ends."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    line, *rest = head.rstrip("\r\n").split("\r\n")
    pairs = (text.partition(":") for text in rest)
    return Request(line, {name.strip().lower(): value.strip() for name, _, value in pairs})


@dataclass
class RawServer:
    """What a raw server saw, and how many of its connections are open."""

    base_url: str
    port: int
    open: int = 0
    requests: list[Request] = field(default_factory=list)


@contextlib.asynccontextmanager
async def raw_server(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawServer]:
    """A server on loopback in this loop, which hands every request to `handler` and knows nothing of HTTP."""
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        server.open += 1
        try:
            while (request := await read_request(reader)) is not None:
                server.requests.append(request)
                await handler(request, reader, writer)
                if writer.is_closing():
                    break
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            server.open -= 1
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    port = listener.sockets[0].getsockname()[1]
    server = RawServer(f"{'http' if tls is None else 'https'}://127.0.0.1:{port}", port)
    try:
        yield server
    finally:
        listener.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)


def always(*answers: bytes) -> Handler:
    """A handler that gives these answers, one a request, and the last one for good."""
    left = list(answers)

    async def answer(_: Request, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(left.pop(0) if len(left) > 1 else left[0])
        await writer.drain()

    return answer
