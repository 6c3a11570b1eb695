"""The command line: as a program of its own, and in this process where that makes no difference."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from feishu_mail_async import (
    AutomatedSendDisabled,
    BadReply,
    ClientClosed,
    Draft,
    FeishuMailError,
    NotSent,
    Outcome,
    OutcomeStatus,
    OutcomeUnknown,
    Priority,
    RateLimit,
    SendResult,
    Snapshot,
    Suspended,
    TransportError,
)
from feishu_mail_async.codes import CODES, named
from feishu_mail_async.errors import api_error

pytest.importorskip("typer")

from feishu_mail_async.cli import options
from feishu_mail_async.cli.commands.demo_scene import Scene, mistakes
from feishu_mail_async.cli.problems import WrongUsage
from feishu_mail_async.cli.render import wording as words
from feishu_mail_async.cli.render.waiting import why_waiting
from feishu_mail_async.sandbox import Arrival, CallLog
from tests.helpers.cli import (
    CANARY,
    COMMAND,
    PATIENCE,
    TOKEN_VARIABLE,
    Ended,
    environment,
    run_here,
    run_process,
    start_command,
    wait_for,
)
from tests.helpers.nursery import Program

pytestmark = pytest.mark.usefixtures("own_state")


@dataclass
class Server:
    """A sandbox in a process of its own."""

    told: dict[str, Any]
    used: int = 0
    others: list[str] = field(default_factory=list)

    @property
    def base_url(self) -> str:
        return str(self.told["base_url"])

    @property
    def token(self) -> str:
        return str(self.told["tokens"]["alice"])

    def take(self, count: int = 1) -> list[str]:
        """Drafts of alice's that no other test uses."""
        self.used += count
        return list(self.told["drafts"]["alice"][self.used - count : self.used])

    def script(self, draft_id: str, *faults: dict[str, Any]) -> None:
        self.control("script", json.dumps({"draft_id": draft_id, "faults": faults}).encode())

    def calls(self, draft_id: str) -> int:
        return sum(call["draft_id"] == draft_id for call in self.control("ledger")["arrivals"])

    def control(self, what: str, body: bytes | None = None) -> Any:
        token = {"X-Sandbox-Token": self.told["control_token"]}
        request = urllib.request.Request(f"{self.base_url}/_sandbox/{what}", body, token)
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)

    def arguments(self, *arguments: str) -> list[str]:
        return ["send", "--base-url", self.base_url, *arguments]

    def start(
        self,
        *arguments: str,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
    ) -> Program:
        """`send` in a process of its own."""
        env = environment(**{TOKEN_VARIABLE: self.token})
        return start_command(*self.arguments(*arguments), env=env, stdin=stdin, stdout=stdout, stderr=stderr)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    arguments = ["sandbox", "--json", "--latency", "0", "--rate", "10000/60", "--users", "alice", "--drafts", "60"]
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    yield Server(json.loads(process.stdout.readline()))
    process.terminate()
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    # With --json there is the one line, and what a person reads goes elsewhere.
    assert out == ""
    assert "mails sent" in err


@pytest.fixture
def cli(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, server: Server
) -> Callable[..., Ended]:
    """Run the command line in this process; whatever it prints, no token is in it."""
    monkeypatch.setenv(TOKEN_VARIABLE, server.token)
    monkeypatch.setenv("COLUMNS", "80")

    return lambda *arguments: run_here(capfd, arguments, (server.token, CANARY))


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


# --- sending ----------------------------------------------------------------------------------------------


def test_send_one(cli: Callable[..., Ended], server: Server) -> None:
    (draft_id,) = server.take()
    ended = cli(*server.arguments(draft_id))
    assert (ended.code, ended.err) == (0, "")
    assert re.fullmatch(rf"sent +{draft_id}  message_id [\w-]+\n", ended.out)
    again = cli(*server.arguments(draft_id))
    assert again.code == 0
    assert again.out.startswith(f"already sent  {draft_id}  ")


def test_send_some_and_some_fail(cli: Callable[..., Ended], server: Server) -> None:
    drafts = server.take(3)
    server.script(drafts[1], {"kind": "code", "name": "ContentRisk"})
    ended = cli(*server.arguments(*drafts))
    *lines, summary = ended.out.splitlines()
    assert (ended.code, ended.err) == (1, "")
    assert len(lines) == 3
    assert summary == "3 drafts: 2 sent, 1 failed"
    (failed,) = [line for line in lines if line.startswith("failed")]
    assert drafts[1] in failed
    assert named("ContentRisk").advice in failed
    assert re.search(r"\[log id \w+\]$", failed)


