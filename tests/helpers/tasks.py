"""The tasks of the package: let run, found, and cancelled."""

import asyncio
from collections.abc import Collection
from typing import Any

from tests.helpers.samples import PACKAGE


async def settle(rounds: int = 30) -> None:
    """Let everything happen that takes no time."""
    for _ in range(rounds):
        await asyncio.sleep(0)


def our_tasks() -> list[asyncio.Task[Any]]:
    """The tasks of the package, without the sandbox's."""
    found = []
    for task in asyncio.all_tasks():
        code = getattr(task.get_coro(), "cr_code", None)
        if code is not None and code.co_filename.startswith(f"{PACKAGE}/") and "/sandbox/" not in code.co_filename:
            found.append(task)
    return found


async def cancel_all(callers: Collection[asyncio.Task[Any]], passes: int) -> None:
    """Cancel all tasks of the package and its callers after so many passes of the loop; wait for the callers."""
    for _ in range(passes):
        await asyncio.sleep(0)
    for task in {*our_tasks(), *callers}:
        task.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
