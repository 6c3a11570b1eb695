"""`feishu-mail-async doctor`: find out whether drafts could be sent, without sending one."""

from typing import Final

from feishu_mail_async._text import escape
from feishu_mail_async.cli.account import Account, read_account
from feishu_mail_async.cli.checks import CHECKS, Findings, Status, examine
from feishu_mail_async.cli.logs import Verbose
from feishu_mail_async.cli.loop import run_loop
from feishu_mail_async.cli.options import AccountOptions, JsonOption, MailboxOption, VerboseOption
from feishu_mail_async.cli.problems import SOME_NOT, CannotStart
from feishu_mail_async.cli.render.console import console, print_hanging, print_json, status_head

from .listing import check_mailbox

__all__ = ["doctor"]

_STYLES: Final = {Status.OK: "green", Status.PROBLEM: "red", Status.NOT_CHECKED: "yellow"}


def doctor(
    *,
    mailbox: MailboxOption = "me",
    options: AccountOptions,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Say what is missing to send a draft, and what to do about it. It sends nothing.

    It looks at the ledger, at who has logged in, whether the host answers and its clock agrees with this
    machine's, whether the token is good, what it allows, whether the mailbox can be read, and how much of the
    limit is in use. All is well: exit code 0.
    """
    check_mailbox(mailbox)
    Verbose(on=verbose)
    account: Account | CannotStart
    try:
        account = read_account(options).only()
    except CannotStart as error:
        account = error
    findings = run_loop(examine(options, mailbox, account))
    well = not any(status is Status.PROBLEM for status, _ in findings.values())
    _tell(findings, well=well, as_json=as_json)
    return 0 if well else SOME_NOT


def _tell(findings: Findings, *, well: bool, as_json: bool) -> None:
    rows = [(name, status, escape(told)) for name, (status, told) in findings.items()]
    if as_json:
        checks = [{"check": name, "status": status.replace(" ", "_"), "told": told} for name, status, told in rows]
        print_json({"ok": well, "checks": checks})
        return
    out, width = console(), max(len(check.name) for check in CHECKS)
    for name, status, told in rows:
        print_hanging(out, status_head(status, _STYLES[status], name, width), told)
