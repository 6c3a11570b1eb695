"""Every command in the READMEs does what the text says."""

import csv
import io
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from readme import ROOT

from feishu_mail_async.sandbox import Sandbox
from tests.helpers.browser import APP_ID, APP_SECRET, open_desk
from tests.helpers.cli import TOKEN_VARIABLE, Apart, Ended, run_here
from tests.helpers.postgres import DATABASE_PASSWORD
from tests.helpers.readmes import assert_installs, options, runs, take_for_feishu


class Terminal(io.StringIO):
    """A terminal, to which somebody has typed."""

    def isatty(self) -> bool:
        return True


class Shell:
    """A shell that knows `export` and the program, which runs in this process."""

    def __init__(self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, apart: Apart) -> None:
        self._capfd = capfd
        self._monkeypatch = monkeypatch
        self.apart = apart

    def __call__(self, line: str, *more: str) -> Ended:
        name, *arguments = shlex.split(line, comments=True)
        if name == "export":
            for assignment in arguments:
                self._monkeypatch.setenv(*assignment.split("=", 1))
            return Ended(0, "", "")
        assert name == "feishu-mail-async"
        secrets = [DATABASE_PASSWORD, *self.apart.do(lambda sandbox: sandbox.tokens).values()]
        ended = run_here(self._capfd, [*arguments, *more], secrets)
        assert ended.code == 0, ended
        return ended

    def drafts(self, user: str, number: int) -> list[str]:
        return self.apart.do(lambda sandbox: sandbox.add_drafts(user, number))


@pytest.fixture
def shell(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own_state: Path
) -> Iterator[Shell]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    for name in (TOKEN_VARIABLE, APP_ID, APP_SECRET, "FEISHU_MAIL_LEDGER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.stdin", Terminal("y\n" * 5))
    apart = Apart(tmp_path, Sandbox(latency=0, users=["alice", "bob"]))
    take_for_feishu(monkeypatch, apart.sandbox.base_url)
    yield Shell(capfd, monkeypatch, apart)
    apart.close()


def write_drafts(drafts: Mapping[str, str]) -> None:
    """Make drafts.csv, of drafts and their users; an empty user is none."""
    with Path("drafts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("draft_id", "user"), *drafts.items()])


@runs(("sh", "Command line", 1))
def test_the_command_line(code: str, shell: Shell) -> None:
    export, send, bulk, everything, later, cancel, listing, status = code.splitlines()
    shell(export)
    shell.apart.do(lambda sandbox: sandbox.add_user("you", token="u-your-user-access-token"))
    one, two, three, four, five, six = shell.drafts("you", 6)
    shell(send.replace("DRAFT_ID", one, 1).replace("DRAFT_ID", two, 1))
    assert shell.apart.sent == Counter([one, two])
    (told,) = shell(send.replace("DRAFT_ID", one, 1).replace("DRAFT_ID", ""), "--json").outcomes
    assert (told["draft_id"], told["status"]) == (one, "already_sent")

    write_drafts({one: "", three: ""})
    ended = shell(bulk)
    assert "[y/N]" in ended.err
    assert "1 draft was sent before" in ended.out
    with Path("results.csv").open(newline="") as file:
        assert {row["draft_id"]: row["status"] for row in csv.DictReader(file)} == {
            one: "already_sent",
            three: "sent",
        }
    write_drafts({six: ""})
    ended = shell(later)
    assert "Feishu sends them at 2030-12-01 09:00; they are handed over before 2030-12-01 08:54." in ended.out
    assert "1 draft: 1 scheduled" in ended.out
    assert shell(cancel).out == f"cancelled     {six}\n"
    assert six in shell(listing).out.split()
    assert "1 draft: 1 scheduled" in shell(later).out
    assert four in shell(listing).out.split()
    shell(everything)
    assert shell.apart.sent == Counter([one, two, three, four, five])
    assert shell.apart.calls == 7
    said = shell(status).out
    assert re.search(r"\bsent +5\b", said)
    assert re.search(r"\bscheduled +1\b", said)
    assert "7 of 20 in use" in said


@runs(("sh", "Tokens", 1))
def test_logins(
    code: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own_state: Path
) -> None:
    export, *lines = code.splitlines()
    assert re.findall(r"(\w+)=", export) == [APP_ID, APP_SECRET]
    assert [line.split()[1] for line in lines] == ["login", "doctor", "whoami", "logout"]
    # The sandbox's own id and secret, a port that is free, and a browser without a window.
    with open_desk(capfd, monkeypatch, tmp_path, own_state) as desk:
        login, doctor, whoami, logout = [shlex.split(line, comments=True)[1:] for line in lines]
        assert len(login) == len(doctor) == len(whoami) == len(logout) == 1
        desk.log_in()
        assert desk.run("doctor").code == 0
        assert "mail:user_mailbox.message:send" in desk.run("whoami", "--json").out
        assert desk.feishu.calls == 0
        assert desk.run("logout").code == 0
        assert desk.run("doctor").code == 1
    for line, (name, *more) in zip(lines, [("login", "--user"), ("logout", "--user", "--all")], strict=False):
        assert {*more} <= set(options(name)), line


@runs(("sh", "Many machines", 1))
def test_many_machines(code: str, shell: Shell, monkeypatch: pytest.MonkeyPatch, postgres_url: str) -> None:
    install, docker, export, enqueue, worker, status = [line for line in code.splitlines() if line]
    assert_installs(install)
    # Docker is not run: the fixture's PostgreSQL stands for its database.
    compose = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    assert f"image: {docker.split()[-1]}" in compose
    given = dict(re.findall(r"--env (\w+)=(\S+)", docker))
    assert [*given] == ["POSTGRES_USER", "POSTGRES_PASSWORD"]
    assert all(f"{name}: " in compose for name in given)
    url = f"postgresql://{given['POSTGRES_USER']}:{given['POSTGRES_PASSWORD']}@localhost/{given['POSTGRES_USER']}"
    assert shlex.split(export, comments=True) == ["export", f"FEISHU_MAIL_LEDGER={url}"]
    monkeypatch.setenv("FEISHU_MAIL_LEDGER", postgres_url)

    mine, theirs = *shell.drafts("alice", 1), *shell.drafts("bob", 1)
    write_drafts({mine: "alice", theirs: "bob"})
    ended = shell(enqueue)
    assert "[y/N]" in ended.err
    assert "2 drafts queued." in ended.out
    assert "0 drafts queued. 2 were queued before." in shell(enqueue).out
    assert re.search(r"\bqueued +2\b", shell(status).out)
    shell(worker, "--until-empty")  # or it would run until it is stopped
    assert shell.apart.sent == Counter([mine, theirs])
    said = shell(status).out
    assert re.search(r"\bqueued +0\b", said)
    assert re.search(r"\bsent +2\b", said)
