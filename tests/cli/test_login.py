"""Logging in at the command line: the browser's way there and back, what is kept, and what sends with it."""

import contextlib
import os
import pty
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import webbrowser
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.helpers import nursery

pytest.importorskip("typer")

from feishu_mail_async._clock import wall_clock
from feishu_mail_async.cli import app_secret as secretfile
from feishu_mail_async.cli.callback import Answer, Callback
from feishu_mail_async.cli.problems import CannotStart
from feishu_mail_async.oauth import Login
from feishu_mail_async.sandbox import Fault
from tests.helpers.browser import (
    APP_ID,
    APP_SECRET,
    Desk,
    browse,
    expect_no_secret,
    knock,
    process_environment,
    secrets_of,
    where_to,
    with_query,
)
from tests.helpers.cli import CANARY, COMMAND, PATIENCE, TOKEN_VARIABLE, Feishu, start_command, wait_for

POSIX = pytest.mark.skipif(os.name != "posix", reason="permissions and pseudo terminals are POSIX's")
OFFLINE = "offline_access"
SEND, READ, MODIFY = (f"mail:user_mailbox.message:{what}" for what in ("send", "readonly", "modify"))


@pytest.fixture
def feishu(desk: Desk) -> Feishu:
    return desk.feishu


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


def test_a_browser_that_cannot_be_opened(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> bool:
        raise webbrowser.Error("no browser")

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(webbrowser, "open", fail)
    attempt = desk.attempt()
    assert attempt.address
    wait_for(lambda: "open the address yourself" in attempt.err)
    browse(attempt.address, user="alice", decision="allow")
    assert attempt.end().code == 0


def test_a_browser_that_hangs_holds_nothing_up(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = threading.Event()
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(webbrowser, "open", lambda _: closed.wait(PATIENCE))
    desk.log_in()
    closed.set()


# --- what was granted, and to whom ------------------------------------------------------------------------


def test_what_was_not_granted_is_told(desk: Desk) -> None:
    ended = desk.log_in(scope=f"{SEND} {READ}")
    assert f"not granted  {MODIFY}, {OFFLINE}" in ended.out
    assert re.search(r"until +\d{4}-\d\d-\d\d \d\d:\d\d; then log in again: without offline_access", ended.out)


def test_users_have_names(desk: Desk) -> None:
    desk.log_in("--user", "alice")
    ended = desk.log_in("--user", "bob", who="bob")
    assert "Others have logged in too: alice." in ended.out
    ids = desk.feishu.drafts("alice", 1) + desk.feishu.drafts("bob", 1)
    ended = desk.run("send", ids[0])
    assert ended.code == 2
    assert "alice, bob" in ended.err
    path = desk.feishu.write("both.csv", "draft_id,user", f"{ids[0]},alice", f"{ids[1]},bob")
    assert desk.run("bulk", path, "--yes").code == 0
    assert desk.feishu.sent == Counter(ids)
    path = desk.feishu.write("other.csv", "draft_id,user", "x,mallory")
    ended = desk.run("bulk", path, "--yes")
    assert ended.code == 2
    assert "there is no token for user 'mallory', only for alice, bob" in ended.err
    assert "feishu-mail-async login --user NAME" in ended.err


def test_a_user_who_has_not_logged_in(desk: Desk) -> None:
    desk.log_in()
    ended = desk.run("send", "x", "--user", "mallory")
    assert ended.code == 2
    assert "'mallory' has not logged in, only me" in ended.err


def test_logging_in_again_replaces_the_tokens(desk: Desk) -> None:
    desk.log_in()
    desk.feishu.do(lambda sandbox: sandbox.revoke("alice"))
    assert desk.run("list").code == 1
    desk.log_in()
    assert desk.run("list").code == 0
    assert desk.run("whoami", "--json").out.count("\n") == 1


@pytest.mark.parametrize("command", ["send x", "bulk --all --yes", "list"])
def test_nobody_has_logged_in(desk: Desk, command: str) -> None:
    ended = desk.run(*command.split())
    assert ended.code == 3
    assert ended.err.startswith("error: nobody has logged in to app cli_sandbox at ")
    for way in ("feishu-mail-async login", TOKEN_VARIABLE, "--token-file"):
        assert way in ended.err
    assert ended.err.count("\n") == 1
    assert not desk.state.exists()


def test_a_token_of_the_environment_counts_more(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.log_in()
    ids = desk.feishu.drafts("bob", 1)
    monkeypatch.setenv(TOKEN_VARIABLE, desk.feishu.sandbox.token("bob"))
    assert desk.run("list").out.splitlines() == ids
    assert f"note: {TOKEN_VARIABLE} is set" in desk.run("whoami").err


def test_logins_in_another_ledger(desk: Desk, tmp_path: Path) -> None:
    ledger = str(tmp_path / "other.db")
    desk.log_in("--ledger", ledger)
    assert desk.run("list").code == 3
    (draft_id,) = desk.feishu.drafts("alice", 1)
    assert desk.run("list", "--ledger", ledger).out == f"{draft_id}\n"
    assert desk.run("send", draft_id, "--ledger", ledger).code == 0
    assert desk.run("whoami").code == 1
    assert desk.run("whoami", "--ledger", ledger).code == 0
    assert desk.run("logout", "--ledger", ledger).code == 0
    assert desk.run("whoami", "--ledger", ledger).code == 1


def test_the_budget_is_the_apps(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.log_in()
    ids = desk.feishu.drafts("alice", 2)
    desk.run("send", ids[0])
    monkeypatch.setenv(TOKEN_VARIABLE, desk.feishu.sandbox.token("alice"))
    desk.run("send", ids[1])  # with another token, for the same app
    ledger = str(desk.state / "ledger.db")
    out = desk.run("status", "--ledger", ledger).out
    assert out.count("permits") == 1
    assert "2 of 10000 in use" in out
    assert out.startswith("cli_sandbox at ")


def test_several_apps(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.log_in()
    monkeypatch.delenv(APP_ID)
    assert desk.run("list").code == 0  # the only one
    feishu = desk.feishu
    feishu.do(lambda sandbox: setattr(sandbox._oauth, "client_id", "cli_other"))
    desk.log_in("--app", "cli_other", who="bob")
    ended = desk.run("list")
    assert ended.code == 2
    assert "--app: there are logins of cli_other, cli_sandbox; name one of them" in ended.err
    (draft_id,) = feishu.drafts("bob", 1)
    assert desk.run("list", "--app", "cli_other").out == f"{draft_id}\n"
    assert desk.run("whoami").out.count(" at http://") == 2
    assert desk.run("logout").code == 2


# --- renewing ---------------------------------------------------------------------------------------------


def test_a_token_that_has_ended_is_renewed(desk: Desk) -> None:
    desk.feishu.do(lambda sandbox: setattr(sandbox._oauth, "expires_in", 0.2))
    desk.log_in()
    desk.feishu.do(lambda sandbox: setattr(sandbox._oauth, "expires_in", 7200))
    time.sleep(0.25)
    (draft_id,) = desk.feishu.drafts("alice", 1)
    assert desk.run("send", draft_id).code == 0
    assert desk.run("list").code == 0
    assert desk.feishu.do(lambda sandbox: sandbox.ledger.refreshes["alice"]) == 1


@pytest.mark.parametrize("command", ["send", "bulk", "list"])
def test_without_the_secret_a_token_serves_until_it_ends(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    desk.log_in()
    monkeypatch.delenv(APP_SECRET)
    ids = desk.feishu.drafts("alice", 2)
    assert desk.run("list").code == 0
    assert desk.run("send", ids[0]).code == 0
    desk.feishu.do(lambda sandbox: sandbox.expire_token("alice"))
    what = {"send": [ids[1]], "bulk": [desk.feishu.csv(ids, "me"), "--yes"], "list": []}[command]
    ended = desk.run(command, *what)
    assert ended.code == 1
    assert f"set {APP_SECRET}" in ended.out + ended.err
    assert desk.feishu.sent == Counter(ids[:1])


def test_a_login_that_is_dead_says_so(desk: Desk) -> None:
    desk.log_in()
    desk.feishu.do(lambda sandbox: sandbox.revoke("alice"))
    (draft_id,) = desk.feishu.drafts("alice", 1)
    ended = desk.run("send", draft_id, "--verbose")
    assert ended.code == 1
    assert "user me has to log in again" in ended.out
    assert desk.feishu.sent == Counter()


def test_a_token_endpoint_that_is_away_is_told(desk: Desk) -> None:
    desk.feishu.do(lambda sandbox: setattr(sandbox._oauth, "expires_in", 0.1))
    desk.log_in()
    time.sleep(0.15)
    desk.feishu.do(lambda sandbox: sandbox.script_token(*["Unavailable"] * 40))
    ended = desk.run("list")
    assert ended.code == 1
    assert "the token of user me cannot be refreshed: 20072" in ended.err
    assert "stopped" not in ended.err


# --- the secret -------------------------------------------------------------------------------------------


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


# --- whoami and logout ------------------------------------------------------------------------------------


def test_whoami(desk: Desk) -> None:
    ended = desk.run("whoami")
    assert (ended.code, ended.out) == (1, "")
    assert "feishu-mail-async login" in ended.err
    assert not desk.state.exists()
    desk.log_in()
    desk.log_in("--user", "bob", who="bob", scope=SEND)
    ended = desk.run("whoami")
    assert (ended.code, ended.err) == (0, "")
    head, bob, me = ended.out.splitlines()
    assert head == f"cli_sandbox at {desk.feishu.sandbox.base_url}"
    moment = r"\d{4}-\d\d-\d\d \d\d:\d\d"
    assert re.fullmatch(
        rf"  bob +token until {moment}, it cannot be renewed: log in again then; scopes: {SEND}", bob
    )
    assert re.fullmatch(rf"  me +token until {moment}, it can be renewed until {moment}; scopes: mail.+", me)
    assert desk.run("whoami", "--app", "cli_nobody").code == 1
    assert desk.run("whoami", "--app", "cli_sandbox").code == 0


def test_whoami_as_json(desk: Desk) -> None:
    desk.log_in()
    (row,) = desk.run("whoami", "--json").outcomes
    assert {name: row[name] for name in ("base_url", "app", "user", "renewable")} == {
        "base_url": desk.feishu.sandbox.base_url,
        "app": "cli_sandbox",
        "user": "me",
        "renewable": True,
    }
    assert 7000 < row["expires"] - wall_clock() < 7300
    assert row["renewable_until"] > row["expires"]
    assert set(row["scopes"]) == {SEND, READ, MODIFY, OFFLINE}


def test_whoami_tells_what_has_ended(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.log_in()
    desk.log_in("--user", "bob", who="bob", scope=SEND)
    monkeypatch.delenv(APP_SECRET)
    monkeypatch.setattr("feishu_mail_async.cli.commands.whoami.wall_clock", lambda: wall_clock() + 10_000)
    out = desk.run("whoami").out
    assert "bob  token has ended, log in again" in out
    assert "me   token has ended, it can be renewed until" in out
    assert f"To renew tokens, set {APP_SECRET}" in out
    monkeypatch.setattr("feishu_mail_async.cli.commands.whoami.wall_clock", lambda: wall_clock() + 1e6)
    assert "me   token has ended, it can be renewed no more: log in again" in desk.run("whoami").out


def test_logout(desk: Desk) -> None:
    ended = desk.run("logout")
    assert ended.code == 1
    assert "nobody has logged in" in ended.err
    desk.log_in("--user", "alice")
    desk.log_in("--user", "bob", who="bob")
    desk.log_in("--user", "carol")
    ended = desk.run("logout")
    assert ended.code == 2
    assert "alice, bob, carol" in ended.err
    assert desk.run("logout", "--user", "alice", "--all").code == 2
    ended = desk.run("logout", "--user", "mallory")
    assert ended.code == 1
    assert "mallory has not logged in (only alice, bob, carol)" in ended.err
    ended = desk.run("logout", "--user", "alice")
    assert ended.code == 0
    assert ended.out.startswith("Logged out: alice, of app cli_sandbox")
    assert [row["user"] for row in desk.run("whoami", "--json").outcomes] == ["bob", "carol"]
    ended = desk.run("logout", "--all")
    assert ended.code == 0
    assert ended.out.count("Logged out") == 2
    assert desk.run("whoami").code == 1


def test_nothing_is_left_of_tokens_after_a_logout(desk: Desk) -> None:
    desk.log_in()
    desk.feishu.do(lambda sandbox: sandbox.expire_token("alice"))
    assert desk.run("list").code == 0  # renewed: the first tokens were replaced
    kept = [secret.encode() for secret in secrets_of(desk.feishu) if secret.startswith("u")]

    def stands_somewhere() -> bool:
        return any(secret in path.read_bytes() for secret in kept for path in desk.state.iterdir())

    assert stands_somewhere()
    assert desk.run("logout").code == 0
    assert not stands_somewhere()


def test_a_worker_sends_with_the_logins_of_its_ledger(desk: Desk, postgres_url: str) -> None:
    pytest.importorskip("procrastinate")
    ledger = ["--ledger", postgres_url]
    desk.log_in("--user", "alice", *ledger)
    desk.log_in("--user", "bob", *ledger, who="bob")
    ids = desk.feishu.drafts("alice", 2) + desk.feishu.drafts("bob", 1)
    path = desk.feishu.write("three.csv", "draft_id,user", f"{ids[0]},alice", f"{ids[1]},alice", f"{ids[2]},bob")
    assert desk.run("enqueue", path, "--yes", *ledger).code == 0
    ended = desk.run("worker", "--until-empty", "--rate", "10000/60", *ledger)
    assert ended.code == 0, ended.err
    assert desk.feishu.sent == Counter(ids)
    assert desk.run("logout", "--all", *ledger).out.count("Logged out") == 2
    ended = desk.run("worker", "--until-empty", *ledger)
    assert ended.code == 3
    assert "nobody has logged in to app cli_sandbox" in ended.err


# --- as a program -----------------------------------------------------------------------------------------


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


def saved(feishu: Feishu, state: Path) -> Callable[[], set[str]]:
    """The secrets that stand in the files of the state."""

    def find() -> set[str]:
        files = [path.read_bytes() for path in (state / "feishu-mail-async").iterdir()]
        return {secret for secret in secrets_of(feishu) if any(secret.encode() in file for file in files)}

    return find


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
