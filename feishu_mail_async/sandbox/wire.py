"""HTTP details of the sandbox's answers: responses, resets and huge bodies."""

import asyncio
import contextlib
import os
import socket
import struct
from typing import Any, Final

from aiohttp import web

from .faults import JSON, Fault, Reply

__all__ = ["make_request", "pass_time", "reset", "respond", "stream"]

_LARGEST_BODY: Final = 256 * 1024 * 1024
"""The largest body that is read at all, in bytes: far above a message's own limit, which has a code of its own."""
_CHUNK: Final = 64 * 1024
_LINGER_NOT: Final = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
"""The value of SO_LINGER that makes closing reset the connection: on, zero seconds. Windows has shorter fields."""


async def pass_time(seconds: float) -> None:
    """Sleep; for zero seconds return at once, without an iteration of the loop.

    Args:
        seconds: the time, in seconds.
    """
    if seconds > 0:
        await asyncio.sleep(seconds)


def respond(reply: Reply, log_id: str) -> web.Response:
    """Make an aiohttp response from a reply.

    Args:
        reply: the answer.
        log_id: the value of `X-Tt-Logid`, which every answer has.
    """
    headers = {"X-Tt-Logid": log_id, "Content-Type": reply.content_type}
    headers.update(reply.headers)
    return web.Response(body=reply.body, status=reply.status, headers=headers)


def make_request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
    """Make a request as `web.Server` does, but with a higher limit for the body. The arguments are aiohttp's."""
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=_LARGEST_BODY)


def reset(transport: asyncio.Transport | None) -> None:
    """Reset a connection: the other side sees a TCP reset, not an orderly end.

    Args:
        transport: the connection's transport; None or closing: nothing happens.
    """
    if transport is None or transport.is_closing():
        return
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    transport.abort()


async def stream(request: web.BaseRequest, fault: Fault, log_id: str) -> web.StreamResponse:
    """Stream a huge JSON body.

    Args:
        request: the request to answer.
        fault: the fault, which gives the size in bytes and whether it is declared.
        log_id: the value of `X-Tt-Logid`.
    """
    response = web.StreamResponse(headers={"X-Tt-Logid": log_id, "Content-Type": JSON})
    head, tail = b'{"code":0,"msg":"success","data":{"x":"', b'"}}'
    if fault.declared:
        response.content_length = max(fault.size, len(head) + len(tail))
    # A client that refuses to read so much disconnects; aiohttp finds the connection gone and drops it.
    with contextlib.suppress(ConnectionError):
        await response.prepare(request)
        await response.write(head)
        left = fault.size - len(head) - len(tail)
        while left > 0:
            await response.write(b"x" * min(left, _CHUNK))
            left -= _CHUNK
        await response.write(tail)
    return response