def test_the_same_draft_twice_is_one(cli: Callable[..., Ended], server: Server) -> None:
    (draft_id,) = server.take()
    ended = cli(*server.arguments(draft_id, draft_id, "--json"))
    assert (ended.code, len(ended.outcomes)) == (0, 1)
    assert server.calls(draft_id) == 1


def test_json(cli: Callable[..., Ended], server: Server) -> None:
    (draft_id,) = server.take()
    ended = cli(*server.arguments(draft_id, "nosuch", "--json", "--user", "alice", "--app", "cli_a"))
    assert (ended.code, ended.err) == (1, "")
    sent, failed = sorted(ended.outcomes, key=lambda outcome: outcome["error"] is not None)
    keys = ["draft_id", "mailbox", "user", "status", "message_id", "thread_id", "attempts", "log_id", "error"]
    assert list(sent) == list(failed) == keys
    assert sent | {"message_id": "", "thread_id": "", "log_id": ""} == {
        "draft_id": draft_id,
        "mailbox": "me",
        "user": "alice",
        "status": "sent",
        "message_id": "",
        "thread_id": "",
        "attempts": 1,
        "log_id": "",
        "error": None,
    }
    assert sent["message_id"]
    assert sent["thread_id"]
    assert sent["log_id"]
    row = named("DraftNotFound")
    assert failed["status"] == "failed"
    assert failed["error"] == {
        "type": "DraftNotFound",
        "code": row.number,
        "message": row.message,
        "advice": row.advice,
    }


def test_json_of_what_was_skipped_says_why(
    cli: Callable[..., Ended], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, CANARY)
    ended = cli(*server.arguments("a", "b", "--json"))
    assert ended.code == 1
    # What closed the user comes first, then what is skipped because of it.
    assert [outcome["status"] for outcome in ended.outcomes] == ["failed", "skipped"]
    errors = [outcome["error"] for outcome in ended.outcomes]
    assert [error["type"] for error in errors] == ["InvalidToken", "Suspended"]
    assert errors[0]["code"] == errors[1]["code"] == named("TokenInvalid").number
    assert errors[0]["advice"] == errors[1]["advice"] == named("TokenInvalid").advice


def test_verbose_tells_where_an_error_came_from(
    cli: Callable[..., Ended], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, CANARY)
    assert "Traceback" not in cli(*server.arguments("a")).err
    ended = cli(*server.arguments("a", "--verbose"))
    assert ended.code == 1
    assert "Traceback" in ended.err
    assert "InvalidToken" in ended.err


def test_nothing_to_reach(cli: Callable[..., Ended]) -> None:
    with socket.socket() as bound:
        # Bound and not listening: nobody else takes the port, and nobody answers.
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        ended = cli("send", "a", "--base-url", url, "--outage", "0")
    assert ended.code == 1
    assert ended.out.startswith("failed        a  the server cannot be reached")


