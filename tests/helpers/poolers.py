"""A pooler between client and PostgreSQL: refuses what poolers refuse, and gives each transaction another session.

What it does to a client is what PgBouncer 1.18 does with its defaults; it speaks just so much of the protocol.
"""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from typing import Final

__all__ = ["Pooler", "run_pooler"]

_TAKEN: Final = frozenset({"user", "database", "client_encoding", "application_name", "DateStyle", "TimeZone"})
"""Start-up parameters that are not refused."""
_SECURE: Final = (80877103, 80877104)
"""Requests for SSL and GSSAPI."""
_CANCEL: Final = 80877102


class Pooler:
    """A pooler on a loopback port.

    Args:
        port: the server's, which asks for no password.
        refuses: SQLSTATE and words for everybody who comes; None: who asks for nothing unusual is let in.

    Attributes:
        port: its own.
        sessions: the server's sessions that each client has; transactions take turns on them.
    """

    sessions = 2

    def __init__(self, port: int, refuses: tuple[str, str] | None = None) -> None:
        self._server_port = port
        self._refuses = refuses
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        opened = [writer]
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await self._serve(reader, writer, opened)
        finally:
            for one in opened:
                one.close()
                with contextlib.suppress(OSError):
                    await one.wait_closed()
            self._tasks.discard(task)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, opened: list[asyncio.StreamWriter]
    ) -> None:
        while True:
            (length,) = struct.unpack("!i", await reader.readexactly(4))
            body = await reader.readexactly(length - 4)
            (code,) = struct.unpack("!i", body[:4])
            if code not in _SECURE:
                break
            writer.write(b"N")
        if code == _CANCEL:
            return
        names = body[4:].split(b"\0")[:-2:2]
        unknown = [name.decode() for name in names if name.decode() not in _TAKEN]
        refusal = self._refuses or (("08P01", f"unsupported startup parameter: {unknown[0]}") if unknown else None)
        if refusal is not None:
            fields = b"SFATAL\0VFATAL\0C%s\0M%s\0\0" % (refusal[0].encode(), refusal[1].encode())
            writer.write(b"E" + struct.pack("!i", len(fields) + 4) + fields)
            await writer.drain()
            return
        servers = []
        for _ in range(self.sessions):
            there, out = await asyncio.open_connection("127.0.0.1", self._server_port)
            opened.append(out)
            out.write(struct.pack("!i", length) + body)
            hello, _ = await _answer(there)
            servers.append((there, out))
        writer.write(hello)
        current = 0
        while True:
            there, out = servers[current]
            kind, message = await _message(reader)
            out.write(message)
            if kind == b"X":
                await out.drain()
                return
            if kind in {b"Q", b"S"}:
                answer, state = await _answer(there)
                writer.write(answer)
                if state == b"I":  # the transaction is over
                    current = (current + 1) % len(servers)

    async def end(self) -> None:
        """Cut all connections."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    (length,) = struct.unpack("!i", head[1:])
    return head[:1], head + await reader.readexactly(length - 4)


async def _answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """All up to ReadyForQuery, and the state of the transaction that it tells."""
    answer = b""
    while True:
        kind, message = await _message(reader)
        answer += message
        if kind == b"Z":
            return answer, message[-1:]


@contextlib.asynccontextmanager
async def run_pooler(port: int, refuses: tuple[str, str] | None = None) -> AsyncIterator[Pooler]:
    """A pooler in front of the server on that port, until the end."""
    pooler = Pooler(port, refuses)
    listener = await asyncio.start_server(pooler.serve, "127.0.0.1", 0)
    pooler.port = listener.sockets[0].getsockname()[1]
    try:
        yield pooler
    finally:
        listener.close()
        await pooler.end()
