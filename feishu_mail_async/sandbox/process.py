"""The program of a sandbox that runs in a process of its own."""

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

    On Windows, and outside the main thread, signals are not handled here.

    Args:
        host: an IP address of this machine.
        port: the port; 0 for a free one.
        calls: the number of sends allowed in a window.
        per: the window's length, in seconds.
        window: the shape of the window.
        latency: the latency in seconds; see `Latency`.
        users: the names of the users to create.
        drafts: the number of drafts to create in each user's mailbox.
        announce: a function called once, when the sandbox listens, with the values that a client needs: base_url,
            tokens, client_id, client_secret, and control_token for the control endpoints. If not given, they are
            printed as one line of JSON.
        until: an event that ends the sandbox when it is set.

    Raises:
        ValueError: a value is out of range, or `host` is not an IP address.
        OSError: the address cannot be bound.
    """
    stop = until or asyncio.Event()
    loop = asyncio.get_running_loop()
    handled = []
    for number in (signal.SIGINT, signal.SIGTERM):
        # This fails on Windows, where Ctrl-C ends asyncio.run by itself, and outside the main thread.
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
    """Parse a latency from a command line.

    Args:
        text: seconds: "0.2" is a round trip, "0.02-0.1" the range of each way.

    Returns:
        a round trip, or (low, high) for each way, in seconds.

    Raises:
        ValueError: the text is neither, or a number is negative or infinite.
    """
    low, dash, high = text.partition("-")
    seconds = (float(low), float(high)) if dash else (float(low), float(low))
    if not 0 <= seconds[0] <= seconds[1] < float("inf"):
        raise ValueError(f"latency: give seconds, such as 0.2 or 0.02-0.1, not {text!r}")
    return seconds if dash else seconds[0]


def _print(told: dict[str, Any]) -> None:
    # Flushed, because the program that started this process waits for the line.
    print(json.dumps(told), flush=True)  # noqa: T201 - it is what the command is for
