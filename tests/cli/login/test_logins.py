"""What is kept of logins, who is logged in, and what sends with it."""

import re
import threading
import time
import webbrowser
from collections import Counter
from pathlib import Path

import pytest

from feishu_mail_async._clock import wall_clock
from tests.helpers.browser import APP_ID, APP_SECRET, Desk, browse, secrets_of
from tests.helpers.cli import PATIENCE, TOKEN_VARIABLE, wait_for

OFFLINE = "offline_access"
SEND, READ, MODIFY = (f"mail:user_mailbox.message:{what}" for what in ("send", "readonly", "modify"))


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
