"""A request's body as aiohttp writes it: in pieces, with a turn of the loop for others after each."""

import asyncio
from typing import NoReturn

from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

from feishu_mail_async._api.bodies import Body

__all__ = ["Streamed"]


class Streamed(Payload):
    """A body in pieces, whose length is known.

    Args:
        body: the body.
    """

    def __init__(self, body: Body) -> None:
        super().__init__(body, content_type="application/json")
        self._size = body.size

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> NoReturn:  # noqa: ARG002 - aiohttp's
        """Refuse: it is never needed as a whole."""
        raise TypeError("this body is only written in pieces")

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write it."""
        body: Body = self._value
        for piece in body.pieces():
            await writer.write(piece)
            await asyncio.sleep(0)  # `write` waits for the network only where that is slower than we are
