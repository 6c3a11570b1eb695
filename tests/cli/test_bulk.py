"""`bulk` and `list`: what they read, say, send and leave behind."""

import contextlib
import csv
import gc
import io
import json
import os
import pty
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

pytest.importorskip("typer")

from feishu_mail_async import Draft, Outcome, OutcomeStatus, Priority, RateLimit, Snapshot, Suspended
from feishu_mail_async.cli.plan import agreed, check_askable
from feishu_mail_async.cli.problems import Problem
from feishu_mail_async.cli.render.estimate import Pace, duration, name_limit
from feishu_mail_async.cli.render.progress import Board
from feishu_mail_async.cli.render.summary import Tally
from feishu_mail_async.cli.render.wording import closing, span
from feishu_mail_async.cli.results import COLUMNS, Results
from feishu_mail_async.cli.rows import Rows, read_rows
from feishu_mail_async.codes import CODES, named
from feishu_mail_async.errors import AutomatedSendDisabled, FeishuMailError, OutcomeUnknown, api_error
from feishu_mail_async.events import DraftDone
from feishu_mail_async.sandbox import Fault
from tests.helpers.cli import (
    CANARY,
    COMMAND,
    FAST,
    PATIENCE,
    TOKEN_VARIABLE,
    Ended,
    Feishu,
    run_here,
    run_process,
    start_command,
    wait_for,
)

T = TypeVar("T")

STILL = "5/3600"
"""Five calls, and no other while a test lasts."""


pytestmark = pytest.mark.usefixtures("own_state")


Cli = Callable[..., Ended]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, feishu: Feishu) -> Iterator[Cli]:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    nobody = Path(os.devnull).open()  # noqa: SIM115 - closed below
    monkeypatch.setattr("sys.stdin", nobody)

    def run(command: str, *arguments: str, rate: str = FAST) -> Ended:
        options = feishu.options(rate)[: None if command == "bulk" else -2]
        return run_here(capfd, [command, *arguments, *options], [CANARY, *feishu.sandbox.tokens.values()])

    yield run
    nobody.close()


def read_until(stream: Any, wanted: str) -> str:
    """Read lines up to one that holds this."""
    text = ""
    while wanted not in text:
        line = stream.readline()
        assert line, f"it ended without {wanted!r}: {text}"
        text += line
    return text


# --- what it reads ----------------------------------------------------------------------------------------


def read(tmp_path: Path, content: str | bytes, name: str = "drafts.csv") -> Rows:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_rows(str(path), "me", lambda user: user)


@pytest.mark.parametrize(
    "content",
    [
        "draft_id,mailbox,user\na,m@example.com,bob\nb,,\n",
        "\ufeffdraft_id,mailbox,user\r\na,m@example.com,bob\r\nb,,\r\n",
        "user;draft_id;mailbox\nbob;a;m@example.com\n;b;",
        "\n\nmailbox\tdraft_id\tuser\n\nm@example.com\ta\tbob\n\t\t\n \tb\t \n",
        'Draft_ID , "User","Mailbox"\n"a","bob","m@example.com"\n"b","",""\n',
        'draft_id,"the, note",user,mailbox\na,"two\nlines, ""quoted""",bob,m@example.com\nb,,,\n'.replace(
            " ,", ","
        ),
        "draft_id,mailbox,user\na,m@example.com,bob\nb,,\n".encode("utf-16"),
        "draft_id,姓名,mailbox,user\na,张,m@example.com,bob\nb,,,\n".encode("gbk"),
        '{"draft_id": "a", "mailbox": "m@example.com", "user": "bob", "more": [1]}\n\n"b"\n',
        '\ufeff{"user": "bob", "mailbox": "m@example.com", "draft_id": "a"}\n{"draft_id": "b", "user": null}\n',
    ],
)
def test_dialects(tmp_path: Path, content: str | bytes) -> None:
    rows = read(tmp_path, content)
    assert rows.wrong == []
    assert rows.drafts == [Draft("a", "m@example.com", "bob"), Draft("b")]


