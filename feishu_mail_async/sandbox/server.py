"""The server: a call sets out, arrives, is judged at that instant, takes effect, and is answered.

`request -> way there -> judge -> processing -> effect -> way back -> answer`. All time is the running
loop's, so a virtual clock runs hours of it in milliseconds.
"""

import asyncio
import contextlib
import ipaddress
import itertools
import os
import random
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Self

from aiohttp import web

from .control import CONTROL, control
from .endpoints import Endpoints, now
from .faults import JSON, Fault, Kind, Reply, json_reply
from .guard import TOKEN_HEADER, Guard
from .judge import Judge
from .ledger import Arrival, Ledger
from .oauth import OAuth, read_form, refuse
from .paths import Call, read_call
from .window import Window, make_window
from .world import ALL_SCOPES, World

__all__ = ["Latency", "Sandbox"]

Latency = float | tuple[float, float] | Callable[[random.Random], tuple[float, float]]
"""Seconds on the way: a round trip, `(low, high)` for each way, or a function that gives (there, back)."""

_TOKEN_PATH: Final = "/open-apis/authen/v2/oauth/token"  # noqa: S105 - an address, not a secret
_AUTHORIZE_PATH: Final = "/open-apis/authen/v1/authorize"

_LARGEST_BODY: Final = 64 * 1024 * 1024
_LONGEST_LINE: Final = 64 * 1024
_CHUNK: Final = 64 * 1024
_LINGER_NOT: Final = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
"""SO_LINGER with zero seconds: closing resets the connection. Windows has shorter fields."""

_had: Final[set[int]] = set()
_MANY: Final = 10_000
"""Ports after which there may soon be none left that is new."""


