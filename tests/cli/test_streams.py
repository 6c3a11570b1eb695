"""Standard streams that are closed, full, gone, slow or too narrow: neither the work nor its record needs them."""

import contextlib
import fcntl
import json
import os
import pty
import shlex
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from feishu_mail_async.sandbox import Fault
from tests.helpers import nursery
from tests.helpers.cli import PATIENCE, Ended, Feishu, environment, start_command, wait_for

pytestmark = [
    pytest.mark.usefixtures("own_state"),
    pytest.mark.skipif(os.name != "posix", reason="descriptors and shells are POSIX's"),
]

FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full is Linux's")
Streams = dict[str, str | None]

UNSAID = 4
"""The exit code of a program that has done all, and could not say all."""


def run(*arguments: str, env: dict[str, str] | None = None, streams: Streams | None = None) -> Ended:
    """Run a program to its end; a stream is a path, or None: it is closed."""
    with contextlib.ExitStack() as opened:
        given: dict[str, int | None] = {}
        for name, path in (streams or {}).items():
            file = None if path is None else opened.enter_context(Path(path).open("w"))
            given[name] = None if file is None else file.fileno()
        process = start_command(*arguments, env=env, **given)
    out, err = process.communicate(timeout=PATIENCE)
    return Ended(process.wait(), out, err)


def send(feishu: Feishu, *drafts: str) -> list[str]:
    return ["send", *drafts, "--user", "alice", *feishu.options()]


# --- too narrow -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "gbk", "latin-1"])
def test_what_an_encoding_lacks_is_escaped(feishu: Feishu, encoding: str) -> None:
    good = feishu.drafts("alice", 2)
    feishu.script(good[0], Fault.code("ContentRisk", msg="risk 😀"))
    with (feishu.directory / "told").open("w") as told:
        env = environment(PYTHONIOENCODING=encoding)
        process = start_command(*send(feishu, "草稿1", *good), env=env, stdout=told.fileno())
    assert feishu.finish(process) == Ended(1, "", "")
    assert dict(feishu.sent) == {good[1]: 1}
    out = (feishu.directory / "told").read_text(encoding)
    assert "risk \\U0001f600" in out
    assert ("草稿1" if encoding == "gbk" else "\\u8349\\u7a3f1") in out
    assert "3 drafts: 1 sent, 2 failed" in out


def test_json_is_json_in_every_encoding(feishu: Feishu) -> None:
    ended = run(*send(feishu, "草稿😀"), "--json", env=environment(PYTHONIOENCODING="ascii"))
    assert [outcome["draft_id"] for outcome in ended.outcomes] == ["草稿😀"]


@pytest.mark.parametrize("command", [[], ["bulk"], ["worker"], ["login"]])
def test_help_in_ascii(command: list[str]) -> None:
    ended = run(*command, "--help", env=environment(PYTHONIOENCODING="ascii"))
    assert (ended.code, ended.err) == (0, "")
    assert "Usage: feishu-mail-async" in ended.out
    assert ended.out.isascii()


# --- closed, full -----------------------------------------------------------------------------------------

CLOSED = "error: standard output: not all of it could be written (Bad file descriptor)\n"
NO_SPACE = "error: standard output: not all of it could be written (No space left on device)\n"


@pytest.mark.parametrize(
    ("streams", "code", "said"),
    [
        ({"stdout": None}, UNSAID, CLOSED),
        ({"stdin": None}, 0, ""),
        ({"stderr": None}, 0, ""),
        ({"stdin": None, "stdout": None, "stderr": None}, UNSAID, ""),
        pytest.param({"stdout": "/dev/full"}, UNSAID, NO_SPACE, marks=FULL),
        pytest.param({"stderr": "/dev/full"}, 0, "", marks=FULL),
        pytest.param({"stdout": "/dev/full", "stderr": "/dev/full"}, UNSAID, "", marks=FULL),
    ],
)
def test_a_stream_that_takes_nothing(feishu: Feishu, streams: Streams, code: int, said: str) -> None:
    drafts = feishu.drafts("alice", 3)
    ended = run(*send(feishu, *drafts), streams=streams)
    assert feishu.sent == dict.fromkeys(drafts, 1)
    assert (ended.code, ended.err) == (code, said)


@pytest.mark.parametrize("closed", [["stdout"], ["stderr"], ["stdin", "stdout", "stderr"]])
def test_a_closed_stream_is_no_place_for_the_ledger_or_the_results(feishu: Feishu, closed: list[str]) -> None:
    """The first file that a program opens gets the number of a stream that is closed."""
    drafts = feishu.drafts("alice", 3)
    again = ["bulk", feishu.csv(drafts), "--yes", *feishu.options()]
    ended = run(*again, "--out", str(feishu.out), "--verbose", streams=dict.fromkeys(closed))
    assert ended.code == UNSAID
    assert feishu.statuses() == dict.fromkeys(drafts, "sent")
    assert "3 drafts were sent before: they are skipped." in run(*again).out


@FULL
@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["status"]])
def test_what_only_prints_says_that_it_could_not(arguments: list[str]) -> None:
    assert run(*arguments, streams={"stdout": "/dev/full"}) == Ended(UNSAID, "", NO_SPACE)


