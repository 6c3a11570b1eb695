"""The ledger of the command line: what is remembered from one command to the next."""

import asyncio
import os
import signal
import sqlite3
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from feishu_mail_async import open_ledger
from feishu_mail_async.sandbox import Fault
from tests.helpers.cli import CANARY, FAST, TOKEN_VARIABLE, Ended, Feishu, run_here, wait_for

Cli = Callable[..., Ended]


pytestmark = pytest.mark.usefixtures("own_state")


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, feishu: Feishu) -> Cli:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: str, rate: str = FAST) -> Ended:
        secrets = [CANARY, *feishu.sandbox.tokens.values()]
        return run_here(capfd, [*arguments, *feishu.options(rate)], secrets)

    return run


def test_the_same_bulk_again_makes_no_call_and_says_so_before(cli: Cli, feishu: Feishu) -> None:
    ids = feishu.drafts("alice", 3)
    path = feishu.csv(ids)
    assert cli("bulk", path, "--yes").code == 0
    calls = feishu.calls
    again = cli("bulk", path, "--yes", "--out", str(feishu.out))
    assert again.code == 0
    assert feishu.calls == calls == 3
    assert "3 drafts were sent before: they are skipped." in again.out
    assert "There is nothing left to send." in again.out
    assert "It takes about" not in again.out
    assert feishu.statuses() == dict.fromkeys(ids, "already_sent")
    assert all(row["message_id"] for row in feishu.rows())


def test_nothing_left_to_send_needs_no_answer(cli: Cli, feishu: Feishu) -> None:
    path = feishu.csv(feishu.drafts("alice", 1))
    cli("bulk", path, "--yes")
    # Without a terminal nobody can be asked, and `--yes` is demanded before anything is looked at.
    assert cli("bulk", path, "--dry-run").code == 0
    assert "1 draft was sent before: it is skipped." in cli("bulk", path, "--dry-run").out


def test_a_new_row_is_all_that_is_sent(cli: Cli, feishu: Feishu) -> None:
    ids = feishu.drafts("alice", 4)
    cli("bulk", feishu.csv(ids[:3]), "--yes")
    again = cli("bulk", feishu.csv(ids), "--yes")
    assert "3 drafts were sent before: they are skipped." in again.out
    assert feishu.sent == Counter(ids)
    assert feishu.calls == 4


def test_what_failed_is_tried_again(cli: Cli, feishu: Feishu) -> None:
    (draft_id,) = feishu.drafts("alice", 1)
    feishu.script(draft_id, Fault.code("ContentRisk"))
    path = feishu.csv([draft_id])
    assert cli("bulk", path, "--yes").code == 1
    again = cli("bulk", path, "--yes")
    assert again.code == 0
    assert "before" not in again.out
    assert feishu.sent == Counter([draft_id])


def test_single_sends_one_after_another_keep_the_limit(cli: Cli, feishu: Feishu) -> None:
    ids = feishu.drafts("alice", 5)
    for draft_id in ids:
        assert cli("send", draft_id, "--user", "alice", rate="2/1").code == 0
    arrived = sorted(call.time for call in feishu.do(lambda sandbox: sandbox.ledger.sends))
    assert all(later - earlier > 1.0 for earlier, later in zip(arrived, arrived[2:], strict=False))


def test_without_a_ledger_nothing_is_remembered(cli: Cli, feishu: Feishu, own_state: Path) -> None:
    path = feishu.csv(feishu.drafts("alice", 1))
    cli("bulk", path, "--yes", "--no-ledger")
    again = cli("bulk", path, "--yes", "--no-ledger")
    assert again.code == 0
    assert "before:" not in again.out
    assert feishu.calls == 2
    assert not own_state.exists()


def test_the_ledger_is_the_users_own(cli: Cli, feishu: Feishu, own_state: Path) -> None:
    cli("bulk", feishu.csv(feishu.drafts("alice", 1)), "--yes")
    ledger = own_state / "feishu-mail-async" / "ledger.db"
    assert stat.S_IMODE(ledger.stat().st_mode) == 0o600
    assert stat.S_IMODE(ledger.parent.stat().st_mode) == 0o700
    token = feishu.sandbox.tokens["alice"].encode()
    assert not any(token in file.read_bytes() for file in ledger.parent.iterdir())


