"""Lists of a mailbox's drafts."""

import json
from collections.abc import Callable

import pytest

from feishu_mail_async import Draft
from feishu_mail_async.codes import named
from tests.helpers.cli import CANARY, PATIENCE, Ended, Feishu, start_command
from tests.helpers.rows import read

pytestmark = pytest.mark.usefixtures("own_state")


Cli = Callable[..., Ended]


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
