"""Runs: what is asked before, what is told meanwhile, and what is left afterwards."""

import contextlib
import gc
import io
import json
import os
import pty
import re
import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from feishu_mail_async import Draft, Outcome, OutcomeStatus, RateLimit
from feishu_mail_async.cli.plan import agreed
from feishu_mail_async.cli.render.progress import Board
from feishu_mail_async.cli.results import COLUMNS
from feishu_mail_async.cli.rows import Rows, read_rows
from feishu_mail_async.codes import named
from feishu_mail_async.errors import OutcomeUnknown
from feishu_mail_async.sandbox import Fault
from tests.helpers.cli import PATIENCE, Ended, Feishu, read_until

pytestmark = pytest.mark.usefixtures("own_state")


Cli = Callable[..., Ended]


# --- before it sends --------------------------------------------------------------------------------------


def test_dry_run(cli: Cli, feishu: Feishu) -> None:
    rows = [f"a{number},me,alice" for number in range(60)] + [
        f"b{number},t@example.com,bob" for number in range(40)
    ]
    path = feishu.write("d.csv", "draft_id,mailbox,user", *rows, rows[0], rows[1], rows[0])
    ended = cli("bulk", path, "--dry-run", "--out", str(feishu.out), rate="20/60")
    assert (ended.code, ended.err, feishu.calls) == (0, "", 0)
    assert ended.out.splitlines() == [
        f"103 drafts for {feishu.sandbox.base_url}",
        "  alice's own mailbox     63",
        "  t@example.com, for bob  40",
        "3 rows name a draft named before: each is sent once.",
        "It takes about 5 min: 20 calls a minute.",
        "Nothing was sent: this is a dry run.",
    ]
    assert not feishu.out.exists()


def test_many_mailboxes_are_folded(cli: Cli, feishu: Feishu) -> None:
    rows = [f"d{number},m{number % 14}@example.com,bob" for number in range(30)]
    ended = cli("bulk", feishu.write("d.csv", "draft_id,mailbox,user", *rows), "--dry-run")
    assert ended.out.count("@example.com") == 10
    assert re.search(r"\n  4 other mailboxes +8\n", ended.out)


def test_without_a_terminal_nothing_is_sent_unasked(cli: Cli, feishu: Feishu) -> None:
    ended = cli("bulk", feishu.csv(feishu.drafts("alice", 1)))
    assert (ended.code, ended.out, feishu.calls) == (2, "", 0)
    assert ended.err == "error: --yes: without a terminal nobody can be asked before mail is sent; give it\n"


def on_terminal(ours: int, *wanted: bytes) -> bytes:
    """What the terminal shows, up to where it has shown all of these."""
    seen = b""
    while not all(one in seen for one in wanted):
        seen += os.read(ours, 4096)
    return seen


def rest_of_terminal(ours: int) -> bytes:
    seen = b""
    with contextlib.suppress(OSError):  # Linux tells the end of a terminal so
        while piece := os.read(ours, 4096):
            seen += piece
    os.close(ours)
    return seen


