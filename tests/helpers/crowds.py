"""Many sends of many users at once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable

from feishu_mail_async import FeishuMailClient, Priority, RateLimit, SendResult
from feishu_mail_async.sandbox import Sandbox


@contextlib.asynccontextmanager
async def crowd(
    users: int, each: int, limit: RateLimit, **settings: object
) -> AsyncIterator[tuple[Sandbox, FeishuMailClient, list[tuple[str, str]]]]:
    """Many users with drafts, a constant way to the server, and a client."""
    names = [f"user{number}" for number in range(users)]
    async with Sandbox(users=names, latency=0.02, calls=1000) as sandbox:
        drafts = [(draft, user) for user in names for draft in sandbox.add_drafts(user, each)]
        async with FeishuMailClient(
            sandbox.tokens,
            base_url=sandbox.base_url,
            rate_limit=limit,
            **settings,  # type: ignore[arg-type]
        ) as client:
            yield sandbox, client, drafts


async def send_all(
    client: FeishuMailClient, drafts: Iterable[tuple[str, str]], priority: Priority = Priority.NORMAL
) -> list[SendResult]:
    return await asyncio.gather(
        *(client.send_draft(draft, user=user, priority=priority) for draft, user in drafts)
    )
