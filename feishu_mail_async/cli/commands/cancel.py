"""`feishu-mail-async cancel`: cancel scheduled sends."""

from typing import Annotated

import typer

from feishu_mail_async.cli.account import read_account
from feishu_mail_async.cli.each import do_each
from feishu_mail_async.cli.logs import Verbose
from feishu_mail_async.cli.options import JsonOption, MailboxOption, NoLedgerOption, SenderOptions, VerboseOption
from feishu_mail_async.cli.problems import WrongUsage
from feishu_mail_async.cli.state_dir import find_ledger
from feishu_mail_async.model import RetryPolicy

from .bulk import read_drafts
from .send import drafts_of

__all__ = ["cancel"]


def cancel(
    draft_ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DRAFT_ID...]", help="The drafts that were scheduled.", show_default=False),
    ] = None,
    *,
    file: Annotated[
        str | None,
        typer.Option(
            "--file", metavar="FILE", help="Cancel those of this file, as `bulk` reads it.", show_default=False
        ),
    ] = None,
    mailbox: MailboxOption = "me",
    no_ledger: NoLedgerOption = False,
    options: SenderOptions,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Cancel sends that were scheduled with `send --at` or `bulk --at`: the mails are drafts again.

    The ledger knows the mail that each draft became, so give the same --ledger as when it was scheduled. A mail
    that has gone out meanwhile is told. Cancelling again is safe.
    """
    if bool(draft_ids) == (file is not None):
        raise WrongUsage("DRAFT_ID", "give the ids of drafts, or --file with a file of them")
    account = read_account(options)
    if file is not None:
        drafts = list(dict.fromkeys(read_drafts(file, mailbox, account)))
    else:
        account = account.only()
        drafts = drafts_of(draft_ids or [], mailbox, account.user)
    client = account.client(RetryPolicy(outage=60.0), None if no_ledger else find_ledger(options.ledger))
    told = Verbose(on=verbose)
    return do_each(client, drafts, client.cancel_scheduled, "cancelled", told, as_json=as_json)
