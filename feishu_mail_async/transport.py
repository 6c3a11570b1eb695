"""One HTTP exchange over aiohttp, with its time and size limits. It knows no policy.

Whatever happens on the wire comes back as a value: a `Reply`, or a `CallEnd` with the reason. That keeps
aiohttp's exceptions, some of which hold the request's headers and so the token, inside this room.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from errno import errorcode
from typing import Final, Self
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from .protocol import LONGEST_REPLY, REDACTED, CallEnd, Reply, is_loopback

__all__ = ["Failure", "Transport"]

_LONGEST_CONNECT: Final = 10.0

# aiohttp raises these before the first byte of the request is written.
_BEFORE_THE_REQUEST: Final = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ServerFingerprintMismatch,
    aiohttp.ClientHttpProxyError,
    aiohttp.InvalidURL,
)


@dataclass(frozen=True, slots=True)
class Failure:
    """A call without an answer: `end` is LOST or NEVER_LEFT, `reason` says why."""

    end: CallEnd
    reason: str


class Transport:
    """Exchanges with one host, over one aiohttp session.

    Args:
        base_url: the API's host, as `check_base_url` returned it.
        attempt_timeout: seconds for one whole exchange.
        session: the caller's own session; None: one is made on first use and closed with the transport.
    """

    def __init__(self, base_url: str, attempt_timeout: float, session: aiohttp.ClientSession | None) -> None:
        self.attempt_timeout = attempt_timeout
        self._base_url = base_url
        self._own = session is None
        self._session = session
        self._proxy: URL | None = None
        self._proxy_headers: dict[str, str] | None = None
        self._reason_timeout = f"none within {attempt_timeout:g} s"
        # Connecting has a shorter limit of its own: so a call that ran out of time is known to have been made.
        # aiohttp rounds timeouts over 5 s up to whole seconds unless told otherwise.
        self._timeout = aiohttp.ClientTimeout(
            total=attempt_timeout, connect=min(_LONGEST_CONNECT, attempt_timeout / 2), ceil_threshold=math.inf
        )
        # aiohttp refuses our header beside credentials that the session brings, its own or those of ~/.netrc.
        # Set after that check, by a middleware, it takes their place.
        self._late_header = session is not None and (session.auth is not None or session.trust_env)
        if session is None:
            self._set_proxy()

    async def exchange(
        self, method: str, path: str, token: str | None, body: Mapping[str, str] | None = None
    ) -> Reply | Failure:
        """Make one call and read its answer.

        Args:
            method: the HTTP method.
            path: the path and query, encoded already.
            token: the user_access_token; it goes into the request's header and nowhere else. None: no header.
            body: goes into the request as JSON, and nowhere else.
        """
        session = self._session or self._open()
        try:
            # The caller's session may have settings of its own; these are the ones that would turn an answer
            # into an exception, make several calls of one, or carry the token to another host.
            headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
            bearer = f"Bearer {token}" if token else None
            if bearer and not self._late_header:
                headers["Authorization"] = bearer
            async with session.request(
                method,
                URL(self._base_url + path, encoded=True),
                headers=headers,
                json=body,
                timeout=self._timeout,
                allow_redirects=False,
                raise_for_status=False,
                middlewares=(self._middleware(bearer),) if bearer and self._late_header else (),
                auto_decompress=True,
                proxy=self._proxy,
                proxy_headers=self._proxy_headers,
            ) as response:
                return await _read(response)
        except _BEFORE_THE_REQUEST as error:
            return Failure(CallEnd.NEVER_LEFT, _reason(error, token))
        except TimeoutError:
            return Failure(CallEnd.LOST, self._reason_timeout)
        except Exception as error:  # noqa: BLE001 - a caller's trace hook may raise anything, after the call
            return Failure(CallEnd.LOST, _reason(error, token))

    @property
    def closed(self) -> bool:
        """Whether the session was closed: by `close`, or by the caller whose own it is."""
        return self._session is not None and self._session.closed

    async def close(self) -> None:
        """Close the session if it is our own."""
        if self._own and self._session is not None:
            await self._session.close()

    def _middleware(self, bearer: str) -> aiohttp.ClientMiddlewareType:
        async def authorize(
            request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
        ) -> aiohttp.ClientResponse:
            request.headers["Authorization"] = bearer
            if is_loopback(request.url.host):
                request.proxy = None  # an environment's proxy would carry the token over a network, in the clear
            return await handler(request)

        return authorize

    def _open(self) -> aiohttp.ClientSession:
        self._session = aiohttp.ClientSession(
            # How many calls run at once is the scheduler's business, not the pool's.
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,  # True asks ~/.netrc, in a thread, on every call; it conflicts with our header
        )
        return self._session

    def _set_proxy(self) -> None:
        """Take the proxy from the environment, as `HTTPS_PROXY` and `NO_PROXY` say; never for loopback."""
        url = URL(self._base_url)
        if url.host is None or is_loopback(url.host) or proxy_bypass(url.host):
            return
        found = getproxies().get(url.scheme)
        if not found:
            return
        try:
            proxy = URL(found if "://" in found else f"http://{found}")
        except ValueError:
            proxy = URL()
        if proxy.scheme not in {"http", "https"} or not proxy.host:
            # What stands there may hold a password, so it is not quoted.
            raise ValueError(
                f"{url.scheme.upper()}_PROXY: the environment's proxy cannot be used; give http://HOST:PORT"
            )
        if proxy.user:
            credentials = aiohttp.encode_basic_auth(proxy.user, proxy.password or "")
            self._proxy_headers = {"Proxy-Authorization": credentials}
        self._proxy = proxy.with_user(None)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._base_url}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _read(response: aiohttp.ClientResponse) -> Reply:
    """Read an answer up to its bound. From here on the call has been answered, whatever becomes of the body."""
    body: bytes | None
    try:
        body = await _read_body(response)
    except (aiohttp.ClientError, TimeoutError, OSError):
        body = None
    if body is None:
        response.close()  # the rest is never read, so the connection cannot be used again
    return Reply(
        response.status,
        body,
        log_id=_header(response, "X-Tt-Logid"),
        reset=_header(response, "x-ogw-ratelimit-reset"),
        date=_header(response, "Date"),
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


def _header(response: aiohttp.ClientResponse, name: str) -> str | None:
    return response.headers.get(name) or None


def _reason(error: Exception, token: str | None) -> str:
    """What an exception says, without what it holds: some of aiohttp's hold the request's headers."""
    try:
        text = _described(error)
    except Exception:  # noqa: BLE001 - an exception made by hand may lack what its class promises
        text = type(error).__name__
    return (text.replace(token, REDACTED) if token else text)[:300]


def _described(error: Exception) -> str:
    match error:
        case aiohttp.ClientConnectorError(os_error=OSError(errno=int() as number, strerror=said)):
            # asyncio tells which call failed; the number tells why.
            return f"{error.host}:{error.port}: {os.strerror(number) if number in errorcode else said}"
        case aiohttp.ClientResponseError():
            return f"HTTP {error.status} {error.message}"
        case _:
            return f"{type(error).__name__}: {error}"