@pytest.mark.parametrize("name", ["ids.jsonl", "ids.txt", "ids"])
def test_json_texts_alone(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, '"a"\n"b"\n', name).drafts == [Draft("a"), Draft("b")]


@pytest.mark.parametrize("name", ["ids.csv", "ids.txt"])
def test_a_quoted_header_is_no_json(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, '"draft_id"\n"a"\n', name).drafts == [Draft("a")]


def test_columns_that_mean_nothing_are_named(tmp_path: Path) -> None:
    assert list(read(tmp_path, "note,draft_id,,to\nx,a,,y\n").ignored) == ["note", "to"]
    assert list(read(tmp_path, '{"draft_id":"a","b":1}\n{"draft_id":"b","c":1}').ignored) == ["b", "c"]


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        ("a\nb\n", "ids.txt", "draft_id,mailbox,user"),
        ("a,b\n", "ids.csv", "no header"),
        ("id,user\na,bob\n", "ids.csv", "no header"),
        ("draft_id,draft_id\na,b\n", "ids.csv", "2 times"),
        ('[{"draft_id": "a"}]', "ids.json", "JSON array"),
        ("", "ids.csv", "no row"),
        ("\ufeff\n", "ids.csv", "no row"),
        ("draft_id\n\n", "ids.csv", "no row"),
        ("\n", "ids.jsonl", "no row"),
    ],
)
def test_files_that_are_no_list_of_drafts(tmp_path: Path, content: str, name: str, said: str) -> None:
    with pytest.raises(Problem, match=re.escape(said)) as caught:
        read(tmp_path, content, name).check(name, "")
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith(("ids", str(tmp_path)))


def test_bad_rows_are_told_all_together(cli: Cli, feishu: Feishu) -> None:
    (draft_id,) = feishu.drafts("alice", 1)
    lines = [
        "draft_id,mailbox,user",
        f"{draft_id},,alice",
        ",,alice",
        f"{'x' * 513},,alice",
        "",
        "a\x07b,,alice",
        "a,b\x1bc,alice",
        "a,,mallory",
        "a,,",
        "a,me",
        "a,me,alice,more",
        'a,"me"x,alice',
    ]
    path = feishu.write("bad.csv", *lines)
    with Path(path).open("ab") as file:
        file.write(b'a\xff,,alice\na,"me,alice\n')
    ended = cli("bulk", path, "--yes")
    assert (ended.code, ended.out, feishu.calls) == (2, "", 0)
    first, *told = ended.err.splitlines()
    assert first == f"error: {path}: 11 of 12 rows are wrong, and nothing was sent:"
    assert told[-1].startswith("Tokens of several users: feishu-mail-async login --user NAME")
    assert told[:-1] == [
        "  line 3: draft_id: it is empty; give its value",
        "  line 4: draft_id: 513 characters are too many; 512 are allowed",
        "  line 6: draft_id: character 1 is the control character U+0007; take it out",
        "  line 7: mailbox: character 1 is the control character U+001B; take it out",
        "  line 8: there is no token for user 'mallory', only for alice, bob",
        "  line 9: it names no user, and there are tokens for alice, bob",
        "  line 10: it names no user, and there are tokens for alice, bob",
        "  line 11: it has 4 columns, and the header has 3",
        "  line 12: it is no CSV (',' expected after '\"')",
        "  line 13: draft_id: it holds bytes that are no UTF-8",
        "  line 14: a quote opens here and is never closed",
    ]


def test_bad_json_lines_are_told_all_together(tmp_path: Path) -> None:
    lines = ['{"draft_id": "good"}', '{"draft_id": ', "3", '{"user": "bob"}', '{"draft_id": 3}', "[" * 5000, '""']
    lines += ['{"draft_id": "a", "user": ["b"]}', '"\\ud800"', '"a" "b"']
    content = "\n".join(lines).encode() + b'\n"\xff"\n'
    told = read(tmp_path, content, "ids.jsonl")
    assert told.drafts == [Draft("good")]
    assert [sentence.partition(":")[0] for sentence in told.wrong] == [f"line {line}" for line in range(2, 12)]
    assert told.wrong[2] == "line 4: draft_id is missing"
    assert told.wrong[3] == "line 5: draft_id: give a text, not 3"


