"""Logging in at a terminal."""

import contextlib
import os
import pty
import re
import select
import signal
import stat
import subprocess
import time
from collections import Counter
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from feishu_mail_async.sandbox import Fault
from tests.helpers import nursery
from tests.helpers.browser import Desk, browse, expect_no_secret, process_environment, where_to, with_query
from tests.helpers.cli import COMMAND, PATIENCE, Feishu, start_command, wait_for

POSIX = pytest.mark.skipif(os.name != "posix", reason="permissions and pseudo terminals are POSIX's")


class Terminal:
    """A login at a terminal of its own.

    Args:
        feishu: where it logs in.
        env: its environment.
        anew: start it as its users do, which takes its time.
    """

    def __init__(self, feishu: Feishu, env: dict[str, str], *, anew: bool = False) -> None:
        self._ours, theirs = pty.openpty()
        self.process = self._started(login_arguments(feishu), env, theirs, anew=anew)
        os.close(theirs)
        self.text = ""

    @staticmethod
    def _started(
        arguments: list[str], env: dict[str, str], terminal: int, *, anew: bool
    ) -> nursery.Program | subprocess.Popen[bytes]:
        if not anew:
            return start_command(*arguments, env=env, stdin=terminal, stdout=terminal, stderr=terminal)
        # In a session of its own, so that nobody is asked at the terminal of whoever runs the tests.
        return subprocess.Popen(
            [*COMMAND, *arguments],
            env=env,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )

    def read_until(self, wanted: str) -> None:
        end = time.monotonic() + PATIENCE
        while wanted not in self.text:
            assert time.monotonic() < end, self.text
            if select.select([self._ours], [], [], 0.1)[0]:
                self.text += os.read(self._ours, 4096).decode()

    def type(self, text: str) -> None:
        os.write(self._ours, f"{text}\n".encode())

    def end(self) -> int:
        with contextlib.suppress(OSError):  # Linux tells the end of a terminal so
            while piece := os.read(self._ours, 4096):
                self.text += piece.decode()
        os.close(self._ours)
        return self.process.wait(PATIENCE)

    @property
    def address(self) -> str:
        self.read_until("Ctrl-C ends it")
        found = re.search(r"^(http://\S+/authorize\?\S+)\r$", self.text, re.MULTILINE)
        assert found is not None, self.text
        return found[1]


def login_arguments(feishu: Feishu) -> list[str]:
    return ["login", "--port", "0", "--base-url", feishu.sandbox.base_url]


@POSIX
def test_at_a_terminal_all_is_asked_for_and_the_code_can_be_pasted(feishu: Feishu, own_state: Path) -> None:
    terminal = Terminal(feishu, process_environment(feishu, own_state, app=False))
    terminal.read_until("App id: ")
    terminal.type(feishu.sandbox.client_id)
    terminal.read_until("App secret (it is not shown): ")
    terminal.type(feishu.sandbox.client_secret)
    terminal.read_until("[y/N] ")
    terminal.type("y")
    back = where_to(terminal.address, user="alice", decision="allow")
    terminal.read_until("paste the address")
    terminal.type("no code, to be sure")
    terminal.read_until("this is neither a code nor the address")
    terminal.type("")
    terminal.type(with_query(back, state="wrong"))
    terminal.read_until("belong to this login")
    terminal.type(parse_qs(urlsplit(back).query)["code"][0])
    assert terminal.end() == 0
    assert "Logged in: me" in terminal.text
    assert feishu.sandbox.client_secret not in terminal.text
    (path,) = (own_state / "feishu-mail-async").glob("app-secret-*.json")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@POSIX
def test_at_a_terminal_the_address_can_be_pasted(feishu: Feishu, own_state: Path) -> None:
    terminal = Terminal(feishu, process_environment(feishu, own_state))
    terminal.type(where_to(terminal.address, user="alice", decision="allow"))
    assert terminal.end() == 0
    assert "Logged in: me" in terminal.text
    assert not [*(own_state / "feishu-mail-async").glob("app-secret*")]


@POSIX
def test_at_a_terminal_the_browser_may_come_back_while_nobody_types(feishu: Feishu, own_state: Path) -> None:
    terminal = Terminal(feishu, process_environment(feishu, own_state), anew=True)
    if (command_line := Path(f"/proc/{terminal.process.pid}/cmdline")).exists():
        address = terminal.address
        expect_no_secret(feishu, command_line.read_text())
    assert browse(address, user="alice", decision="allow")[0] == 200
    assert terminal.end() == 0


@POSIX
@pytest.mark.parametrize("at_a_terminal", [True, False])
def test_ctrl_c_ends_a_login(feishu: Feishu, own_state: Path, at_a_terminal: bool) -> None:
    env = process_environment(feishu, own_state)
    if at_a_terminal:
        terminal = Terminal(feishu, env)
        assert terminal.address
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 130
        assert "Traceback" not in terminal.text
        return
    process = start_command(*login_arguments(feishu), env=env)
    assert process.stderr is not None
    while "Ctrl-C" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "Traceback" not in out + err


@POSIX
def test_a_refresh_is_finished_though_ctrl_c_comes_twice(desk: Desk, own_state: Path) -> None:
    desk.log_in()
    feishu = desk.feishu
    (draft_id,) = feishu.drafts("alice", 1)
    feishu.do(lambda sandbox: sandbox.expire_token("alice"))
    feishu.do(lambda sandbox: sandbox.script_token(Fault.delay(0.0, 2.0)))
    process = desk.start("send", draft_id)
    wait_for(lambda: feishu.do(lambda sandbox: sandbox.ledger.refreshes["alice"]) == 1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "Unclosed" not in err
    assert "Traceback" not in err
    expect_no_secret(feishu, out, err)
    assert feishu.sent == Counter()
    assert desk.run("list").code == 0  # with what that refresh has brought
    assert feishu.do(lambda sandbox: sandbox.ledger.refreshes["alice"]) == 1


@pytest.mark.soak
def test_programs_leave_nothing_open_and_show_nothing(desk: Desk, own_state: Path) -> None:
    desk.log_in("--keep-secret")
    feishu = desk.feishu
    (draft_id,) = feishu.drafts("alice", 1)
    feishu.do(lambda sandbox: sandbox.expire_token("alice"))
    env = process_environment(feishu, own_state)
    for command in (["send", draft_id], ["list"], ["whoami"], ["doctor"]):
        ended = subprocess.run(
            [*COMMAND, *command, "--base-url", feishu.sandbox.base_url, "--verbose"],
            env=env,
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=PATIENCE,
        )
        assert ended.returncode == 0, ended.stderr
        assert "Unclosed" not in ended.stderr
        expect_no_secret(feishu, ended.stdout, ended.stderr)
    assert feishu.sent == Counter([draft_id])
