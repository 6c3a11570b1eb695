"""`feishu-mail-async worker`: send drafts from the queue, until it is stopped."""

import asyncio
import errno
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from feishu_mail_async._streams import output_trouble
from feishu_mail_async.cli.account import Account, read_account
from feishu_mail_async.cli.fleet import load_fleet, named_app
from feishu_mail_async.cli.interrupts import STOPPING, Interrupts
from feishu_mail_async.cli.logs import Verbose
from feishu_mail_async.cli.loop import run_loop
from feishu_mail_async.cli.options import JsonOption, SenderOptions, VerboseOption, read_database
from feishu_mail_async.cli.problems import INTERRUPTED, SOME_NOT, CannotStart, Problem
from feishu_mail_async.cli.render.console import console, print_json, print_line
from feishu_mail_async.cli.render.estimate import name_limit
from feishu_mail_async.cli.render.failures import Failures
from feishu_mail_async.cli.render.summary import Tally, print_table
from feishu_mail_async.cli.render.wording import count
from feishu_mail_async.cli.results import make_row
from feishu_mail_async.client import FeishuMailClient
from feishu_mail_async.model import RetryPolicy
from feishu_mail_async.outcomes import Outcome

if TYPE_CHECKING:
    from feishu_mail_async.fleet import DraftWorker

__all__ = ["worker"]

_OFTEN: Final = 600.0
"""The time after which a suspension is reported once more, in seconds."""
_BEATS: Final = 3
"""The number of heartbeats that a worker must miss to count as dead."""


def worker(
    *,
    options: SenderOptions,
    at_once: Annotated[
        int,
        typer.Option(
            "--at-once",
            metavar="NUMBER",
            min=1,
            help="Drafts taken at once. They wait for their turn here, which costs little.",
        ),
    ] = 1000,
    dead_after: Annotated[
        float,
        typer.Option(
            "--dead-after",
            metavar="SECONDS",
            min=0.1,
            help="Take over the drafts of a worker that has given no sign of life for so long.",
        ),
    ] = 15.0,
    call_timeout: Annotated[
        float,
        typer.Option(
            "--call-timeout",
            metavar="SECONDS",
            min=0.1,
            help="Wait so long for the answer to a call, and no longer.",
        ),
    ] = 30.0,
    until_empty: Annotated[
        bool,
        typer.Option("--until-empty", help="End when no draft is left in the queue.", show_default=False),
    ] = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Send the drafts that `enqueue` has queued. Run it on as many machines as you like.

    All workers of an app keep its limit together, and one call at a time for each user. --ledger is the same
    PostgreSQL for all of them, and --app the app's id. A worker sends for the users that it has tokens of: those
    of --token-file, or those who have logged in to that ledger with `login`. It leaves the drafts of others in
    the queue.

    It runs until Ctrl-C or SIGTERM: then it takes no more drafts, finishes the calls under way, and puts back what
    waits. A second one stops at once. The drafts of a worker that is killed are taken over by the others, and none
    is sent twice. While the database is away it waits.

    It prints what goes wrong, and at the end what became of the drafts; with --json a line for each draft.
    """
    database = read_database(options.ledger)
    account = read_account(replace(options, ledger=database, app=named_app(options.app)))
    fleet = load_fleet()
    told = Verbose(on=verbose)
    # The worker reports their errors itself, in plain words.
    logging.getLogger("psycopg").setLevel(logging.WARNING if verbose else logging.CRITICAL)
    logging.getLogger("procrastinate").setLevel(logging.WARNING if verbose else logging.CRITICAL)
    client = account.client(RetryPolicy(outage=None), database, call_timeout)
    report = _Report(account, told, as_json=as_json)
    return run_loop(
        _run(fleet, database, account, client, report, at_once=at_once, dead=dead_after, until_empty=until_empty)
    )


async def _run(
    fleet: Any,
    database: str,
    account: Account,
    client: FeishuMailClient,
    report: "_Report",
    *,
    at_once: int,
    dead: float,
    until_empty: bool,
) -> int:
    clock = asyncio.get_running_loop().time
    began, interrupts, unread = clock(), 0, False
    try:
        await fleet.prepare(database)
    except fleet.QueueTrouble as error:
        raise CannotStart(f"--ledger: {error}") from error
    async with client:

        def tell(outcome: Outcome) -> None:
            nonlocal unread
            report.outcome(outcome)
            if report.reader_has_left() and not unread:
                unread = True
                working.stop()

        working: DraftWorker = fleet.DraftWorker(
            database,
            fleet.Queue(account.base_url, account.app),
            client,
            user_of=account.user_of,
            limit=account.rate_limit,
            at_once=at_once,
            times=fleet.Times(beat=dead / _BEATS, dead=dead),
            tell=tell,
            note=report.note,
        )

        def hear(times: int) -> None:
            nonlocal interrupts
            interrupts = times
            if times == 1:
                report.note(STOPPING)
            working.stop(at_once=times > 1)

        with Interrupts(hear, "other workers take over its drafts"):
            report.started(at_once)
            try:
                await working.run(until_empty=until_empty)
            except fleet.QueueTrouble as error:
                raise Problem(f"--ledger: {error}") from error
    report.ended(clock() - began)
    if interrupts > 1:
        return INTERRUPTED
    all_sent = report.tally.all_sent and not working.unreadable
    return SOME_NOT if until_empty and not interrupts and not all_sent else 0


class _Report:
    """The output of a worker: at the start, at each failure, and at the end.

    Args:
        account: the account that sends.
        verbose: the switch of verbose output.
        as_json: print outcomes on standard output as JSON, one a line, and nothing else there.

    Attributes:
        tally: the counts of outcomes.
    """

    def __init__(self, account: Account, verbose: Verbose, *, as_json: bool) -> None:
        self.tally = Tally()
        self._account = account
        self._verbose = verbose
        self._json = as_json
        self._out, self._err = console(stderr=as_json), console(stderr=True)
        self._failures = Failures(self._err, 0, shows=lambda _: True, again=_OFTEN)
        self._calls = 0

    def started(self, at_once: int) -> None:
        """Print the start of the worker.

        Args:
            at_once: the number of drafts held at once.
        """
        limit, account = name_limit(self._account.rate_limit), self._account
        self._say(f"worker for {account.base_url}, app {account.app}: {limit}, {count(at_once, 'draft')} at once")

    def note(self, text: str) -> None:
        """Print a message that is not an outcome."""
        self._say(f"note: {text}")

    def outcome(self, outcome: Outcome) -> None:
        """Print the outcome of a draft if it is worth a line, and count it."""
        self.tally.add(outcome)
        self._calls += (outcome.result or outcome.error).attempts  # type: ignore[union-attr]  # one of them is set
        if self._json:
            print_json(make_row(outcome))
        self._failures.tell(outcome)
        if outcome.error is not None:
            self._verbose.traceback(outcome.error)

    def reader_has_left(self) -> bool:
        """Return whether the program that reads the outcomes has ended, so that the worker should stop."""
        trouble = output_trouble()
        return self._json and trouble is not None and trouble.errno == errno.EPIPE

    def ended(self, seconds: float) -> None:
        """Print the summary at the end.

        Args:
            seconds: the duration of the work, in seconds.
        """
        if self.tally.total and not self._json:
            print_table(self._out, self.tally)
        print_line(self._out, self.tally.sentence(self._calls, seconds))

    def _say(self, text: str) -> None:
        print_line(self._err, text, "dim")
