"""The programs in examples/, each run as a user would: as a process, by its one command."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import procrastinate
import psycopg
import pytest

from feishu_mail_async.sandbox import Fault
from tests.helpers.cli import PATIENCE, Feishu, run_process, wait_for
from tests.helpers.examples import EXAMPLES, assert_in_order, rehearsed, run_example, settings


def test_without_a_token_an_example_says_what_to_do() -> None:
    done = run_example("aiohttp_service.py", "--port", "0")
    assert done.returncode != 0
    assert "FEISHU_USER_ACCESS_TOKEN" in done.stderr
    assert "--sandbox" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_list_of_tokens_is_not_quoted() -> None:
    done = run_example("nightly_batch.py", "--all", FEISHU_USER_ACCESS_TOKEN='{"alice": "u-secret"')
    assert done.returncode != 0
    assert "FEISHU_USER_ACCESS_TOKEN" in done.stderr
    assert "u-secret" not in done.stdout + done.stderr


# -- the nightly batch ---------------------------------------------------------------------------------


def test_the_nightly_batch_rehearses(tmp_path: Path) -> None:
    assert_in_order(
        rehearsed("nightly_batch.py"),
        "The first night",
        "skipped: ",
        "The second night",
        "failed: bob-4: 1236018",
        "already_sent",
        "1 failed",
        "mails 9, sent twice 0.",
    )


def test_the_nightly_batch_goes_on_where_it_stopped(feishu: Feishu, tmp_path: Path) -> None:
    drafts = {user: feishu.drafts(user, 3) for user in ("alice", "bob")}
    file = feishu.write(
        "night.csv", "user,draft_id", *[f"{user},{draft_id}" for user in drafts for draft_id in drafts[user]]
    )
    refused = drafts["bob"][1]
    feishu.script(refused, Fault.code("TooManyRecipients"))
    env = feishu.do(settings) | {"FEISHU_MAIL_LEDGER": f"sqlite:///{tmp_path}/mail.db"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_process([sys.executable, str(EXAMPLES / "nightly_batch.py"), *arguments], env)

    night = run(file)
    assert night.returncode == 1, night.stderr
    assert f"failed: {refused}: 1236003" in night.stdout
    assert night.stdout.endswith("5 sent, 1 failed\n")
    assert feishu.calls == 6

    night = run(file)  # somebody has mended the draft
    assert (night.returncode, night.stdout) == (0, "1 sent, 5 already_sent\n")
    assert feishu.calls == 7

    more = feishu.drafts("bob", 1)
    night = run("--all")
    assert (night.returncode, night.stdout) == (0, "1 sent\n")
    assert feishu.calls == 8
    assert set(feishu.sent) == {*drafts["alice"], *drafts["bob"], *more}
    assert set(feishu.sent.values()) == {1}


@pytest.mark.parametrize("lines", [["user", "alice"], ["draft_id,user", ",alice"]], ids=["no column", "no id"])
def test_a_night_with_a_wrong_file_sends_nothing(feishu: Feishu, lines: Sequence[str]) -> None:
    (draft_id,) = feishu.drafts("alice", 1)
    file = feishu.write("night.csv", *lines[:1], *([f"{draft_id},alice"] if "," in lines[0] else []), *lines[1:])
    night = run_process([sys.executable, str(EXAMPLES / "nightly_batch.py"), file], feishu.do(settings))
    assert night.returncode == 2
    assert "draft_id" in night.stderr
    assert feishu.calls == 0


# -- procrastinate -------------------------------------------------------------------------------------


def test_the_procrastinate_task_rehearses(postgres_url: str) -> None:
    text = rehearsed("procrastinate_task.py", DATABASE_URL=postgres_url)
    assert text.count("ended with status: Success") == 7
    # The draft deferred twice is one call if both jobs are taken at once, else one more that says "already sent".
    assert re.search(r"calls [67], mails 6, sent twice 0\.", text)


def jobs(url: str) -> list[tuple[str, str]]:
    """The jobs that have not succeeded: the draft of each, and its status."""
    with psycopg.connect(url) as connection:
        query = "SELECT args->>'draft_id', status::text FROM procrastinate_jobs ORDER BY id"
        found: list[tuple[str, str]] = connection.execute(query).fetchall()
        return found


async def defer(url: str, *drafts: str) -> None:
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))
    async with app.open_async():
        task = app.configure_task("send_draft", queue="mail")
        for draft_id in drafts:
            await task.defer_async(draft_id=draft_id, user="alice")


def run_worker(env: dict[str, str], until: Callable[[], bool]) -> None:
    """Run a worker, and end it with SIGTERM when something has come about."""
    command = [sys.executable, str(EXAMPLES / "procrastinate_task.py")]
    worker = subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: until() or worker.poll() is not None)
        worker.terminate()
        out, _ = worker.communicate(timeout=PATIENCE)
    finally:
        worker.kill()
        worker.communicate()
    assert worker.returncode == 0, out


@pytest.mark.soak
async def test_procrastinate_workers_send_what_is_deferred(feishu: Feishu, postgres_url: str) -> None:
    first, second, third, fourth = feishu.drafts("alice", 4)
    env = feishu.do(settings) | {"DATABASE_URL": postgres_url}

    def tool(*arguments: str) -> None:
        command = [sys.executable, "-m", "procrastinate", "--app", "procrastinate_task.app", *arguments]
        done = run_process(command, env | {"PYTHONPATH": str(EXAMPLES)})
        assert done.returncode == 0, done.stderr

    tool("schema", "--apply")
    await defer(postgres_url, first, first)
    tool("defer", "send_draft", json.dumps({"draft_id": second, "user": "alice"}))
    run_worker(env, lambda: not jobs(postgres_url))
    assert feishu.sent == {first: 1, second: 1}

    # With one call an hour, one of two has to wait: it goes back to the queue when the worker ends.
    await defer(postgres_url, third, fourth)
    run_worker(
        env | {"FEISHU_MAIL_RATE": "1/3600"}, lambda: [status for _, status in jobs(postgres_url)] == ["doing"]
    )
    ((left, status),) = jobs(postgres_url)
    assert (left in {third, fourth}, status) == (True, "todo")
    assert feishu.sent.total() == 3
    assert not feishu.sent[left]


# -- a user's own tests --------------------------------------------------------------------------------


def test_the_tests_of_ones_own_bot_pass_as_they_stand() -> None:
    # In strict mode, which is pytest-asyncio's own: the file must not lean on this project's settings.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--override-ini=asyncio_mode=strict",
        str(EXAMPLES / "test_my_bot.py"),
    ]
    done = run_process(command)
    assert done.returncode == 0, done.stdout
    assert "6 passed" in done.stdout


# -- what is said of them ------------------------------------------------------------------------------


def test_every_example_is_in_the_table_with_its_command() -> None:
    table = (EXAMPLES / "README.md").read_text()
    commands = {
        path.name: re.search(r"^    (.*python.* examples/.*)$", path.read_text(), re.MULTILINE)
        for path in EXAMPLES.glob("*.py")
    }
    told = {
        name: f"| `{command[1].strip()}` |" in table for name, command in commands.items() if command is not None
    }
    assert told == dict.fromkeys(told, True)
    assert len(told) == 6
