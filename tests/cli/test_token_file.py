"""A file of tokens as programs and people write it: read, or told for what it is, and by its right name."""

import json
import os
from pathlib import Path

import pytest

from feishu_mail_async.cli import account
from feishu_mail_async.cli.options import AccountOptions
from tests.helpers.cli import CANARY, TOKEN_VARIABLE, Ended, run_here

HOST = "http://127.0.0.1:9"


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> Ended:
    return run_here(capfd, arguments, [CANARY])


def token_file(directory: Path, content: bytes) -> str:
    path = directory / "tokens"
    path.write_bytes(content)
    path.chmod(0o600)
    return str(path)


def read(path: str) -> dict[str | None, str]:
    found = account.read_account(AccountOptions(base_url=HOST, token_file=path))
    return dict(found.tokens)


ONE = f"{CANARY}\r\nand more\r\n"
TWO = json.dumps({"alice": f"{CANARY}1", "bob": f"{CANARY}2"}, indent=1)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_it_is_read_in_whatever_way_unicode_is_written(tmp_path: Path, encoding: str) -> None:
    """PowerShell writes UTF-16, and Notepad a byte order mark."""
    assert read(token_file(tmp_path, ONE.encode(encoding))) == {None: CANARY}
    assert read(token_file(tmp_path, TWO.encode(encoding))) == {"alice": f"{CANARY}1", "bob": f"{CANARY}2"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (ONE.encode("utf-16-le"), "it is in UTF-16; save it as UTF-8"),
        (TWO.encode("utf-16-be"), "it is in UTF-16; save it as UTF-8"),
        (b"\xff\xfe\x00", "no text"),
        ("密".encode("gbk"), "no text"),
        (b"\xef\xbb\xbf", "its first line is empty"),
        (json.dumps([CANARY]).encode(), "it is JSON of another shape"),
        (json.dumps(CANARY).encode(), "it is JSON of another shape"),
        (json.dumps({"code": 0, "access_token": CANARY, "expires_in": 7200}).encode(), "access_token"),
        (json.dumps({"access_token": CANARY}).encode(), "access_token"),
        (json.dumps({"alice": {"access_token": CANARY}}).encode(), "'alice' is no text"),
        (b"t-" + CANARY.encode(), "is a tenant_access_token"),
        (json.dumps({"alice": CANARY, "bob": f"t-{CANARY}"}).encode(), "user 'bob' is a tenant_access_token"),
    ],
)
def test_what_is_no_file_of_tokens(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, said: str
) -> None:
    path = token_file(tmp_path, content)
    ended = run(capfd, "send", "a", "--token-file", path, "--base-url", HOST, "--no-ledger", "--verbose")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith(f"error: --token-file {path}: ")
    assert said in ended.err
    assert ended.err.count("\n") == 1


def test_a_tenant_token_in_the_environment(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, f"t-{CANARY}")
    ended = run(capfd, "send", "a", "--no-ledger")
    assert ended.code == 3
    assert ended.err.startswith(f"error: {TOKEN_VARIABLE}: the token of the only user is a tenant_access_token")


@pytest.mark.parametrize("command", ["send a", "bulk --all --yes", "list", "login --port 0", "doctor"])
def test_a_proxy_that_cannot_be_used_goes_by_its_own_name(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, own_state: Path, command: str
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, CANARY)
    monkeypatch.setenv("FEISHU_APP_ID", "cli_a")
    monkeypatch.setenv("FEISHU_APP_SECRET", "a-secret")
    monkeypatch.setenv("HTTPS_PROXY", f"socks5://me:{CANARY}@proxy:1")
    monkeypatch.setenv("NO_PROXY", "")
    ended = run(capfd, *command.split(), "--base-url", "https://open.feishu.cn")
    assert TOKEN_VARIABLE not in ended.err
    assert "a mistake" not in ended.err
    if command == "doctor":
        assert ended.code == 1
        (host,) = [line for line in ended.out.splitlines() if "HTTPS_PROXY" in line]
        assert host.split()[:2] == ["problem", "host"]
        (login,) = [line for line in ended.out.splitlines() if line.split()[:2] == ["ok", "login"]]
        assert TOKEN_VARIABLE in login
    else:
        assert ended.code == 3
        assert ended.err.startswith("error: HTTPS_PROXY: the environment's proxy cannot be used")
        assert ended.err.count("\n") == 1


@pytest.mark.skipif(os.name != "posix", reason="named pipes are POSIX's")
def test_a_token_from_a_pipe_is_read_though_the_pipe_stays_open(tmp_path: Path) -> None:
    """As a shell gives it: `--token-file <(pass show feishu)`."""
    reading, writing = os.pipe()
    os.write(writing, f"{CANARY}\n".encode())
    os.fchmod(reading, 0o600)
    assert read(f"/dev/fd/{reading}") == {None: CANARY}
    os.close(writing)
    os.close(reading)
