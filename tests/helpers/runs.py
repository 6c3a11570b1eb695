"""A run of drafts on a scene, and what a run may be given."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, Final

from feishu_mail_async import Draft, OutcomeStatus, RateLimit
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.scenes import FREE, Scene

SENT, ALREADY, FAILED, UNKNOWN, SKIPPED = (
    OutcomeStatus.SENT,
    OutcomeStatus.ALREADY_SENT,
    OutcomeStatus.FAILED,
    OutcomeStatus.UNKNOWN,
    OutcomeStatus.SKIPPED,
)


class OwnError(Exception):
    """What the caller's own iterable raises."""


def the_tasks() -> set[asyncio.Task[Any]]:
    """The package's own tasks; the others are the test's and the servers'."""
    return {task for task in asyncio.all_tasks() if task.get_name().startswith("feishu-mail")}


async def play(
    act: Callable[[Scene], Awaitable[None]],
    drafts: int = 10,
    *users: str,
    limit: RateLimit = FREE,
    **settings: Any,
) -> None:
    """Let a test act on a stage with drafts of the first user; then nothing must be left over."""
    users = users or ("alice",)
    async with Sandbox(users=users, latency=0.1, calls=1_000_000) as sandbox:
        stage = Scene(sandbox)
        stage.open(rate_limit=limit, **settings)
        stage.drafts = stage.more(drafts, users[0])
        try:
            await act(stage)
        finally:
            await stage.close()
        assert the_tasks() == set()
        calls = stage.calls
        await asyncio.sleep(1000)
        assert stage.calls == calls, "a call was made after the client was closed"
        assert sandbox.ledger.conflicts == 0
        assert max(sandbox.ledger.sent.values(), default=0) <= 1


async def from_async(items: Sequence[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


class Reiterable:
    """Neither an iterator nor sized."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


class AsyncReiterable(Reiterable):
    """Both: the asynchronous side is taken, since the other one may block."""

    def __aiter__(self) -> AsyncIterator[Any]:
        return from_async(self.items)

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("it can be read without blocking")


FORMS: Final[dict[str, Callable[[list[Any]], Any]]] = {
    "list": list,
    "tuple": tuple,
    "dict": dict.fromkeys,
    "generator": lambda items: (item for item in items),
    "async generator": from_async,
    "iterable": Reiterable,
    "async iterable": AsyncReiterable,
}


def raising(items: Sequence[Draft], error: BaseException) -> Iterator[Draft]:
    yield from items
    raise error
