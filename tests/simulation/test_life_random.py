"""Invariants 1, 3 and 8 over the whole life of a mail: all at random, and the sandbox's log as the judge."""

import asyncio
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from feishu_mail_async import FeishuMailClient, RateLimit, RetryPolicy
from feishu_mail_async.sandbox import Fault, Sandbox, Window
from tests.helpers.clock import SEEDED, now, run_virtual
from tests.helpers.ledgers import ledger_on
from tests.helpers.lives import LONGEST_SCHEDULE, MEMBERS, SHARED, USERS, Lives
from tests.helpers.mishaps import LOST, MISHAPS, QUICK, mishaps
from tests.helpers.tasks import our_tasks

TIMEOUT: Final = 5.0
RETRY: Final = RetryPolicy(attempts=8, initial=0.5, maximum=5.0)
HOUR: Final = 60.0


async def opened(stack: AsyncExitStack, sandbox: Sandbox, **settings: Any) -> FeishuMailClient:
    """A client of all users."""
    return await stack.enter_async_context(FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url, **settings))


async def all_lives(lives: Lives, draw: random.Random, seconds: float, rate: float) -> None:
    """Begin so many lives a second, and wait until all have come to their ends."""
    running: list[asyncio.Task[None]] = []
    ends = now() + seconds
    while now() < ends:
        running.append(asyncio.create_task(lives.life(len(running))))
        await asyncio.sleep(draw.expovariate(rate))
    await asyncio.gather(*running)


def history(
    faults: Sequence[Fault],
    *,
    minutes: float,
    share: float,
    window: Window = Window.SLIDING,
    count_refusals: bool = False,
    seed: int = 0,
    hurry: bool = False,
    keeps: bool = True,
) -> Lives:
    """Lives of drafts of twelve users on a virtual clock, of which all is true that has to be.

    Args:
        faults: what goes wrong.
        minutes: how long lives begin.
        share: the share of calls with which something goes wrong.
        window: as the server counts.
        count_refusals: whether it counts refusals too.
        seed: of what happens.
        hurry: whether callers give deadlines, and lose patience.
        keeps: whether the server keeps the Message-ID of a draft.
    """

    async def story() -> Lives:
        draw = random.Random(f"{seed} {window.value}" if SEEDED else None)
        server = Sandbox(users=USERS, window=window, count_refusals=count_refusals, latency=(0.02, 0.3), seed=seed)
        async with server as sandbox:
            sandbox.share_mailbox(SHARED, *MEMBERS)
            sandbox.keeps_message_ids = keeps
            sandbox.on_call = mishaps(sandbox, draw, faults, share)
            async with AsyncExitStack() as stack:
                clients = [await opened(stack, sandbox, retry=RETRY, attempt_timeout=TIMEOUT) for _ in range(2)]
                lives = Lives(sandbox, clients, draw, hurry=hurry)
                await all_lives(lives, draw, 60.0 * minutes, rate=0.3)
                await asyncio.sleep(LONGEST_SCHEDULE)
            assert our_tasks() == []
            lives.check()
            log = sandbox.ledger
            assert all(log.sent[one] for one in log.scheduled if log.scheduled[one] > log.cancelled[one])
            return lives

    return run_virtual(story(), noop_cycles=8)


@pytest.mark.parametrize("window", list(Window))
def test_lives_at_random(window: Window) -> None:
    lives = history(
        MISHAPS, minutes=3, share=0.1, window=window, count_refusals=window is Window.FIXED, hurry=True
    )
    assert len(lives.drafts) > 20


@pytest.mark.soak
@pytest.mark.parametrize(
    ("window", "count_refusals", "share", "seed"),
    [
        (Window.SLIDING, True, 0.02, 0),
        (Window.SLIDING, False, 0.2, 1),
        (Window.FIXED, True, 0.08, 2),
        (Window.TOKEN_BUCKET, False, 0.08, 3),
    ],
)
def test_an_hour_of_lives_at_random(window: Window, count_refusals: bool, share: float, seed: int) -> None:
    history(
        MISHAPS,
        minutes=HOUR,
        share=share,
        window=window,
        count_refusals=count_refusals,
        seed=seed,
        hurry=True,
    )


@pytest.mark.parametrize(("minutes", "seed"), [(4.0, 0), pytest.param(HOUR, 1, marks=pytest.mark.soak)])
def test_replies_that_are_lost_leave_no_draft(minutes: float, seed: int) -> None:
    lives = history(LOST, minutes=minutes, share=0.2, seed=seed)
    assert len(lives.drafts) > 10 * minutes
    assert (lives.strays(), lives.told, lives.unknown) == (set(), 0, 0)


def test_what_a_server_that_keeps_no_message_ids_leaves_is_told() -> None:
    lives = history(LOST, minutes=3, share=0.1, keeps=False)
    assert len(lives.strays()) == lives.told + lives.unknown > 0


@pytest.mark.parametrize("seconds", [1.0, pytest.param(8.0, marks=pytest.mark.soak)])
async def test_lives_of_several_processes(seconds: float, tmp_path: Path) -> None:
    """Three processes' worth of clients on one ledger, in real time."""
    draw, url = random.Random(7), f"sqlite:///{tmp_path / 'mail.db'}"
    second = RateLimit(calls=5, per=1.0, spacing=0.0, grace=0.5)
    settings: dict[str, Any] = {
        "app": "cli_x",
        "rate_limit": RateLimit(calls=20, per=1.0, spacing=0.0, grace=0.5),
        "limits": dict.fromkeys(("create", "update", "delete", "cancel", "recall", "list", "read"), second),
        "retry": RetryPolicy(attempts=8, initial=0.1, maximum=0.5),
        "attempt_timeout": 10.0,
    }
    ledgers = [ledger_on(url) for _ in range(3)]
    async with Sandbox(users=USERS, per=1.0, latency=(0.0, 0.02)) as sandbox:
        sandbox.share_mailbox(SHARED, *MEMBERS)
        sandbox.delivery_seconds = 0.1
        sandbox.on_call = mishaps(sandbox, draw, QUICK, 0.1)
        async with AsyncExitStack() as stack:
            clients = [await opened(stack, sandbox, ledger=ledger, **settings) for ledger in ledgers]
            lives = Lives(
                sandbox, clients, draw, hurry=False, pause=lambda wait: asyncio.sleep(min(wait / 20, 1.5))
            )
            await all_lives(lives, draw, seconds, rate=10.0)
        for ledger in ledgers:
            await ledger.close()
        lives.check()
