"""The command line where what is usual is missing: a home, a working directory, a locale, a terminal, a /tmp."""

import os
import pwd
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.cli import COMMAND, PATIENCE, TOKEN_VARIABLE, Ended, Feishu, run_here

Cli = Callable[..., Ended]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    return lambda *arguments: run_here(capfd, arguments, [])


@pytest.fixture(params=["no HOME", "an empty HOME", "HOME is a ~"])
def homeless(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user of whom the system knows nothing, as in a container that is given a number."""

    def unknown(uid: int) -> Any:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.delenv("HOME", raising=False)
    if request.param != "no HOME":
        monkeypatch.setenv("HOME", "" if "empty" in request.param else "~")


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize(
    "command", ["send d1", "bulk FILE --yes", "list", "status", "whoami", "logout", "login --app a", "doctor"]
)
def test_without_a_home_it_says_what_to_set(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("drafts.csv").write_text("draft_id\nd1\n")
    if command.partition(" ")[0] in {"send", "bulk", "doctor"}:
        monkeypatch.setenv(TOKEN_VARIABLE, "u-x")
    ended = cli(*command.replace("FILE", "drafts.csv").split(), "--base-url", "http://127.0.0.1:9")
    assert ended.code == (1 if command == "doctor" else 3)
    said = " ".join((ended.out + ended.err).split())
    for remedy in ("HOME", "XDG_STATE_HOME", "--ledger", "FEISHU_MAIL_LEDGER"):
        assert remedy in said
    assert [path.name for path in tmp_path.iterdir()] == ["drafts.csv"]


@pytest.mark.usefixtures("homeless")
def test_without_a_home_it_works_with_what_is_given(
    cli: Cli, feishu: Feishu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (draft,) = feishu.drafts("alice", 1)
    ledger = str(tmp_path / "mail.db")
    assert cli("send", draft, *feishu.options(), "--user", "alice", "--ledger", ledger).code == 0
    assert cli("status", "--ledger", ledger).code == 0
    assert cli("whoami", "--ledger", ledger).code == 1
    assert cli("list", *feishu.options()[:4], "--user", "alice").code == 0
    assert cli("send", draft, *feishu.options(), "--user", "alice", "--no-ledger").code == 0
    monkeypatch.setenv("FEISHU_APP_ID", "a")
    nobody = cli("list", "--ledger", ledger, "--base-url", feishu.sandbox.base_url)
    assert (nobody.code, "login" in nobody.err) == (3, True)


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize("homeless", ["no HOME"], indirect=True)
def test_a_path_in_a_home_that_is_not_known(cli: Cli) -> None:
    ended = cli("status", "--ledger", "~/mail.db")
    assert (ended.code, ended.err.startswith("error: --ledger: ")) == (2, True)


def run_bare(
    directory: Path, *arguments: str, before: str = "", **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a shell, with nothing in the environment but these."""
    known = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    return subprocess.run(
        ["/bin/sh", "-c", f'{before} exec "$@"', "sh", *COMMAND, *arguments],
        cwd=directory,
        env=known | settings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_the_working_directory_is_gone(feishu: Feishu, tmp_path: Path) -> None:
    (draft,) = feishu.drafts("alice", 1)
    gone = "mkdir gone; cd gone; rmdir ../gone;"
    home = {"HOME": str(tmp_path)}
    command = ["send", draft, *feishu.options(), "--user", "alice"]
    relative = run_bare(tmp_path, *command, "--ledger", "mail.db", before=gone, **home)
    assert (relative.returncode, relative.stderr.startswith("error: --ledger: ")) == (2, True), relative.stderr
    done = run_bare(tmp_path, *command, before=gone, **home)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_nothing_in_the_environment_and_no_terminal(feishu: Feishu, tmp_path: Path) -> None:
    (draft,) = feishu.drafts("alice", 1)
    done = run_bare(tmp_path, "send", draft, *feishu.options(), "--user", "alice", HOME=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    dumb = run_bare(
        tmp_path,
        "bulk",
        feishu.csv([draft]),
        "--yes",
        *feishu.options(),
        HOME=str(tmp_path),
        TERM="dumb",
        LC_ALL="C",
    )
    assert (dumb.returncode, dumb.stderr) == (0, "")


@pytest.mark.parametrize("command", ["send", "whoami", "login"])
def test_a_home_that_cannot_be_written(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    # A file in place of the home: to write there fails for everybody, as on a file system that is read-only.
    (tmp_path / "home").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv(TOKEN_VARIABLE, "u-x")
    arguments = {"send": ["d1"], "whoami": [], "login": ["--app", "a"]}[command]
    ended = cli(command, *arguments, "--base-url", "http://127.0.0.1:9")
    assert ended.code in {1, 3}
    assert "a mistake of this program" not in ended.err
