"""The doctor: what it says of everything that can be missing, and that it sends nothing to find out."""

import json
import os
import re
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from feishu_mail_async._clock import wall_clock
from feishu_mail_async.cli import checks
from feishu_mail_async.sandbox import Fault
from tests.helpers.browser import APP_ID, APP_SECRET, Desk, expect_no_secret, secrets_of
from tests.helpers.cli import CANARY, PATIENCE, TOKEN_VARIABLE, Ended, wait_for

SEND, READ, MODIFY = (f"mail:user_mailbox.message:{what}" for what in ("send", "readonly", "modify"))
CHECKS = ["ledger", "login", "host", "clock", "token", "scopes", "mailbox", "permits"]


class Report:
    """What the doctor said."""

    def __init__(self, ended: Ended) -> None:
        told = json.loads(ended.out)
        assert ended.err == ""
        assert [check["check"] for check in told["checks"]] == CHECKS
        self.status = {check["check"]: check["status"] for check in told["checks"]}
        self.told = {check["check"]: check["told"] for check in told["checks"]}
        assert told["ok"] == (ended.code == 0) == (self.problems == [])
        assert ended.code in {0, 1}

    @property
    def problems(self) -> list[str]:
        return [name for name, status in self.status.items() if status == "problem"]


@pytest.fixture
def examine(desk: Desk) -> Callable[..., Report]:
    def run(*arguments: str) -> Report:
        before = desk.feishu.calls
        report = Report(desk.run("doctor", "--json", *arguments))
        assert desk.feishu.calls == before  # it sends nothing
        return report

    return run


Examine = Callable[..., Report]


def test_all_is_well(desk: Desk) -> None:
    desk.log_in()
    ended = desk.run("doctor")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert [line.split()[:2] for line in lines] == [["ok", name] for name in CHECKS]
    assert "me, to app cli_sandbox" in ended.out
    assert desk.feishu.do(lambda sandbox: sandbox.ledger.refreshes.total()) == 0


def test_it_makes_two_calls_and_no_more(desk: Desk, examine: Examine) -> None:
    desk.log_in()
    before = desk.feishu.do(lambda sandbox: len(sandbox.ledger.arrivals))
    assert examine().problems == []
    after = desk.feishu.do(lambda sandbox: sandbox.ledger.arrivals[before:])
    assert [(call.endpoint, call.code) for call in after] == [("list", 99991661), ("list", 0)]


