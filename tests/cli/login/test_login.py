"""The browser's way there and back."""

import os
import re
import socket
import stat
import sys
import webbrowser
from collections import Counter
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from feishu_mail_async.cli.callback import Answer, Callback
from feishu_mail_async.oauth import Login
from feishu_mail_async.sandbox import Fault
from tests.helpers.browser import APP_ID, APP_SECRET, Desk, browse, knock, where_to, with_query
from tests.helpers.cli import CANARY, PATIENCE, wait_for

POSIX = pytest.mark.skipif(os.name != "posix", reason="permissions and pseudo terminals are POSIX's")
OFFLINE = "offline_access"
SEND, READ, MODIFY = (f"mail:user_mailbox.message:{what}" for what in ("send", "readonly", "modify"))


# --- there and back ---------------------------------------------------------------------------------------


def test_login(desk: Desk) -> None:
    attempt = desk.attempt()
    asked = parse_qs(urlsplit(attempt.address).query)
    assert asked["code_challenge_method"] == ["S256"]
    assert len(asked["state"][0]) >= 32
    assert set(asked["scope"][0].split()) == {SEND, READ, MODIFY, OFFLINE}
    status, page = browse(attempt.address, user="alice", decision="allow")
    assert status == 200
    assert "this window can be closed" in page
    ended = attempt.end()
    assert ended.code == 0
    assert f"\n  {attempt.redirect}\n" in ended.out
    assert f"\n{attempt.address}\n" in ended.out
    assert f"Logged in: me, to app cli_sandbox at {desk.feishu.sandbox.base_url}." in ended.out
    for scope in (SEND, READ, MODIFY, OFFLINE):
        assert scope in ended.out.partition("Logged in")[2]
    assert "not granted" not in ended.out
    assert re.search(r"until +\d{4}-\d\d-\d\d \d\d:\d\d, and longer with each use", ended.out)


@POSIX
def test_the_tokens_lie_where_nobody_else_can_read_them(desk: Desk) -> None:
    desk.log_in()
    assert stat.S_IMODE(desk.state.stat().st_mode) == 0o700
    (ledger,) = desk.state.iterdir()  # and no secret of the app's
    assert stat.S_IMODE(ledger.stat().st_mode) == 0o600


def test_what_was_logged_in_sends(desk: Desk) -> None:
    desk.log_in()
    ids = desk.feishu.drafts("alice", 3)
    assert desk.run("list").out.splitlines() == ids
    assert desk.run("send", ids[0]).code == 0
    assert desk.run("send", ids[1], "--no-ledger").code == 0
    assert desk.run("bulk", "--all", "--yes").code == 0
    assert desk.feishu.sent == Counter(ids)


def test_an_answer_with_another_state_is_not_taken(desk: Desk) -> None:
    attempt = desk.attempt()
    back = where_to(attempt.address, user="alice", decision="allow")
    assert knock(with_query(back, state="x" * 32)) == 400
    assert knock(with_query(back, state="")) == 400
    assert knock(with_query(back, state="é")) == 400
    assert knock(f"{attempt.redirect}?code=x") == 400
    assert knock(attempt.redirect) == 400
    assert knock(f"{attempt.redirect}?error=access_denied&state=wrong") == 400
    assert knock(back) == 200
    ended = attempt.end()
    assert ended.code == 0
    assert "it was not taken" in ended.err


def test_a_refusal(desk: Desk) -> None:
    attempt = desk.attempt()
    status, page = browse(attempt.address, user="alice", decision="deny")
    assert status == 200
    assert "not allowed" in page
    ended = attempt.end()
    assert ended.code == 1
    assert ended.err.splitlines()[-1] == "error: nobody was logged in: the user refused"
    assert desk.run("whoami").code == 1


def test_the_page_says_something_else(desk: Desk) -> None:
    attempt = desk.attempt()
    state = parse_qs(urlsplit(attempt.address).query)["state"][0]
    assert knock(f"{attempt.redirect}?error=server%1b[31m_error&state={state}") == 200
    ended = attempt.end()
    assert ended.code == 1
    assert r"the page answered server\x1b[31m_error" in ended.err


def test_nobody_comes_back(desk: Desk) -> None:
    attempt = desk.attempt("--wait", "0.4")
    back = where_to(attempt.address, user="alice", decision="allow")
    ended = attempt.end()
    assert ended.code == 1
    assert ended.err.splitlines()[-1] == "error: nobody agreed within 1 s: log in again"
    with pytest.raises(ConnectionRefusedError):  # late
        knock(back)
    assert desk.run("whoami").code == 1


def test_only_the_first_answer_is_taken(desk: Desk) -> None:
    desk.feishu.do(lambda sandbox: sandbox.script_token(Fault.delay(1.0)))
    attempt = desk.attempt()
    first = where_to(attempt.address, user="alice", decision="allow")
    second = where_to(attempt.address, user="bob", decision="allow")
    assert knock(first) == 200
    assert [knock(second), knock(first)] == [410, 410]
    assert attempt.end().code == 0
    draft_id = desk.feishu.drafts("alice", 1)
    assert desk.run("list").out.splitlines() == draft_id


