"""A bulk run: sends with one client, shows progress, writes results, and handles Ctrl-C."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from feishu_mail_async._calls.bulk import BulkRun
from feishu_mail_async._text import escape
from feishu_mail_async.cli.interrupts import STOPPING, UNDER_WAY, Interrupts
from feishu_mail_async.cli.logs import Verbose
from feishu_mail_async.cli.problems import INTERRUPTED, SOME_NOT
from feishu_mail_async.cli.render.progress import Board
from feishu_mail_async.cli.results import Results
from feishu_mail_async.client import FeishuMailClient
from feishu_mail_async.errors import FeishuMailError
from feishu_mail_async.events import AppPaused, AppResumed, DraftDone, Event
from feishu_mail_async.model import Draft
from feishu_mail_async.outcomes import Outcome

__all__ = ["BulkEnd", "run_bulk"]

_TICK: Final = 0.2


@dataclass(slots=True)
class BulkEnd:
    """The end of a run.

    Attributes:
        calls: the number of calls made.
        seconds: the duration, in seconds.
        interrupts: the number of interrupts (Ctrl-C).
    """

    calls: int = 0
    seconds: float = 0.0
    interrupts: int = 0

    def exit_code(self, *, all_sent: bool) -> int:
        """Return the exit code: 0 all are sent; 1 some are not; 130 the calls in flight were cancelled.

        Args:
            all_sent: True if every draft is sent.
        """
        if self.interrupts > 1:
            return INTERRUPTED
        return 0 if all_sent else SOME_NOT


async def run_bulk(
    client: FeishuMailClient,
    drafts: Sequence[Draft],
    board: Board,
    results: Results | None,
    verbose: Verbose,
    *,
    kept: bool,
) -> BulkEnd:
    """Send these drafts, and close the client.

    The first Ctrl-C stops new calls and finishes those in flight; the second cancels those too. Either way, and
    also when the results cannot be written any more (a full disk), every draft has its true outcome.

    Args:
        client: the client, not yet opened.
        drafts: the drafts.
        board: the progress display.
        results: the file of results; None for none.
        verbose: the switch of verbose output.
        kept: True if a ledger records the outcomes, too.
    """
    end = BulkEnd()
    clock = asyncio.get_running_loop().time
    began = clock()
    ending: set[asyncio.Task[None]] = set()
    async with client:
        run = client.send_drafts(drafts, read_ahead=len(drafts))

        def hear(event: Event) -> None:
            if isinstance(event, DraftDone) and results is not None:
                # Written before it is shown, so that every outcome a person has seen is in the file.
                _write(results, event, run, board, kept=kept)
            board.hear(event)
            if isinstance(event, AppPaused | AppResumed):
                board.look(client.snapshot(), run.waiting)

        client.subscribe(hear)

        def interrupted(times: int) -> None:
            end.interrupts = times
            board.ending()
            if times == 1:
                board.note(STOPPING)
                run.stop()
            else:
                ending.add(asyncio.ensure_future(client.close(0.0)))

        with board, Interrupts(interrupted, UNDER_WAY):
            ticks = asyncio.ensure_future(_tick(client, run, board))
            try:
                async for outcome in run:
                    if outcome.error is not None:
                        verbose.traceback(outcome.error)
            finally:
                ticks.cancel()
                await asyncio.gather(ticks, *ending, return_exceptions=True)
    end.calls, end.seconds = run.summary.calls, clock() - began
    return end


def _write(results: Results, done: DraftDone, run: BulkRun, board: Board, *, kept: bool) -> None:
    """Write an outcome to the results. If that fails and no ledger records it, stop the run."""
    assert done.draft is not None
    if results.write(Outcome(done.draft, done.status, done.result, done.error)):
        return
    if results.missing == 1:
        then = "the run goes on, and its record is in the ledger" if kept else "the run is stopped"
        board.note(f"note: {escape(results.path)}: it cannot be written ({results.trouble}); {then}")
    if not kept:
        run.stop()


async def _tick(client: FeishuMailClient, run: BulkRun, board: Board) -> None:
    """Update the progress display periodically, until the client closes."""
    with contextlib.suppress(FeishuMailError):
        while True:
            await asyncio.sleep(_TICK)
            board.look(client.snapshot(), run.waiting)