@pytest.mark.parametrize("form", ["path", "url", "environment"])
def test_a_ledger_elsewhere(
    cli: Cli, feishu: Feishu, own_state: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    path, elsewhere = feishu.csv(feishu.drafts("alice", 1)), feishu.directory / "my ledger.db"
    option = {"path": ["--ledger", str(elsewhere)], "url": ["--ledger", f"sqlite:///{elsewhere}"]}.get(form, [])
    if form == "environment":
        monkeypatch.setenv("FEISHU_MAIL_LEDGER", str(elsewhere))
    assert cli("bulk", path, "--yes", *option).code == 0
    assert elsewhere.exists()
    assert "was sent before" in cli("bulk", path, "--yes", *option).out
    assert not own_state.exists()


def test_a_rehearsal_is_not_the_real_thing(cli: Cli, feishu: Feishu, tmp_path: Path) -> None:
    ids = feishu.drafts("alice", 2)
    path = feishu.csv(ids)
    cli("bulk", path, "--yes")
    (tmp_path / "real").mkdir()
    real = Feishu(tmp_path / "real")
    try:
        for draft_id in ids:
            real.do(lambda sandbox, one=draft_id: sandbox.add_draft("alice", draft_id=one))  # type: ignore[misc]
        arguments = ["bulk", path, "--yes", *real.options()]
        code = asyncio.run(asyncio.to_thread(_run, arguments))
        assert code == 0
        assert real.sent == Counter(ids)
    finally:
        real.close()


def _run(arguments: list[str]) -> int:
    from feishu_mail_async.cli import app  # noqa: PLC0415

    return app.run(arguments)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("redis://localhost", 'give "sqlite:///PATH" (one host) or "postgresql://'),
        ("sqlite:///", "needs a path"),
        ("postgresql+asyncpg://localhost/x", "give"),
    ],
)
def test_a_ledger_that_cannot_be(cli: Cli, feishu: Feishu, option: str, said: str) -> None:
    ended = cli("bulk", feishu.csv(feishu.drafts("alice", 1)), "--yes", "--ledger", option)
    assert ended.code == 2
    assert ended.err.startswith("error: --ledger: ")
    assert said in ended.err
    assert feishu.calls == 0


@pytest.mark.parametrize("command", ["send", "bulk"])
@pytest.mark.parametrize("harm", ["damaged", "newer", "readable", "no directory", "a directory"])
def test_a_ledger_that_cannot_be_used(cli: Cli, feishu: Feishu, harm: str, command: str) -> None:
    ids = feishu.drafts("alice", 1)
    ledger = feishu.directory / "ledger.db"
    match harm:
        case "damaged":
            ledger.write_bytes(b"no database, by any means" * 1000)
            ledger.chmod(0o600)
            said = "no SQLite file, or a damaged one"
        case "newer":
            cli("bulk", feishu.csv(ids), "--dry-run", "--ledger", str(ledger))
            with sqlite3.connect(ledger) as database:
                database.execute("UPDATE feishu_mail_schema SET version = 999")
            database.close()
            said = "pip install -U feishu-mail-async"
        case "readable":
            ledger.touch(0o644)
            ledger.chmod(0o644)
            said = "chmod 600"
        case "no directory":
            ledger = feishu.directory / "missing" / "ledger.db"
            said = "check its path"
        case _:
            ledger.mkdir()
            said = "check its path"
    what = ["send", *ids, "--user", "alice"] if command == "send" else ["bulk", feishu.csv(ids), "--yes"]
    ended = cli(*what, "--ledger", str(ledger))
    assert ended.code == 3
    assert said in ended.err
    assert "--no-ledger" in ended.err
    assert len(ended.err.splitlines()) == 1
    assert feishu.calls == 0


def test_a_closed_mailbox_is_tried_again_by_the_next_command(cli: Cli, feishu: Feishu) -> None:
    ids = feishu.drafts("alice", 2)
    feishu.script(ids[0], Fault.automation_disabled())
    first = cli("bulk", feishu.csv(ids), "--yes", "--out", str(feishu.out))
    assert first.code == 1
    assert sorted(feishu.statuses().values()) == ["failed", "skipped"]
    assert feishu.calls == 1
    assert cli("bulk", feishu.csv(ids), "--yes").code == 0
    assert feishu.sent == Counter(ids)


def test_a_spent_quota_is_remembered(cli: Cli, feishu: Feishu) -> None:
    ids = feishu.drafts("alice", 2)
    feishu.script(ids[0], Fault.code("UserDailyQuota"))
    cli("bulk", feishu.csv(ids), "--yes")
    calls = feishu.calls
    again = cli("bulk", feishu.csv(ids), "--yes")
    assert again.code == 1
    assert feishu.calls == calls
    assert "1236007" in again.out


def test_a_bulk_that_was_killed_goes_on_where_it_stopped(cli: Cli, feishu: Feishu) -> None:
    ids = feishu.drafts("alice", 12)
    path = feishu.csv(ids)
    process = feishu.start(path, "--yes", rate="100/60")
    wait_for(lambda: feishu.calls >= 4)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = len(feishu.sent)
    ledger = Path(os.environ["XDG_STATE_HOME"]) / "feishu-mail-async" / "ledger.db"
    with sqlite3.connect(ledger) as database:
        # What the dead one held lapses in its time; the test does not wait for it.
        database.execute("UPDATE feishu_mail_lock SET lapses = 0")
    database.close()
    again = cli("bulk", path, "--yes", "--out", str(feishu.out), rate="100/60")
    assert again.code == 0
    assert feishu.sent == Counter(ids)
    assert feishu.calls <= 13  # at most the one that was under way was asked for again
    assert before < 12
    assert set(feishu.statuses().values()) <= {"sent", "already_sent"}


async def test_status_and_command_agree(feishu: Feishu, own_state: Path) -> None:
    ids = feishu.drafts("alice", 2)
    code = await asyncio.to_thread(_run, ["bulk", feishu.csv(ids), "--yes", *feishu.options()])
    assert code == 0
    ledger = open_ledger(f"sqlite:///{own_state / 'feishu-mail-async' / 'ledger.db'}")
    ((base_url, app),) = await ledger.apps()
    overview = await ledger.overview(base_url, app)
    await ledger.close()
    assert base_url == feishu.sandbox.base_url
    assert overview is not None
    assert overview.drafts == {"sent": 2}
    assert overview.in_use == 2
