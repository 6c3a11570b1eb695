"""Scenes of waiting, and what became of the sends."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from feishu_mail_async import FeishuMailError, RateLimit, SendResult
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.scenes import Scene

PLENTY: Final = RateLimit(calls=1000, spacing=0.2)
"""No window that a test would notice."""

HOUR: Final = 3600.0


@contextlib.asynccontextmanager
async def stage(
    users: Sequence[str] = ("alice",), drafts: int = 1, *, latency: float = 0.02, **settings: Any
) -> AsyncIterator[Scene]:
    settings.setdefault("rate_limit", PLENTY)
    async with Sandbox(users=users, latency=latency, calls=settings["rate_limit"].calls) as sandbox:
        scene = Scene(sandbox)
        for user in users:
            scene.drafts += scene.more(drafts, user)
        async with scene.open(**settings):
            yield scene


async def outcomes(tasks: Sequence["asyncio.Task[SendResult]"]) -> list[SendResult | FeishuMailError]:
    """What became of each; anything but a result or an error of the package is raised."""
    found = await asyncio.gather(*tasks, return_exceptions=True)
    for one in found:
        if not isinstance(one, SendResult | FeishuMailError):
            raise one
    return [one for one in found if isinstance(one, SendResult | FeishuMailError)]


def kinds(found: Sequence[SendResult | FeishuMailError]) -> dict[str, int]:
    names = [type(one).__name__ for one in found]
    return {name: names.count(name) for name in names}


def gaps_of(times: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(times)]


MANY: Final = [f"user{number}" for number in range(10)]
