"""Work that is done once for each key at a time, and shared by all who want its result."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Final, Generic, TypeVar

from feishu_mail_async._tasks import look_at, start_task

__all__ = ["SingleFlight"]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class SingleFlight(Generic[K, T]):
    """Tasks that are under way, one for each key. Each outlives its waiters, who wait with `outcome_of`.

    Args:
        name: the name of the tasks in a list of the loop's tasks.

    Attributes:
        tasks: the tasks, by key.
    """

    __slots__ = ("_name", "tasks")

    def __init__(self, name: str) -> None:
        self._name = name
        self.tasks: Final[dict[K, asyncio.Task[T]]] = {}

    def begin(self, key: K, work: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        """Return the task of a key; start it if none is under way.

        Args:
            key: the key.
            work: returns the coroutine that the task runs.
        """
        task = self.tasks.get(key)
        if task is None:
            task = start_task(work(), self._name)
            task.add_done_callback(lambda done: self._ended(key, done))
            self.tasks[key] = task  # last: an entry without the callback that removes it would block the key
        return task

    def _ended(self, key: K, task: asyncio.Task[T]) -> None:
        self.tasks.pop(key, None)
        look_at(task)
