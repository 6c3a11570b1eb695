"""A batch for cron or a systemd timer: it sends many drafts, and goes on where it stopped, however it was stopped.

    python examples/nightly_batch.py --sandbox

shows it at work without an account: a night that is broken off, and the next one. For the real thing set
FEISHU_APP_ID, and FEISHU_USER_ACCESS_TOKEN to a token or to JSON with one for each user (settings.py tells of the
other settings):

    pip install '.[ledger]'
    python examples/nightly_batch.py drafts.csv     # with a header: draft_id and, if you like, user and mailbox
    python examples/nightly_batch.py --all          # every draft in the users' own mailboxes

What was sent is kept in feishu-mail.db, or where FEISHU_MAIL_LEDGER says. After a kill or a power cut run the same
again: nothing is sent twice, nothing is left out. SIGTERM and Ctrl-C finish the calls in flight. What was not sent
is printed, and counts, so that cron's mail is worth reading. Exit codes: 0 all sent, 1 some not, 2 wrong usage.

The core of a systemd unit, for a timer to start:

    [Service]
    Type=oneshot
    StateDirectory=feishu-mail
    WorkingDirectory=%S/feishu-mail
    EnvironmentFile=/etc/feishu-mail.env
    ExecStart=/srv/mail/bin/python /srv/mail/nightly_batch.py /srv/mail/drafts.csv
"""

import argparse
import asyncio
import contextlib
import csv
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from rehearsal import report, sandbox
from settings import open_client, users

from feishu_mail_async import BulkRun, Draft, FeishuMailClient, OutcomeStatus
from feishu_mail_async.sandbox import Arrival, Fault, Sandbox

LEDGER: Final = "sqlite:///feishu-mail.db"
SENT: Final = {OutcomeStatus.SENT, OutcomeStatus.ALREADY_SENT}


def read_csv(path: Path) -> list[Draft]:
    """All the drafts of a file, before the first is sent: a file with a mistake in it sends nothing."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        return [
            Draft(row.get("draft_id") or "", row.get("mailbox") or "me", row.get("user") or None)
            for row in csv.DictReader(file)
        ]


async def all_drafts(client: FeishuMailClient) -> AsyncIterator[Draft]:
    """Every draft in the users' own mailboxes."""
    for user in users():
        async for draft in client.list_drafts(user=user):
            yield draft


async def send_all(client: FeishuMailClient, drafts: Iterable[Draft] | AsyncIterable[Draft]) -> int:
    """Send the drafts, say what was not sent, and return the exit code."""
    skipped = Counter[str]()
    async with client.send_drafts(drafts) as run:
        with stopped_by_signals(run):
            async for outcome in run:
                if outcome.status is OutcomeStatus.SKIPPED:
                    skipped[str(outcome.error)] += 1  # for one reason many, such as a quota or a signal
                elif outcome.status not in SENT:
                    print(f"{outcome.status}: {outcome.draft.draft_id}: {outcome.error}")
    for reason, number in skipped.items():
        print(f"skipped: {number} drafts: {reason}")
    statuses = run.summary.statuses
    print(", ".join(f"{statuses[status]} {status}" for status in OutcomeStatus if statuses[status]) or "no drafts")
    return 0 if sum(statuses[status] for status in SENT) == run.summary.total else 1


@contextlib.contextmanager
def stopped_by_signals(run: BulkRun) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C stop the run: no new calls, and those in flight are finished."""
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, run.stop)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


async def work(drafts: Sequence[Draft] | None) -> int:
    """Send these drafts, or all there are, and return the exit code."""
    async with open_client(ledger=LEDGER) as client:
        return await send_all(client, all_drafts(client) if drafts is None else drafts)


async def rehearse() -> int:
    """Two nights with a made-up Feishu; in the first one SIGTERM comes with the fourth call."""
    with tempfile.TemporaryDirectory() as directory:
        async with sandbox() as feishu:
            os.environ["FEISHU_MAIL_LEDGER"] = f"sqlite:///{directory}/mail.db"
            path = set_scene(feishu, Path(directory))
            print("The first night, and SIGTERM in the middle of it:")
            await work(read_csv(path))
            print(f"({len(feishu.ledger.sends)} calls)\n\nThe second night, with the same file:")
            code = await work(read_csv(path))
            report(feishu)
    print(f"The exit code of the second night is {code}, for one draft has to be mended.")
    return 0


def set_scene(feishu: Sandbox, directory: Path) -> Path:
    """Ten drafts, and a file that names them; one answer gets lost, one draft is refused, one signal comes."""
    path = directory / "drafts.csv"
    drafts = [feishu.add_draft(user, f"{user}-{number}") for number in range(1, 6) for user in feishu.users]
    path.write_text("draft_id,user\n" + "".join(f"{draft_id},{draft_id[:-2]}\n" for draft_id in drafts))
    feishu.script("alice-2", Fault.gateway(502, accepted=True))
    feishu.script("bob-4", Fault.code("ReceiverCheckFailed"))

    def terminate(_: Arrival) -> None:
        if len(feishu.ledger.sends) == 3:  # noqa: PLR2004 - the fourth comes now
            os.kill(os.getpid(), signal.SIGTERM)

    feishu.on_call = terminate
    return path


def main() -> int:
    """Read the command line, and work."""
    parser = argparse.ArgumentParser(description="Send many drafts; go on where the last run stopped.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("drafts", nargs="?", type=Path, metavar="drafts.csv", help="with a column draft_id")
    what.add_argument("--all", action="store_true", help="every draft in the users' own mailboxes")
    what.add_argument("--sandbox", action="store_true", help="try it without an account")
    arguments = parser.parse_args()
    if arguments.sandbox:
        return asyncio.run(rehearse())
    try:
        drafts = None if arguments.all else read_csv(arguments.drafts)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return asyncio.run(work(drafts))


if __name__ == "__main__":
    sys.exit(main())