class Sandbox:
    """A server on loopback that behaves as the platform's documents say, in the running loop.

    Args:
        calls: sends allowed in a window.
        per: the window's length in seconds.
        window: how it is laid.
        count_refusals: whether refused sends fill the window too.
        latency: seconds on the way; see `Latency`.
        processing: seconds between the arrival of a write and its effect.
        lock_until_answered: hold a write's locks until its answer leaves for good, at the end of the way
            back. That is the strict reading, since nobody can tell when the server releases them. Otherwise
            they are held while it is processed.
        daily_quota: mails a day for every user; None: no end to it.
        users: names, or name -> address, of users to begin with.
        expires_in: seconds an access token of the token endpoint lives.
        client_id: the app's.
        client_secret: the app's.
        auto_approve: let the authorization page agree without asking.
        host: an IP address of this machine; nothing is looked up by name.
        port: 0 takes a free one, which no other sandbox of this process had.
        seed: of the latencies and the ids.

    Attributes:
        ledger: what arrived, and what was counted.
        processing: as above; may be set while it runs.
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
        self._family = _family(host)
        self._host = host
        self._guard = Guard(host)
        self._wanted_port = port
        self._random = random.Random(seed)
        self._lock_until_answered = lock_until_answered
        self._tokens: dict[str, str] = {}
        self._token_script: deque[str | Fault] = deque()
        self._numbers = itertools.count(1)
        self._server: web.Server | None = None
        self._closing: asyncio.Future[None] | None = None
        self._listener: asyncio.Server | None = None
        self._port: int | None = None
        self._handlers: set[asyncio.Task[Any]] = set()
        self.latency = latency
        self.processing = processing
        self.ledger = Ledger(per)
        self._world = World(seed, daily_quota)
        self._endpoints = Endpoints(self._world, self.ledger)
        self._oauth = OAuth(self._world, client_id, client_secret, expires_in, self.ledger.refreshes, auto_approve)
        self._judge = Judge(
            world=self._world,
            oauth=self._oauth,
            ledger=self.ledger,
            endpoints=self._endpoints,
            window=make_window(Window(window), calls, per, count_refusals=count_refusals),
            calls=calls,
        )
        for name in users:
            self.add_user(name, address=users[name] if isinstance(users, Mapping) else None)

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
        """Listen; nothing happens if it listens already."""
        if self._server is not None:
            return
        listening = self._bind(self._wanted_port) if self._wanted_port else self._bind_new()
        self._server = web.Server(
            self._handle,
            request_factory=_make_request,
            access_log=None,
            max_line_size=_LONGEST_LINE,
            max_field_size=_LONGEST_LINE,
        )
        self._port = listening.getsockname()[1]
        await self._listen(listening)

    async def close(self) -> None:
        """Stop listening, and end every call that is still under way; cancelling it does not break it off."""
        server, self._server = self._server, None
        if server is not None:
            self._closing = asyncio.ensure_future(self._close(server))
            await asyncio.shield(self._closing)

    async def _close(self, server: web.Server) -> None:
        self._stop_listening()
        self._endpoints.close()
        # Idle connections first, or their keeping-alive would be waited for; then those that sleep or hang.
        server.pre_shutdown()
        handlers = list(self._handlers)
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
        await server.shutdown(1.0)
        # Transports close in the loop's next turn; the test's loop may not have one.
        await asyncio.sleep(0)
        self._judge.forget_locks()

    @property
    def base_url(self) -> str:
        """The address to give a client, without a slash at its end."""
        if self._port is None:
            raise RuntimeError("the sandbox has no address yet: start it with `async with sandbox:`")
        host = f"[{self._host}]" if self._family == socket.AF_INET6 else self._host
        return f"http://{host}:{self._port}"

    @contextlib.asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        """Nothing is reachable: connections are reset and new ones refused, until the block ends.

        Calls that are under way on the server run on, and their answers are lost.
        """
        self._stop_listening()
        assert self._server is not None, "the sandbox does not run"
        assert self._port is not None
        for connection in self._server.connections:
            _reset(connection.transport)
        # Bound but not listening: connections are refused, and nobody else can take the port.
        placeholder = self._bind(self._port)
        # One turn of the loop, in which the resets leave.
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

        What a client remembers of an address, such as a user that may not send, is of another server.
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
            # Closed in the middle of an outage.
            bound.close()
            return
        self._listener = await asyncio.get_running_loop().create_server(self._server, sock=bound, backlog=1024)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    # --- setting the scene ------------------------------------------------------------------------------

    @property
    def latency(self) -> Latency:
        """Seconds on the way; may be set while it runs."""
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
    def on_call(self) -> Callable[[Arrival], Fault | None] | None:
        """Called with every send that is about to be carried out and has no script.

        What it returns is applied as if it had been scripted (of a delay, the way back); None: nothing is.
        """
        return self._judge.on_call

    @on_call.setter
    def on_call(self, on_call: Callable[[Arrival], Fault | None] | None) -> None:
        self._judge.on_call = on_call

    @property
    def auto_approve(self) -> bool:
        """Whether the authorization page agrees without asking; may be set while it runs."""
        return self._oauth.auto_approve

    @auto_approve.setter
    def auto_approve(self, approve: bool) -> None:
        self._oauth.auto_approve = approve

    @property
    def client_id(self) -> str:
        """The app's id, for the token endpoint."""
        return self._oauth.client_id

    @property
    def client_secret(self) -> str:
        """The app's secret, for the token endpoint."""
        return self._oauth.client_secret

    @property
    def control_token(self) -> str:
        """What the sandbox's own endpoints want in the header X-Sandbox-Token."""
        return self._guard.token

    @property
    def users(self) -> dict[str, str]:
        """User -> address of the user's own mailbox."""
        return {name: user.address for name, user in self._world.users.items()}

    @property
    def tokens(self) -> dict[str, str]:
        """User -> the token that `add_user` or `renew_token` gave last."""
        return dict(self._tokens)

    def token(self, user: str) -> str:
        """The token that `add_user` or `renew_token` gave last."""
        self._world.user(user)
        return self._tokens[user]

    def add_user(
        self,
        user: str,
        *,
        address: str | None = None,
        scopes: Iterable[str] = ALL_SCOPES,
        expires_in: float | None = None,
        token: str | None = None,
    ) -> str:
        """Add a user with a mailbox of their own, and return a user_access_token of theirs.

        Args:
            user: how to call them.
            address: of their mailbox; `USER@example.com` if not given.
            scopes: what the token allows.
            expires_in: seconds the token lives; None: for good.
            token: one to use instead of a new one (a long JWT, say).
        """
        self._world.add_user(user, address)
        return self.renew_token(user, scopes=scopes, expires_in=expires_in, token=token)

    def renew_token(
        self,
        user: str,
        *,
        scopes: Iterable[str] = ALL_SCOPES,
        expires_in: float | None = None,
        token: str | None = None,
    ) -> str:
        """One more user_access_token for a user, which `token` and `tokens` give from now on."""
        self._world.user(user)
        expires = None if expires_in is None else now() + expires_in
        self._tokens[user] = self._oauth.new_access(user, frozenset(scopes), expires, token)
        return self._tokens[user]

    def issue_tokens(self, user: str, *, scopes: Iterable[str] = ALL_SCOPES) -> dict[str, Any]:
        """A pair of tokens without the dance, laid out as the token endpoint answers."""
        self._world.user(user)
        return self._oauth.issue(user, frozenset(scopes), now())

    def expire_token(self, user: str) -> None:
        """End every access token of a user; refresh tokens stay good."""
        self._oauth.expire(self._world.user(user).name, now())

    def revoke(self, user: str) -> None:
        """Take back every access token and refresh token of a user."""
        self._oauth.revoke(self._world.user(user).name)

    def add_draft(self, user: str, draft_id: str | None = None, mailbox: str = "me") -> str:
        """Put a draft into a mailbox, and return its id.

        Args:
            user: whose it is.
            draft_id: one to use instead of a new one; any text, unique in the sandbox.
            mailbox: "me", or an address that the user may use.
        """
        owner = self._world.user(user)
        box = self._world.mailbox(owner.address if mailbox == "me" else mailbox)
        return self._world.add_draft(box, draft_id).draft_id

    def add_drafts(self, user: str, count: int, *, mailbox: str = "me") -> list[str]:
        """Put `count` drafts into a mailbox, and return their ids."""
        return [self.add_draft(user, mailbox=mailbox) for _ in range(count)]

    def share_mailbox(self, address: str, *users: str) -> None:
        """Let these users use a mailbox, which is made if there is none."""
        self._world.share(address, *users)

    def close_mailbox(self, address: str) -> None:
        """Answer every call of this mailbox with "not found or not active"."""
        self._world.mailbox(address).closed = True

    def open_mailbox(self, address: str) -> None:
        """Undo `close_mailbox` and `disable_automation`."""
        mailbox = self._world.mailbox(address)
        mailbox.closed, mailbox.automation = False, None

    def disable_automation(
        self,
        address: str,
        reason: str = "automation is off",
        reference: str = "https://mail.example.com/draft",
    ) -> None:
        """Answer every send of this mailbox with code 0 and `automation_send_disable`, and send nothing."""
        self._world.mailbox(address).automation = (reason, reference)

    def set_quota(self, user: str, mails: int | None) -> None:
        """Let a user send this many more mails within 24 hours of the first of them; None: no end to it."""
        found = self._world.user(user)
        found.quota, found.sent_today, found.day_began = mails, 0, None

    def limit_now(self, seconds: float) -> None:
        """Refuse every send for these seconds, with the right reset, as if other programs had used it all up."""
        self._judge.paused_until = now() + seconds

    def script(self, draft_id: str, *faults: Fault) -> None:
        """Let these happen to the next sends of a draft, one each.

        A call uses one up once it has passed the rate limit, its token, its mailbox and the locks; only a
        delay is used up earlier, when the call sets out.
        """
        self._judge.script(draft_id, *faults)

    def script_token(self, *faults: str | Fault) -> None:
        """Let these happen to the next calls of the token endpoint, one each.

        Args:
            *faults: names from `codes.OAUTH`; or faults, of which those that are `accepted` renew the tokens
                and then lose the answer, or give another one (`odd_grant`).
        """
        for fault in faults:
            if isinstance(fault, str):
                refuse(fault)
        self._token_script.extend(faults)

    def unix_time(self) -> float:
        """Seconds since 1970 as the sandbox has it, which scheduled sends are told by."""
        return self._endpoints.unix_time()

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
                # The client has gone before it had said everything: nothing arrives.
                return web.Response()
            if (refusal := self._refuse(request)) is not None:
                return _respond(json_reply(403, {"error": refusal}), self._log_id())
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
            return _respond(reply, self._log_id())
        finally:
            self._handlers.discard(task)

    def _refuse(self, request: web.BaseRequest) -> str | None:
        """Why a request is not for this sandbox, or not for its caller to make; None if it is."""
        headers = request.headers
        hosts = headers.getall("Host", [])
        refusal = self._guard.stranger(self._port, hosts, headers.getall("Origin", []))
        if refusal is None and request.raw_path.startswith(CONTROL):
            refusal = self._guard.intruder(request.remote, self._port, hosts, headers.getall(TOKEN_HEADER, []))
        return refusal

    async def _mail(self, request: web.BaseRequest, call: Call, body: bytes) -> web.StreamResponse:
        delay = self._judge.claim_delay(call)
        there, back = self._ways(self._random) if delay is None else (delay.there, delay.back)
        await _pass(there)
        authorization = request.headers.get("Authorization")
        plan = self._judge.judge(call, authorization=authorization, body=body, log_id=self._log_id(), delay=delay)
        try:
            if plan.locks:
                await _pass(self.processing)
            if plan.effect is not None:
                plan.effect()
            if not self._lock_until_answered:
                self._judge.release(plan)
            await _pass(plan.fault.back if plan.fault is not None and plan.fault.kind is Kind.DELAY else back)
        finally:
            # At the door, not after the last byte: a client may stop reading, and is then done with the call.
            self._judge.release(plan)
        return await self._answer(request, plan.reply, plan.fault, plan.log_id)

    async def _token(self, request: web.BaseRequest, body: bytes) -> web.StreamResponse:
        scripted = self._token_script.popleft() if self._token_script else None
        fault = scripted if isinstance(scripted, Fault) else None
        there, back = self._ways(self._random)
        if fault is not None and fault.kind is Kind.DELAY:
            there, back = fault.there, fault.back
        await _pass(there)
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
        await _pass(back)
        return await self._answer(request, reply, fault, self._log_id())

    async def _answer(
        self, request: web.BaseRequest, reply: Reply, fault: Fault | None, log_id: str
    ) -> web.StreamResponse:
        match fault.kind if fault is not None else Kind.NORMAL:
            case Kind.RESET:
                _reset(request.transport)
                # aiohttp wants an answer, finds the connection gone, and drops it.
                return web.Response()
            case Kind.HANG:
                # Until `close` cancels it.
                await asyncio.get_running_loop().create_future()
                return web.Response()
            case Kind.HUGE:
                assert fault is not None
                return await _stream(request, fault, log_id)
            case _:
                return _respond(reply, log_id)

    def _log_id(self) -> str:
        return f"sandbox{next(self._numbers):012d}"


