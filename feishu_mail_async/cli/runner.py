"""A run of the drafts of a command line: sent by one client, shown and recorded as they end, with Ctrl-C."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from feishu_mail_async.client import FeishuMailClient
from feishu_mail_async.errors import FeishuMailError
from feishu_mail_async.events import AppPaused, AppResumed, DraftDone, Event
from feishu_mail_async.model import Draft, OutcomeStatus, Priority
from feishu_mail_async.outcomes import Outcome

from .interrupts import STOPPING, UNDER_WAY, Interrupts
from .logs import Verbose
from .problems import INTERRUPTED, SOME_NOT
from .render.progress import Board

__all__ = ["Run", "run_drafts"]

_TICK: Final = 0.2


@dataclass(slots=True)
class Run:
    """The end of a run.

    Attributes:
        calls: the number of calls made.
        seconds: the duration, in seconds.
        interrupts: the number of interrupts (Ctrl-C).
        all_sent: True if every draft is sent or scheduled, by this run or before.
    """

    calls: int = 0
    seconds: float = 0.0
    interrupts: int = 0
    all_sent: bool = False

    @property
    def exit_code(self) -> int:
        """The exit code: 0 all are sent; 1 some are not; 130 the calls in flight were cancelled."""
        if self.interrupts > 1:
            return INTERRUPTED
        return 0 if self.all_sent else SOME_NOT


async def run_drafts(
    client: FeishuMailClient,
    drafts: Sequence[Draft],
    board: Board,
    verbose: Verbose,
    priority: Priority,
    *,
    record: Callable[[Outcome], bool] = lambda _: True,
    at: datetime | None = None,
) -> Run:
    """Send these drafts, and close the client.

    The first Ctrl-C stops new calls and finishes those in flight; the second cancels those too. Either way, and
    also when the run stops for want of a record, every draft has its true outcome.

    Args:
        client: the client, not yet opened.
        drafts: the drafts.
        board: the display.
        verbose: the switch of verbose output.
        priority: the priority of all drafts.
        record: a function that records an outcome before it is shown, so that every outcome a person has seen is
            on record, and returns whether the run may go on.
        at: when the server is to send them; None: now.
    """
    run = Run()
    clock = asyncio.get_running_loop().time
    began = clock()
    ending: set[asyncio.Task[None]] = set()
    ended: list[Outcome] = []
    async with client:
        sending = client.send_drafts(drafts, priority=priority, read_ahead=len(drafts), at=at)

        def look() -> None:
            with contextlib.suppress(FeishuMailError):  # the client is closing
                board.look(client.snapshot(), sending.waiting)

        def hear(event: Event) -> None:
            if isinstance(event, DraftDone):
                assert event.draft is not None
                ended.append(Outcome(event.draft, event.status, event.result, event.error))
                if event.error is not None:
                    verbose.traceback(event.error)  # here, in the call that has ended the draft
                if not record(ended[-1]):
                    sending.stop()
            elif isinstance(event, AppPaused | AppResumed):
                look()
            board.hear(event)

        def interrupted(times: int) -> None:
            run.interrupts = times
            board.ending()
            if times == 1:
                board.note(STOPPING)
                sending.stop()
            else:
                ending.add(asyncio.ensure_future(client.close(0.0)))

        client.subscribe(hear)
        with board, Interrupts(interrupted, UNDER_WAY):
            ticks = asyncio.ensure_future(_tick(look))
            try:
                async for _ in sending:
                    _show(ended, board)
                await (
                    client.close()
                )  # within `Interrupts`, because it waits for a refresh of tokens that is under way
            finally:
                _show(ended, board)
                ticks.cancel()
                await asyncio.gather(ticks, *ending, return_exceptions=True)
    run.calls, run.seconds, run.all_sent = sending.summary.calls, clock() - began, board.tally.all_sent
    return run


def _show(ended: list[Outcome], board: Board) -> None:
    """Show the outcomes that have become known, the skipped ones last: another draft among them may say why."""
    for outcome in sorted(ended, key=lambda outcome: outcome.status is OutcomeStatus.SKIPPED):
        board.outcome(outcome)
    ended.clear()


async def _tick(look: Callable[[], None]) -> None:
    """Update the display periodically."""
    while True:
        await asyncio.sleep(_TICK)
        look()
