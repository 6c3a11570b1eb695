"""A single HTTP exchange over aiohttp, with time and size limits. It knows no policy.

A connection carries one exchange. A used connection may hold an answer that belongs to no request, and such an
answer may also come when the next request is under way already, so no check of a used connection can prove it
good.

All results come back as values: a `Reply`, or a `CallEnd` with the reason. That keeps aiohttp's exceptions, some
of which hold the request's headers and so the token, inside this module.
"""

import asyncio
import math
import os
import socket
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from errno import errorcode
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Self
from urllib.request import getproxies, proxy_bypass

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from ._api.protocol import LONGEST_REPLY, CallEnd, Reply, is_loopback, redact
from ._forks import NOT_THIS_CLIENT, PROCESS, Origin
from ._secrecy import Hidden
from ._text import escape

if TYPE_CHECKING:
    from aiohttp.connector import Connection

__all__ = ["NOT_MADE", "Failure", "Transport"]

_LONGEST_CONNECT: Final = 10.0
"""Seconds for connecting, at most."""

# aiohttp raises these before the first byte of the request is written: then the call certainly never left.
_BEFORE_THE_REQUEST: Final = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ServerFingerprintMismatch,
    aiohttp.ClientHttpProxyError,
    aiohttp.InvalidURL,
)

_MARK: Final = "X-Feishu-Mail-Async"

# Verify codes of OpenSSL (x509_vfy.h). A certificate outside its validity may pass: a clock is set, or it is
# renewed.
_OUT_OF_ITS_TIME: Final = {9, 10}
_ANOTHER_NAME: Final = {62, 64}
# Reasons of OpenSSL for handshakes that no retry can save.
_NO_TLS: Final = {"HTTP_REQUEST", "WRONG_VERSION_NUMBER"}
_NO_TERMS: Final = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED",
    "TLSV1_ALERT_PROTOCOL_VERSION",
    "UNSUPPORTED_PROTOCOL",
}
# 4xx answers of a proxy that another attempt may change.
_PROXY_MAY_PASS: Final = {408, 425, 429}


@dataclass(frozen=True, slots=True)
class Failure:
    """A call without an answer.

    Attributes:
        end: LOST or NEVER_LEFT.
        reason: the reason, and the remedy if it is lasting.
        lasting: true if no call will leave until a setting is changed.
    """

    end: CallEnd
    reason: str
    lasting: bool = False


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
        body: Hidden[dict[str, str]] | None = None,
        may_go: Callable[[], bool] = lambda: True,
    ) -> Reply | Failure:
        """Make one call and read its answer; no exception but CancelledError comes out.

        Args:
            method: the HTTP method.
            path: the path and query, encoded already.
            token: the user_access_token; it goes into the request's header and nowhere else. None: no header.
            body: goes into the request as JSON, and nowhere else.
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
        self, method: str, path: str, token: Hidden[str] | None, body: Hidden[dict[str, str]] | None
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
                json=None if body is None else body.value,
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
            secrets = [*([token.value] if token else ()), *(body.value.values() if body else ())]
            reason = _reason(error, secrets)
            if not only.left or isinstance(error, _BEFORE_THE_REQUEST):
                return Failure(CallEnd.NEVER_LEFT, reason, _lasts(error))
            if isinstance(error, TimeoutError):
                reason = f"none within {self.attempt_timeout:g} s"
            return Failure(CallEnd.LOST, reason)

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
            raise _BrokenOff from error

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


class _BrokenOff(aiohttp.ClientError):
    """A connection that ended; the cause says how. It is none of the errors on which aiohttp repeats a request."""


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


def _reason(error: Exception, secrets: Iterable[str]) -> str:
    """Return an exception's message without its data: some of aiohttp's hold the request's headers."""
    try:
        text = _described(error)
    except Exception:  # noqa: BLE001 - an exception made by hand may lack what its class promises
        text = type(error).__name__
    return escape(redact(text, secrets)[:300])


def _described(error: Exception) -> str:
    match error:
        case _BrokenOff(__cause__=Exception() as cause):
            return _described(cause)
        case aiohttp.ClientConnectorError(os_error=ssl.SSLError() as failed):
            return f"{error.host}:{error.port}: {_no_tls(failed)}"
        case aiohttp.ClientConnectorError(os_error=OSError(errno=int() as number, strerror=said) as failed):
            # asyncio's text names the call that failed; the number gives the reason, if it is a system error.
            system = number in errorcode and not isinstance(failed, socket.gaierror)
            return f"{error.host}:{error.port}: {os.strerror(number) if system else said}"
        case aiohttp.ClientHttpProxyError():
            return _refused_by_proxy(error.status, f"HTTP {error.status} {error.message}")
        case aiohttp.ClientResponseError():
            return f"HTTP {error.status} {error.message}"
        case _:
            return f"{type(error).__name__}: {error}"


def _no_tls(wrong: ssl.SSLError) -> str:
    """Return the reason why no TLS connection came about, and the remedy."""
    if not isinstance(wrong, ssl.SSLCertVerificationError):
        why = "no TLS is spoken there" if wrong.reason in _NO_TLS else "no TLS connection came about"
        return f"{why} ({(wrong.reason or str(wrong)).lower().replace('_', ' ')})"
    if wrong.verify_code in _OUT_OF_ITS_TIME:
        return f"its certificate is not valid by this machine's clock ({wrong.verify_message}): check the clock"
    if wrong.verify_code in _ANOTHER_NAME:
        return (
            f"its certificate is another host's ({wrong.verify_message}): check base_url, and the proxy or the "
            "network's login page that may answer in its place"
        )
    return (
        f"its certificate is not trusted ({wrong.verify_message}): no authority known here has signed it. If a "
        "proxy or a company signs for it, name the file with that authority's certificate in SSL_CERT_FILE"
    )


def _refused_by_proxy(status: int, said: str) -> str:
    """Return the meaning of a proxy's refusal of the tunnel, and the remedy."""
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return f"the proxy wants credentials ({said}): put them in HTTPS_PROXY, http://USER:PASSWORD@HOST:PORT"
    if status == HTTPStatus.FORBIDDEN:
        return f"the proxy forbids this host ({said}): have it allowed, or go without the proxy, by NO_PROXY"
    if _proxy_may_pass(status):
        return f"the proxy could not connect ({said})"
    return f"the proxy refuses to connect ({said}): check that HTTPS_PROXY names a proxy"


def _proxy_may_pass(status: int) -> bool:
    return status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _PROXY_MAY_PASS


def _lasts(error: Exception) -> bool:
    """Return whether calls are kept from leaving until a setting is changed."""
    match error:
        case aiohttp.ClientConnectorError(os_error=ssl.SSLCertVerificationError() as wrong):
            return wrong.verify_code not in _OUT_OF_ITS_TIME
        case aiohttp.ClientConnectorError(os_error=ssl.SSLError(reason=said)):
            return said in _NO_TLS | _NO_TERMS
        case aiohttp.ClientHttpProxyError():
            return not _proxy_may_pass(error.status)
        case aiohttp.ServerFingerprintMismatch() | aiohttp.InvalidURL():
            return True
        case _:
            # An error that is not the network's is a mistake in the session's settings or hooks.
            return not isinstance(error, aiohttp.ClientError | OSError)
