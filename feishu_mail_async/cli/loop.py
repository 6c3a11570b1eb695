"""How the event loops of the commands are run."""

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["run_loop"]

T = TypeVar("T")


def run_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in a loop that psycopg can use, in case its ledger is on PostgreSQL."""
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop if sys.platform == "win32" else None) as runner:
        return runner.run(coroutine)