def test_of_many_bad_rows_some_are_listed() -> None:
    with pytest.raises(Problem) as caught:
        Rows(wrong=[f"line {line}: x" for line in range(2, 99)]).check("f", "")
    assert str(caught.value).splitlines()[-2:] == ["  line 51: x", "  and 47 more"]


def test_rows_without_a_user_take_the_one_named(cli: Cli, feishu: Feishu) -> None:
    drafts = feishu.drafts("bob", 2)
    path = feishu.write("ids.csv", "draft_id", *drafts)
    assert cli("bulk", path, "--yes", "--user", "bob").code == 0
    assert feishu.sent == dict.fromkeys(drafts, 1)


def test_standard_input(cli: Cli, feishu: Feishu) -> None:
    drafts = feishu.drafts("alice", 2)
    lines = "".join(f"{json.dumps({'draft_id': draft_id, 'user': 'alice'})}\n" for draft_id in drafts)
    unasked = cli("bulk", "-")
    assert (unasked.code, unasked.out) == (2, "")
    assert unasked.err == "error: standard input: there is no row in it, so there is nothing to send\n"
    with pytest.raises(Problem, match="--yes: the drafts come from standard input"):
        check_askable(from_input=True)
    # Started anew, as its users start it.
    ended = run_process([*COMMAND, "bulk", "-", "-y", *feishu.options()], told=lines)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert feishu.sent == dict.fromkeys(drafts, 1)


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        ([], 2, "FILE"),
        (["d.csv", "--all"], 2, "FILE"),
        (["--all", "--mailbox", ""], 2, "--mailbox"),
        (["--all", "--yes"], 2, "--user: there are tokens for alice, bob"),
        (["--all", "--user", "mallory"], 2, "--user"),
        (["nosuch.csv"], 3, "nosuch.csv: it cannot be read (no such file"),
        (["."], 3, ".: it cannot be read (is a directory"),
        (["d.csv", "--out", "r.txt"], 2, "--out"),
        (["d.csv", "--out", "nosuch/r.csv"], 2, "--out"),
    ],
)
def test_wrong_usage(cli: Cli, feishu: Feishu, arguments: list[str], code: int, named: str) -> None:
    ended = cli("bulk", *arguments)
    assert (ended.code, ended.out, feishu.calls) == (code, "", 0)
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert named in ended.err


# --- tokens of several users ------------------------------------------------------------------------------


def test_one_token_of_no_named_user(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, feishu: Feishu
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, CANARY)
    path = feishu.write("d.csv", "draft_id,user", "a,", "b,bob")
    ended = run_here(capfd, ["bulk", path, "--dry-run"], [CANARY])
    assert ended.code == 2
    assert "line 3: there is no token for user 'bob', only one of no named user" in ended.err
    assert "--token-file" in ended.err
    assert run_here(capfd, ["bulk", path, "--dry-run", "--user", "bob"], [CANARY]).code == 0