def test_strange_requests_change_nothing(desk: Desk) -> None:
    attempt = desk.attempt()
    back = where_to(attempt.address, user="alice", decision="allow")
    port = urlsplit(back).port
    for host in ("evil.example.com", f"evil.example.com:{port}", "127.0.0.1", f"127.0.0.1:{port}.evil.com", ""):
        assert knock(back, host=host) == 403
    for path in ("/", "/favicon.ico", "/callback/", "/CALLBACK", "//callback", "/x/../callback", "/callback%20"):
        assert knock(back, path=f"{path}?{urlsplit(back).query}") == 404
    for method in ("POST", "HEAD", "PUT", "DELETE", "OPTIONS"):
        assert knock(back, method=method) == 405
    _send_raw(port, b"GET /callback?code=a\x00b HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    _send_raw(port, f"GET {urlsplit(back).path}?{urlsplit(back).query} HTTP/1.1\r\n\r\n".encode())
    _send_raw(port, b"\x16\x03\x01 no HTTP at all\r\n\r\n")
    assert knock(back, host=f"localhost:{port}") == 200
    ended = attempt.end()
    assert ended.code == 0
    assert "Traceback" not in ended.err


def _send_raw(port: int | None, request: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port or 0), PATIENCE) as connection:
        connection.sendall(request)
        reply = connection.recv(64)
        assert reply.split(b" ")[1].startswith(b"4")


async def test_it_listens_on_loopback_alone() -> None:
    callback = Callback(0, lambda _: None)
    await callback.open()
    assert callback._listener is not None
    assert [sock.getsockname()[0] for sock in callback._listener.sockets] == ["127.0.0.1"]
    await callback.close()
    await Callback(0, lambda _: None).close()


async def test_what_is_typed() -> None:
    login = Login("http://127.0.0.1:8765/callback")
    for text in ("two words", "é", "x" * 3000):
        answer = Answer(login)
        with pytest.raises(ValueError, match="neither a code nor"):
            answer.take_typed(text)
        assert not answer.taken
    answer = Answer(login)
    with pytest.raises(ValueError, match="does not belong"):
        answer.take_typed("http://127.0.0.1:8765/callback?code=x&state=y")
    assert not answer.taken
    answer.take_typed(f"code=x&state={login.state}")
    assert await answer.code() == "x"
    bare = Answer(login)
    bare.take_typed("a61hb967")
    assert await bare.code() == "a61hb967"
    refused = Answer(login)
    refused.take_typed(f"https://x/?error=access_denied&state={login.state}")
    with pytest.raises(ValueError, match="refused"):
        await refused.code()


@pytest.mark.parametrize(
    ("scripted", "said"),
    [
        ("AuthorizationCodeExpired", "Log in again: a code is good for five minutes."),
        ("AuthorizationCodeUsed", "a code works once"),
        ("RedirectMismatch", "to the redirect URLs in the app's security settings"),
        ("PkceFailed", "20049"),
        (Fault.gateway(400), "HTTP 400: the answer is not the token endpoint's"),
    ],
)
def test_the_code_is_refused(desk: Desk, scripted: str | Fault, said: str) -> None:
    desk.feishu.do(lambda sandbox: sandbox.script_token(scripted))
    attempt = desk.attempt("--verbose")
    assert browse(attempt.address, user="alice", decision="allow")[0] == 200
    ended = attempt.end()
    assert ended.code == 1
    assert ended.err.splitlines()[-1].startswith("error: the login failed: ")
    assert said in ended.err
    assert desk.run("whoami").code == 1


def test_a_wrong_secret_is_not_quoted(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(APP_SECRET, CANARY)
    attempt = desk.attempt("--verbose", "--keep-secret")
    browse(attempt.address, user="alice", decision="allow")
    ended = attempt.end()
    assert ended.code == 1
    assert "20002" in ended.err
    assert APP_SECRET in ended.err
    assert CANARY not in ended.out + ended.err
    assert not [*desk.state.glob("app-secret*")]


def test_a_port_that_is_taken(desk: Desk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = desk.run("login", "--port", str(port))
    assert ended.code == 3
    assert ended.err.startswith(f"error: --port {port}: it cannot be used (Address already in use)")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("name", [APP_ID, APP_SECRET])
def test_without_a_terminal_nobody_is_asked(desk: Desk, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv(name)
    ended = desk.run("login", "--port", "0")
    assert ended.code == 3
    assert name in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--user", ""], "--user"),
        (["--user", "a\tb"], "--user"),
        (["--app", "a\nb"], "--app"),
        (["--port", "70000"], "--port"),
        (["--wait", "0"], "--wait"),
        (["--lark"], "--lark"),
        (["--ledger", "redis://x"], "--ledger"),
    ],
)
def test_wrong_usage(desk: Desk, arguments: list[str], named: str) -> None:
    ended = desk.run("login", *arguments)
    assert ended.code == 2
    assert named in ended.err


def test_a_ledger_that_cannot_be_used_is_told_before_anybody_agrees(desk: Desk, tmp_path: Path) -> None:
    ended = desk.run("login", "--port", "0", "--ledger", str(tmp_path / "missing" / "ledger.db"))
    assert ended.code == 3
    assert "give another one with --ledger" in ended.err
    assert "authorize" not in ended.out


@pytest.mark.parametrize("name", ["login", "logout", "whoami", "doctor"])
def test_help(desk: Desk, name: str) -> None:
    ended = desk.run(name, "--help")
    assert ended.code == 0
    assert "0 done" in " ".join(ended.out.split())


# --- the browser ------------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that a browser was opened at."""
    addresses: list[str] = []

    def open_it(address: str) -> bool:
        addresses.append(address)
        return True

    monkeypatch.setattr(webbrowser, "open", open_it)
    return addresses


def test_a_browser_is_opened(desk: Desk, opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    attempt = desk.attempt()
    address = attempt.address
    wait_for(lambda: bool(opened))
    browse(address, user="alice", decision="allow")
    assert attempt.end().code == 0
    assert opened == [address]


@pytest.mark.parametrize("arguments", [["--no-browser"], []])
def test_no_browser_is_opened(
    desk: Desk, opened: list[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    if arguments:
        monkeypatch.setenv("DISPLAY", ":0")
    else:
        monkeypatch.setattr(sys, "platform", "linux")  # without a display
    assert "Open this address in a browser" in desk.log_in(*arguments).out
    assert opened == []
