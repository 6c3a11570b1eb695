"""Every stop has an end, whatever hangs, and says what it gave up; the next run settles the rest."""

import asyncio
import contextlib
import fcntl
import os
import re
import signal
import socket
import struct
import termios
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from feishu_mail_async import Draft
from feishu_mail_async.fleet import Queue, enqueue, prepare
from feishu_mail_async.sandbox import Fault
from tests.helpers import nursery
from tests.helpers.cli import PATIENCE, TOKEN_VARIABLE, Ended, Feishu, environment, start_command, wait_for
from tests.helpers.programs import stop

LIMIT = "FEISHU_MAIL_STOP_SECONDS"
QUICK = {LIMIT: "2"}
NOTED = "note: stopping has taken 1.6 s: what is under way is broken off\n"
BROKEN_OFF = "it did not end within 2 s of being asked to, so it was broken off"
SIGNALS = [signal.SIGINT, signal.SIGTERM]

pytestmark = pytest.mark.usefixtures("own_state")


def finish(program: nursery.Program) -> Ended:
    out, err = program.communicate(timeout=PATIENCE)
    assert "Traceback" not in err, err
    return Ended(program.wait(), out, err)


# --- whatever hangs ---------------------------------------------------------------------------------------


def start_hanging(name: str, **settings: str) -> nursery.Program:
    program = nursery.start(f"tests.helpers.programs.stop:{name}", env=environment(**QUICK | settings))
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    return program


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("name", stop.__all__)
def test_a_stop_has_an_end_whatever_hangs(name: str, number: signal.Signals) -> None:
    program = start_hanging(name)
    program.send_signal(number)
    assert program.wait(PATIENCE) == 130  # with nobody who reads what it prints
    assert BROKEN_OFF in finish(program).err


def test_it_says_what_is_left() -> None:
    program = start_hanging("deaf_loop")
    program.send_signal(signal.SIGTERM)
    assert finish(program).err == f"{NOTED}error: {BROKEN_OFF}; this is left\n"


@pytest.mark.parametrize(
    ("times", "said"), [(2, "it did not end within 8 s of the second signal"), (3, "stopped at once")]
)
def test_a_second_signal_hurries_and_a_third_waits_for_nothing(times: int, said: str) -> None:
    program = start_hanging("deaf_main_thread", **{LIMIT: "40" if times == 2 else "4000"})
    for _ in range(times):
        program.send_signal(signal.SIGTERM)
        wait_until_taken(program.pid, signal.SIGTERM)  # those of one number that wait are one
    ended = finish(program)
    assert (ended.code, NOTED in ended.err) == (130, False)
    assert said in ended.err


def wait_until_taken(pid: int, number: signal.Signals) -> None:
    """Wait until a signal that was sent is no longer waiting."""
    while True:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except FileNotFoundError:
            return
        waiting = re.findall(r"(?:SigPnd|ShdPnd):\s*(\w+)", status)
        if not any(int(mask, 16) >> (number - 1) & 1 for mask in waiting):
            return


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_a_time_for_stopping_that_is_none(seconds: str) -> None:
    ended = finish(start_command("status", env=environment(**{LIMIT: seconds})))
    assert ended.code == 2
    assert ended.err.startswith(f"error: {LIMIT}: give the seconds")


# --- a server that answers nothing ------------------------------------------------------------------------