def test_send_takes_a_file_of_tokens_too(cli: Cli, feishu: Feishu) -> None:
    (draft_id,) = feishu.drafts("bob", 1)
    ended = cli("send", draft_id)
    assert (ended.code, ended.err) == (2, "error: --user: there are tokens for alice, bob; name one of them\n")
    assert cli("send", draft_id, "--user", "bob").code == 0
    feishu.token_file.write_text(json.dumps({"bob": feishu.sandbox.token("bob")}))
    assert cli("send", draft_id).out.startswith("already sent")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (f'{{"alice": "{CANARY}"', "no readable JSON, line 1"),
        ("{}", "names no user"),
        (f'{{"alice": "{CANARY}", "alice": "x"}}', "names 'alice' twice"),
        (f'{{"alice": ["{CANARY}"]}}', "is no text"),
        (f'{{" ": "{CANARY}"}}', "it is empty"),
        ('{"alice": ""}', "is empty"),
        (f'{{"alice": "Bearer {CANARY}"}}', "Bearer"),
        ('{"a":' * 5000, "no readable JSON"),
        (b'{"alice": "\xff"}', "no text"),
    ],
)
def test_files_of_tokens_that_are_none(cli: Cli, feishu: Feishu, content: str | bytes, said: str) -> None:
    feishu.token_file.write_bytes(content.encode() if isinstance(content, str) else content)
    ended = cli("bulk", feishu.csv(["a"]), "--yes")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith(f"error: --token-file {feishu.token_file}: ")
    assert ended.err.count("\n") == 1
    assert said in ended.err


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
    def done(draft_id: str, calls: int) -> DraftDone:
        error = OutcomeUnknown("an earlier call may have sent it", attempts=calls)
        return DraftDone(
            0.0,
            1,
            "send",
            "alice",
            Draft(draft_id),
            status=error.status,
            attempts=calls,
            waited=0.0,
            lasted=0.0,
            joined=False,
            result=None,
            error=error,
        )

    board = Board(10, RateLimit(), 10)
    board.hear(done("before", 0))
    board.ending()
    for number in range(5):
        board.hear(done(f"waits-{number}", 0))
    board.hear(done("called", 1))
    told = capsys.readouterr().out
    assert [word for word in ("before", "waits", "called") if word in told] == ["before", "called"]
    assert board.tally.statuses == {OutcomeStatus.UNKNOWN: 7}


def test_ctrl_c_once(feishu: Feishu) -> None:
    drafts = feishu.drafts("alice", 20)
    process = feishu.start(feishu.csv(drafts), "-y", "--out", str(feishu.out), rate=STILL)
    read_until(process.stderr, "progress: 5 of 20 drafts: 5 sent")
    process.send_signal(signal.SIGINT)
    ended = feishu.finish(process)
    assert ended.code == 1
    assert "stopping: " in ended.err
    assert "20 drafts: 5 sent, 15 skipped. 5 calls in " in ended.out
    assert re.search(r"\n  skipped +15: stopped before its turn came\n", ended.out)
    statuses = feishu.statuses()
    assert set(statuses) == set(drafts)
    assert {draft_id for draft_id, status in statuses.items() if status == "sent"} == set(feishu.sent)


def test_ctrl_c_once_finishes_the_call_under_way(feishu: Feishu) -> None:
    drafts = feishu.drafts("alice", 3)
    feishu.script(drafts[0], Fault.delay(there=0, back=1))
    process = feishu.start(feishu.csv(drafts), "-y", "--out", str(feishu.out))
    wait_for(lambda: feishu.calls == 1)
    process.send_signal(signal.SIGINT)
    assert feishu.finish(process).code == 1
    assert feishu.statuses() == {drafts[0]: "sent", drafts[1]: "skipped", drafts[2]: "skipped"}


def test_ctrl_c_twice(feishu: Feishu) -> None:
    drafts = feishu.drafts("alice", 20)
    feishu.script(drafts[2], Fault.hang_after())
    process = feishu.start(feishu.csv(drafts), "-y", "--out", str(feishu.out))
    read_until(process.stderr, "progress: 2 of 20")
    wait_for(lambda: feishu.calls == 3)
    process.send_signal(signal.SIGINT)
    read_until(process.stderr, "stopping: ")
    process.send_signal(signal.SIGINT)
    ended = feishu.finish(process)
    assert ended.code == 130
    assert "20 drafts: 2 sent, 1 unknown, 17 skipped" in ended.out
    statuses = feishu.statuses()
    assert set(statuses) == set(drafts)
    assert statuses[drafts[2]] == "unknown"
    assert "Sending it again is safe" in ended.out


