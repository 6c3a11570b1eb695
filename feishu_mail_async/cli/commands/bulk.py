"""`feishu-mail-async bulk`: send many drafts, from a file or all of a mailbox."""

import contextlib
import gc
from collections.abc import Iterator, Sequence
from typing import Annotated, Final

import typer

from feishu_mail_async._text import escape
from feishu_mail_async.cli.account import Account, read_account
from feishu_mail_async.cli.logs import Verbose
from feishu_mail_async.cli.loop import run_loop
from feishu_mail_async.cli.options import MailboxOption, NoLedgerOption, SenderOptions, VerboseOption
from feishu_mail_async.cli.plan import agreed, check_askable, print_plan, sent_before
from feishu_mail_async.cli.problems import SOME_NOT, Incomplete, WrongUsage
from feishu_mail_async.cli.render.console import WIDEST_ID, console, print_line, print_note
from feishu_mail_async.cli.render.progress import Board
from feishu_mail_async.cli.render.summary import print_table
from feishu_mail_async.cli.render.wording import count, name_draft
from feishu_mail_async.cli.results import Results
from feishu_mail_async.cli.rows import STANDARD_INPUT, name_file, read_rows
from feishu_mail_async.cli.runner import Run, run_drafts
from feishu_mail_async.cli.schedule import AtOption, Schedule, read_at
from feishu_mail_async.cli.state_dir import find_ledger
from feishu_mail_async.model import Draft, Priority, RetryPolicy
from feishu_mail_async.outcomes import Outcome

from .listing import check_mailbox, collect

__all__ = ["bulk", "read_drafts"]

_COLLECTIONS: Final = 10_000
"""Collections of young objects after which all others are looked through, too: some millions of rows."""
_TOKENS: Final = (
    "Tokens of several users: feishu-mail-async login --user NAME for each of them, or --token-file with JSON "
    'such as {"alice": "u-…", "bob": "u-…"}, in a file that only you may read.'
)


def bulk(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE", help="CSV with a header, or JSON lines; - is standard input.", show_default=False
        ),
    ] = None,
    *,
    everything: Annotated[
        bool, typer.Option("--all", help="Send every draft in the mailbox.", show_default=False)
    ] = False,
    mailbox: MailboxOption = "me",
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            metavar="PATH",
            help="Write a row for each draft, as it ends, to this new file (.csv or .jsonl).",
            show_default=False,
            rich_help_panel="Output",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.", show_default=False)
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Send without asking.", show_default=False)] = False,
    at: AtOption = None,
    no_ledger: NoLedgerOption = False,
    options: SenderOptions,
    verbose: VerboseOption = False,
) -> int:
    """Send many drafts, each once, within the app's rate limit: those of a file, or all of a mailbox.

    FILE is CSV whose first line names the columns: draft_id, and if you like mailbox and user, in any order, with
    commas, semicolons or tabs. Or it is JSON lines: {"draft_id": "…"} with the same keys, or just "…". Other
    columns are ignored. A row without a mailbox takes --mailbox, one without a user takes --user. The whole file
    is read first; if a row is wrong, or there is none, nothing is sent.

    It says how many drafts it would send and how long that will take, and asks. When the network is down it waits.

    With --at the drafts are handed over now, as fast as the limit allows, and Feishu sends them all at that time:
    their status is "scheduled". It says first whether they can all be handed over by then, five minutes before.
    A draft whose turn comes too late for that fails, and is not sent.

    A ledger remembers what was sent and when calls were made, in the user's state directory or at --ledger: the
    same command again goes on where the last one stopped, however it ended, and says first what it will skip.

    Ctrl-C once makes no new calls and finishes those under way; twice stops at once. Sending again is always
    safe: a draft that went out is not sent twice, and is reported as "already sent".

    In --out a row is a draft: draft_id, mailbox, user, status (sent, scheduled, already_sent, failed, unknown,
    skipped), message_id, thread_id, attempts, code, error_type, error, advice, log_id, scheduled_for. In CSV a
    text that a spreadsheet would take for a formula has a ' before it; FILE may be such a file, and is read as it
    was meant.
    """
    if (file is None) != everything:
        raise WrongUsage("FILE", "give a file of drafts (- is standard input), or --all for those of the mailbox")
    check_mailbox(mailbox)
    results, schedule = Results(out) if out is not None else None, read_at(at)
    account = read_account(options)
    with _old_objects_left_alone():
        drafts = read_drafts(file, mailbox, account) if file is not None else None
        if not (yes or dry_run):
            check_askable(from_input=file == STANDARD_INPUT)
        if drafts is None:
            drafts = collect(account.only(), mailbox)
            if not drafts:
                print_line(console(), f"The mailbox {mailbox} has no drafts: there is nothing to send.")
                return 0
        kept = None if no_ledger else find_ledger(options.ledger)
        told = Verbose(on=verbose)
        return _send(drafts, account, kept, results, told, schedule=schedule, dry_run=dry_run, yes=yes)


