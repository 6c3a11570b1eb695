"""`feishu-mail-async list`: list the drafts of a mailbox."""

import asyncio
from collections.abc import Callable
from typing import Annotated

import typer

from feishu_mail_async._api.endpoints import LIST
from feishu_mail_async._streams import output_trouble
from feishu_mail_async.cli.account import Account, read_account
from feishu_mail_async.cli.ids import check_spelling
from feishu_mail_async.cli.logs import Verbose
from feishu_mail_async.cli.loop import run_loop
from feishu_mail_async.cli.options import AccountOptions, MailboxOption, VerboseOption
from feishu_mail_async.cli.problems import Problem, WrongUsage
from feishu_mail_async.cli.render.console import print_json, print_note
from feishu_mail_async.cli.render.wording import Width, say
from feishu_mail_async.errors import FeishuMailError
from feishu_mail_async.model import Draft, RetryPolicy

__all__ = ["check_mailbox", "collect", "list_drafts"]

_RETRY = RetryPolicy(outage=20.0)


def list_drafts(
    *,
    mailbox: MailboxOption = "me",
    options: AccountOptions,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="JSON lines, as `bulk` takes them, instead of one id a line.",
            show_default=False,
            rich_help_panel="Output",
        ),
    ] = False,
    verbose: VerboseOption = False,
) -> int:
    """List the drafts of a mailbox: one id a line."""
    check_mailbox(mailbox)
    account = read_account(options).only()
    Verbose(on=verbose)

    def tell(draft: Draft) -> bool:
        named = {"draft_id": draft.draft_id, "mailbox": draft.mailbox}
        if draft.user is not None:
            named["user"] = draft.user
        # Flushed, so that a closed pipe is noticed at once and the listing ends.
        if as_json:
            print_json(named)
        else:
            print(draft.draft_id, flush=True)  # noqa: T201 - the command's purpose
        return output_trouble() is None

    number = run_loop(_list(account, mailbox, tell))
    if not number:
        print_note(f"the mailbox {mailbox} has no drafts")
    return 0


list_drafts.__doc__ = f"{list_drafts.__doc__}\n\nThe token needs the scope {LIST.scope}."


def collect(account: Account, mailbox: str) -> list[Draft]:
    """Return all drafts of a mailbox.

    Args:
        account: the account.
        mailbox: the mailbox's address, or `me`.

    Raises:
        Problem: the drafts cannot be listed.
    """
    drafts: list[Draft] = []

    def take(draft: Draft) -> bool:
        drafts.append(draft)
        return True

    run_loop(_list(account, mailbox, take))
    return drafts


def check_mailbox(mailbox: str) -> None:
    """Check the value of `--mailbox`.

    Args:
        mailbox: the value.

    Raises:
        WrongUsage: it cannot be a mailbox.
    """
    try:
        Draft("any", check_spelling("mailbox", mailbox))
    except ValueError as error:
        raise WrongUsage("--mailbox", error) from None


async def _list(account: Account, mailbox: str, tell: Callable[[Draft], bool]) -> int:
    """Pass each draft to `tell` until that returns False, and return the number of drafts."""
    number = 0
    async with account.client(_RETRY) as client:
        try:
            async for draft in client.list_drafts(mailbox=mailbox, user=account.user):
                number += 1
                if not tell(draft):
                    break
        except FeishuMailError as error:
            said = say(error, Width.LINE)
            raise Problem(f"the drafts of the mailbox {mailbox} cannot be listed: {said}") from error
        except asyncio.CancelledError:
            await client.close(0.0)  # at once: a listing has no effect, so its answer is not needed
            raise
    return number
