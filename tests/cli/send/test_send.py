"""What a send says and leaves, however it is ended."""

import json
import os
import pty
import re
import signal
import socket
from collections.abc import Callable

import pytest

from feishu_mail_async import RateLimit
from feishu_mail_async.cli.results import COLUMNS
from feishu_mail_async.codes import named
from tests.helpers.cli import CANARY, PATIENCE, TOKEN_VARIABLE, Ended, wait_for
from tests.helpers.server import Server

pytestmark = pytest.mark.usefixtures("own_state")


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
    assert list(sent) == list(failed) == list(COLUMNS)
    assert sent | {"message_id": "", "thread_id": "", "log_id": ""} == {
        "draft_id": draft_id,
        "mailbox": "me",
        "user": "alice",
        "status": "sent",
        "message_id": "",
        "thread_id": "",
        "attempts": 1,
        "code": None,
        "error_type": None,
        "error": None,
        "advice": None,
        "log_id": "",
        "scheduled_for": None,
    }
    assert sent["message_id"]
    assert sent["thread_id"]
    assert sent["log_id"]
    row = named("DraftNotFound")
    assert {name: failed[name] for name in ("status", "code", "error_type", "error", "advice")} == {
        "status": "failed",
        "code": row.number,
        "error_type": "DraftNotFound",
        "error": f"{row.message} ({row.number})",
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
    assert [outcome["error_type"] for outcome in ended.outcomes] == ["InvalidToken", "Suspended"]
    assert {outcome["code"] for outcome in ended.outcomes} == {named("TokenInvalid").number}
    assert {outcome["advice"] for outcome in ended.outcomes} == {named("TokenInvalid").advice}


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
    def broken(*_: object, **__: object) -> RateLimit:
        raise LookupError(os.environ[TOKEN_VARIABLE])

    monkeypatch.setattr("feishu_mail_async.cli.options.read_base_url", lambda *_, **__: "https://example.com")
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