def test_killed_it_leaves_what_it_has_written(feishu: Feishu) -> None:
    drafts = feishu.drafts("alice", 20)
    process = feishu.start(feishu.csv(drafts), "-y", "--out", str(feishu.out), rate=STILL)
    read_until(process.stderr, "progress: 5 of 20")
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert set(feishu.statuses()) == set(feishu.sent)
    assert len(feishu.sent) == 5


def test_nobody_reads_the_output(feishu: Feishu) -> None:
    drafts = feishu.drafts("alice", 20)
    feishu.script(drafts[0], Fault.code("ContentRisk"))
    process = feishu.start(feishu.csv(drafts), "-y", "--out", str(feishu.out))
    assert process.stdout is not None
    read_until(process.stdout, "It takes")
    process.stdout.close()
    assert process.wait(PATIENCE) == 1
    assert process.stderr is not None
    with process.stderr:
        assert "Traceback" not in process.stderr.read()
    # It goes on: the file says what became of the drafts.
    assert feishu.statuses() == dict.fromkeys(drafts, "sent") | {drafts[0]: "failed"}


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


# --- list -------------------------------------------------------------------------------------------------


def test_list(cli: Cli, feishu: Feishu) -> None:
    drafts = feishu.drafts("alice", 45)
    ended = cli("list", "--user", "alice")
    assert (ended.code, ended.err) == (0, "")
    assert sorted(ended.out.splitlines()) == sorted(drafts)
    listed = cli("list", "--user", "alice", "--json")
    assert [row["draft_id"] for row in listed.outcomes] == ended.out.splitlines()
    # What it prints is what `bulk` reads.
    rows = read(feishu.directory, listed.out, "listed.jsonl")
    assert (rows.wrong, rows.drafts[0]) == ([], Draft(ended.out.split()[0], "me", "alice"))


def test_list_of_nothing(cli: Cli) -> None:
    ended = cli("list", "--user", "bob")
    assert (ended.code, ended.out, ended.err) == (0, "", "note: the mailbox me has no drafts\n")


def test_list_that_fails(cli: Cli, feishu: Feishu) -> None:
    feishu.token_file.write_text(json.dumps({"alice": CANARY}))
    for arguments in (["list"], ["bulk", "--all", "--yes"]):
        ended = cli(*arguments)
        assert (ended.code, ended.out) == (1, "")
        assert ended.err.startswith("error: the drafts of the mailbox me cannot be listed: ")
        assert named("TokenInvalid").advice in ended.err


def test_list_for_one_who_reads_the_head(feishu: Feishu) -> None:
    feishu.drafts("alice", 60)
    process = start_command("list", "--user", "alice", *feishu.options()[:-2])
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait(PATIENCE) in {0, 4}


# --- parts ------------------------------------------------------------------------------------------------


def test_formulas_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    results = Results(str(path))
    results.open()
    ids = ["=1+1", "+1", "-1", "@a", "a=1", "x,y", 'a"b']
    for draft_id in ids:
        results.write(Outcome(Draft(draft_id, "=m"), OutcomeStatus.SKIPPED, None, FeishuMailError("-@x")))
    results.close()
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["draft_id"] for row in rows] == ["'=1+1", "'+1", "'-1", "'@a", "a=1", "x,y", 'a"b']
    assert {(row["mailbox"], row["error"], row["attempts"]) for row in rows} == {("'=m", "'-@x", "0")}


@pytest.mark.parametrize(
    ("calls", "limit", "seconds"),
    [
        (1, RateLimit(), 0),
        (20, RateLimit(), 3.8),
        (21, RateLimit(), 60.1),
        (5000, RateLimit(), 249 * 60.1 + 3.8),
        (0, RateLimit(), 0),
    ],
)
def test_duration(calls: int, limit: RateLimit, seconds: float) -> None:
    assert duration(calls, limit) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.2, "1 s"),
        (42, "42 s"),
        (120, "120 s"),
        (121, "3 min"),
        (7200, "120 min"),
        (15_000, "4 h 10 min"),
        (10_800, "3 h"),
    ],
)
def test_span(seconds: float, told: str) -> None:
    assert span(seconds) == told


