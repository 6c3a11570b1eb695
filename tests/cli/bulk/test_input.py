"""Files of drafts and tokens: what is read, and what is said of the rest."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from feishu_mail_async import Draft
from feishu_mail_async.cli.plan import check_askable
from feishu_mail_async.cli.problems import Problem
from feishu_mail_async.cli.rows import Rows
from tests.helpers.cli import CANARY, COMMAND, TOKEN_VARIABLE, Ended, Feishu, run_here, run_process
from tests.helpers.rows import read

pytestmark = pytest.mark.usefixtures("own_state")


Cli = Callable[..., Ended]


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
