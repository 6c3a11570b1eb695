"""The server: the path of a call from request to answer.

`request -> way there -> judge -> processing -> effect -> way back -> answer`. All time is the running
loop's, so a virtual clock runs hours of it in milliseconds.
"""

import asyncio
import contextlib
import ipaddress
import itertools
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Self

from aiohttp import web

from .case import now
from .control import CONTROL, control
from .faults import Fault, Kind, Reply, json_reply
from .guard import TOKEN_HEADER, Guard
from .messages import read_submission
from .oauth import read_form, refuse
from .paths import Call, read_call
from .stage import Stage
from .window import Window
from .wire import make_request, pass_time, reset, respond, stream

__all__ = ["Latency", "Sandbox"]

Latency = float | tuple[float, float] | Callable[[random.Random], tuple[float, float]]
"""The latency in seconds: a round trip, `(low, high)` for each way, or a function that returns (there, back)."""

_TOKEN_PATH: Final = "/open-apis/authen/v2/oauth/token"  # noqa: S105 - an address, not a secret
_AUTHORIZE_PATH: Final = "/open-apis/authen/v1/authorize"

_LONGEST_LINE: Final = 64 * 1024

_had: Final[set[int]] = set()
_MANY: Final = 10_000
"""The number of used ports from which on a port may be used again, because few new ones may be left."""


