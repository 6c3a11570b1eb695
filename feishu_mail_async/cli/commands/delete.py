"""`feishu-mail-async delete`: delete drafts for good."""

from typing import Annotated

import typer

from feishu_mail_async.cli.account import read_account
from feishu_mail_async.cli.each import do_each
from feishu_mail_async.cli.logs import Verbose
from feishu_mail_async.cli.options import AccountOptions, JsonOption, MailboxOption, VerboseOption
from feishu_mail_async.cli.plan import agreed, check_askable
from feishu_mail_async.cli.problems import SOME_NOT
from feishu_mail_async.cli.render.console import console, print_line
from feishu_mail_async.cli.render.wording import count
from feishu_mail_async.model import RetryPolicy

from .send import drafts_of

__all__ = ["delete"]


def delete(
    draft_ids: Annotated[
        list[str],
        typer.Argument(
            metavar="DRAFT_ID...", help="The ids of the drafts, as Feishu gave them.", show_default=False
        ),
    ],
    *,
    mailbox: MailboxOption = "me",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.", show_default=False)] = False,
    options: AccountOptions,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Delete drafts for good: they do not go to the trash. It asks first."""
    account = read_account(options).only()
    drafts = drafts_of(draft_ids, mailbox, account.user)
    if not yes:
        check_askable(from_input=False)
        if not agreed(f"Delete {count(len(drafts), 'draft')}? That cannot be undone."):
            print_line(console(), "Nothing was deleted.")
            return SOME_NOT
    client = account.client(RetryPolicy(outage=60.0))
    return do_each(client, drafts, client.delete_draft, "deleted", Verbose(on=verbose), as_json=as_json)
