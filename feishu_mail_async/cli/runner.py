"""A run of the drafts of a command line: sent concurrently by one client and shown as they end, with Ctrl-C."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from feishu_mail_async.client import FeishuMailClient
from feishu_mail_async.errors import FeishuMailError
from feishu_mail_async.model import Draft, OutcomeStatus
from feishu_mail_async.outcomes import Outcome

from .interrupts import STOPPING, UNDER_WAY, Interrupts
from .problems import INTERRUPTED, SOME_NOT
from .render.console import Screen
from .render.waiting import why_waiting

__all__ = ["Run", "run_drafts"]

_TICK: Final = 0.2


@dataclass(slots=True)
class Run:
    """The result of a run.

    Attributes:
        outcomes: the outcomes, in the order in which they became known.
        interrupts: the number of interrupts (Ctrl-C).
    """

    outcomes: list[Outcome] = field(default_factory=list)
    interrupts: int = 0

    @property
    def exit_code(self) -> int:
        """The exit code: 0 all are sent; 1 some are not; 130 the calls in flight were cancelled."""
        if self.interrupts > 1:
            return INTERRUPTED
        return 0 if all(outcome.status.good for outcome in self.outcomes) else SOME_NOT


async def run_drafts(client: FeishuMailClient, drafts: Sequence[Draft], screen: Screen) -> Run:
    """Send these drafts, and close the client.

    The first Ctrl-C stops new calls and finishes those in flight; the second cancels those too. Either way every
    draft has its true outcome.

    Args:
        client: the client, not yet opened.
        drafts: the drafts.
        screen: the output.
    """
    run = Run()
    ending: set[asyncio.Task[None]] = set()

    def hear(times: int) -> None:
        run.interrupts = times
        if times == 1:
            screen.note(STOPPING)
        ending.add(asyncio.ensure_future(client.close(None if times == 1 else 0.0)))

    async with client:
        with screen, Interrupts(hear, UNDER_WAY):
            sends = [asyncio.ensure_future(_send(client, draft)) for draft in drafts]
            clock = asyncio.ensure_future(_tell_time(client, sends, screen))
            try:
                async for outcome in _as_known(sends):
                    run.outcomes.append(outcome)
                    screen.outcome(outcome)
                while not all(end.done() for end in ending):
                    await asyncio.wait(ending)  # in a loop, because a second Ctrl-C adds another task
            finally:
                for task in (clock, *sends):
                    task.cancel()
                await asyncio.gather(clock, *sends, return_exceptions=True)
    return run


async def _as_known(sends: Sequence[asyncio.Future[Outcome]]) -> AsyncIterator[Outcome]:
    waiting = set(sends)
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        # The draft whose error suspended a subject is shown before those skipped because of it.
        outcomes = [send.result() for send in sends if send in done]
        for outcome in sorted(outcomes, key=lambda outcome: outcome.status is OutcomeStatus.SKIPPED):
            yield outcome


async def _send(client: FeishuMailClient, draft: Draft) -> Outcome:
    try:
        result = await client.send_draft(draft)
    except FeishuMailError as error:
        return Outcome(draft, error.status, None, error)
    return Outcome(draft, result.status, result, None)


async def _tell_time(client: FeishuMailClient, sends: Sequence[asyncio.Future[Outcome]], screen: Screen) -> None:
    """Show periodically the reason for which the run waits, until the client closes."""
    with contextlib.suppress(FeishuMailError):
        while True:
            await asyncio.sleep(_TICK)
            unfinished = sum(not send.done() for send in sends)
            screen.waits(why_waiting(client.snapshot(), unfinished))
