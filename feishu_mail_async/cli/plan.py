"""The plan of a run: its drafts, those sent before, and the confirmation before it starts."""

from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

from rich.console import Console
from rich.text import Text

from feishu_mail_async._text import escape
from feishu_mail_async.codes import ResumeWhen
from feishu_mail_async.errors import LedgerError
from feishu_mail_async.ledger import DraftState
from feishu_mail_async.model import Draft

from .account import Account
from .loop import run_loop
from .problems import CannotStart, WrongUsage
from .prompts import agrees, can_be_asked
from .render.console import print_line, print_rows
from .render.estimate import duration, name_limit
from .render.wording import count, span
from .schedule import Schedule
from .state_dir import REMEDY

__all__ = ["Before", "agreed", "check_askable", "print_plan", "sent_before"]

_MOST_ROWS: Final = 10


class Before(NamedTuple):
    """The drafts that the ledger has on record as done, which need no call.

    Attributes:
        sent: the number of those that were sent.
        scheduled: the number of those that the server will send.
    """

    sent: int = 0
    scheduled: int = 0


def print_plan(  # noqa: PLR0917 - one for each thing that is said
    place: Console,
    drafts: Sequence[Draft],
    account: Account,
    repeated: int,
    before: Before = Before(),  # noqa: B008 - a value
    schedule: Schedule | None = None,
) -> None:
    """Print the number of drafts by mailbox and user, and the expected duration.

    Args:
        place: the console to print on.
        drafts: the drafts, with duplicates.
        account: the account that sends them.
        repeated: the number of drafts that repeat an earlier one.
        before: those of the others that were sent or scheduled before.
        schedule: when the server is to send them; None: at once.
    """
    left = len(drafts) - repeated - sum(before)
    print_line(place, f"{count(len(drafts), 'draft')} for {account.base_url}", "bold")
    print_rows(place, _mailboxes(drafts))
    if repeated:
        rows, verb = count(repeated, "row"), "names" if repeated == 1 else "name"
        once = "it is sent" if repeated == 1 else "each is sent"
        print_line(place, f"{rows} {verb} a draft named before: {once} once.")
    for number, what in zip(before, ("sent before", "scheduled before"), strict=True):
        if number:
            were, each = ("was", "it is") if number == 1 else ("were", "they are")
            print_line(place, f"{count(number, 'draft')} {were} {what}: {each} skipped.")
    if left:
        seconds = max(1.0, duration(left, account.rate_limit))
        print_line(place, f"It takes about {span(seconds)}: {name_limit(account.rate_limit)}.")
        if schedule is not None:
            print_line(place, schedule.sentence(left, account.rate_limit), wrap=True)
    else:
        print_line(place, "There is nothing left to send.")


def _mailboxes(drafts: Sequence[Draft]) -> list[tuple[Text, str]]:
    counts = Counter((draft.user, draft.mailbox) for draft in drafts)
    named = counts.most_common(_MOST_ROWS if len(counts) > _MOST_ROWS + 1 else None)
    rows = [(Text(_name(*key)), str(number)) for key, number in named]
    rest = len(counts) - len(named)
    if rest:
        others = counts.total() - sum(number for _, number in named)
        rows.append((Text(f"{rest} other mailboxes"), str(others)))
    return rows


def _name(user: str | None, mailbox: str) -> str:
    own = mailbox == "me"
    if user is None:
        return "the user's own mailbox" if own else escape(mailbox)
    return escape(f"{user}'s own mailbox" if own else f"{mailbox}, for {user}")


def check_askable(*, from_input: bool) -> None:
    """Check that the confirmation can be asked for at a terminal.

    Args:
        from_input: True if the drafts come from standard input.

    Raises:
        WrongUsage: there is no terminal to ask at; `--yes` is needed.
    """
    if from_input:
        raise WrongUsage("--yes", "the drafts come from standard input, so nobody can be asked there; give it")
    if not can_be_asked():
        raise WrongUsage("--yes", "without a terminal nobody can be asked before mail is sent; give it")


def agreed(question: str = "Send them? Mail cannot be unsent.") -> bool:
    """Ask for the confirmation, and return whether the answer is yes; Ctrl-C is a no."""
    try:
        return agrees(f"{question} [y/N] ")
    except KeyboardInterrupt:
        return False


def sent_before(account: Account, ledger: str | None, drafts: Sequence[Draft]) -> Before:
    """Return the numbers of drafts that the ledger has recorded as sent or scheduled, which need no call.

    Subjects that an earlier run has left suspended until `resume` are resumed: a user who repeats the command has
    removed the cause, or wants to see whether it still exists.

    Args:
        account: the account that sends.
        ledger: the ledger's URL; None if there is none.
        drafts: the drafts; duplicates are counted once.

    Raises:
        CannotStart: the ledger cannot be read.
    """
    if ledger is None:
        return Before()
    try:
        return run_loop(_sent_before(account, ledger, list(dict.fromkeys(drafts))))
    except LedgerError as error:
        raise CannotStart(f"{error}{REMEDY}") from None


async def _sent_before(account: Account, ledger: str, drafts: Sequence[Draft]) -> Before:
    async with account.client(ledger=ledger) as client:
        records = await client.records(drafts)
        for suspended in client.snapshot().suspended:
            if suspended.until is ResumeWhen.RESUMED:
                client.resume(suspended.subject)
    done = [record.state for record in records if record is not None and record.state.done]
    scheduled = done.count(DraftState.SCHEDULED)
    return Before(len(done) - scheduled, scheduled)
