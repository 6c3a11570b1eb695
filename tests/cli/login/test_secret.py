"""The app's secret: whether it is kept, where, and from whom."""

import os
import stat
from pathlib import Path

import pytest

from feishu_mail_async.cli import app_secret as secretfile
from feishu_mail_async.cli.problems import CannotStart
from tests.helpers.browser import APP_ID, APP_SECRET, Desk
from tests.helpers.cli import CANARY

POSIX = pytest.mark.skipif(os.name != "posix", reason="permissions and pseudo terminals are POSIX's")


@POSIX
def test_the_secret_is_kept_if_it_is_asked_for(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = desk.log_in("--keep-secret")
    (path,) = desk.state.glob("app-secret-*.json")
    assert f"The app's secret is kept in {path}." in ended.out
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not [*desk.state.glob(".app-secret*")]
    monkeypatch.delenv(APP_SECRET)
    monkeypatch.delenv(APP_ID)
    desk.feishu.do(lambda sandbox: sandbox.expire_token("alice"))
    (draft_id,) = desk.feishu.drafts("alice", 1)
    assert desk.run("send", draft_id).code == 0
    assert desk.log_in().code == 0
    desk.run("logout")
    assert path.exists()
    ended = desk.run("logout", "--all")
    assert (ended.code, ended.out) == (0, "The secret of app cli_sandbox is forgotten.\n")
    assert not path.exists()


@POSIX
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_a_secret_that_others_may_read_is_refused(desk: Desk, monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    desk.log_in("--keep-secret")
    (path,) = desk.state.glob("app-secret-*.json")
    path.chmod(mode)
    monkeypatch.delenv(APP_SECRET)
    for command in (["list"], ["login", "--port", "0"]):
        ended = desk.run(*command)
        assert ended.code == 3
        assert f"chmod 600 {path}" in ended.err
    assert "chmod 600" in desk.run("whoami").out


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"base_url": "x", "app": "y", "secret": 5}'])
def test_a_file_that_holds_no_secret(desk: Desk, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    desk.log_in("--keep-secret")
    (path,) = desk.state.glob("app-secret-*.json")
    path.write_bytes(content)
    monkeypatch.delenv(APP_SECRET)
    ended = desk.run("list")
    assert ended.code == 3
    assert "it holds no app's secret" in ended.err


def test_a_secret_is_that_of_its_app(own_state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (APP_ID, APP_SECRET):
        monkeypatch.delenv(name, raising=False)
    host = "https://open.feishu.cn"
    path = secretfile.keep_secret(host, "cli_a", CANARY)
    assert secretfile.find_secret(host, "cli_a") == (CANARY, str(path))
    assert secretfile.find_secret(host, "cli_b")[0] is None
    assert secretfile.find_secret("https://open.larksuite.com", "cli_a")[0] is None
    secretfile.keep_secret(host, "cli_a", "another")
    assert secretfile.find_secret(host, "cli_a")[0] == "another"
    monkeypatch.setenv(APP_SECRET, "of-nobody")
    assert secretfile.find_secret(host, "cli_a") == ("of-nobody", APP_SECRET)
    monkeypatch.setenv(APP_ID, "cli_b")
    assert secretfile.find_secret(host, "cli_a")[0] == "another"
    assert secretfile.find_secret(host, "cli_b") == ("of-nobody", APP_SECRET)
    assert secretfile.kept_apps(host) == ["cli_a"]
    assert secretfile.forget_secret(host, "cli_a")
    assert not secretfile.forget_secret(host, "cli_a")
    monkeypatch.setenv(APP_SECRET, f"{CANARY}\x07")
    with pytest.raises(CannotStart, match="control character") as raised:
        secretfile.find_secret(host, "cli_b")
    assert CANARY not in str(raised.value)


@POSIX
def test_the_file_of_the_secret_is_private_from_the_start(
    own_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    fsync = os.fsync

    def look(handle: int) -> None:
        seen.append(stat.S_IMODE(os.fstat(handle).st_mode))
        fsync(handle)

    before = os.umask(0)
    try:
        monkeypatch.setattr(os, "fsync", look)
        path = secretfile.keep_secret("https://open.feishu.cn", "cli_a", CANARY)
    finally:
        os.umask(before)
    assert seen == [0o600]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_secret_that_cannot_be_kept(own_state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CannotStart, match=r"cannot be kept.*No space left"):
        secretfile.keep_secret("https://open.feishu.cn", "cli_a", CANARY)
    assert [*(own_state / "feishu-mail-async").iterdir()] == []