@contextlib.contextmanager
def _old_objects_left_alone() -> Iterator[None]:
    """Have the garbage collector look at young objects alone, or nearly so.

    All rows wait at once, and none of them goes in circles: to look through all of a million, again and again as
    they come, takes seconds each time, in which no signal is heard.
    """
    before = gc.get_threshold()
    gc.set_threshold(*before[:2], _COLLECTIONS)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def read_drafts(path: str, mailbox: str, account: Account) -> Sequence[Draft]:
    """Return the drafts of a file, and print notes about assumptions made in reading it.

    Args:
        path: the file's path; "-" for standard input.
        mailbox: the mailbox of drafts that name none.
        account: the account, which knows the users with tokens.

    Raises:
        WrongUsage: the file has bad rows, which the message lists, or none.
        CannotStart: the file cannot be read.
    """
    rows = read_rows(path, mailbox, account.user_of)
    name = name_file(path)
    rows.check(name, _TOKENS if any("no token" in wrong for wrong in rows.wrong) else "")
    for note in [*rows.notes, *([f"not used: {', '.join(rows.ignored)}"] if rows.ignored else [])]:
        print_note(f"{name}: {note}")
    return rows.drafts


def _send(
    drafts: Sequence[Draft],
    account: Account,
    ledger: str | None,
    results: Results | None,
    verbose: Verbose,
    *,
    schedule: Schedule | None,
    dry_run: bool,
    yes: bool,
) -> int:
    client = account.client(RetryPolicy(outage=None), ledger)
    width = min(WIDEST_ID, max(len(name_draft(draft)) for draft in drafts))
    board = Board(len(drafts), account.rate_limit, width, lines=verbose.on)
    different, kept = len(set(drafts)), ledger is not None
    before = sent_before(account, ledger, drafts)
    print_plan(board.out, drafts, account, len(drafts) - different, before, schedule)
    if dry_run:
        print_line(board.out, "Nothing was sent: this is a dry run.")
        return 0
    if not (yes or sum(before) == different or _agreed(schedule)):
        print_line(board.out, "Nothing was sent.")
        return SOME_NOT
    try:
        if results is not None:
            results.open()
        run = run_loop(
            run_drafts(
                client,
                drafts,
                board,
                verbose,
                Priority.BULK,
                record=lambda outcome: results is None or _record(results, outcome, board, kept=kept),
                at=None if schedule is None else schedule.at,
            )
        )
    finally:
        if results is not None:
            results.close()
    return _conclude(board, run, results, kept=kept)


def _agreed(schedule: Schedule | None) -> bool:
    return agreed() if schedule is None else agreed(schedule.question)


def _record(results: Results, outcome: Outcome, board: Board, *, kept: bool) -> bool:
    """Write an outcome to the results, and return whether the run may go on: it is written, or in the ledger."""
    if results.write(outcome):
        return True
    if results.missing == 1:
        then = "the run goes on, and its record is in the ledger" if kept else "the run is stopped"
        board.note(f"note: {escape(results.path)}: it cannot be written ({results.trouble}); {then}")
    return kept


def _conclude(board: Board, run: Run, results: Results | None, *, kept: bool) -> int:
    print_line(board.out)
    print_table(board.out, board.tally)
    print_line(board.out, board.tally.sentence(run.calls, run.seconds), wrap=True)
    if results is not None:
        print_line(board.out, f"See {results.path}.")
    if results is not None and results.missing:
        lost = f"{count(results.missing, 'row')} could not be written ({results.trouble})"
        remedy = "; the same command with another --out writes them, from the ledger" if kept else ""
        raise Incomplete(f"{escape(results.path)}: {lost}{remedy}", run.exit_code)
    return run.exit_code