def test_nobody_has_logged_in(desk: Desk, examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    report = examine()
    assert report.problems == ["login"]
    assert "feishu-mail-async login" in report.told["login"]
    assert report.status["host"] == "ok"
    assert report.status["token"] == report.status["mailbox"] == "not_checked"
    monkeypatch.delenv(APP_ID)
    assert "nobody has logged in at http" in examine().told["login"]


def test_with_a_token_of_the_environment(desk: Desk, examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, desk.feishu.sandbox.token("alice"))
    report = examine()
    assert report.problems == []
    assert report.status["scopes"] == "not_checked"
    assert TOKEN_VARIABLE in report.told["login"]


def test_with_a_token_file(desk: Desk, examine: Examine) -> None:
    path = str(desk.feishu.token_file)
    assert examine("--token-file", path, "--user", "bob").problems == []
    ended = desk.run("doctor", "--token-file", path)
    assert ended.code == 2
    assert "--user" in ended.err
    Path(path).chmod(0o644)
    assert "chmod 600" in examine("--token-file", path, "--user", "bob").told["login"]


@pytest.mark.parametrize("token", [f"Bearer {CANARY}", f"{CANARY} {CANARY}", f"{CANARY}é"])
def test_what_is_no_token(desk: Desk, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    ended = desk.run("doctor", "--json", "--verbose")
    assert CANARY not in ended.out + ended.err
    assert Report(Ended(ended.code, ended.out, "")).problems == ["login"]


@pytest.mark.parametrize("token", ["u-unknown", "x-unknown"])
def test_a_token_that_is_refused(
    desk: Desk, examine: Examine, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    report = examine()
    assert report.problems == ["token"]
    assert report.status["mailbox"] == "not_checked"


def test_a_token_of_the_environment_that_has_ended(
    desk: Desk, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, desk.feishu.sandbox.token("alice"))
    desk.feishu.do(lambda sandbox: sandbox.expire_token("alice"))
    report = examine()
    assert report.problems == ["token"]
    assert "99991677" in report.told["token"]


# --- logins -----------------------------------------------------------------------------------------------


def test_a_login_whose_token_is_refused_is_renewed_once(desk: Desk, examine: Examine) -> None:
    desk.log_in()
    desk.feishu.do(lambda sandbox: sandbox.expire_token("alice"))
    assert examine().problems == []
    assert examine().problems == []
    assert desk.feishu.do(lambda sandbox: sandbox.ledger.refreshes["alice"]) == 1


def test_a_login_that_nears_its_end_is_left_alone(desk: Desk, examine: Examine) -> None:
    desk.feishu.do(lambda sandbox: setattr(sandbox._oauth, "expires_in", 60))
    desk.log_in()
    assert examine().problems == []
    assert desk.feishu.do(lambda sandbox: sandbox.ledger.refreshes.total()) == 0


def test_a_login_that_was_taken_back(desk: Desk, examine: Examine) -> None:
    desk.log_in()
    desk.feishu.do(lambda sandbox: sandbox.revoke("alice"))
    report = examine()
    assert report.problems == ["token"]
    assert "user me has to log in again" in report.told["token"]


def test_a_login_without_the_secret(desk: Desk, examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.log_in()
    monkeypatch.delenv(APP_SECRET)
    report = examine()
    assert report.problems == []
    assert f"set {APP_SECRET}" in report.told["token"]
    desk.feishu.do(lambda sandbox: sandbox.expire_token("alice"))
    report = examine()
    assert report.problems == ["token"]
    assert f"set {APP_SECRET}" in report.told["token"]


def test_a_wrong_secret(desk: Desk, examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.log_in()
    desk.feishu.do(lambda sandbox: sandbox.expire_token("alice"))
    monkeypatch.setenv(APP_SECRET, CANARY)
    report = examine()
    assert report.problems == ["token"]
    assert "20002" in report.told["token"]
    assert CANARY not in str(report.told)


@pytest.mark.parametrize(
    ("granted", "problems", "said"),
    [
        (f"{SEND} {READ}", [], f"drafts cannot be created without {MODIFY}"),
        (f"{READ} {MODIFY}", ["scopes"], f"not granted: {SEND}"),
        (f"{SEND} {MODIFY}", ["scopes"], "99991679"),
    ],
)
def test_scopes(desk: Desk, examine: Examine, granted: str, problems: list[str], said: str) -> None:
    desk.log_in(scope=granted)
    report = examine()
    assert report.problems == problems
    assert said in report.told["scopes"]
    assert report.status["token"] == "ok"
    assert "allow offline_access" in report.told["token"]
    assert report.status["mailbox"] == ("ok" if READ in granted else "not_checked")


# --- the mailbox ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mailbox", "said"),
    [("alice@example.com", "1234013"), ("bob@example.com", "1234017"), ("nobody@example.com", "12340")],
)
def test_a_mailbox_that_cannot_be_read(desk: Desk, examine: Examine, mailbox: str, said: str) -> None:
    desk.log_in()
    desk.feishu.do(lambda sandbox: sandbox.close_mailbox("alice@example.com"))
    report = examine("--mailbox", mailbox)
    assert report.problems == ["mailbox"]
    assert said in report.told["mailbox"]
    assert report.status["token"] == "ok"
    assert desk.run("doctor", "--mailbox", "").code == 2


# --- the host ---------------------------------------------------------------------------------------------


def test_a_host_that_cannot_be_reached(desk: Desk, examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, CANARY)
    desk.feishu.wait(desk.feishu.sandbox.close())
    report = examine()
    assert report.problems == ["host"]
    assert "HTTPS_PROXY" in report.told["host"]
    assert report.status["clock"] == report.status["token"] == "not_checked"


def test_something_else_answers(desk: Desk, examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, CANARY)
    feishu = desk.feishu
    base_url = f"{feishu.sandbox.base_url}/nothing/here"
    monkeypatch.setattr(type(feishu.sandbox), "base_url", base_url)
    report = examine()
    assert report.problems == ["host"]
    assert "HTTP 404" in report.told["host"]
    assert "--base-url" in report.told["host"]


@pytest.mark.parametrize(("gap", "way"), [(100.0, "ahead of"), (-100.0, "behind")])
def test_a_clock_that_is_wrong(
    desk: Desk, examine: Examine, monkeypatch: pytest.MonkeyPatch, gap: float, way: str
) -> None:
    desk.log_in()
    monkeypatch.setattr(checks, "wall_clock", lambda: wall_clock() + gap)
    report = examine()
    assert report.problems == ["clock"]
    assert f"{way} the host's" in report.told["clock"]
    monkeypatch.setattr(checks, "wall_clock", lambda: wall_clock() + gap / 2)
    assert examine().problems == []


# --- the ledger and its permits ---------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["damaged", "newer", "readable", "no directory"])
def test_a_ledger_that_cannot_be_used(
    desk: Desk, examine: Examine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, harm: str
) -> None:
    ledger = tmp_path / "ledger.db"
    match harm:
        case "damaged":
            ledger.write_bytes(b"no database, by any means" * 1000)
            ledger.chmod(0o600)
        case "newer":
            examine("--ledger", str(ledger))
            with sqlite3.connect(ledger) as database:
                database.execute("UPDATE feishu_mail_schema SET version = 999")
            database.close()
        case "readable":
            ledger.touch(0o644)
            ledger.chmod(0o644)
        case _:
            ledger = tmp_path / "missing" / "ledger.db"
    report = examine("--ledger", str(ledger))
    assert report.problems == ["ledger", "login"]
    assert "--ledger" in report.told["ledger"]
    assert report.status["host"] == "ok"
    monkeypatch.setenv(TOKEN_VARIABLE, desk.feishu.sandbox.token("alice"))
    report = examine("--ledger", str(ledger))
    assert report.problems == ["ledger"]
    assert report.status["mailbox"] == "ok"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_no_place_for_a_ledger(desk: Desk, examine: Examine) -> None:
    desk.state.parent.mkdir(mode=0o500)
    assert examine().problems == ["ledger", "login"]


def test_permits_in_use(desk: Desk, examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, desk.feishu.sandbox.token("alice"))
    assert "no call was made" in examine().told["permits"]
    monkeypatch.delenv(TOKEN_VARIABLE)
    desk.log_in()
    ids = desk.feishu.drafts("alice", 2)
    assert examine().told["permits"] == "0 of 20 in use (20 calls a minute)"
    assert desk.run("send", *ids).code == 0
    assert examine().told["permits"] == "2 of 10000 in use (10000 calls a minute)"


def test_a_limit_that_is_used_up(desk: Desk, examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, desk.feishu.sandbox.token("alice"))
    ids = desk.feishu.drafts("alice", 1)
    assert desk.run("send", *ids).code == 0
    ledger = desk.state / "ledger.db"
    with sqlite3.connect(ledger) as database:
        database.execute("UPDATE feishu_mail_budget SET calls = 1")
    database.close()
    report = examine()
    assert report.problems == []
    assert "1 of 1 in use" in report.told["permits"]
    assert "the next call can go in " in report.told["permits"]


@pytest.mark.parametrize(
    ("fault", "problems", "said"),
    [
        (Fault.code("UserDailyQuota"), ["permits"], "it may go again in "),
        (Fault.code("AppQuotaSpent"), ["permits"], "the whole app is suspended"),
        (Fault.automation_disabled(), [], "the own mailbox of me is suspended"),
    ],
)
def test_what_is_closed(desk: Desk, examine: Examine, fault: Fault, problems: list[str], said: str) -> None:
    desk.log_in()
    (draft_id,) = desk.feishu.drafts("alice", 1)
    desk.feishu.script(draft_id, fault)
    assert desk.run("send", draft_id).code == 1
    report = examine()
    assert report.problems == problems
    assert said in report.told["permits"]
    if not problems:
        assert desk.run("send", draft_id).code == 0
        assert "closed" not in examine().told["permits"]


def test_a_pause_is_told(desk: Desk, examine: Examine) -> None:
    desk.log_in()
    (draft_id,) = desk.feishu.drafts("alice", 1)
    desk.feishu.script(draft_id, Fault.frequency(reset="1000"))
    process = desk.start("send", draft_id)
    wait_for(lambda: desk.feishu.calls == 1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    report = examine()
    assert report.problems == []
    assert re.search("the server has asked for a pause, next try in [34] min", report.told["permits"])


# --- what it shows ----------------------------------------------------------------------------------------


def test_it_shows_no_secret(desk: Desk) -> None:
    desk.log_in("--keep-secret")
    desk.feishu.do(lambda sandbox: sandbox.expire_token("alice"))
    ended = desk.run("doctor", "--verbose")
    assert ended.code == 0
    expect_no_secret(desk.feishu, ended.out, ended.err)
    assert len(secrets_of(desk.feishu)) >= 5
