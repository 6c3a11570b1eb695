"""`enqueue`, `worker` and `status`: what they say, and what they will not begin with."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from feishu_mail_async import FeishuMailClient
from feishu_mail_async.fleet import Left
from tests.helpers.cli import CANARY, Ended, run_here, wait_for
from tests.helpers.fleet import APP, LEDGER, STILL, Workers, some
from tests.helpers.postgres import DATABASE_PASSWORD

# --- enqueue ----------------------------------------------------------------------------------------------


@pytest.fixture
def cli(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, scene: Workers
) -> Iterator[Callable[..., Ended]]:
    monkeypatch.delenv("FEISHU_USER_ACCESS_TOKEN", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    nobody = Path(os.devnull).open()  # noqa: SIM115 - closed below
    monkeypatch.setattr("sys.stdin", nobody)

    def run(*arguments: str) -> Ended:
        return run_here(capfd, arguments, [DATABASE_PASSWORD, CANARY, *scene.sandbox.tokens.values()])

    yield run
    nobody.close()


def test_enqueue_says_what_it_does(scene: Workers, cli: Callable[..., Ended]) -> None:
    drafts = [*some(4), *some(1, "bob")]
    file = scene.file([*drafts, drafts[0]])
    ended = cli("enqueue", file, "--ledger", scene.url, *scene.where, "--yes")
    assert (ended.code, ended.err) == (0, "")
    assert "6 drafts for http://127.0.0.1" in ended.out
    assert "1 row names a draft named before" in ended.out
    assert "5 drafts queued.\n" in ended.out
    ended = cli("enqueue", file, "--ledger", scene.url, *scene.where, "--yes")
    assert "0 drafts queued. 5 were queued before." in ended.out
    assert scene.left == Left(5, 0)


def test_enqueue_as_json(scene: Workers, cli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LEDGER, scene.url)
    ended = cli("enqueue", scene.file(some(2, None)), *scene.where, "--yes", "--json", "--user", "alice")
    assert json.loads(ended.out) == {"queued": 2, "queued_before": 0}
    assert scene.ask("SELECT DISTINCT args->>'user' FROM procrastinate_jobs") == [("alice",)]


def test_enqueue_checks_the_users_if_it_can(scene: Workers, cli: Callable[..., Ended]) -> None:
    file = scene.file(some(1, "carol"))
    ended = cli(
        "enqueue", file, "--ledger", scene.url, *scene.where, "--yes", "--token-file", str(scene.token_file)
    )
    assert ended.code == 2
    assert "line 2: there is no token for user 'carol'" in ended.err
    assert scene.left == Left()


def test_no_token_is_in_the_database(scene: Workers, cli: Callable[..., Ended]) -> None:
    file = scene.file(some(3))
    ended = cli(
        "enqueue", file, "--ledger", scene.url, *scene.where, "--yes", "--token-file", str(scene.token_file)
    )
    assert ended.code == 0, ended
    ended = scene.drain("--at-once", "1")
    assert ended.code == 1, ended
    dump = "".join(
        str(scene.ask(f'SELECT * FROM "{table}"'))
        for (table,) in scene.ask("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    )
    assert "d2" in dump
    for token in scene.sandbox.tokens.values():
        assert token not in dump


@pytest.mark.parametrize("command", ["enqueue", "worker"])
@pytest.mark.parametrize(
    ("ledger", "said"),
    [
        (None, "--ledger: give postgresql://"),
        ("drafts.db", "--ledger: machines share no file"),
        ("sqlite:///drafts.db", "--ledger: machines share no file"),
        (f"mysql://me:{DATABASE_PASSWORD}@host/name", "--ledger: "),
        (f"postgresql://me:{DATABASE_PASSWORD}@[host/name", "--ledger: "),
    ],
)
def test_a_ledger_that_machines_cannot_share(
    scene: Workers, cli: Callable[..., Ended], command: str, ledger: str | None, said: str
) -> None:
    options = [*scene.where, *(["--ledger", ledger] if ledger else [])]
    options += [scene.file(some(1)), "--yes"] if command == "enqueue" else ["--token-file", str(scene.token_file)]
    ended = cli(command, *options)
    assert ended.code == 2
    assert ended.err.startswith(f"error: {said}")


@pytest.mark.parametrize("command", ["enqueue", "worker", "status"])
def test_a_database_that_is_not_there(scene: Workers, cli: Callable[..., Ended], command: str) -> None:
    options = [*scene.where, "--ledger", f"postgresql://me:{DATABASE_PASSWORD}@127.0.0.1:1/none"]
    options += {
        "enqueue": [scene.file(some(1)), "--yes"],
        "worker": ["--token-file", str(scene.token_file)],
        "status": [],
    }[command]
    ended = cli(command, *options)
    assert ended.code == 3
    assert ended.err.startswith("error: --ledger: the database cannot be used: ")


@pytest.mark.parametrize("command", ["enqueue", "worker"])
def test_the_app_must_be_named(scene: Workers, cli: Callable[..., Ended], command: str) -> None:
    options = ["--ledger", scene.url] + ([scene.file(some(1))] if command == "enqueue" else [])
    ended = cli(command, *options)
    assert (ended.code, ended.err.partition(":")[2][:7]) == (2, " --app:")


def test_without_the_packages_it_says_how_to_get_them(scene: Workers) -> None:
    program = (
        "import sys; sys.modules['procrastinate'] = None\n"
        "from feishu_mail_async.cli.app import run\n"
        f"sys.exit(run(['enqueue', {scene.file(some(1))!r}, '--yes', '--app', 'x', '--ledger', 'postgresql://h/n']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr == (
        "error: sending from many machines needs more packages: pip install 'feishu-mail-async[cli,fleet]'\n"
    )


# --- status -----------------------------------------------------------------------------------------------


def test_status(scene: Workers, cli: Callable[..., Ended]) -> None:
    assert cli("status", "--ledger", scene.url).out == "There are no drafts in this ledger.\n"
    scene.fill(scene.drafts("alice", 12))
    ended = cli("status", "--ledger", scene.url)
    assert ended.code == 0
    assert f"{APP} at {scene.sandbox.base_url}" in ended.out
    assert "queued        12\n" in ended.out
    worker = scene.start(rate=STILL)
    wait_for(lambda: scene.sent.total() == 5)
    wait_for(lambda: "5 of 5 in use (5 calls in 3600 s)" in cli("status", "--ledger", scene.url).out)
    worker.send_signal(signal.SIGTERM)
    scene.finish(worker)
    (row,) = cli("status", "--ledger", scene.url, *scene.where, "--json").outcomes
    assert (row["queued"], row["running"], row["sent"], row["failed"]) == (7, 0, 5, 0)
    assert (row["permits"], row["permits_in_use"], row["seconds"]) == (5, 5, 3600)
    assert 3600 < row["seconds_left"] < 7300
    text = cli("status", "--ledger", scene.url).out
    assert "time left     about " in text
    assert cli("status", "--ledger", scene.url, "--app", "another").out == "There are no drafts in this ledger.\n"


def test_status_of_a_file(scene: Workers, cli: Callable[..., Ended], tmp_path: Path) -> None:
    home = tmp_path / "mail.db"
    (draft,) = scene.drafts("alice", 1)

    async def send() -> None:
        url = f"sqlite:///{home}"
        async with FeishuMailClient(
            scene.sandbox.token("alice"), app=APP, base_url=scene.sandbox.base_url, ledger=url
        ) as client:
            await client.send_draft(draft.draft_id)

    asyncio.run(send())
    ended = cli("status", "--ledger", str(home), "--json")
    assert ended.code == 0, ended
    (row,) = ended.outcomes
    assert (row["app"], row["queued"], row["running"], row["sent"], row["permits_in_use"]) == (APP, 0, 0, 1, 1)