@pytest.mark.parametrize(("answer", "code"), [(b"y\n", 0), (b"\x03", 1)])
def test_it_asks(feishu: Feishu, answer: bytes, code: int) -> None:
    (draft_id,) = feishu.drafts("alice", 1)
    ours, theirs = pty.openpty()
    path = feishu.csv([draft_id])
    process = feishu.start(path, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    asked = on_terminal(ours, b"[y/N] ")
    assert b"Mail cannot be unsent." in asked
    if answer == b"\x03":
        process.send_signal(signal.SIGINT)
    else:
        os.write(ours, answer)
    told = rest_of_terminal(ours)
    assert process.wait(PATIENCE) == code, told
    assert (b"Nothing was sent." in told) == (code == 1)
    assert feishu.sent[draft_id] == (code == 0)


@pytest.mark.parametrize(
    ("answer", "yes"),
    [("y\n", True), (" YES \n", True), ("", False), ("\n", False), ("n\n", False), ("yeah\n", False)],
)
def test_only_a_clear_yes_is_a_yes(monkeypatch: pytest.MonkeyPatch, answer: str, yes: bool) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    assert agreed() == yes


# --- what it sends ----------------------------------------------------------------------------------------


def test_results_are_the_servers_truth(cli: Cli, feishu: Feishu) -> None:
    drafts = {user: feishu.drafts(user, 10) for user in ("alice", "bob")}
    risky, before = drafts["alice"][3], drafts["bob"][4]
    feishu.script(risky, Fault.code("ContentRisk"))
    feishu.script(before, Fault.code("AlreadySent", accepted=True))
    rows = [f"{draft_id},{user}" for user, ids in drafts.items() for draft_id in ids]
    path = feishu.write("d.csv", "draft_id,user", *rows, rows[0], "nosuch,bob")
    ended = cli("bulk", path, "--yes", "--out", str(feishu.out))
    assert ended.code == 1
    told = feishu.rows()
    assert list(told[0]) == list(COLUMNS)
    assert Counter(row["draft_id"] for row in told) == Counter(
        row.partition(",")[0] for row in [*rows, rows[0], "nosuch"]
    )
    sent = {row["draft_id"] for row in told if row["status"] in {"sent", "already_sent"}}
    assert sent == set(feishu.sent)
    assert set(feishu.sent.values()) == {1}
    (failed,) = [row for row in told if row["draft_id"] == risky]
    row = named("ContentRisk")
    assert (failed["status"], failed["code"], failed["advice"]) == ("failed", str(row.number), row.advice)
    assert failed["log_id"].startswith("sandbox")
    assert (failed["mailbox"], failed["user"], failed["attempts"], failed["error"]) == (
        "me",
        "alice",
        "1",
        f"{row.message} ({row.number})",
    )
    assert Counter(row["status"] for row in told) == {"sent": 18, "already_sent": 2, "failed": 2}
    assert "22 drafts: 18 sent, 2 already sent, 2 failed. 21 calls in " in ended.out
    assert f"See {feishu.out}." in ended.out
    assert re.search(
        rf"failed +{risky} +content risk \({row.number}\)\. {re.escape(row.advice)} \[log id", ended.out
    )
    assert re.search(rf"\n  failed +2\n +1: content risk \({row.number}\)\. ", ended.out)


def test_results_as_json_lines(cli: Cli, feishu: Feishu) -> None:
    out = feishu.directory / "r.jsonl"
    (draft_id,) = feishu.drafts("alice", 1)
    assert cli("bulk", feishu.csv([draft_id]), "--yes", "--out", str(out)).code == 0
    (row,) = map(json.loads, out.read_text().splitlines())
    assert list(row) == list(COLUMNS)
    assert (row["draft_id"], row["user"], row["attempts"], row["error"]) == (draft_id, "alice", 1, None)
    again = cli("bulk", feishu.csv([draft_id]), "--yes", "--out", str(out))
    assert (again.code, again.out) == (2, "")
    assert "r.jsonl exists" in again.err


def test_all_of_a_mailbox(cli: Cli, feishu: Feishu) -> None:
    own = feishu.drafts("alice", 45)
    feishu.do(lambda sandbox: sandbox.share_mailbox("team@example.com", "alice"))
    shared = feishu.drafts("alice", 3, "team@example.com")
    assert cli("bulk", "--all", "--user", "alice", "--dry-run").out.startswith("45 drafts for ")
    assert feishu.calls == 0
    assert cli("bulk", "--all", "--user", "alice", "--mailbox", "team@example.com", "--yes").code == 0
    assert set(feishu.sent) == set(shared)
    assert cli("bulk", "--all", "--user", "alice", "--yes").code == 0
    assert set(feishu.sent) == {*own, *shared}
    empty = cli("bulk", "--all", "--user", "alice", "--yes")
    assert (empty.code, empty.out) == (0, "The mailbox me has no drafts: there is nothing to send.\n")


def test_a_quota_is_told_once(cli: Cli, feishu: Feishu) -> None:
    drafts = feishu.drafts("alice", 30)
    feishu.do(lambda sandbox: sandbox.set_quota("alice", 3))
    ended = cli("bulk", feishu.csv(drafts), "--yes", "--out", str(feishu.out))
    assert ended.code == 1
    row = named("UserDailyQuota")
    lines = ended.out.splitlines()
    (skipping,) = [line for line in lines if line.startswith("skipping")]
    assert f"user alice  Its drafts are skipped: {row.message} ({row.number}). {row.advice}" in skipping
    assert "60 minutes" in skipping
    # The advice stands there, and in the table.
    assert ended.out.count(row.advice) == 2
    assert sum(line.startswith("failed") for line in lines) == 1
    assert "30 drafts: 3 sent, 1 failed, 26 skipped. 4 calls in " in ended.out
    assert re.search(r"\n  skipped +26: because of user alice: ", ended.out)
    assert Counter(feishu.statuses().values()) == {"sent": 3, "failed": 1, "skipped": 26}


def test_a_pause_is_told(cli: Cli, feishu: Feishu) -> None:
    drafts = feishu.drafts("alice", 3)
    feishu.script(drafts[0], Fault.frequency(reset="1"))
    ended = cli("bulk", feishu.csv(drafts), "--yes", rate="10000/1")
    assert ended.code == 0
    assert "note: 3 waiting, next try in 1 s: the server asked for a pause" in ended.err
    assert re.search(r"note: going on after a pause of \d s that the server asked for", ended.err)


def test_an_outage_is_waited_out_and_told(feishu: Feishu) -> None:
    drafts = feishu.drafts("alice", 25)
    process = feishu.start(feishu.csv(drafts), "-y", "--out", str(feishu.out), rate="20/1")
    outage = feishu.do(lambda sandbox: sandbox.outage())
    read_until(process.stderr, "progress: 20 of 25")  # the window is used up, and no call under way
    feishu.wait(outage.__aenter__())
    told = read_until(process.stderr, "Ctrl-C stops)")
    assert re.search(r"note: 5 waiting, .*cannot be reached.*waiting as long as it takes", told)
    feishu.wait(outage.__aexit__(None, None, None))
    ended = feishu.finish(process)
    assert "note: the server is reachable again after " in ended.err
    assert (ended.code, set(feishu.statuses().values())) == (0, {"sent"})
    assert feishu.sent == dict.fromkeys(drafts, 1)


# --- an end before the end --------------------------------------------------------------------------------


def test_the_garbage_collector_does_not_look_through_all_rows_again_and_again(
    monkeypatch: pytest.MonkeyPatch, feishu: Feishu, cli: Cli
) -> None:
    thresholds = []

    def read(*arguments: Any) -> Rows:
        thresholds.append(gc.get_threshold())
        return read_rows(*arguments)

    def hear(_: object) -> None:
        thresholds.append(gc.get_threshold())

    monkeypatch.setattr("feishu_mail_async.cli.commands.bulk.read_rows", read)
    feishu.do(lambda sandbox: setattr(sandbox, "on_call", hear))
    before = gc.get_threshold()
    assert cli("bulk", feishu.csv(feishu.drafts("alice", 1)), "-y").code == 0
    assert thresholds == [(*before[:2], 10_000)] * 2
    assert gc.get_threshold() == before


def test_drafts_that_a_stop_keeps_from_being_looked_up_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    def done(draft_id: str, calls: int) -> Outcome:
        error = OutcomeUnknown("an earlier call may have sent it", attempts=calls)
        return Outcome(Draft(draft_id), error.status, None, error)

    board = Board(10, RateLimit(), 10)
    board.outcome(done("before", 0))
    board.ending()
    for number in range(5):
        board.outcome(done(f"waits-{number}", 0))
    board.outcome(done("called", 1))
    told = capsys.readouterr().out
    assert [word for word in ("before", "waits", "called") if word in told] == ["before", "called"]
    assert board.tally.statuses == {OutcomeStatus.UNKNOWN: 7}


# --- on a terminal ----------------------------------------------------------------------------------------


def test_on_a_terminal_a_bar_lives(feishu: Feishu) -> None:
    drafts = feishu.drafts("alice", 3) + feishu.drafts("bob", 30)
    feishu.do(lambda sandbox: sandbox.set_quota("alice", 1))
    rows = [f"{draft_id},{'alice' if draft_id in drafts[:3] else 'bob'}" for draft_id in drafts]
    path = feishu.write("d.csv", "draft_id,user", *rows)
    ours, theirs = pty.openpty()
    process = feishu.start(path, "-y", rate="8/3600", stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = on_terminal(ours, b"9 of 33 drafts", b"24 waiting, next call in ")
    text = seen.decode()
    assert "7 sent, 1 failed, 1 skipped" in text
    assert re.search(r"8 calls in the last minute, about \d h( \d+ min)? left", text)
    process.send_signal(signal.SIGINT)
    told = rest_of_terminal(ours).decode()
    assert process.wait(PATIENCE) == 1
    assert "user alice: daily quota reached, 1 skipped" in text + told
    assert "progress: " not in text + told
    assert "33 drafts: 7 sent, 1 failed, 25 skipped" in told