class Silent:
    """A server that takes connections, and what is said there, and never answers."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._taken: list[socket.socket] = []

    def wait(self) -> None:
        """Wait until somebody has said something."""
        self._listener.settimeout(PATIENCE)
        taken, _ = self._listener.accept()
        self._taken.append(taken)
        taken.settimeout(PATIENCE)
        assert taken.recv(1)

    def close(self) -> None:
        for one in (self._listener, *self._taken):
            one.close()


@pytest.fixture
def silent() -> Iterator[Silent]:
    with contextlib.closing(Silent()) as server:
        yield server


@pytest.mark.parametrize(
    ("command", "waits"),
    [
        ("send d1", True),
        ("send d1 --no-ledger", True),
        ("bulk FILE --yes", True),
        ("bulk --all --yes", False),
        ("list", False),
        ("doctor", False),
    ],
)
def test_the_server_answers_nothing(silent: Silent, tmp_path: Path, command: str, waits: bool) -> None:
    env = environment(**QUICK, **{TOKEN_VARIABLE: "u-x"})
    where = ["--base-url", f"http://127.0.0.1:{silent.port}"]
    program = start_command(*words(tmp_path, command), *where, env=env)
    silent.wait()
    program.send_signal(signal.SIGTERM)
    ended = finish(program)
    assert ended.code == 130
    # A call that sends is waited for; one that only looks is given up at once.
    assert (NOTED in ended.err) == waits
    assert not waits or "unknown" in ended.out + ended.err


def words(directory: Path, command: str) -> list[str]:
    """The words of a command, and a file of one draft for FILE."""
    path = directory / "drafts.csv"
    path.write_text("draft_id\nd1\n")
    return [str(path) if word == "FILE" else word for word in command.split()]


@pytest.mark.parametrize("agreed", [True, False], ids=["the token endpoint", "the browser"])
def test_a_login_waits(silent: Silent, agreed: bool) -> None:
    env = environment(**QUICK, FEISHU_APP_ID="cli_x", FEISHU_APP_SECRET="secret")
    where = ["--base-url", f"http://127.0.0.1:{silent.port}", "--port", "0", "--no-browser"]
    program = start_command("login", *where, env=env)
    assert program.stdout is not None
    text = ""
    while "state=" not in text:
        line = program.stdout.readline()
        assert line
        text += line
    if agreed:
        redirect = re.search(r"http://127\.0\.0\.1:\d+/callback", text)
        state = re.search(r"state=([^&\s]+)", text)
        assert redirect is not None
        assert state is not None
        urllib.request.urlopen(f"{redirect.group()}?code=abc&state={state.group(1)}", timeout=PATIENCE).close()
        silent.wait()
    program.send_signal(signal.SIGTERM)
    assert finish(program).code == 130


@pytest.mark.parametrize(
    "command", ["send d1", "list", "status", "whoami", "enqueue FILE --yes --app a", "worker --app a"]
)
def test_the_database_answers_nothing(silent: Silent, tmp_path: Path, command: str) -> None:
    token = {} if command == "list" else {TOKEN_VARIABLE: "u-x"}
    ledger = f"postgresql://someone@127.0.0.1:{silent.port}/x"
    program = start_command(*words(tmp_path, command), "--ledger", ledger, env=environment(**QUICK, **token))
    silent.wait()
    program.send_signal(signal.SIGTERM)
    ended = finish(program)
    assert ended.code == 130
    assert "sent" not in ended.out


# --- what the next run settles ----------------------------------------------------------------------------


class Relay:
    """A way to a server that can freeze: connections stay, and nothing passes."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._there = parts.hostname, parts.port
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = url.replace(f"{parts.hostname}:{parts.port}", f"127.0.0.1:{port}")
        self._open = threading.Event()
        self._open.set()
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        self._open.clear()

    def close(self) -> None:
        self._open.set()
        for end in (self._listener, *self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self._listener.accept()
                there = socket.create_connection(self._there)
                self._ends += [here, there]
                for one, other in ((here, there), (there, here)):
                    threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, source: socket.socket, goal: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._open.wait()
                goal.sendall(data)


@pytest.fixture
def relay(postgres_url: str) -> Iterator[Relay]:
    with contextlib.closing(Relay(postgres_url)) as made:
        yield made


def commands(feishu: Feishu, ids: Sequence[str]) -> dict[str, list[str]]:
    where = ["--base-url", feishu.sandbox.base_url, "--token-file", str(feishu.token_file), "--app", "a"]
    return {
        "send": ["send", *ids, *where, "--user", "alice", "--rate", "10000/60"],
        "bulk": ["bulk", feishu.csv(ids), "--yes", *where, "--rate", "10000/60"],
        "worker": [
            "worker",
            "--until-empty",
            "--dead-after",
            "1",
            "--call-timeout",
            "1",
            *where,
            "--rate",
            "10000/60",
        ],
    }


@pytest.mark.parametrize("name", ["send", "bulk", "worker"])
def test_a_database_that_freezes(feishu: Feishu, relay: Relay, postgres_url: str, name: str) -> None:
    ids = feishu.drafts("alice", 5)
    frozen = threading.Event()

    def freeze(_: object) -> Fault | None:
        relay.freeze()
        frozen.set()
        return None

    if name == "worker":
        queue = Queue(feishu.sandbox.base_url, "a")
        asyncio.run(prepare(postgres_url))
        asyncio.run(enqueue(postgres_url, queue, [Draft(one, "me", "alice") for one in ids]))
    feishu.do(lambda sandbox: setattr(sandbox, "on_call", freeze))
    arguments = commands(feishu, ids)[name]
    program = start_command(*arguments, env=environment(**QUICK, FEISHU_MAIL_LEDGER=relay.url))
    assert frozen.wait(PATIENCE)  # the call has arrived, and what becomes of it cannot be written down
    program.send_signal(signal.SIGTERM)
    ended = finish(program)
    assert ended.code == 130
    assert NOTED in ended.err
    feishu.do(lambda sandbox: setattr(sandbox, "on_call", None))
    again = finish(start_command(*arguments, env=environment(FEISHU_MAIL_LEDGER=postgres_url)))
    assert again.code == 0, again
    assert feishu.sent == dict.fromkeys(ids, 1)


# --- a file that is never written or read -----------------------------------------------------------------


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    "command",
    [
        "bulk FIFO --yes",
        "send d1 --token-file FIFO",
        "enqueue FIFO --yes --app a --ledger postgresql://x@127.0.0.1:9/x",
    ],
)
def test_a_file_that_nobody_writes(tmp_path: Path, command: str, number: signal.Signals) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    env = environment(**QUICK, **({} if "--token-file" in command else {TOKEN_VARIABLE: "u-x"}))
    program = start_command(*command.replace("FIFO", str(fifo)).split(), env=env)
    with fifo.open("wb", buffering=0) as begun:
        begun.write(b"{")
        wait_for(lambda: not struct.unpack("i", fcntl.ioctl(begun, termios.FIONREAD, bytes(4)))[0])
        program.send_signal(number)  # it has read that, and waits for the rest
        ended = finish(program)
    assert (ended.code, ended.out, ended.err) == (130, "", "")
