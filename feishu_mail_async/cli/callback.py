"""Where the browser comes back to after a login: a server on this machine alone, which takes one answer."""

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
_silent.setLevel(logging.CRITICAL + 1)  # aiohttp quotes what it cannot read, and in that a code may stand


class Answer:
    """The answer to a login: the first that belongs to it, wherever it comes from.

    Args:
        login: the login.
    """

    def __init__(self, login: Login) -> None:
        self._login = login
        self._code: asyncio.Future[Hidden[str]] = asyncio.get_running_loop().create_future()

    @property
    def taken(self) -> bool:
        """Whether there has been one."""
        return self._code.done()

    async def code(self) -> str:
        """The authorization code in it.

        Raises:
            ValueError: the user refused, or there was none in it.
        """
        return (await self._code).value

    def take(self, address: str) -> bool:
        """Take the address that the browser was sent back to; whether the user agreed.

        Raises:
            WrongState: it belongs to another login, and is not taken.
        """
        try:
            code = self._login.read_answer(address)
        except WrongState:
            raise
        except ValueError as error:
            self._code.set_exception(error)
            self._code.exception()  # looked at, in case nobody waits for it any more
            return False
        self._code.set_result(Hidden(code))
        return True

    def take_typed(self, text: str) -> None:
        """Take such an address from whoever logs in here, or the code alone.

        Raises:
            ValueError: it is neither, or belongs to another login, and is not taken.
        """
        if any(word in text for word in _WORDS_OF_ADDRESSES):
            self.take(text)
        elif text.isascii() and text.isprintable() and " " not in text and len(text) <= _LONGEST_CODE:
            # Without a state: but it was typed here, and is worth nothing without this login's verifier.
            self._code.set_result(Hidden(text))
        else:
            raise ValueError("this is neither a code nor the address that the browser ended at")


class Callback:
    """Waits on this machine for the browser to come back.

    It answers requests that this machine's browser was sent here with; any other, whatever it asks for, changes
    nothing.

    Args:
        port: where to listen; 0 takes a free one.
        note: is told of answers that are not taken.
    """

    def __init__(self, port: int, note: Callable[[str], None]) -> None:
        self._port = port
        self._note = note
        self._server: web.Server | None = None
        self._listener: asyncio.Server | None = None
        self.answer: Answer | None = None

    @property
    def redirect_uri(self) -> str:
        """Where the browser has to be sent to."""
        return f"http://{_HOST}:{self._port}{_PATH}"

    async def open(self) -> None:
        """Listen.

        Raises:
            OSError: the port is taken, or may not be used.
        """
        self._server = web.Server(self._handle, access_log=None, logger=_silent)
        self._listener = await asyncio.get_running_loop().create_server(self._server, _HOST, self._port)
        self._port = self._listener.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Listen no more; what is being answered is answered."""
        if self._listener is None or self._server is None:
            return
        self._listener.close()
        self._server.pre_shutdown()
        await self._server.shutdown(_SHUTDOWN)
        await asyncio.sleep(0)  # in which the connections close

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
        """The reply to a request that the authorization page has not sent the browser here with."""
        # A page elsewhere can have its own name point here (DNS rebinding), but then that name stands in Host.
        if request.headers.getall("Host", []) not in ([name] for name in self._names()):
            return _page(403, "This is not for you.")
        if request.raw_path.partition("?")[0] != _PATH:
            return _page(404, "There is nothing here.")
        return None if request.method == "GET" else _page(405, "There is nothing here.", Allow="GET")

    def _names(self) -> list[str]:
        names = [f"{_HOST}:{self._port}", f"localhost:{self._port}"]
        return [*names, _HOST, "localhost"] if self._port == _HTTP_PORT else names


def _page(status: int, told: str, **headers: Any) -> web.Response:
    """A page that says one sentence, which never holds anything of the request."""
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>feishu-mail-async</title><p>{told}</p>'
    response = web.Response(
        status=status, text=page, content_type="text/html", charset="utf-8", headers=_HEADERS | headers
    )
    response.force_close()
    return response
