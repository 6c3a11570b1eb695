"""What goes over the wire in a sandbox's answers, in good ways and in bad ones."""

import asyncio
import contextlib
import os
import socket
import struct
from typing import Any, Final

from aiohttp import web

from .faults import JSON, Fault, Reply

__all__ = ["make_request", "pass_time", "reset", "respond", "stream"]

_LARGEST_BODY: Final = 64 * 1024 * 1024
_CHUNK: Final = 64 * 1024
_LINGER_NOT: Final = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
"""SO_LINGER with zero seconds: closing resets the connection. Windows has shorter fields."""


async def pass_time(seconds: float) -> None:
    """Let time pass; for no time at all not even a turn of the loop."""
    if seconds > 0:
        await asyncio.sleep(seconds)


def respond(reply: Reply, log_id: str) -> web.Response:
    """Make a response with the log id that every answer has."""
    headers = {"X-Tt-Logid": log_id, "Content-Type": reply.content_type}
    headers.update(reply.headers)
    return web.Response(body=reply.body, status=reply.status, headers=headers)


def make_request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
    """Make a request as `web.Server` would, but for how large a body may be."""
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=_LARGEST_BODY)


def reset(transport: asyncio.Transport | None) -> None:
    """Break a connection so that the other side sees a reset, not an orderly end."""
    if transport is None or transport.is_closing():
        return
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    transport.abort()


async def stream(request: web.BaseRequest, fault: Fault, log_id: str) -> web.StreamResponse:
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