def test_name_limit() -> None:
    assert name_limit(RateLimit()) == "20 calls a minute"
    assert name_limit(RateLimit(1, 2.5)) == "1 call in 2.5 s"


def stand(**changes: Any) -> Snapshot:
    calm = Snapshot(dict.fromkeys(Priority, 0), 0, 20, RateLimit(), 0.0, None, None, {}, ())
    return replace(calm, **changes)


def test_what_is_left_comes_from_the_limit() -> None:
    pace, limit = Pace(RateLimit()), RateLimit()
    assert pace.left(stand(), 0, 0.0) == 0
    assert pace.left(stand(), 20, 0.0) == pytest.approx(duration(20, limit))
    assert pace.left(stand(paused=30.0), 20, 0.0) == pytest.approx(30 + duration(20, limit))
    # A burst of 20 calls, answered from second 0 to second 3.8.
    for call in range(20):
        pace.ended(call * 0.2)
    used = stand(permits=0, next_permit=50.1)
    assert pace.left(used, 1, 10.0) == pytest.approx(50.1)
    assert pace.left(used, 20, 10.0) == pytest.approx(50.1 + 3.8)
    assert pace.left(used, 21, 10.0) == pytest.approx(50.1 + 60.1)
    assert pace.left(used, 5000, 10.0) == pytest.approx(50.1 + duration(5000, limit))
    assert pace.left(replace(used, paused=300.0), 1, 10.0) == pytest.approx(300)
    # Evenly: each permit comes back by itself, and what is left shrinks evenly too.
    even = Pace(RateLimit())
    for call in range(20):
        even.ended(call * 3.0)
    left = [even.left(stand(permits=0, next_permit=60.1 - 57), calls, 57.0) for calls in (1, 2, 20, 21)]
    assert left == pytest.approx([3.1, 6.1, 60.1, 63.2])
    # Half of a window is left, and calls of unknown end fill it.
    assert Pace(limit).left(stand(permits=10, next_permit=None), 11, 0.0) == pytest.approx(0.0)
    assert pace.last_minute(61.0) == 14
    assert pace.last_minute(500.0) == 0


def outcome(error: FeishuMailError, status: OutcomeStatus = OutcomeStatus.FAILED) -> Outcome:
    return Outcome(Draft("a"), status, None, error)


def test_the_table_is_short_however_many_reasons_there_are() -> None:
    tally = Tally()
    for row in CODES.values():
        for _ in range(3) if row.error else ():
            tally.add(outcome(api_error(row, "", http_status=row.http_status, log_id=None)))
    rows = [told for _, told in tally.rows()]
    assert len(rows) <= 14
    assert re.fullmatch(r"  \d+: for \d+ other reasons", rows[-1])
    advices = Counter(row.advice for row in CODES.values() for told in rows if row.advice in told)
    assert set(advices.values()) <= {1, 2}  # two codes may share one


def closed(scope: str, cause: FeishuMailError) -> Suspended:
    error = Suspended("-", subject=scope, until=None)
    error.__cause__ = cause
    return error


def test_closed_subjects_of_one_reason_are_one_row() -> None:
    cause = AutomatedSendDisabled("by policy", "https://example.com/d1")
    tally = Tally()
    for number in range(5):
        tally.add(outcome(closed(f"mailbox:m{number}", cause), OutcomeStatus.SKIPPED))
    ((_, told),) = tally.rows()
    assert told.startswith(
        "5: because of mailbox m0, mailbox m1, mailbox m2 and 2 more: the mailbox does not allow"
    )
    assert told.endswith("Send it by hand, or change the mailbox's setting.")
    # The link is that of one draft, and not of those that are skipped.
    assert "d1" not in told + closing(closed("mailbox:m0", cause), advice=True)
    assert closing(closed("app", cause), advice=False).startswith("All drafts are skipped: ")
