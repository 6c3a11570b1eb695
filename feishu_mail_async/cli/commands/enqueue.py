"""`feishu-mail-async enqueue`: put the drafts of a file into the queue of the workers."""

from dataclasses import replace
from typing import Annotated

import typer

from feishu_mail_async.cli.account import read_account
from feishu_mail_async.cli.fleet import load_fleet, named_app
from feishu_mail_async.cli.logs import Verbose
from feishu_mail_async.cli.loop import run_loop
from feishu_mail_async.cli.options import JsonOption, MailboxOption, SenderOptions, VerboseOption, read_database
from feishu_mail_async.cli.plan import agreed, check_askable, print_plan
from feishu_mail_async.cli.problems import SOME_NOT, CannotStart
from feishu_mail_async.cli.render.console import console, print_json, print_line
from feishu_mail_async.cli.render.wording import count
from feishu_mail_async.cli.rows import STANDARD_INPUT

from .bulk import read_drafts
from .listing import check_mailbox

__all__ = ["enqueue"]


def enqueue(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="CSV with a header, or JSON lines; - is standard input.", show_default=False
        ),
    ],
    *,
    options: SenderOptions,
    mailbox: MailboxOption = "me",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Queue without asking.", show_default=False)] = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Put the drafts of a file into the queue, from which workers on any number of machines send them.

    FILE is what `bulk` takes: CSV with the column draft_id, and if you like mailbox and user, or JSON lines. The
    whole file is read first; if a row is wrong, or there is none, nothing is queued.

    --ledger is a PostgreSQL that all machines reach, and --app the app's id. No token goes into the queue, and
    none is needed here; with --token-file the users in FILE are checked against it. --rate only serves to say how
    long it will take.

    A draft that is queued already is not queued twice, so doing it again is safe.
    """
    check_mailbox(mailbox)
    database = read_database(options.ledger)
    account = read_account(replace(options, app=named_app(options.app)), sends=False)
    fleet = load_fleet()
    Verbose(on=verbose)
    drafts = read_drafts(file, mailbox, account)
    if not yes:
        check_askable(from_input=file == STANDARD_INPUT)
    # With --json, standard output gets nothing but the JSON.
    out = console(stderr=as_json)
    print_plan(out, drafts, account, len(drafts) - len(set(drafts)))
    if not (yes or agreed()):
        print_line(out, "Nothing was queued.")
        return SOME_NOT
    queue = fleet.Queue(account.base_url, account.app)
    try:
        run_loop(fleet.prepare(database))
        queued = run_loop(fleet.enqueue(database, queue, drafts))
    except fleet.QueueTrouble as error:
        raise CannotStart(f"--ledger: {error}") from error
    if as_json:
        print_json({"queued": queued.new, "queued_before": queued.before})
    else:
        before = (
            f" {queued.before} {'was' if queued.before == 1 else 'were'} queued before." if queued.before else ""
        )
        print_line(out, f"{count(queued.new, 'draft')} queued.{before}", wrap=True)
    return 0
