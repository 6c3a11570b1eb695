"""A sandbox in a process of its own."""

import asyncio
import contextlib
import json
import signal
from collections.abc import Callable, Iterable
from typing import Any

from .server import Latency, Sandbox
from .window import Window

__all__ = ["read_latency", "serve"]


async def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    calls: int = 20,
    per: float = 60.0,
    window: Window = Window.SLIDING,
    latency: Latency = (0.02, 0.1),
    users: Iterable[str] = ("alice",),
    drafts: int = 0,
    announce: Callable[[dict[str, Any]], None] | None = None,
    until: asyncio.Event | None = None,
) -> None:
    """Run a sandbox until SIGINT or SIGTERM.

    Args:
        host: an IP address of this machine.
        port: 0 takes a free one.
        calls: sends allowed in a window.
        per: the window's length in seconds.
        window: how it is laid.
        latency: seconds on the way.
        users: names of users to make up.
        drafts: drafts to put into each one's mailbox.
        announce: told once, when the sandbox listens, what a client needs: base_url, tokens, client_id,
            client_secret, and control_token for the sandbox's own endpoints. If not given, that is printed as one
            line of JSON.
        until: ends it too, when set.
    """
    stop = until or asyncio.Event()
    loop = asyncio.get_running_loop()
    handled = []
    for number in (signal.SIGINT, signal.SIGTERM):
        # Not on Windows, where Ctrl-C ends asyncio.run by itself; nor outside the main thread.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, stop.set)
            handled.append(number)
    sandbox = Sandbox(
        calls=calls, per=per, window=window, latency=latency, users=tuple(users), host=host, port=port
    )
    try:
        async with sandbox:
            for user in sandbox.users:
                sandbox.add_drafts(user, drafts)
            (announce or _print)(
                {
                    "base_url": sandbox.base_url,
                    "tokens": sandbox.tokens,
                    "client_id": sandbox.client_id,
                    "client_secret": sandbox.client_secret,
                    "control_token": sandbox.control_token,
                }
            )
            await stop.wait()
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


def read_latency(text: str) -> float | tuple[float, float]:
    """Seconds as a command line has them: "0.2" is a round trip, "0.02-0.1" the range of each way.

    Raises:
        ValueError: it is neither.
    """
    low, dash, high = text.partition("-")
    seconds = (float(low), float(high)) if dash else (float(low), float(low))
    if not 0 <= seconds[0] <= seconds[1] < float("inf"):
        raise ValueError(f"latency: give seconds, such as 0.2 or 0.02-0.1, not {text!r}")
    return seconds if dash else seconds[0]


def _print(told: dict[str, Any]) -> None:
    # Flushed, because whoever started the process waits for this line.
    print(json.dumps(told), flush=True)  # noqa: T201 - it is what the command is for