def test_an_exit_code_that_says_more_stays() -> None:
    assert run("send", streams={"stderr": None}).code == 2
    assert run("send", "a", streams={"stdout": None, "stderr": None}).code == 3


def test_an_input_that_is_closed(feishu: Feishu) -> None:
    ended = run("bulk", "-", "--yes", *feishu.options(), streams={"stdin": None})
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert ended.err.startswith("error: standard input: ")
    asked = run("bulk", feishu.csv(["a"]), *feishu.options(), streams={"stdin": None})
    assert (asked.code, asked.err[:14]) == (2, "error: --yes: ")


@FULL
def test_the_demo_does_not_depend_on_its_screen() -> None:
    assert run("demo", "--rate", "20/1", streams={"stdout": "/dev/full"}) == Ended(UNSAID, "", NO_SPACE)


def test_the_sandbox_as_a_module() -> None:
    """Started anew, as its users start it: by a shell that closes its streams."""
    program = shlex.join([sys.executable, "-m", "feishu_mail_async.sandbox"])
    process = subprocess.Popen(["/bin/sh", "-c", f"exec {program} >&- <&-"], stderr=subprocess.PIPE, text=True)
    with process:
        # Nobody knows where it listens; it runs all the same, and hears that it is to end.
        wait_for(lambda: listens(process.pid))
        process.terminate()
        _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (UNSAID, CLOSED)


def listens(pid: int) -> bool:
    """Tell whether a process listens on a TCP port."""
    table = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    listening = {f"socket:[{row.split()[9]}]" for row in table if row.split()[3] == "0A"}
    with contextlib.suppress(FileNotFoundError):  # closed meanwhile
        return any(str(one.readlink()) in listening for one in Path(f"/proc/{pid}/fd").iterdir())
    return False


# --- gone -------------------------------------------------------------------------------------------------


def test_a_reader_that_goes_away(feishu: Feishu) -> None:
    drafts = feishu.drafts("alice", 20)
    process = start_command(*send(feishu, *drafts))
    assert process.stdout is not None
    process.stdout.close()
    ended = feishu.finish(process)
    assert (ended.code, ended.err) == (UNSAID, "")  # who leaves early has seen enough
    assert feishu.sent == dict.fromkeys(drafts, 1)


def test_a_terminal_that_goes_away(feishu: Feishu) -> None:
    drafts = feishu.drafts("alice", 30)
    feishu.script(drafts[5], Fault.delay(there=0, back=0.5))
    ours, theirs = pty.openpty()
    process = feishu.start(
        feishu.csv(drafts), "--yes", "--out", str(feishu.out), stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    wait_for(lambda: feishu.calls > 5)
    os.close(ours)
    assert process.wait(PATIENCE) == UNSAID
    assert feishu.statuses() == dict.fromkeys(drafts, "sent")


@pytest.mark.parametrize("ignored", [False, True])
def test_a_hangup_finishes_what_is_under_way(feishu: Feishu, ignored: bool) -> None:
    drafts = feishu.drafts("alice", 3)
    feishu.script(drafts[0], Fault.delay(there=0, back=1))
    program = "tests.helpers.programs.odd:nohup" if ignored else "feishu_mail_async.cli:main"
    command = ["bulk", feishu.csv(drafts), "--yes", "--out", str(feishu.out), *feishu.options()]
    process = nursery.start(program, *command, env=environment())
    wait_for(lambda: feishu.calls == 1)
    for _ in range(3):  # the terminal says it, and the shell, too
        process.send_signal(signal.SIGHUP)
    assert feishu.finish(process).code == (0 if ignored else 1)
    others = "sent" if ignored else "skipped"
    assert feishu.statuses() == {drafts[0]: "sent", drafts[1]: others, drafts[2]: others}


# --- slow -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_that_reads_later_holds_nothing_up(feishu: Feishu, blocking: bool) -> None:
    """A pipe takes only so much; one that does not block refuses the rest."""
    drafts = feishu.drafts("alice", 40)
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writing, blocking)
    process = start_command(*send(feishu, *drafts), "--json", stdout=writing)
    os.close(writing)
    wait_for(lambda: len(feishu.sent) == len(drafts))  # the screen is full long before
    with os.fdopen(reading) as told:
        outcomes = [json.loads(line) for line in told]
    assert feishu.finish(process).code == 0
    assert {outcome["draft_id"] for outcome in outcomes} == set(drafts)


def test_an_input_that_does_not_block_is_read_whole(feishu: Feishu) -> None:
    drafts = feishu.drafts("alice", 3)
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    process = feishu.start("-", "--yes", stdin=reading)
    os.close(reading)
    for draft_id in drafts:
        os.write(writing, json.dumps({"draft_id": draft_id, "user": "alice"}).encode() + b"\n")
        wait_for(lambda: not unread(writing))
    os.close(writing)
    assert feishu.finish(process).code == 0
    assert feishu.sent == dict.fromkeys(drafts, 1)


def unread(pipe: int) -> int:
    """How many bytes in a pipe nobody has read."""
    number: int = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]
    return number
