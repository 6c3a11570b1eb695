"""The OAuth callback of a login: a server on loopback that accepts one answer from the browser."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from aiohttp import web

from feishu_mail_async._secrecy import Hidden
from feishu_mail_async.oauth import Login, WrongState

__all__ = ["Answer", "Callback"]

_HOST: Final = "127.0.0.1"
_PATH: Final = "/callback"
_HTTP_PORT: Final = 80
_SHUTDOWN: Final = 1.0
_LONGEST_CODE: Final = 2048
_WORDS_OF_ADDRESSES: Final = ("://", "?", "code=", "state=", "error=")
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_silent: Final = logging.getLogger("feishu_mail_async.callback")
_silent.setLevel(logging.CRITICAL + 1)  # aiohttp quotes malformed requests, which may contain a code


class Answer:
    """The answer to a login: the first that belongs to it, from the browser or typed.

    Args:
        login: the login.
    """

    def __init__(self, login: Login) -> None:
        self._login = login
        self._code: asyncio.Future[Hidden[str]] = asyncio.get_running_loop().create_future()

    @property
    def taken(self) -> bool:
        """True if there has been an answer."""
        return self._code.done()

    async def code(self) -> str:
        """Wait for the answer, and return its authorization code.

        Raises:
            ValueError: the user refused, or the answer has no code.
        """
        return (await self._code).value

    def take(self, address: str) -> bool:
        """Accept the address to which the browser was redirected, and return whether the user agreed.

        Args:
            address: the URL, or its path and query.

        Raises:
            WrongState: it belongs to another login, and is not accepted.
        """
        try:
            code = self._login.read_answer(address)
        except WrongState:
            raise
        except ValueError as error:
            self._code.set_exception(error)
            self._code.exception()  # marks it as retrieved: no warning if `code` is never awaited
            return False
        self._code.set_result(Hidden(code))
        return True

    def take_typed(self, text: str) -> None:
        """Accept such an address, or the code alone, typed by the user at the terminal.

        Args:
            text: the typed line.

        Raises:
            ValueError: it is neither, or belongs to another login, and is not accepted.
        """
        if any(word in text for word in _WORDS_OF_ADDRESSES):
            self.take(text)
        elif text.isascii() and text.isprintable() and " " not in text and len(text) <= _LONGEST_CODE:
            # A bare code has no state to check. That is safe: it was typed here, and only this login's PKCE
            # verifier can redeem it.
            self._code.set_result(Hidden(text))
        else:
            raise ValueError("this is neither a code nor the address that the browser ended at")


class Callback:
    """A server on loopback that waits for the browser to be redirected to it.

    Only a GET of the callback's path under a loopback name can change anything; all other requests are refused.

    Args:
        port: the port; 0 for a free one.
        note: a function called with a message about each answer that is not accepted.

    Attributes:
        answer: the answer of the current login; set by the login command.
    """

    def __init__(self, port: int, note: Callable[[str], None]) -> None:
        self._port = port
        self._note = note
        self._server: web.Server | None = None
        self._listener: asyncio.Server | None = None
        self.answer: Answer | None = None

    @property
    def redirect_uri(self) -> str:
        """The URL to which the browser has to be redirected."""
        return f"http://{_HOST}:{self._port}{_PATH}"

    async def open(self) -> None:
        """Start listening.

        Raises:
            OSError: the port is in use, or may not be used.
        """
        self._server = web.Server(self._handle, access_log=None, logger=_silent)
        self._listener = await asyncio.get_running_loop().create_server(self._server, _HOST, self._port)
        self._port = self._listener.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening, after finishing the requests in progress."""
        if self._listener is None or self._server is None:
            return
        self._listener.close()
        self._server.pre_shutdown()
        await self._server.shutdown(_SHUTDOWN)
        await asyncio.sleep(0)  # the connections close in the loop's next iteration

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        if (strange := self._strange(request)) is not None:
            return strange
        if self.answer is None or self.answer.taken:
            return _page(410, "This login has had its answer. The terminal says how it went.")
        try:
            agreed = self.answer.take(request.raw_path)
        except WrongState:
            self._note("an answer came that belongs to another login: it was not taken")
            return _page(
                400, "This answer belongs to another login. Open the address that the terminal printed last."
            )
        if not agreed:
            return _page(200, "The app was not allowed to act for you. This window can be closed.")
        return _page(200, "The answer has arrived. The terminal says how it went; this window can be closed.")

    def _strange(self, request: web.BaseRequest) -> web.Response | None:
        """Return the refusal of a request that is not the authorization page's redirect; None if it may be."""
        # A foreign page can have its own name point here (DNS rebinding), but then that name is in Host.
        if request.headers.getall("Host", []) not in ([name] for name in self._names()):
            return _page(403, "This is not for you.")
        if request.raw_path.partition("?")[0] != _PATH:
            return _page(404, "There is nothing here.")
        return None if request.method == "GET" else _page(405, "There is nothing here.", Allow="GET")

    def _names(self) -> list[str]:
        names = [f"{_HOST}:{self._port}", f"localhost:{self._port}"]
        return [*names, _HOST, "localhost"] if self._port == _HTTP_PORT else names


def _page(status: int, told: str, **headers: Any) -> web.Response:
    """Return a page with one sentence, which never contains anything from the request."""
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>feishu-mail-async</title><p>{told}</p>'
    response = web.Response(
        status=status, text=page, content_type="text/html", charset="utf-8", headers=_HEADERS | headers
    )
    # No keep-alive, so that an idle connection of the browser does not delay `close`.
    response.force_close()
    return response