class Sandbox(Stage):
    """A server on loopback that behaves as the platform's documents say, in the running loop.

    Args:
        calls: the number of sends allowed in a window.
        per: the window's length, in seconds.
        window: the shape of the window.
        count_refusals: True if refused sends fill the window too.
        latency: the latency in seconds; see `Latency`.
        processing: the time between the arrival of a write and its effect, in seconds.
        lock_until_answered: hold a write's locks until its answer leaves, at the end of the way back. That is the
            strict reading: when the server releases them is not documented. If False, they are held while the
            write is processed.
        daily_quota: the mails a day of every user; None for no limit.
        users: the users to begin with: names, or name -> address.
        expires_in: the lifetime of the token endpoint's access tokens, in seconds.
        client_id: the app's id.
        client_secret: the app's secret.
        auto_approve: let the authorization page agree without showing itself.
        host: an IP address of this machine; names are not resolved.
        port: the port; 0 for a free one, which no other sandbox of this process had.
        seed: the seed of latencies and ids.

    Attributes:
        ledger: the call log.
        processing: the argument of that name; may be set while the sandbox runs, as may all that `Knobs` has.

    Raises:
        ValueError: a value is out of range, or `host` is not an IP address.
    """

    def __init__(
        self,
        *,
        calls: int = 20,
        per: float = 60.0,
        window: Window = Window.SLIDING,
        count_refusals: bool = False,
        latency: Latency = (0.02, 0.1),
        processing: float = 0.0,
        lock_until_answered: bool = True,
        daily_quota: int | None = None,
        users: Iterable[str] | Mapping[str, str] = (),
        expires_in: float = 7200,
        client_id: str = "cli_sandbox",
        client_secret: str = "sandbox-secret",  # noqa: S107 - it opens nothing but the sandbox
        auto_approve: bool = False,
        host: str = "127.0.0.1",
        port: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            calls=calls,
            per=per,
            window=window,
            count_refusals=count_refusals,
            daily_quota=daily_quota,
            users=users,
            expires_in=expires_in,
            client_id=client_id,
            client_secret=client_secret,
            auto_approve=auto_approve,
            seed=seed,
        )
        self._family = _family(host)
        self._host = host
        self._guard = Guard(host)
        self._wanted_port = port
        self._random = random.Random(seed)
        self._lock_until_answered = lock_until_answered
        self._numbers = itertools.count(1)
        self._server: web.Server | None = None
        self._closing: asyncio.Future[None] | None = None
        self._listener: asyncio.Server | None = None
        self._port: int | None = None
        self._handlers: set[asyncio.Task[Any]] = set()
        self.latency = latency
        self.processing = processing

    def __repr__(self) -> str:
        where = self.base_url if self._port else "not started"
        return f"<Sandbox {where}: {self.ledger!r}>"

    # --- running it -------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Start listening. Idempotent.

        Raises:
            OSError: the address cannot be bound.
        """
        if self._server is not None:
            return
        listening = self._bind(self._wanted_port) if self._wanted_port else self._bind_new()
        self._server = web.Server(
            self._handle,
            request_factory=make_request,
            access_log=None,
            max_line_size=_LONGEST_LINE,
            max_field_size=_LONGEST_LINE,
        )
        self._port = listening.getsockname()[1]
        await self._listen(listening)

    async def close(self) -> None:
        """Stop listening and end every call in flight. Idempotent; completes even if the caller is cancelled."""
        server, self._server = self._server, None
        if server is not None:
            self._closing = asyncio.ensure_future(self._close(server))
            await asyncio.shield(self._closing)

    async def _close(self, server: web.Server) -> None:
        self._stop_listening()
        self._endpoints.close()
        # Idle connections first: shutdown would wait for their keep-alive. Then the calls that sleep or hang.
        server.pre_shutdown()
        handlers = list(self._handlers)
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
        await server.shutdown(1.0)
        # Transports close in the loop's next iteration; without this sleep the test's loop may not have one.
        await asyncio.sleep(0)
        self._judge.forget_locks()

    @property
    def base_url(self) -> str:
        """The base URL for a client, without a slash at its end.

        Raises:
            RuntimeError: the sandbox has not been started.
        """
        if self._port is None:
            raise RuntimeError("the sandbox has no address yet: start it with `async with sandbox:`")
        host = f"[{self._host}]" if self._family == socket.AF_INET6 else self._host
        return f"http://{host}:{self._port}"

    @contextlib.asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        """Reset all connections and refuse new ones until the block ends.

        Calls in flight on the server are carried out, and their answers are lost.
        """
        self._stop_listening()
        assert self._server is not None, "the sandbox does not run"
        assert self._port is not None
        for connection in self._server.connections:
            reset(connection.transport)
        # Bound but not listening: connections are refused, and no other program can take the port.
        placeholder = self._bind(self._port)
        # The resets leave in the loop's next iteration.
        await asyncio.sleep(0)
        try:
            yield
        finally:
            await self._listen(placeholder)

    def _bind(self, port: int) -> socket.socket:
        bound = socket.socket(self._family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setblocking(False)
        try:
            bound.bind((self._host, port))
        except OSError:
            bound.close()
            raise
        return bound

    def _bind_new(self) -> socket.socket:
        """Bind to a free port that no sandbox of this process had before.

        Clients of this process remember by address, say that a user is suspended. That must not be carried over
        from one sandbox to the next.
        """
        while True:
            bound = self._bind(0)
            port = bound.getsockname()[1]
            if port not in _had or len(_had) >= _MANY:
                _had.add(port)
                return bound
            bound.close()

    async def _listen(self, bound: socket.socket) -> None:
        if self._server is None:
            # `close` was called during an outage.
            bound.close()
            return
        self._listener = await asyncio.get_running_loop().create_server(self._server, sock=bound, backlog=1024)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    # --- the way ----------------------------------------------------------------------------------------

    @property
    def latency(self) -> Latency:
        """The latency in seconds (see `Latency`); may be set while the sandbox runs."""
        return self._latency

    @latency.setter
    def latency(self, latency: Latency) -> None:
        self._latency = latency
        if callable(latency):
            self._ways = latency
        elif isinstance(latency, tuple):
            low, high = latency
            self._ways = lambda draw: (draw.uniform(low, high), draw.uniform(low, high))
        else:
            half = latency / 2
            self._ways = lambda _: (half, half)

    @property
    def control_token(self) -> str:
        """The secret that the control endpoints require in the header X-Sandbox-Token."""
        return self._guard.token

    # --- answering --------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            target = request.raw_path
            try:
                body = await request.read() if request.body_exists else b""
            except ConnectionError:
                # The client disconnected before the request was complete, so no call arrives.
                return web.Response()
            if (refusal := self._refuse(request)) is not None:
                return respond(json_reply(403, {"error": refusal}), self._log_id())
            if (call := read_call(request.method, target)) is not None:
                return await self._mail(request, call, body)
            match request.method, target.partition("?")[0]:
                case "POST", path if path == _TOKEN_PATH:
                    return await self._token(request, body)
                case "GET", path if path == _AUTHORIZE_PATH:
                    reply = self._oauth.authorize(target, now())
                case method, path if path.startswith(CONTROL):
                    reply = control(self, method, path, body)
                case _:
                    reply = Reply(404, b"404 page not found", content_type="text/plain")
            return respond(reply, self._log_id())
        finally:
            self._handlers.discard(task)

    def _refuse(self, request: web.BaseRequest) -> str | None:
        """Return the reason to refuse a request before it is routed; None if it is acceptable."""
        headers = request.headers
        hosts = headers.getall("Host", [])
        refusal = self._guard.stranger(self._port, hosts, headers.getall("Origin", []))
        if refusal is None and request.raw_path.startswith(CONTROL):
            refusal = self._guard.intruder(request.remote, self._port, hosts, headers.getall(TOKEN_HEADER, []))
        return refusal

    async def _mail(self, request: web.BaseRequest, call: Call, body: bytes) -> web.StreamResponse:
        delay = self._judge.claim_delay(call)
        there, back = self._ways(self._random) if delay is None else (delay.there, delay.back)
        await pass_time(there)
        authorization = request.headers.get("Authorization")
        plan = self._judge.judge(call, authorization=authorization, body=body, log_id=self._log_id(), delay=delay)
        try:
            if plan.undecided is not None:
                # With the locks, as on the real server: it reads a large message while it has the call.
                self._judge.decide(plan, await asyncio.to_thread(read_submission, body))
            if plan.locks:
                await pass_time(self.processing)
            # Before the way back: an answer that is lost does not undo its effect.
            if plan.effect is not None:
                plan.effect()
            if not self._lock_until_answered:
                self._judge.release(plan)
            await pass_time(plan.fault.back if plan.fault is not None and plan.fault.kind is Kind.DELAY else back)
        finally:
            # When the answer leaves, not after its last byte: a client may stop reading and consider the call
            # ended.
            self._judge.release(plan)
        return await self._answer(request, plan.reply, plan.fault, plan.log_id)

    async def _token(self, request: web.BaseRequest, body: bytes) -> web.StreamResponse:
        scripted = self._token_script.popleft() if self._token_script else None
        fault = scripted if isinstance(scripted, Fault) else None
        there, back = self._ways(self._random)
        if fault is not None and fault.kind is Kind.DELAY:
            there, back = fault.there, fault.back
        await pass_time(there)
        # Stays empty for a fault without `accepted`: such a call grants nothing and spends nothing.
        reply = Reply(200, b"")
        if isinstance(scripted, str):
            reply = refuse(scripted)
        elif fault is None or fault.accepted or fault.kind in {Kind.DELAY, Kind.NORMAL}:
            reply = self._oauth.token(
                read_form(request.content_type, request.headers.get("Authorization"), body), now()
            )
        if fault is not None and fault.reply is not None:
            reply = fault.reply
        if fault is not None and fault.alter is not None and reply.code == 0:
            reply = fault.alter(reply)
        await pass_time(back)
        return await self._answer(request, reply, fault, self._log_id())

    async def _answer(
        self, request: web.BaseRequest, reply: Reply, fault: Fault | None, log_id: str
    ) -> web.StreamResponse:
        match fault.kind if fault is not None else Kind.NORMAL:
            case Kind.RESET:
                reset(request.transport)
                # aiohttp requires a response; it finds the connection gone and drops it.
                return web.Response()
            case Kind.HANG:
                # Never done; `close` cancels it.
                await asyncio.get_running_loop().create_future()
                return web.Response()
            case Kind.HUGE:
                assert fault is not None
                return await stream(request, fault, log_id)
            case _:
                return respond(reply, log_id)

    def _log_id(self) -> str:
        return f"sandbox{next(self._numbers):012d}"


def _family(host: str) -> socket.AddressFamily:
    """Return the family of an IP address; raise ValueError for a name, which would have to be resolved."""
    return socket.AF_INET6 if ":" in str(ipaddress.ip_address(host)) else socket.AF_INET
