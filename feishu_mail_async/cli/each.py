"""Calls about many drafts, one for each, told as they end."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from feishu_mail_async.client import FeishuMailClient
from feishu_mail_async.errors import ClientClosed, FeishuMailError
from feishu_mail_async.model import Draft, OutcomeStatus
from feishu_mail_async.outcomes import Outcome

from .logs import Verbose
from .loop import run_loop
from .problems import SOME_NOT
from .render.console import STYLES, WIDEST_ID, console, print_hanging, print_json, print_line, status_head
from .render.wording import Width, count, name_draft, say
from .results import make_row

__all__ = ["do_each"]

_AT_ONCE: Final = 20
"""Calls that wait at the same time: four times as many as the server takes in a second."""


def do_each(
    client: FeishuMailClient,
    drafts: Sequence[Draft],
    act: Callable[[Draft], Awaitable[None]],
    did: str,
    verbose: Verbose,
    *,
    as_json: bool,
) -> int:
    """Make a call for each of these drafts, say how each ends, and return the exit code.

    Args:
        client: the client, not yet opened.
        drafts: the drafts.
        act: makes the call for one.
        did: what a call has done, such as "cancelled".
        verbose: the switch of verbose output.
        as_json: print a JSON object for each.
    """
    out, failed = console(), 0
    width = min(WIDEST_ID, max(len(name_draft(draft)) for draft in drafts))

    def tell(draft: Draft, error: FeishuMailError | None) -> None:
        nonlocal failed
        if error is not None:
            failed += 1
            verbose.traceback(error)
        if as_json:
            print_json(_row(draft, error, did))
            return
        style = STYLES[OutcomeStatus.SENT if error is None else OutcomeStatus.FAILED]
        head = status_head(did if error is None else "failed", style, name_draft(draft), width)
        print_hanging(out, head, "" if error is None else say(error, Width.LINE))

    run_loop(_work(client, drafts, act, tell))
    if len(drafts) > 1 and not as_json:
        rest = f", {failed} not" if failed else ""
        print_line(out, f"{count(len(drafts), 'draft')}: {len(drafts) - failed} {did}{rest}")
    return SOME_NOT if failed else 0


async def _work(
    client: FeishuMailClient,
    drafts: Sequence[Draft],
    act: Callable[[Draft], Awaitable[None]],
    tell: Callable[[Draft, FeishuMailError | None], None],
) -> None:
    waiting = iter(drafts)

    async def work() -> None:
        for draft in waiting:
            try:
                await act(draft)
            except ClientClosed:
                return
            except FeishuMailError as error:
                tell(draft, error)
            else:
                tell(draft, None)

    async with client, asyncio.TaskGroup() as group:
        for _ in range(min(_AT_ONCE, len(drafts))):
            group.create_task(work())


def _row(draft: Draft, error: FeishuMailError | None, did: str) -> dict[str, Any]:
    if error is not None:
        return make_row(Outcome(draft, error.status, None, error))
    return make_row(Outcome(draft, OutcomeStatus.SKIPPED, None, None)) | {"status": did}
