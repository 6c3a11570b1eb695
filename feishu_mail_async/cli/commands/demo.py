"""`feishu-mail-async demo`: show a whole run without an account, with many faults, under a sped-up limit."""

from collections import Counter
from collections.abc import Iterator, Sequence
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
from feishu_mail_async.cli.render.console import STYLES, Screen, print_rows
from feishu_mail_async.cli.render.wording import brief, count, name_status
from feishu_mail_async.cli.runner import Run, run_drafts
from feishu_mail_async.client import FeishuMailClient
from feishu_mail_async.errors import ClientClosed
from feishu_mail_async.model import OutcomeStatus, RateLimit, RetryPolicy
from feishu_mail_async.outcomes import Outcome
from feishu_mail_async.sandbox import CallLog, Sandbox

from .demo_scene import FEWEST, Scene, mistakes, set_scene
from .sandbox import describe_ledger

__all__ = ["demo"]

_REAL: Final = RateLimit()
_REAL_PAUSE: Final = 30.0
_LATENCY: Final = (0.05, 0.25)
_LEAST_MARGIN: Final = 0.005


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
        screen = Screen(total=number, verbose=verbose, shows=_is_told, id_width=8)
        _introduce(screen.out, number, len(sandbox.users), limit)
        run = await run_drafts(client, scene.drafts, screen)
    finally:
        await sandbox.close()
    return _conclude(screen.out, scene, run, sandbox.ledger, limit)


def _is_told(outcome: Outcome) -> bool:
    """Return whether an outcome is worth a line: not one simply sent at the first attempt, or stopped."""
    if isinstance(outcome.error, ClientClosed):
        return False
    plain = outcome.result is not None and outcome.result.attempts == 1 and not outcome.result.already_sent
    return not plain


def _introduce(out: Console, drafts: int, users: int, limit: RateLimit) -> None:
    out.print(
        f"{drafts} drafts of {users} users go to a made-up Feishu on this machine. Nobody gets mail.\n"
        f"The limit is {count(limit.calls, 'call')} in any {limit.per:g} s (the real one: 20 in 60 s). "
        "Some drafts\ngo wrong on purpose; those with something to tell are listed as they end.\n",
        soft_wrap=True,
    )
    out.file.flush()


def _conclude(out: Console, scene: Scene, run: Run, ledger: CallLog, limit: RateLimit) -> int:
    out.print()
    out.print("What became of the drafts", style="bold")
    print_rows(out, _outcomes(run.outcomes))
    out.print()
    out.print("What the server saw", style="bold")
    print_rows(out, _server(ledger, limit))
    out.print()
    stopped = run.interrupts > 0
    found = mistakes(scene, run.outcomes, ledger, limit, whole=not stopped)
    for mistake in found:
        out.print(f"WRONG: {mistake}", style="red")
    if found:
        return SOME_NOT
    if stopped:
        out.print("Stopped half-way. What is told above is what the server really did.")
        return INTERRUPTED if run.interrupts > 1 else SOME_NOT
    out.print("Every draft ended as it must, by the server's own record: nothing lost, nothing sent twice.")
    out.print()
    out.print("With your own account:")
    out.print(f"  export {ENVIRONMENT}=u-...", soft_wrap=True)
    out.print("  feishu-mail-async send DRAFT_ID", soft_wrap=True)
    return 0


def _outcomes(outcomes: Sequence[Outcome]) -> Iterator[tuple[Text, str]]:
    for status in OutcomeStatus:
        those = [outcome for outcome in outcomes if outcome.status is status]
        style = STYLES[status] if those else "dim"
        why = Counter(brief(outcome.error) for outcome in those if outcome.error is not None)
        if len(why) > 1:
            yield Text(name_status(status), style=style), str(len(those))
            yield from ((Text(), f"  {number}: {reason}") for reason, number in why.items())
            continue
        told = next(iter(why), "")
        if status is OutcomeStatus.ALREADY_SENT and those:
            told = "an earlier call had sent it; not sent twice"
        yield Text(name_status(status), style=style), f"{len(those)}: {told}" if told else str(len(those))


def _server(ledger: CallLog, limit: RateLimit) -> Iterator[tuple[Text, str]]:
    limited = codes.named("FrequencyLimited").number
    scripted = sum(call.scripted and call.code == limited for call in ledger.sends)
    yield from describe_ledger(ledger, limit)
    if scripted:
        yield Text("refused: on purpose, by the demo"), f"{scripted}, as if another program had used up the limit"