def test_a_mistake_of_ours_is_one_line(cli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> RateLimit:
        raise LookupError(os.environ[TOKEN_VARIABLE])

    monkeypatch.setattr("feishu_mail_async.cli.account.read_base_url", lambda *_, **__: "https://example.com")
    monkeypatch.setattr("feishu_mail_async.cli.commands.send.run_drafts", broken)
    ended = cli("send", "a")
    assert ended.code == 1
    assert ended.err.count("\n") == 1
    assert "LookupError" in ended.err
    told = cli("send", "a", "--verbose")
    assert "Traceback" in told.err
    assert "***" in told.err


# --- waiting, and an end to it ----------------------------------------------------------------------------


def test_a_long_wait_is_explained_and_ctrl_c_ends_it(server: Server) -> None:
    drafts = server.take(3)
    process = server.start(*drafts, "--rate", "1/3600")
    assert process.stderr is not None
    note = process.stderr.readline()
    assert re.fullmatch(r"note: 2 waiting, next call in 3\d{3} s \(1 of 1 calls of these 3600 s made\)\n", note)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert err.startswith("stopping: ")
    assert err.count("\n") == 1
    *lines, summary = out.splitlines()
    assert [line.split()[0] for line in lines] == ["sent", "skipped", "skipped"]
    assert summary == "3 drafts: 1 sent, 2 skipped"


def test_ctrl_c_lets_a_call_under_way_finish(server: Server) -> None:
    first, second = server.take(2)
    server.script(first, {"kind": "delay", "there": 0, "back": 1.0})
    process = server.start(first, second, "--rate", "1/3600", "--json")
    wait_for(lambda: server.calls(first) == 1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "stopping" in err
    assert {told["draft_id"]: told["status"] for told in map(json.loads, out.splitlines())} == {
        first: "sent",
        second: "skipped",
    }


def test_ctrl_c_twice_stops_at_once(server: Server) -> None:
    first, second = server.take(2)
    server.script(first, {"kind": "hang_after"})
    process = server.start(first, second, "--json")
    wait_for(lambda: server.calls(first) == 1)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("stopping")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert err == ""
    # The call was broken off, and nobody knows what the server did with it.
    assert {told["draft_id"]: told["status"] for told in map(json.loads, out.splitlines())} == {
        first: "unknown",
        second: "skipped",
    }


@pytest.mark.skipif(os.name != "posix", reason="pseudo terminals are POSIX's")
def test_on_a_terminal_a_line_says_what_it_waits_for(server: Server) -> None:
    drafts = server.take(2)
    ours, theirs = pty.openpty()
    process = server.start(*drafts, "--rate", "1/3600", stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while b"1 waiting, next call in 3" not in seen:
        seen += os.read(ours, 4096)
    process.send_signal(signal.SIGINT)
    try:
        while piece := os.read(ours, 4096):
            seen += piece
    except OSError:
        pass  # Linux tells the end of a terminal so
    os.close(ours)
    assert process.wait(PATIENCE) == 1
    text = seen.decode()
    assert f"sent          {drafts[0]}" in text
    assert "note: " not in text
    assert "2 drafts: 1 sent, 1 skipped" in text


def test_nobody_reads_the_output(server: Server) -> None:
    process = server.start(*server.take(2), "--json")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(PATIENCE) == 4
    with process.stderr:
        assert process.stderr.read() == ""


def snapshot(**changes: Any) -> Snapshot:
    calm = Snapshot(dict.fromkeys(Priority, 0), 0, 20, RateLimit(), 0.0, None, None, {}, ())
    return replace(calm, **changes)


@pytest.mark.parametrize(
    ("changes", "unfinished", "kind", "text"),
    [
        (
            {"waiting": {Priority.NORMAL: 3}, "permits": 0, "next_permit": 41.2},
            3,
            "limit",
            "3 waiting, next call in 42 s (20 of 20 calls of this minute made)",
        ),
        (
            {"waiting": {Priority.NORMAL: 3}, "permits": 0, "next_permit": None, "in_flight": 20},
            23,
            "limit",
            "3 waiting for a call under way to end (20 of 20 calls of this minute made)",
        ),
        (
            {
                "waiting": {Priority.NORMAL: 2},
                "paused": 29.5,
                "pause_reason": str(api_error(named("FrequencyLimited"), "", http_status=429, log_id="abc")),
            },
            2,
            "pause",
            "2 waiting, next try in 30 s: the server asked for a pause",
        ),
        (
            {
                "waiting": {Priority.NORMAL: 2},
                "paused": 0.0,
                "pause_reason": "the server cannot be reached: no route",
            },
            2,
            "unreachable",
            "2 waiting, trying one call: the server cannot be reached: no route",
        ),
        (
            {"waiting": {Priority.NORMAL: 2}, "cooling": {"bob": 9.0, "alice": 1.5}},
            2,
            "cooling",
            "2 waiting: the server slows alice down, next try in 2 s",
        ),
        (
            {"waiting": {Priority.NORMAL: 2}, "cooling": {"(token abc)": 1.5}},
            2,
            "cooling",
            "2 waiting: the server slows the user down, next try in 2 s",
        ),
        ({"in_flight": 1}, 1, "calls", "1 call under way"),
        (
            {"in_flight": 2, "waiting": {Priority.NORMAL: 5}},
            7,
            "calls",
            "2 calls under way, 5 waiting for their turn",
        ),
        ({}, 1, "retry", "1 to be tried again shortly"),
    ],
)
def test_why_it_waits(changes: dict[str, Any], unfinished: int, kind: str, text: str) -> None:
    wait = why_waiting(snapshot(**changes), unfinished)
    assert wait is not None
    assert (wait.kind, wait.text) == (kind, text)


def test_nothing_to_wait_for() -> None:
    assert why_waiting(snapshot(), 0) is None


# --- words ------------------------------------------------------------------------------------------------


def caused(error: FeishuMailError, cause: BaseException) -> FeishuMailError:
    error.__cause__ = cause
    return error


QUOTA = api_error(named("UserDailyQuota"), "spent", http_status=429, log_id="log1")
ERRORS: list[tuple[FeishuMailError, list[str]]] = [
    (QUOTA, ["spent (1236007).", QUOTA.advice, "[log id log1]"]),
    (
        caused(Suspended("-", subject="user:bob", until=3599.0), QUOTA),
        ["not tried, because of user bob: spent (1236007).", "It may go again in 60 minutes.", "[log id log1]"],
    ),
    (
        caused(Suspended("-", subject="user:(token ab12)", until=None), QUOTA),
        ["not tried, because of this user: spent"],
    ),
    (caused(Suspended("-", subject="mailbox:me/bob", until=None), QUOTA), ["because of the own mailbox of bob: "]),
    (
        caused(Suspended("-", subject="mailbox:b@example.com", until=30.0), QUOTA),
        ["mailbox b@example.com", "30 s"],
    ),
    (caused(Suspended("-", subject="app", until=None), QUOTA), ["because of the whole app: "]),
    (
        caused(OutcomeUnknown("-", attempts=1), BadReply("no answer came back: reset")),
        ["it may have been sent. Last: no answer came back: reset. Sending it again is safe"],
    ),
    (
        caused(OutcomeUnknown("-"), NotSent("the run was stopped before its turn came")),
        ["an earlier call may have sent it. This one made none: stopped before its turn came. Sending it again"],
    ),
    (OutcomeUnknown("it may have been sent"), ["it may have been sent."]),
    (
        AutomatedSendDisabled("by policy", "https://example.com/d"),
        ["automated sending (by policy). Open the draft at https://example.com/d and send it there"],
    ),
    (AutomatedSendDisabled("", None), ["does not allow automated sending. Send it by hand, or change"]),
    (ClientClosed("-"), ["stopped before its turn came; it was not sent."]),
    (TransportError("the server cannot be reached: gone"), ["the server cannot be reached: gone."]),
]


@pytest.mark.parametrize(("error", "parts"), ERRORS)
def test_errors_read_well(error: FeishuMailError, parts: list[str]) -> None:
    told = words.explain(error)
    for part in parts:
        assert part in told
    assert "\n" not in told
    assert "  " not in told
    assert ".." not in told
    assert "\n" not in words.brief(error)


def test_every_code_reads_well() -> None:
    for row in CODES.values():
        if row.error:
            told = words.explain(api_error(row, "", http_status=row.http_status, log_id="log1"))
            assert str(row.number) in told
            assert row.advice in told
            assert "reopen" not in told


def test_the_server_cannot_steer_the_terminal() -> None:
    error = api_error(named("ContentRisk"), "\x1b[2Jgone\r\nsent \u202e", http_status=400, log_id="\x07")
    for told in (words.explain(error), words.brief(error)):
        assert told.isprintable()
    result = SendResult(Draft("a"), "\x1b[31m", None, already_sent=False, attempts=1, log_id=None)
    assert words.detail(Outcome(Draft("a"), OutcomeStatus.SENT, result, None)).isprintable()


# --- the sandbox ------------------------------------------------------------------------------------------


def test_sandbox_says_what_to_do_and_ends_with_its_ledger(tmp_path: Path) -> None:
    arguments = [
        "--users",
        "alice,bob",
        "--drafts",
        "5",
        "--latency",
        "0",
        "--window",
        "token_bucket",
        "--rate",
        "9/30",
    ]
    process = subprocess.Popen(
        [*COMMAND, "sandbox", *arguments],
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    )
    assert process.stdout is not None
    text = ""
    while "Ctrl-C ends it" not in text:
        line = process.stdout.readline()
        assert line
        text += line
    assert "9 send calls in 30 s (token bucket window)" in text
    assert re.search(r"alice\n    token   u-\S+\n    drafts  \S+\n +\S+\n +\S+  and 2 more\n", text)
    address, header, value = re.search(r"GET (\S+) .*\n  (\S+): (\S+)\n", text).groups()  # type: ignore[union-attr]
    with urllib.request.urlopen(urllib.request.Request(address, headers={header: value})) as reply:
        assert json.load(reply)["totals"]["arrivals"] == 0
    copied = re.search(rf"  {TOKEN_VARIABLE}=(?:.*\\\n)+.*", text)
    assert copied is not None
    (tmp_path / "feishu-mail-async").write_text(f'#!/bin/sh\nexec {sys.executable} -m feishu_mail_async "$@"\n')
    (tmp_path / "feishu-mail-async").chmod(0o755)
    env = environment(PATH=f"{tmp_path}:{os.environ['PATH']}")
    sent = run_process(["sh", "-c", copied.group()], env)
    assert (sent.returncode, sent.stderr) == (0, ""), sent.stdout
    assert "3 drafts: 3 sent" in sent.stdout
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")
    for row in (
        r"send calls +3",
        r"mails sent +3",
        r"busiest 30 s +3 of 9 calls allowed",
        r"limit +0",
        r"user +0",
    ):
        assert re.search(rf"{row}\n", out)


def test_sandbox_cannot_have_a_port_that_is_taken(cli: Callable[..., Ended]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = cli("sandbox", "--port", str(taken.getsockname()[1]))
    assert (ended.code, ended.out) == (3, "")
    assert "--port" in ended.err
    assert ended.err.count("\n") == 1


# --- the demo ---------------------------------------------------------------------------------------------


def test_demo() -> None:
    ended = run_process([*COMMAND, "demo", "--drafts", "20", "--rate", "50/1", "--seed", "7"])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    text = ended.stdout
    assert "Every draft ended as it must" in text
    for row in (
        r"sent +10\n",
        r"already sent +2: ",
        r"failed +4\n",
        r"unknown +1: ",
        r"skipped +3\n",
        r"send calls +\d+\n",
        r"busiest 1 s +\d+ of 50 calls allowed\n",
        r"refused: over the limit +0\n",
        r"refused: two at once for one user +0\n",
        r"refused: on purpose, by the demo +1, ",
    ):
        assert re.search(rf"\n  {row}", text), row
    assert "feishu-mail-async send DRAFT_ID" in text
    assert all(len(line) == len(line.rstrip()) for line in text.splitlines())
    assert "\x1b" not in text


def call(draft_id: str, at: float = 0.0) -> Arrival:
    return Arrival(at, "send", "bob", "me", draft_id, 0, 200, scripted=False, accepted=True, log_id="")


@pytest.mark.parametrize(
    ("status", "times", "wrong"),
    [
        (OutcomeStatus.SENT, 1, False),
        (OutcomeStatus.SENT, 0, True),
        (OutcomeStatus.SENT, 2, True),
        (OutcomeStatus.ALREADY_SENT, 0, True),
        (OutcomeStatus.FAILED, 0, False),
        (OutcomeStatus.FAILED, 1, True),
        (OutcomeStatus.SKIPPED, 1, True),
        (OutcomeStatus.UNKNOWN, 0, False),
        (OutcomeStatus.UNKNOWN, 1, False),
        (OutcomeStatus.UNKNOWN, 2, True),
    ],
)
def test_demo_believes_the_server_only(status: OutcomeStatus, times: int, wrong: bool) -> None:
    draft, ledger, scene = Draft("a", user="bob"), CallLog(1.0), Scene()
    scene.tell("a story", [draft], status)
    ledger.sent["a"] = times
    found = mistakes(scene, [Outcome(draft, status, None, None)], ledger, RateLimit(), whole=True)
    assert bool(found) == wrong


def test_demo_finds_what_did_not_go_as_scripted() -> None:
    draft, ledger, scene = Draft("a", user="bob"), CallLog(1.0), Scene()
    scene.tell("a story", [draft], OutcomeStatus.FAILED)
    skipped = [Outcome(draft, OutcomeStatus.SKIPPED, None, None)]
    assert mistakes(scene, skipped, ledger, RateLimit(), whole=True)
    assert mistakes(scene, skipped, ledger, RateLimit(), whole=False) == []
    # A draft without an outcome is a mistake also when the run was stopped.
    assert mistakes(scene, [], ledger, RateLimit(), whole=False)


def test_demo_finds_a_limit_that_was_not_kept() -> None:
    ledger, scene = CallLog(1.0), Scene()
    assert mistakes(scene, [], ledger, RateLimit(1, 1.0), whole=True) == []
    ledger.record(call("a"))
    ledger.record(call("b"))
    assert mistakes(scene, [], ledger, RateLimit(1, 1.0), whole=True)
    ledger.refusals, ledger.conflicts = 1, 1
    assert len(mistakes(scene, [], ledger, RateLimit(1, 1.0), whole=True)) == 3
