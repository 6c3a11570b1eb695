"""`feishu-mail-async sandbox`: run a local Feishu server for tests, until Ctrl-C."""

import asyncio
import functools
import shlex
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.text import Text

from feishu_mail_async.cli.account import ENVIRONMENT
from feishu_mail_async.cli.interrupts import Interrupts
from feishu_mail_async.cli.loop import run_loop
from feishu_mail_async.cli.options import DEFAULT_RATE, JsonOption, RateOption, read_rate
from feishu_mail_async.cli.problems import CannotStart, WrongUsage
from feishu_mail_async.cli.render.console import console, print_json, print_line, print_rows
from feishu_mail_async.cli.render.wording import count
from feishu_mail_async.model import RateLimit
from feishu_mail_async.sandbox import CallLog, Sandbox, Window
from feishu_mail_async.sandbox.control import CONTROL
from feishu_mail_async.sandbox.guard import TOKEN_HEADER
from feishu_mail_async.sandbox.process import read_latency

__all__ = ["describe_ledger", "sandbox"]

_SHOWN: Final = 3


def sandbox(
    *,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="An IP address of this machine.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="NUMBER", min=0, max=65535, help="0 takes a free one.")
    ] = 0,
    rate: RateOption = DEFAULT_RATE,
    window: Annotated[
        str,
        typer.Option(
            "--window", metavar="SHAPE", help="How the limit is counted: sliding, fixed or token_bucket."
        ),
    ] = "sliding",
    latency: Annotated[
        str,
        typer.Option("--latency", metavar="SECONDS", help="0.2 is a round trip, 0.05-0.25 the range of each way."),
    ] = "0.05-0.25",
    users: Annotated[
        str, typer.Option("--users", metavar="NAMES", help="Users to make up, with commas between them.")
    ] = "alice,bob",
    drafts: Annotated[int, typer.Option("--drafts", metavar="NUMBER", min=0, help="Drafts for each user.")] = 20,
    as_json: JsonOption = False,
) -> int:
    """Run a Feishu to try against, on this machine, until Ctrl-C.

    It behaves as the documents say: rate limit, one call at a time for each user, already-sent, and more. The
    users, tokens and drafts are made up; nothing leaves this machine.
    """
    limit = read_rate(rate)
    names = list(dict.fromkeys(name.strip() for name in users.split(",") if name.strip()))
    if not names:
        raise WrongUsage("--users", "give at least one name")
    try:
        ways = read_latency(latency)
    except ValueError:
        raise WrongUsage("--latency", f"give seconds, such as 0.2 or 0.05-0.25, not {latency!r}") from None
    try:
        shape = Window(window.lower().replace("_", "-"))
    except ValueError:
        raise WrongUsage("--window", f"give sliding, fixed or token_bucket, not {window!r}") from None
    try:
        server = Sandbox(
            calls=limit.calls, per=limit.per, window=shape, latency=ways, users=names, host=host, port=port
        )
    except ValueError:
        raise WrongUsage("--host", f"give an IP address of this machine, not {host!r}") from None
    ids = {name: server.add_drafts(name, drafts) for name in names}
    return run_loop(_serve(server, ids, limit=limit, shape=shape, latency=latency, as_json=as_json))


async def _serve(
    server: Sandbox,
    ids: Mapping[str, Sequence[str]],
    *,
    limit: RateLimit,
    shape: Window,
    latency: str,
    as_json: bool,
) -> int:
    end = asyncio.Event()
    with Interrupts(lambda _: end.set()):
        try:
            await server.start()
        except OSError as error:
            raise CannotStart(
                f"the sandbox cannot listen at that --host and --port ({error.strerror or error})"
            ) from None
        try:
            if as_json:
                print_json(_as_json(server, ids, limit, shape))
            else:
                _print_start(console(), server, ids, limit=limit, shape=shape, latency=latency)
            await end.wait()
        finally:
            await server.close()
    ending = console(stderr=as_json)
    print_line(ending)
    print_line(ending, "The sandbox has ended. What it saw:")
    print_rows(ending, describe_ledger(server.ledger, limit))
    return 0


def _as_json(server: Sandbox, ids: Mapping[str, Sequence[str]], limit: RateLimit, shape: Window) -> dict[str, Any]:
    return {
        "base_url": server.base_url,
        "rate": {"calls": limit.calls, "seconds": limit.per, "window": shape.value},
        "tokens": server.tokens,
        "drafts": {name: list(listed) for name, listed in ids.items()},
        "client_id": server.client_id,
        "client_secret": server.client_secret,
        "control_token": server.control_token,
    }


def _print_start(
    out: Console,
    server: Sandbox,
    ids: Mapping[str, Sequence[str]],
    *,
    limit: RateLimit,
    shape: Window,
    latency: str,
) -> None:
    line = functools.partial(print_line, out)
    line(f"A Feishu to try against, at {server.base_url}", "bold")
    line(f"It takes {count(limit.calls, 'send call')} in {limit.per:g} s ({shape.replace('-', ' ')} window),")
    ways = "each way" if "-" in latency else "there and back"
    line(f"and one at a time for each user; a call takes {latency} s {ways}.")
    line()
    line("Made-up users. Their tokens may be shown: they open nothing but this sandbox.")
    for name, listed in ids.items():
        line()
        line(f"  {name}", "bold")
        line(f"    token   {server.token(name)}")
        for place, draft_id in enumerate(listed[:_SHOWN]):
            more = f"  and {len(listed) - _SHOWN} more" if place == _SHOWN - 1 and len(listed) > _SHOWN else ""
            line(f"    {'drafts' if place == 0 else '':<7} {draft_id}{more}")
    sender = next((name for name, listed in ids.items() if listed), None)
    if sender is not None:
        line()
        line("Send some of them, from another terminal:")
        line()
        line(f"  {ENVIRONMENT}={shlex.quote(server.token(sender))} \\")
        rate = f"{limit.calls}/{limit.per:g}"
        options = f"--base-url {server.base_url}" + ("" if rate == DEFAULT_RATE else f" --rate {rate}")
        line(f"  feishu-mail-async send {options} \\")
        shown = ids[sender][:_SHOWN]
        for place, draft_id in enumerate(shown):
            line(f"    {shlex.quote(draft_id)}" + (" \\" if place < len(shown) - 1 else ""))
    line()
    line(f"Its own endpoints (GET {server.base_url}{CONTROL}ledger and others) take this header:")
    line(f"  {TOKEN_HEADER}: {server.control_token}")
    line()
    line("Ctrl-C ends it.", "dim")


def describe_ledger(ledger: CallLog, limit: RateLimit) -> list[tuple[Text, str]]:
    """Return the counts of a call log as rows of a label and a value.

    Args:
        ledger: the sandbox's call log.
        limit: the rate limit of the sandbox.
    """
    rows = {
        "send calls": len(ledger.sends),
        "mails sent": ledger.sent.total(),
        f"busiest {limit.per:g} s": f"{ledger.busiest_window()} of {limit.calls} calls allowed",
        "refused: over the limit": ledger.refusals,
        "refused: two at once for one user": ledger.conflicts,
    }
    return [(Text(what), str(much)) for what, much in rows.items()]