def _family(host: str) -> socket.AddressFamily:
    """The family of an IP address; a ValueError for a name, which would have to be looked up."""
    return socket.AF_INET6 if ":" in str(ipaddress.ip_address(host)) else socket.AF_INET


async def _pass(seconds: float) -> None:
    # Not even a turn of the loop for no time at all.
    if seconds > 0:
        await asyncio.sleep(seconds)


def _respond(reply: Reply, log_id: str) -> web.Response:
    headers = {"X-Tt-Logid": log_id, "Content-Type": reply.content_type}
    headers.update(reply.headers)
    return web.Response(body=reply.body, status=reply.status, headers=headers)


def _make_request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=_LARGEST_BODY)


def _reset(transport: asyncio.Transport | None) -> None:
    """Break a connection so that the other side sees a reset, not an orderly end."""
    if transport is None or transport.is_closing():
        return
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    transport.abort()


async def _stream(request: web.BaseRequest, fault: Fault, log_id: str) -> web.StreamResponse:
    """Answer with a huge body, piece by piece."""
    response = web.StreamResponse(headers={"X-Tt-Logid": log_id, "Content-Type": JSON})
    head, tail = b'{"code":0,"msg":"success","data":{"x":"', b'"}}'
    if fault.declared:
        response.content_length = max(fault.size, len(head) + len(tail))
    # A client that has had enough hangs up; aiohttp finds the connection gone and drops it.
    with contextlib.suppress(ConnectionError):
        await response.prepare(request)
        await response.write(head)
        left = fault.size - len(head) - len(tail)
        while left > 0:
            await response.write(b"x" * min(left, _CHUNK))
            left -= _CHUNK
        await response.write(tail)
    return response
