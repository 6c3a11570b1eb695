"""Tasks that begin only where they can, and come to their end, whatever becomes of whoever wanted them.

Strangers may cancel them, as clean-ups do that cancel all tasks of a loop but their own, and a task of ours then
ends: a loop that is about to close must not wait for it. But nobody waits for it in vain. The dispatcher has a
successor while somebody waits for a turn; every other task tells those who wait for it, with an error of ours and
never with a CancelledError that was not meant for them (`outcome_of`).
"""

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Final, TypeVar

__all__ = ["being_cancelled", "carry_through", "check_stack", "finish", "look_at", "outcome_of", "start_task"]

T = TypeVar("T")

_carried: Final[set[asyncio.Task[Any]]] = set()
"""Held here until they have ended: whoever has started them may be gone."""

_ROOM: Final = 64
"""Frames that must be free: more than anything of ours takes, with the logging of a subscriber's failure."""


class _Task(asyncio.Task[T]):
    """A task that always begins.

    One that is cancelled before its first step would never run a line: what it was to end, or to give back, would
    stay for ever.
    """

    __slots__ = ()

    def cancel(self, msg: Any = None) -> bool:
        work = self.get_coro()
        if inspect.iscoroutine(work) and inspect.getcoroutinestate(work) == inspect.CORO_CREATED:
            self.get_loop().call_soon(self.cancel, msg)  # its first step stands before that in the loop's queue
            return True
        return super().cancel(msg)


class _CarriedThrough(asyncio.Task[T]):
    """A task that is not cancelled."""

    __slots__ = ()

    def cancel(self, msg: Any = None) -> bool:  # noqa: ARG002
        return False


def check_stack(room: int = _ROOM) -> None:
    """Raise RecursionError now, where nothing has been changed yet, if what follows could meet it half-way."""
    if room:
        check_stack(room - 1)


def being_cancelled() -> bool:
    """Tell whether a CancelledError is meant for the current task, and not for something that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def start_task(
    work: Coroutine[Any, Any, T],
    name: str,
    running: set[asyncio.Task[T]] | None = None,
    *,
    context: Context | None = None,
) -> asyncio.Task[T]:
    """Start a task; its first step is taken in the loop's next pass, never here, and always.

    Args:
        work: what it does.
        name: what it is called in a list of the loop's tasks.
        running: holds it until it has ended; None: its starter sees to that.
        context: the context it runs in; None: a copy of the current one.
    """
    # Not by the loop's task factory: an eager one would take the first step in the midst of what its starter does.
    try:
        task = _Task(work, loop=asyncio.get_running_loop(), name=name, context=context)
    except BaseException:
        work.close()  # else Python warns that nobody has awaited it
        raise
    if running is not None:
        running.add(task)
        task.add_done_callback(running.discard)
    return task


def look_at(task: asyncio.Task[Any]) -> None:
    """Look at the failure of a task that may have nobody left to tell: else asyncio logs that nobody did."""
    if not task.cancelled():
        task.exception()


async def finish(work: Coroutine[Any, Any, T], name: str) -> T:
    """Bring work to its end, however often the caller is cancelled; that is raised afterwards.

    Args:
        work: what to do. It must end by itself, as that of `carry_through`.
        name: what its task is called.
    """
    task = _carried_through(work, name)
    broken_off = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            broken_off = True
    if broken_off:
        look_at(task)
        raise asyncio.CancelledError
    return task.result()


async def outcome_of(work: asyncio.Future[T], broken_off: Callable[[], Exception]) -> T:
    """Wait for work that others may wait for too: one of them giving up does not break it off.

    Args:
        work: the task, or what stands for it.
        broken_off: makes what is raised if the work itself was cancelled.
    """
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        if being_cancelled() or not work.cancelled():
            raise
        raise broken_off() from None


def carry_through(work: Coroutine[Any, Any, T], name: str) -> asyncio.Future[T]:
    """Start a clean-up that goes on to its end, and return what can be awaited.

    Neither whoever awaits it breaks it off by giving up, nor does a program's end, which cancels all tasks. So it
    must end by itself, and `asyncio.timeout`, which cancels, is of no use in it.
    """
    return asyncio.shield(_carried_through(work, name))


def _carried_through(work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    task = _CarriedThrough(work, loop=asyncio.get_running_loop(), name=name)
    _carried.add(task)
    task.add_done_callback(_carried.discard)
    return task
