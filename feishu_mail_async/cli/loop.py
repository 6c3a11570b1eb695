"""The event loop of a command, with Ctrl-C handling."""

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from .interrupts import Interrupts

__all__ = ["run_loop"]

T = TypeVar("T")

_SILENCE: Final = 1.0
_FINISHING: Final = "note: stopping: what is under way is finished (again: stop at once)\n"
"""The message when stopping takes longer than `_SILENCE` seconds."""


def run_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in a new event loop, and return its result.

    On Windows it is a selector loop, the only one that psycopg can use: the ledger may be on PostgreSQL.

    Args:
        coroutine: the coroutine. Ctrl-C cancels it, unless it handles interrupts itself.

    Raises:
        KeyboardInterrupt: Ctrl-C cancelled it.
    """
    interrupted = False

    async def run() -> T:
        task = asyncio.current_task()
        assert task is not None

        def hear(_: int) -> None:
            nonlocal interrupted
            if not interrupted:
                asyncio.get_running_loop().call_later(_SILENCE, sys.stderr.write, _FINISHING)
            interrupted = True
            task.cancel()

        with Interrupts(hear):
            return await coroutine

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop if sys.platform == "win32" else None) as runner:
        try:
            return runner.run(run())
        except asyncio.CancelledError:
            if interrupted:
                raise KeyboardInterrupt from None
            raise
        finally:
            coroutine.close()  # avoids a warning if it has never been started
