"""Secrets in files whose mode cannot be changed: accepted where it is safe or wanted; else a remedy that helps."""

import os
import shlex
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from feishu_mail_async import LedgerError, open_ledger
from feishu_mail_async.cli import account
from feishu_mail_async.cli import app_secret as secretfile
from feishu_mail_async.cli.options import AccountOptions
from feishu_mail_async.cli.problems import CannotStart
from tests.helpers.cli import CANARY, TOKEN_VARIABLE

pytestmark = pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")

HOST = "http://127.0.0.1:9"
SHARED = "FEISHU_MAIL_SHARED_FILES"
OPEN_MODES = [0o444, 0o440, 0o640, 0o644, 0o660, 0o604, 0o666, 0o777]


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (SHARED, TOKEN_VARIABLE, secretfile.APP_ID, secretfile.APP_SECRET):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "a token"
    found.write_text(CANARY)
    return found


def read(path: Path) -> dict[str | None, str]:
    found = account.read_account(AccountOptions(base_url=HOST, token_file=str(path)))
    return dict(found.tokens)


class Machine:
    """The operating system as `rights` asks it: whose process it is, whose file, and on what mount."""

    def __init__(self, user: int, owner: int, *, read_only: bool = False) -> None:
        self.user, self.owner, self.read_only = user, owner, read_only

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def geteuid(self) -> int:
        return self.user

    def stat(self, file: Any) -> Any:
        return SimpleNamespace(
            st_mode=os.stat(file).st_mode,  # noqa: PTH116 - of a descriptor
            st_uid=self.owner,
        )

    def statvfs(self, file: Any) -> Any:
        return SimpleNamespace(f_flag=os.ST_RDONLY if self.read_only else os.statvfs(file).f_flag & ~os.ST_RDONLY)


ME, ROOT, SOMEBODY = 1000, 0, 1001


@pytest.mark.parametrize("mode", OPEN_MODES)
@pytest.mark.parametrize(("user", "owner"), [(ME, ROOT), (ME, SOMEBODY), (ME, ME), (ROOT, ROOT)])
def test_a_mount_that_is_read_only(
    path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, user: int, owner: int
) -> None:
    """As containers get their secrets, from Kubernetes and from Docker: often of root's, for all to read."""
    path.chmod(mode)
    monkeypatch.setattr("feishu_mail_async._rights.os", Machine(user, owner, read_only=True))
    assert read(path) == {None: CANARY}


@pytest.mark.parametrize("mode", OPEN_MODES)
def test_what_root_has_given_to_a_group(path: Path, monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    """As PostgreSQL has it for keys: of root's, and for a group to read."""
    path.chmod(mode)
    monkeypatch.setattr("feishu_mail_async._rights.os", Machine(ME, ROOT))
    if mode in {0o440, 0o640}:
        assert read(path) == {None: CANARY}
    else:
        with pytest.raises(CannotStart, match="have its owner do: chmod 600"):
            read(path)


@pytest.mark.parametrize("mode", OPEN_MODES)
@pytest.mark.parametrize(
    ("machine", "remedy"),
    [
        (Machine(ME, ME), "keep it to yourself: chmod 600 "),
        (Machine(ROOT, ROOT), "keep it to yourself: chmod 600 "),
        (Machine(ROOT, SOMEBODY), "keep it to yourself: chmod 600 "),
        (Machine(ME, SOMEBODY), "have its owner do: chmod 600 "),
    ],
)
def test_all_else_is_refused_with_what_can_be_done(
    path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, machine: Machine, remedy: str
) -> None:
    path.chmod(mode)
    monkeypatch.setattr("feishu_mail_async._rights.os", machine)
    with pytest.raises(CannotStart, match="others may read it") as caught:
        read(path)
    assert remedy + shlex.quote(str(path)) in str(caught.value)
    assert f"{SHARED}=allow" in str(caught.value)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("mode", OPEN_MODES)
def test_it_can_be_allowed_where_a_mount_has_one_mode_for_all(
    path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    """As WSL, SMB and FAT have it: 0777, and chmod changes nothing."""
    path.chmod(mode)
    monkeypatch.setenv(SHARED, "allow")
    assert read(path) == {None: CANARY}
    for value in ("", "0", "no", "deny"):
        monkeypatch.setenv(SHARED, value)
        with pytest.raises(CannotStart, match="others may read it"):
            read(path)


def test_a_kept_secret(own_state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = secretfile.keep_secret(HOST, "cli_a", CANARY)
    path.chmod(0o644)
    with pytest.raises(CannotStart, match=f"others may read it.*{SHARED}=allow"):
        secretfile.find_secret(HOST, "cli_a")
    monkeypatch.setenv(SHARED, "allow")
    assert secretfile.find_secret(HOST, "cli_a") == (CANARY, str(path))


def test_a_directory_in_the_place_of_a_kept_secret(own_state: Path) -> None:
    path = secretfile.keep_secret(HOST, "cli_a", CANARY)
    path.unlink()
    path.mkdir(mode=0o700)
    with pytest.raises(CannotStart, match="the app's secret cannot be read"):
        secretfile.find_secret(HOST, "cli_a")


async def test_a_ledger_on_a_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes gives the files of a volume to a group each time it is mounted."""
    path = tmp_path / "ledger.db"
    ledger = open_ledger(f"sqlite:///{path}")
    await ledger.apps()
    await ledger.close()
    path.chmod(0o660)
    with pytest.raises(LedgerError, match=f"others may read it.*{SHARED}=allow.*chmod 600"):
        await ledger.apps()
    monkeypatch.setenv(SHARED, "allow")
    assert await ledger.apps() == []
    await ledger.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o660  # it is left as it is
