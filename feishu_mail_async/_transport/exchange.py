"""One call and its answer.

A connection carries one exchange. A used connection may hold an answer that belongs to no request, and such an
answer may also come when the next request is under way already, so no check of a used connection can prove it
good.
"""

import asyncio
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Self
from urllib.request import getproxies, proxy_bypass

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from feishu_mail_async._api.base_url import is_loopback
from feishu_mail_async._api.bodies import Body
from feishu_mail_async._api.protocol import LONGEST_REPLY, CallEnd, Reply
from feishu_mail_async._forks import NOT_THIS_CLIENT, PROCESS, Origin
from feishu_mail_async._secrecy import Hidden

from .failures import BrokenOff, Failure, failure_of
from .streaming import Streamed

if TYPE_CHECKING:
    from aiohttp.connector import Connection

__all__ = ["NOT_MADE", "Transport"]

_LONGEST_CONNECT: Final = 10.0
"""Seconds for connecting, at most."""

_MARK: Final = "X-Feishu-Mail-Async"

NOT_MADE: Final = Failure(CallEnd.NEVER_LEFT, "it was not to be made any more")
"""The end of a call that was not made, because `may_go` said so."""


class Transport:
    """Exchanges with one host, over one aiohttp session.

    Args:
        base_url: the API's host, as `check_base_url` returned it.
        attempt_timeout: seconds for one whole exchange.
        session: the caller's own session; None: one is made on first use and closed with the transport.
    """

    def __init__(self, base_url: str, attempt_timeout: float, session: aiohttp.ClientSession | None) -> None:
        self.attempt_timeout = attempt_timeout
        self.base_url = base_url
        self._own = session is None
        self._session = session
        self._proxy: URL | None = None
        self._proxy_headers: dict[str, str] | None = None
        # Connecting has a shorter limit of its own: so a call that runs out of total time was certainly made.
        # Without `ceil_threshold`, aiohttp rounds timeouts over 5 s up to whole seconds.
        self._timeout = aiohttp.ClientTimeout(
            total=attempt_timeout, connect=min(_LONGEST_CONNECT, attempt_timeout / 2), ceil_threshold=math.inf
        )
        # aiohttp refuses our header beside credentials that the session brings, its own or those of ~/.netrc.
        # Set after that check, by the middleware, it takes their place.
        self._late_header = session is not None and (session.auth is not None or session.trust_env)
        self._loopback = is_loopback(URL(base_url).host)
        self._origin = Origin()
        if session is None:
            self._set_proxy()

    async def exchange(
        self,
        method: str,
        path: str,
        token: Hidden[str] | None,
        body: Body | None = None,
        may_go: Callable[[], bool] = lambda: True,
    ) -> Reply | Failure:
        """Make one call and read its answer; no exception but CancelledError comes out.

        Args:
            method: the HTTP method.
            path: the path and query, encoded already.
            token: the user_access_token; it goes into the request's header and nowhere else. None: no header.
            body: the body, if it has one.
            may_go: asked before anything is done.

        Returns:
            the answer, or why there is none; `NOT_MADE` if the call was not to be made.
        """
        if self._origin.process is not PROCESS.current:
            if self._origin.elsewhere:
                # The session's connections are the parent's, and what waits in this copy of the loop waits in the
                # parent, too: the call would be made twice.
                return Failure(CallEnd.NEVER_LEFT, NOT_THIS_CLIENT, lasting=True)
            self._origin.opened()
        if not may_go():
            return NOT_MADE
        if self._session is not None and self._session.closed:
            return Failure(CallEnd.NEVER_LEFT, "the session is closed")
        try:
            return await self._exchange(method, path, token, body)
        except asyncio.CancelledError as error:
            cancelled = asyncio.CancelledError(*error.args)
        raise cancelled  # without the frames in which the request stands

    async def _exchange(
        self, method: str, path: str, token: Hidden[str] | None, body: Body | None
    ) -> Reply | Failure:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "Connection": "close"}
        bearer = None if token is None else f"Bearer {token.value}"
        if bearer and not self._late_header:
            headers["Authorization"] = bearer
        only = _OnlyRequest(bearer if self._late_header else None, loopback=self._loopback)
        try:
            session = self._session or self._open()
            # The caller's session may have settings of its own; these are the ones that would turn an answer
            # into an exception, make several calls of one, or carry the token to another host.
            async with session.request(
                method,
                URL(self.base_url + path, encoded=True),
                headers=headers,
                data=None if body is None else Streamed(body),
                timeout=self._timeout,
                allow_redirects=False,
                raise_for_status=False,
                middlewares=(only,),
                auto_decompress=True,
                proxy=self._proxy,
                proxy_headers=self._proxy_headers,
            ) as response:
                return await _read(response)
        except Exception as error:  # noqa: BLE001 - trace hooks of the caller's session may raise anything
            secrets = (*((token.value,) if token else ()), *(body.secrets.value if body else ()))
            return failure_of(error, secrets, left=only.left, patience=self.attempt_timeout)

    @property
    def closed(self) -> bool:
        """True if the session was closed: by `close`, or by the caller who owns it."""
        return self._session is not None and self._session.closed

    async def close(self) -> None:
        """Close the session if it was opened here."""
        if self._own and self._session is not None and not self._origin.elsewhere:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        self._session = aiohttp.ClientSession(
            # No limit here: the scheduler limits concurrency, and no connection is used twice.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,  # True would read ~/.netrc, in a thread, on every call
        )
        return self._session

    def _set_proxy(self) -> None:
        """Take the proxy from the environment, as `HTTPS_PROXY` and `NO_PROXY` say; never for loopback."""
        url = URL(self.base_url)
        if url.host is None or self._loopback or proxy_bypass(url.host):
            return
        if not (found := getproxies().get(url.scheme)):
            return
        try:
            proxy = URL(found if "://" in found else f"http://{found}")
        except ValueError:
            proxy = URL()
        if proxy.scheme not in {"http", "https"} or not proxy.host:
            # Its value may hold a password, so it is not quoted.
            raise ValueError(
                f"{url.scheme.upper()}_PROXY: the environment's proxy cannot be used; give http://HOST:PORT"
            )
        if proxy.user:
            credentials = aiohttp.encode_basic_auth(proxy.user, proxy.password or "")
            self._proxy_headers = {"Proxy-Authorization": credentials}
        self._proxy = proxy.with_user(None)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.base_url}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _OnlyRequest:
    """A client middleware that makes sure an exchange is one request on a connection of its own.

    Args:
        bearer: the request's Authorization, where it has none yet.
        loopback: the host is this machine.

    Attributes:
        left: true if a part of the request may have been written.
    """

    def __init__(self, bearer: str | None, *, loopback: bool) -> None:
        self.left = True  # if this middleware is never called, assume the worst: the call may have left
        self._bearer = bearer
        self._loopback = loopback

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        if self._bearer is not None:
            request.headers["Authorization"] = self._bearer
        if self._loopback:
            request.proxy = None  # a proxy would carry the token of a plain-http host over a network
        self._give_own_connection(request)
        self.left = False
        try:
            return await handler(request)
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
            # aiohttp repeats a GET after these errors, but one turn is one call.
            raise BrokenOff from error

    def _give_own_connection(self, request: aiohttp.ClientRequest) -> None:
        """Give a request a connection that has carried nothing yet, and keep others from using it afterwards.

        Publicly this is a connector's setting for all its requests (`force_close`), and the connector may be the
        caller's. So two behaviours of aiohttp are relied on that it does not promise: a pooled connection is found
        by its proxy's headers, too, proxy or none, so that under a header of our own there is none; and a
        connection's `force_close` keeps it out of the pool, if called before the answer (a small answer puts it
        there at once). tests/unit/test_transport_exchange.py fails if either ends.
        """
        request.proxy_headers = CIMultiDict(request.proxy_headers or {}, **{_MARK: "1"})
        send = request.send

        async def send_on(conn: "Connection") -> aiohttp.ClientResponse:
            protocol = conn.protocol
            if protocol is None or protocol.should_close:
                raise aiohttp.ClientConnectionError("the connection was closed, or answered, before it was asked")
            protocol.force_close()
            self.left = True
            return await send(conn)

        request.send = send_on  # type: ignore[method-assign]


async def _read(response: aiohttp.ClientResponse) -> Reply:
    """Read an answer up to its bound. From here on the call counts as answered, even if the body is lost."""
    body: bytes | None
    try:
        body = await _read_body(response)
    except (aiohttp.ClientError, TimeoutError, OSError):
        body = None
    header = response.headers.get
    return Reply(
        response.status,
        body,
        log_id=header("X-Tt-Logid") or None,
        reset=header("x-ogw-ratelimit-reset") or None,
        date=header("Date") or None,
        retry_after=header("Retry-After") or None,
    )


async def _read_body(response: aiohttp.ClientResponse) -> bytes | None:
    if (response.content_length or 0) > LONGEST_REPLY:
        return None
    chunks: list[bytes] = []
    left = LONGEST_REPLY
    while not response.content.at_eof():
        chunk = await response.content.read(left + 1)
        left -= len(chunk)
        if left < 0:
            return None
        chunks.append(chunk)
    return b"".join(chunks)
