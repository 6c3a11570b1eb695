"""Where the command line keeps its ledger, and what it says of drafts before a run."""

import asyncio
from collections.abc import Sequence

from platformdirs import user_state_path

from feishu_mail_async.codes import Until
from feishu_mail_async.errors import LedgerError
from feishu_mail_async.model import Draft

from .account import Account
from .options import read_ledger
from .problems import CannotStart

__all__ = ["find_ledger", "sent_before"]

_REMEDY = "; or give --ledger PATH, or --no-ledger to keep none"


def find_ledger(ledger: str | None, *, none: bool) -> str | None:
    """The URL of the ledger to keep; None to keep none.

    Args:
        ledger: what `--ledger` gives; without it, it lies in the user's state directory.
        none: `--no-ledger`.

    Raises:
        WrongUsage: `--ledger` gives none.
        CannotStart: there is no such directory, and it cannot be made.
    """
    if none:
        return None
    if ledger is not None:
        return read_ledger(ledger)
    directory = user_state_path("feishu-mail-async", appauthor=False)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CannotStart(f"ledger: {directory}: it cannot be made ({error.strerror}){_REMEDY}") from None
    return read_ledger(str(directory / "ledger.db"))


def sent_before(account: Account, ledger: str | None, drafts: Sequence[Draft]) -> int:
    """How many of these drafts the ledger has as sent: they need no call.

    What an earlier run found closed until somebody does something about it is tried again: whoever gives the
    command once more has done it, or wants to know.

    Raises:
        CannotStart: it cannot be read.
    """
    if ledger is None:
        return 0
    try:
        return asyncio.run(_sent_before(account, ledger, list(dict.fromkeys(drafts))))
    except LedgerError as error:
        raise CannotStart(f"{error}{_REMEDY}") from None


async def _sent_before(account: Account, ledger: str, drafts: Sequence[Draft]) -> int:
    async with account.client(ledger=ledger) as client:
        records = await client.recall(drafts)
        for closed in client.snapshot().closed:
            if closed.until is Until.REOPEN:
                client.reopen(closed.scope)
    return sum(record is not None and record.state.settled for record in records)
