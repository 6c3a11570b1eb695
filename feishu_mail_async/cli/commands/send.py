"""`feishu-mail-async send`: send some drafts by their ids."""

from collections.abc import Sequence
from typing import Annotated

import typer

from feishu_mail_async.cli.account import read_account
from feishu_mail_async.cli.ids import check_spelling
from feishu_mail_async.cli.logs import Verbose
from feishu_mail_async.cli.loop import run_loop
from feishu_mail_async.cli.options import JsonOption, MailboxOption, NoLedgerOption, SenderOptions, VerboseOption
from feishu_mail_async.cli.plan import sent_before
from feishu_mail_async.cli.problems import WrongUsage
from feishu_mail_async.cli.render.console import WIDEST_ID, console, print_json, print_line, print_outcome
from feishu_mail_async.cli.render.progress import Board
from feishu_mail_async.cli.render.wording import name_draft
from feishu_mail_async.cli.results import make_row
from feishu_mail_async.cli.runner import run_drafts
from feishu_mail_async.cli.schedule import AtOption, read_at
from feishu_mail_async.cli.state_dir import find_ledger
from feishu_mail_async.model import Draft, Priority, RetryPolicy
from feishu_mail_async.outcomes import Outcome

from .listing import check_mailbox

__all__ = ["drafts_of", "send"]


def send(
    draft_ids: Annotated[
        list[str],
        typer.Argument(
            metavar="DRAFT_ID...", help="The ids of the drafts, as Feishu gave them.", show_default=False
        ),
    ],
    *,
    mailbox: MailboxOption = "me",
    outage: Annotated[
        float,
        typer.Option(
            "--outage",
            metavar="SECONDS",
            help="Give up when the server could not be reached for so long.",
            show_default="60",
        ),
    ] = 60.0,
    at: AtOption = None,
    no_ledger: NoLedgerOption = False,
    options: SenderOptions,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Send drafts, each once, within the app's rate limit.

    The token is a user_access_token. It comes from --token-file, from the environment variable
    FEISHU_USER_ACCESS_TOKEN, or from `login`; never from an argument, which others on this machine could read.

    With --at they are handed over now, and Feishu sends them then: their status is "scheduled", not "sent".

    A ledger remembers what was sent and when calls were made, in the user's state directory or at --ledger: so
    sending again costs no call, and one command after another keeps the limit.

    Ctrl-C once makes no new calls and finishes those under way; twice stops at once. Sending again is always
    safe: a draft that went out is not sent twice, and is reported as "already sent".
    """
    drafts, schedule = drafts_of(draft_ids, mailbox), read_at(at)
    try:
        retry = RetryPolicy(outage=outage)
    except ValueError:
        raise WrongUsage("--outage", f"give seconds, 0 or more, not {outage:g}") from None
    account = read_account(options).only()
    if account.user is not None:
        drafts = [Draft(draft.draft_id, draft.mailbox, account.user) for draft in drafts]
    kept = None if no_ledger else find_ledger(options.ledger)
    sent_before(account, kept, drafts)  # fails before anything is sent if the ledger cannot be used
    client, told = account.client(retry, kept), Verbose(on=verbose)
    width = min(WIDEST_ID, max(len(name_draft(draft)) for draft in drafts))

    def tell(outcome: Outcome) -> None:
        if as_json:
            print_json(make_row(outcome))
        else:
            print_outcome(board.out, outcome, width)

    lines = told.on or (as_json and console().is_terminal)
    board = Board(len(drafts), account.rate_limit, width, lines=lines, bar=False, tell=tell)
    run = run_loop(
        run_drafts(client, drafts, board, told, Priority.NORMAL, at=None if schedule is None else schedule.at)
    )
    if len(drafts) > 1 and not as_json:
        print_line(board.out, str(board.tally), wrap=True)
    return run.exit_code


def drafts_of(ids: Sequence[str], mailbox: str, user: str | None = None) -> list[Draft]:
    """Return the drafts that the arguments name, each once.

    Raises:
        WrongUsage: an id, or the mailbox, cannot be one.
    """
    check_mailbox(mailbox)
    drafts = []
    for draft_id in dict.fromkeys(ids):
        try:
            drafts.append(Draft(check_spelling("draft_id", draft_id), mailbox, user))
        except ValueError as error:
            raise WrongUsage("DRAFT_ID", error) from None
    return drafts
