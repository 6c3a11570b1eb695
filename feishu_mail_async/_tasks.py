"""Background tasks that always run their first step, and finish even if the caller is gone.

Foreign code may cancel them, as clean-ups do that cancel all tasks of a loop but their own, and a task of this
package then ends: a loop that is about to close must not wait for it. But no waiter is left hanging: the task ends
its waiters with an error of this package, and never with a CancelledError that was not meant for them
(`outcome_of`).
"""

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Final, TypeVar

__all__ = ["being_cancelled", "carry_through", "finish", "look_at", "outcome_of", "start_task"]

T = TypeVar("T")

_carried: Final[set[asyncio.Task[Any]]] = set()
"""Tasks of `carry_through` until they have ended: asyncio holds tasks weakly, and their starters may be gone."""


class _Task(asyncio.Task[T]):
    """A task that always runs its first step.

    asyncio drops a task that is cancelled before that, its `finally` blocks included. The permit, lock or waiter
    that it was to release would be lost.
    """

    __slots__ = ()

    def cancel(self, msg: Any = None) -> bool:
        work = self.get_coro()
        if inspect.iscoroutine(work) and inspect.getcoroutinestate(work) == inspect.CORO_CREATED:
            self.get_loop().call_soon(self.cancel, msg)  # the first step is already ahead of this in the queue
            return True
        return super().cancel(msg)


class _CarriedThrough(asyncio.Task[T]):
    """A task that ignores cancellation."""

    __slots__ = ()

    def cancel(self, msg: Any = None) -> bool:  # noqa: ARG002
        return False


def being_cancelled() -> bool:
    """Return whether a CancelledError is meant for the current task, and not for something that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def start_task(
    work: Coroutine[Any, Any, T],
    name: str,
    running: set[asyncio.Task[T]] | None = None,
    *,
    context: Context | None = None,
) -> asyncio.Task[T]:
    """Start a task; its first step is always taken, in the loop's next pass and never here.

    Args:
        work: the coroutine to run.
        name: the task's name in a list of the loop's tasks.
        running: a set that holds it until it has ended; None: the caller holds it.
        context: the context it runs in; None: a copy of the current one.
    """
    # Not by the loop's task factory: an eager one would take the first step in the middle of its starter's own
    # step.
    try:
        task = _Task(work, loop=asyncio.get_running_loop(), name=name, context=context)
    except BaseException:
        work.close()  # else Python warns that it was never awaited
        raise
    if running is not None:
        running.add(task)
        task.add_done_callback(running.discard)
    return task


def look_at(task: asyncio.Task[Any]) -> None:
    """Retrieve the exception of a task that may have no waiter left: else asyncio logs it as never retrieved."""
    if not task.cancelled():
        task.exception()


async def finish(work: Coroutine[Any, Any, T], name: str) -> T:
    """Run work to its end, even if the caller is cancelled repeatedly; raise the cancellation afterwards.

    Args:
        work: the coroutine. It must end by itself, as that of `carry_through`.
        name: the name of its task.
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
    """Wait for shared work; cancelling one waiter does not cancel the work.

    Args:
        work: the task, or a future for it.
        broken_off: returns the exception to raise if the work itself was cancelled.
    """
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        if being_cancelled() or not work.cancelled():
            raise
        raise broken_off() from None


def carry_through(work: Coroutine[Any, Any, T], name: str) -> asyncio.Future[T]:
    """Start a clean-up that runs to its end, and return a future for it.

    Neither cancelling a waiter cancels it, nor the end of a program, which cancels all tasks. So it must end by
    itself, and `asyncio.timeout`, which cancels, has no effect in it.
    """
    return asyncio.shield(_carried_through(work, name))


def _carried_through(work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    task = _CarriedThrough(work, loop=asyncio.get_running_loop(), name=name)
    _carried.add(task)
    task.add_done_callback(_carried.discard)
    return task
