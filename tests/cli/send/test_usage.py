"""What the program says of itself, and of arguments and surroundings that will not do."""

import os
import re
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from feishu_mail_async import RateLimit
from feishu_mail_async.cli import options
from feishu_mail_async.cli.problems import WrongUsage
from tests.helpers.cli import CANARY, TOKEN_VARIABLE, Ended, run_process
from tests.helpers.server import Server

pytestmark = pytest.mark.usefixtures("own_state")


# --- the program ------------------------------------------------------------------------------------------


def test_without_its_extras_it_says_what_to_install() -> None:
    for package in ("typer", "rich"):
        script = f"import sys; sys.modules[{package!r}] = None; from feishu_mail_async.cli import main; main()"
        ended = run_process([sys.executable, "-c", script])
        assert ended.returncode == 3
        assert ended.stdout == ""
        assert ended.stderr.count("\n") == 1
        assert "pip install 'feishu-mail-async[cli]'" in ended.stderr


def test_the_library_loads_no_extras() -> None:
    script = (
        "import sys, feishu_mail_async, feishu_mail_async.cli, feishu_mail_async.sandbox\n"
        "print(*[name for name in ('typer', 'rich', 'pytest') if name in sys.modules])"
    )
    ended = run_process([sys.executable, "-c", script])
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "\n", "")


def test_version(cli: Callable[..., Ended]) -> None:
    ended = cli("--version")
    assert (ended.code, ended.err) == (0, "")
    assert re.fullmatch(r"feishu-mail-async \d+\.\d+\.\d+\n", ended.out)


@pytest.mark.parametrize("command", [(), ("send",), ("bulk",), ("list",), ("sandbox",), ("demo",)])
def test_help_tells_the_exit_codes(cli: Callable[..., Ended], command: tuple[str, ...]) -> None:
    ended = cli(*command, "--help")
    told = " ".join(ended.out.split())
    assert (ended.code, ended.err) == (0, "")
    for code in ("0 all is sent", "1 some drafts are not", "2 the command line is wrong", "3 cannot start"):
        assert code in told


def test_without_a_command_it_shows_its_help(cli: Callable[..., Ended]) -> None:
    ended = cli()
    assert ended.code == 2
    assert "demo" in ended.out + ended.err


# --- what it is given -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["send"], "DRAFT_ID"),
        (["send", ""], "DRAFT_ID"),
        (["send", "a\nb"], "DRAFT_ID"),
        (["send", "good", "a" * 513], "DRAFT_ID"),
        (["send", "a", "--mailbox", ""], "--mailbox"),
        (["send", "a", "--rate", "20"], "--rate"),
        (["send", "a", "--rate", "20/"], "--rate"),
        (["send", "a", "--rate", "0/60"], "--rate"),
        (["send", "a", "--rate", "-1/60"], "--rate"),
        (["send", "a", "--rate", "2.5/60"], "--rate"),
        (["send", "a", "--rate", "20/nan"], "--rate"),
        (["send", "a", "--rate", "20/inf"], "--rate"),
        (["send", "a", "--rate", "20/60/2"], "--rate"),
        (["send", "a", "--outage", "-1"], "--outage"),
        (["send", "a", "--outage", "soon"], "--outage"),
        (["send", "a", "--user", ""], "--user"),
        (["send", "a", "--app", "a\tb"], "--app"),
        (["send", "a", "--base-url", "http://example.com"], "--base-url"),
        (["send", "a", "--base-url", "ftp://example.com"], "--base-url"),
        (["send", "a", "--base-url", ""], "--base-url"),
        (["send", "a", "--base-url", "https://example.com", "--lark"], "--lark"),
        (["send", "a", "--no-such"], "--no-such"),
        (["sandbox", "--rate", "x"], "--rate"),
        (["sandbox", "--port", "99999"], "--port"),
        (["sandbox", "--host", "example.com"], "--host"),
        (["sandbox", "--window", "moon"], "--window"),
        (["sandbox", "--latency", "soon"], "--latency"),
        (["sandbox", "--users", " , "], "--users"),
        (["sandbox", "--drafts", "-1"], "--drafts"),
        (["demo", "--drafts", "3"], "--drafts"),
        (["demo", "--rate", "x"], "--rate"),
        (["nope"], "nope"),
    ],
)
def test_wrong_usage_names_the_option(cli: Callable[..., Ended], arguments: list[str], named: str) -> None:
    ended = cli(*arguments)
    assert (ended.code, ended.out) == (2, "")
    first, *help_line = ended.err.splitlines()
    assert first.startswith("error: ")
    assert named in first
    assert all(line.startswith("Help: ") for line in help_line)


