"""What several test files share: samples, a raw server on loopback, and looks at errors from every side."""

import asyncio
import contextlib
import pickle
import re
import ssl
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from feishu_mail_async import FeishuMailClient, FeishuMailError, RateLimit, RetryPolicy, codes
from feishu_mail_async.sandbox import Sandbox

_TESTS: Final = Path(__file__).parents[1]
PACKAGE: Final = Path(codes.__file__).parent
SAMPLES: Final = _TESTS / "samples"

TOKEN: Final = "u-CANARYx7f1bcd13fc57d46bac21793a18e560"
"""A token that stands out wherever it should not stand."""

ONCE: Final = RetryPolicy(attempts=1, refusals=0, outage=0)
"""No second attempt, whatever goes wrong."""

FREE: Final = RateLimit(calls=100_000, per=1.0, spacing=0, margin=0)
"""No limit that a test would notice."""


def sample(name: str) -> bytes:
    """The bytes of a reply in tests/samples."""
    return (SAMPLES / name).read_bytes()


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


@contextlib.asynccontextmanager
async def scene(
    *users: str, drafts: int = 1, app: str | None = None, **settings: Any
) -> AsyncIterator[tuple[Sandbox, FeishuMailClient, list[str]]]:
    """A sandbox with users ("alice" if none is named), a client of all of them, and drafts of the first."""
    users = users or ("alice",)
    async with Sandbox(users=users, latency=0.1) as sandbox:
        ids = sandbox.add_drafts(users[0], drafts)
        async with FeishuMailClient(sandbox.tokens, app=app, base_url=sandbox.base_url, **settings) as client:
            yield sandbox, client, ids


async def settle(rounds: int = 30) -> None:
    """Let everything happen that takes no time."""
    for _ in range(rounds):
        await asyncio.sleep(0)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and all its causes and contexts."""
    seen: set[int] = set()
    todo = [error]
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        todo += [one.__cause__, one.__context__]


def sides(error: BaseException) -> Iterator[tuple[str, str]]:
    """All that can be seen of an exception and of all that hangs on it: the name of a text, and the text."""
    for one in chain(error):
        seen = {
            "str": str(one),
            "repr": repr(one),
            "args": repr(one.args),
            "attributes": repr(vars(one)),
            "traceback": "".join(traceback.format_exception(one)),
        }
        if isinstance(one, FeishuMailError):
            seen["pickle"] = pickle.dumps(one).decode("latin-1")
        yield from ((f"{side} of {type(one).__name__}", text) for side, text in seen.items())


def holds(error: BaseException, secret: str) -> list[str]:
    """Where in an exception and in all that hangs on it a secret stands."""
    return [side for side, text in sides(error) if secret in text]


def frames_holding(error: BaseException, secrets: Iterable[str]) -> list[str]:
    """List the variables in the frames of an exception, and of all that hangs on it, that show a secret.

    As a tool shows them that prints the values of variables. The frames of the tests are left out: they know them.
    """
    found, wanted = [], [secret for secret in secrets if secret]
    for one in chain(error):
        for frame, line in traceback.walk_tb(one.__traceback__):
            if frame.f_code.co_filename.startswith(f"{_TESTS}/"):
                continue
            for name, value in frame.f_locals.items():
                try:
                    shown = repr(value)
                except Exception:  # noqa: BLE001 - of something that is only half made
                    continue
                if any(secret in shown for secret in wanted):
                    found.append(f"{frame.f_code.co_filename}:{line}: {name} of {frame.f_code.co_name}")
    return found


def begins_with(name: str) -> str:
    """A pattern for `pytest.raises(match=...)`: the message begins with the parameter's name."""
    return rf"^{re.escape(name)}\b"


def our_tasks() -> list[asyncio.Task[Any]]:
    """The tasks of the package, without the sandbox's."""
    found = []
    for task in asyncio.all_tasks():
        code = getattr(task.get_coro(), "cr_code", None)
        if code is not None and code.co_filename.startswith(f"{PACKAGE}/") and "/sandbox/" not in code.co_filename:
            found.append(task)
    return found


async def cancel_all(callers: Collection[asyncio.Task[Any]], passes: int) -> None:
    """Cancel all tasks of the package and its callers after so many passes of the loop; wait for the callers."""
    for _ in range(passes):
        await asyncio.sleep(0)
    for task in {*our_tasks(), *callers}:
        task.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
