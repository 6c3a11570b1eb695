"""How the event loops of the commands are run."""

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from .interrupts import Interrupts

__all__ = ["run_loop"]

T = TypeVar("T")

_SILENCE: Final = 1.0
_FINISHING: Final = "note: stopping: what is under way is finished (again: stop at once)\n"
"""What is said when that takes longer than so many seconds."""


def run_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in a loop that psycopg can use, in case its ledger is on PostgreSQL.

    Raises:
        KeyboardInterrupt: it was interrupted, and did not hear that itself.
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
            coroutine.close()  # it may not have begun