def test_a_wrong_id_among_good_ones_sends_nothing(cli: Callable[..., Ended], server: Server) -> None:
    (draft_id,) = server.take()
    assert cli(*server.arguments(draft_id, "")).code == 2
    assert server.calls(draft_id) == 0


def test_rate() -> None:
    assert options.read_rate("20/60") == RateLimit()
    assert options.read_rate("1/0.5") == replace(RateLimit(), calls=1, per=0.5)
    # A spacing of 0.2 s would halve this limit.
    assert options.read_rate("100/10").spacing <= 0.05
    with pytest.raises(WrongUsage, match="--rate"):
        options.read_rate("")


def test_base_url() -> None:
    assert options.read_base_url(None, lark=False) == "https://open.feishu.cn"
    assert options.read_base_url(None, lark=True) == "https://open.larksuite.com"
    assert options.read_base_url("https://example.com/", lark=False) == "https://example.com"


@pytest.mark.parametrize("value", [None, "", " \n"])
def test_no_token(cli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    if value is None:
        monkeypatch.delenv(TOKEN_VARIABLE)
    else:
        monkeypatch.setenv(TOKEN_VARIABLE, value)
    ended = cli("send", "a")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert TOKEN_VARIABLE in ended.err
    assert "--token-file" in ended.err


@pytest.mark.parametrize("token", [f"Bearer {CANARY}", f"{CANARY} and more", f"{CANARY}é", CANARY * 200])
def test_what_is_no_token_is_not_quoted(
    cli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    ended = cli("send", "a", "--verbose")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith(f"error: {TOKEN_VARIABLE}: ")
    assert ended.err.count("\n") == 1


def test_token_file(
    cli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, server: Server, tmp_path: Path
) -> None:
    # What is given on the command line counts more than the environment.
    monkeypatch.setenv(TOKEN_VARIABLE, CANARY)
    (draft_id,) = server.take()
    path = tmp_path / "token"
    path.write_text(f"  {server.token} \nnot this\n")
    path.chmod(0o600)
    assert cli(*server.arguments(draft_id, "--token-file", str(path))).code == 0


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o660])
def test_token_file_that_others_may_read(cli: Callable[..., Ended], tmp_path: Path, mode: int) -> None:
    path = tmp_path / "my token"
    path.write_text(CANARY)
    path.chmod(mode)
    ended = cli("send", "a", "--token-file", str(path))
    assert (ended.code, ended.out) == (3, "")
    assert f"chmod 600 '{path}'" in ended.err


@pytest.mark.parametrize("content", [b"", b"\n" + CANARY.encode(), b"   \n", b"\xff\xfe\x00", None, "directory"])
def test_token_file_without_a_token(
    cli: Callable[..., Ended], tmp_path: Path, content: bytes | str | None
) -> None:
    path = tmp_path / "token"
    if isinstance(content, bytes):
        path.write_bytes(content)
        path.chmod(0o600)
    elif content is not None:
        path.mkdir()
    ended = cli("send", "a", "--token-file", str(path))
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith(f"error: --token-file {path}: ")
    assert ended.err.count("\n") == 1


def test_sandbox_cannot_have_a_port_that_is_taken(cli: Callable[..., Ended]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = cli("sandbox", "--port", str(taken.getsockname()[1]))
    assert (ended.code, ended.out) == (3, "")
    assert "--port" in ended.err
    assert ended.err.count("\n") == 1
