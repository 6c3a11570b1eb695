"""`feishu-mail-async demo`: show a whole run without an account, with many faults, under a sped-up limit."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.text import Text

from feishu_mail_async import codes
from feishu_mail_async.cli.account import ENVIRONMENT
from feishu_mail_async.cli.logs import Verbose
from feishu_mail_async.cli.loop import run_loop
from feishu_mail_async.cli.options import RateOption, VerboseOption, read_rate
from feishu_mail_async.cli.problems import INTERRUPTED, SOME_NOT, CannotStart
from feishu_mail_async.cli.render.console import print_line, print_outcome, print_rows
from feishu_mail_async.cli.render.progress import Board
from feishu_mail_async.cli.render.summary import print_table
from feishu_mail_async.cli.render.wording import count, was_stopped
from feishu_mail_async.cli.runner import Run, run_drafts
from feishu_mail_async.client import FeishuMailClient
from feishu_mail_async.model import Priority, RateLimit, RetryPolicy
from feishu_mail_async.outcomes import Outcome
from feishu_mail_async.sandbox import CallLog, Sandbox

from .demo_scene import FEWEST, mistakes, set_scene
from .sandbox import describe_ledger

__all__ = ["demo"]

_REAL: Final = RateLimit()
_REAL_PAUSE: Final = 30.0
_LATENCY: Final = (0.05, 0.25)
_LEAST_MARGIN: Final = 0.005
_ID_WIDTH: Final = 8


def demo(
    drafts: Annotated[int, typer.Option("--drafts", metavar="NUMBER", min=FEWEST, help="How many to send.")] = 40,
    rate: RateOption = "20/3",
    seed: Annotated[
        int, typer.Option("--seed", metavar="NUMBER", help="Another number: other drafts have the trouble.")
    ] = 0,
    verbose: VerboseOption = False,
) -> int:
    """Watch a whole run, without an account: nothing leaves this machine.

    Drafts of a few made-up users are sent to a made-up Feishu, under a limit that is sped up from 20 calls a
    minute to 20 in 3 seconds, and every delay with it. Some of them go wrong on purpose. At the end each
    outcome is compared with what the server really did; exit code 0 says that all is as it must be.
    """
    return run_loop(_demo(drafts, read_rate(rate), seed, Verbose(on=verbose)))


def _sped_up(limit: RateLimit) -> tuple[RateLimit, RetryPolicy, float]:
    """Return the limit, the retry policy and the scale, with all times scaled like the window."""
    scale = min(1.0, limit.per / _REAL.per)
    policy = RetryPolicy()
    return (
        replace(limit, grace=limit.grace * scale, margin=max(_LEAST_MARGIN, limit.margin * scale)),
        replace(policy, initial=policy.initial * scale, maximum=policy.maximum * scale),
        scale,
    )


async def _demo(number: int, wanted: RateLimit, seed: int, verbose: Verbose) -> int:
    limit, policy, scale = _sped_up(wanted)
    low, high = _LATENCY
    sandbox = Sandbox(
        calls=limit.calls, per=limit.per, latency=(low * min(1, 4 * scale), high * min(1, 4 * scale)), seed=seed
    )
    pause = max(1, round(_REAL_PAUSE * scale))
    scene = set_scene(sandbox, number, seed=seed, attempts=policy.attempts, pause=pause)
    try:
        await sandbox.start()
    except OSError as error:
        raise CannotStart(f"no port on this machine to listen on ({error.strerror or error})") from None
    try:
        client = FeishuMailClient(
            sandbox.tokens, base_url=sandbox.base_url, app="demo", rate_limit=limit, retry=policy
        )
        outcomes: list[Outcome] = []

        def tell(outcome: Outcome) -> None:
            outcomes.append(outcome)
            if _is_told(outcome):
                print_outcome(board.out, outcome, _ID_WIDTH)

        board = Board(number, limit, _ID_WIDTH, lines=verbose.on, tell=tell)
        _introduce(board.out, number, len(sandbox.users), limit)
        run = await run_drafts(client, scene.drafts, board, verbose, Priority.NORMAL)
    finally:
        await sandbox.close()
    found = mistakes(scene, outcomes, sandbox.ledger, limit, whole=not run.interrupts)
    return _conclude(board, run, found, _server(sandbox.ledger, limit))


def _is_told(outcome: Outcome) -> bool:
    """Return whether an outcome is worth a line: not one simply sent at the first attempt, or stopped."""
    if outcome.result is None:
        return not was_stopped(outcome.error)
    return outcome.result.already_sent or outcome.result.attempts > 1


def _introduce(out: Console, drafts: int, users: int, limit: RateLimit) -> None:
    allowed = f"{count(limit.calls, 'call')} in any {limit.per:g} s"
    for line in (
        f"{drafts} drafts of {users} users go to a made-up Feishu on this machine. Nobody gets mail.",
        f"The limit is {allowed} (the real one: 20 in 60 s). Some drafts",
        "go wrong on purpose; those with something to tell are listed as they end.",
        "",
    ):
        print_line(out, line, wrap=True)


def _conclude(board: Board, run: Run, found: Sequence[str], server: Iterable[tuple[Text, str]]) -> int:
    out = board.out
    print_line(out)
    print_table(out, board.tally, advice=False)
    print_line(out, "What the server saw", "bold")
    print_rows(out, server)
    print_line(out)
    for mistake in found:
        print_line(out, f"WRONG: {mistake}", "red", wrap=True)
    if found:
        return SOME_NOT
    if run.interrupts:
        print_line(out, "Stopped half-way. What is told above is what the server really did.", wrap=True)
        return INTERRUPTED if run.interrupts > 1 else SOME_NOT
    well = "Every draft ended as it must, by the server's own record: nothing lost, nothing sent twice."
    print_line(out, well, wrap=True)
    for line in (
        "",
        "With your own account:",
        f"  export {ENVIRONMENT}=u-...",
        "  feishu-mail-async send DRAFT_ID",
    ):
        print_line(out, line)
    return 0


def _server(ledger: CallLog, limit: RateLimit) -> Iterator[tuple[Text, str]]:
    limited = codes.named("FrequencyLimited").number
    scripted = sum(call.scripted and call.code == limited for call in ledger.sends)
    yield from describe_ledger(ledger, limit)
    if scripted:
        yield Text("refused: on purpose, by the demo"), f"{scripted}, as if another program had used up the limit"
