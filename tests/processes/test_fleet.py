"""The work queue across machines: real PostgreSQL, real HTTP, real processes, real signals."""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from feishu_mail_async import Draft, FeishuMailClient, RateLimit
from feishu_mail_async.fleet import Left, Queue, Queued, QueueTrouble, enqueue, jobs_left, prepare
from feishu_mail_async.fleet.worker import _Line
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.cli import (
    CANARY,
    COMMAND,
    PATIENCE,
    Apart,
    Ended,
    environment,
    run_here,
    start_command,
    wait_for,
)
from tests.helpers.nursery import Program
from tests.helpers.postgres import DATABASE_PASSWORD, PostgresServer

APP = "cli_fleet"
LEDGER = "FEISHU_MAIL_LEDGER"
RATE = "100/1"
STILL = "5/3600"
"""Five calls, and no other while a test lasts."""
BASE = "http://127.0.0.1:9"


class Scene(Apart):
    """A sandbox, a database, and the workers that use both."""

    def __init__(self, directory: Path, url: str, users: Sequence[str]) -> None:
        super().__init__(directory, Sandbox(calls=100, per=1.0, latency=(0.0, 0.02), users=users))
        self.url = url
        self.processes: list[Program] = []
        self.queue = Queue(self.sandbox.base_url, APP)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()
        super().close()

    # -- what there is to send

    def drafts(self, user: str, number: int) -> list[Draft]:
        ids = self.do(lambda sandbox: sandbox.add_drafts(user, number))
        return [Draft(draft_id, "me", user) for draft_id in ids]

    def script(self, draft: Draft, *faults: Fault) -> None:
        self.do(lambda sandbox: sandbox.script(draft.draft_id, *faults))

    def file(self, drafts: Sequence[Draft], name: str = "drafts.csv") -> str:
        path = self.directory / name
        rows = [f"{draft.draft_id},{draft.mailbox},{draft.user or ''}" for draft in drafts]
        path.write_text("\n".join(["draft_id,mailbox,user", *rows, ""]))
        return str(path)

    def fill(self, drafts: Sequence[Draft]) -> Queued:
        async def fill() -> Queued:
            await prepare(self.url)
            return await enqueue(self.url, self.queue, drafts)

        return asyncio.run(fill())

    # -- the programs

    @property
    def where(self) -> list[str]:
        return ["--base-url", self.sandbox.base_url, "--app", APP]

    def options(self, rate: str = RATE, token_file: Path | None = None, dead: str = "2") -> list[str]:
        tokens = str(token_file or self.token_file)
        timing = ["--rate", rate, "--dead-after", dead, "--call-timeout", "3"]
        return [*self.where, "--token-file", tokens, *timing]

    def start(self, *arguments: str, rate: str = RATE, token_file: Path | None = None, dead: str = "2") -> Program:
        options = self.options(rate, token_file, dead)
        process = start_command("worker", *options, *arguments, env=environment(**{LEDGER: self.url}))
        self.processes.append(process)
        return process

    def finish(self, process: Program, told: str = "") -> Ended:
        ended = super().finish(process, told)
        assert DATABASE_PASSWORD not in ended.out + ended.err
        assert "Traceback" not in ended.err, ended.err
        return ended

    def drain(self, *arguments: str, **more: Any) -> Ended:
        """One worker, until the queue is empty."""
        return self.finish(self.start("--until-empty", *arguments, **more))

    # -- what became of it

    @property
    def conflicts(self) -> int:
        return self.do(lambda sandbox: sandbox.ledger.conflicts)

    @property
    def refusals(self) -> int:
        return self.do(lambda sandbox: sandbox.ledger.refusals)

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            return connection.execute(query.encode()).fetchall()

    @property
    def left(self) -> Left:
        return asyncio.run(jobs_left(self.url)).get(self.queue, Left())

    def all_once(self, drafts: Sequence[Draft]) -> bool:
        return self.sent == dict.fromkeys((draft.draft_id for draft in drafts), 1)


@pytest.fixture
def scene(tmp_path: Path, postgres_url: str) -> Iterator[Scene]:
    made = Scene(tmp_path, postgres_url, ["alice", "bob"])
    yield made
    made.close()


@pytest.fixture
def crowd(tmp_path: Path, postgres_url: str) -> Iterator[Scene]:
    made = Scene(tmp_path, postgres_url, [f"user-{number}" for number in range(12)])
    yield made
    made.close()


def read_until(stream: Any, wanted: str) -> str:
    """Read lines up to one that holds this."""
    text = ""
    while wanted not in text:
        line = stream.readline()
        assert line, f"it ended without {wanted!r}: {text}"
        text += line
    return text


# --- the queue --------------------------------------------------------------------------------------------


def some(number: int, user: str | None = "alice", head: str = "d") -> list[Draft]:
    return [Draft(f"{head}{place}", "me", user) for place in range(number)]


async def test_the_tables_are_made_once_however_many_begin_together(postgres_url: str) -> None:
    assert await jobs_left(postgres_url) == {}
    await asyncio.gather(*[prepare(postgres_url) for _ in range(5)])
    await prepare(postgres_url)
    assert await jobs_left(postgres_url) == {}


async def test_a_draft_is_queued_once(postgres_url: str) -> None:
    await prepare(postgres_url)
    queue = Queue(BASE, "one")
    assert await enqueue(postgres_url, queue, some(3)) == Queued(3, 0)
    again = [
        *some(5),
        *some(5),
        Draft("d0", "Team@Example.com", "alice"),
        Draft("d0", "team@example.COM", "alice"),
    ]
    assert await enqueue(postgres_url, queue, again) == Queued(3, 3)
    # Of another user, app or host it is another draft.
    assert await enqueue(postgres_url, queue, some(3, "bob")) == Queued(3, 0)
    assert await enqueue(postgres_url, queue, some(3, None)) == Queued(3, 0)
    assert await enqueue(postgres_url, Queue(BASE, "two"), some(3)) == Queued(3, 0)
    assert await jobs_left(postgres_url) == {queue: Left(12, 0), Queue(BASE, "two"): Left(3, 0)}


async def test_a_draft_that_a_worker_has_is_not_queued_again(postgres_url: str) -> None:
    await prepare(postgres_url)
    queue = Queue(BASE, "one")
    await enqueue(postgres_url, queue, some(2))
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as connection:
        await connection.execute("UPDATE procrastinate_jobs SET status = 'doing' WHERE args->>'draft_id' = 'd0'")
        assert await enqueue(postgres_url, queue, some(3)) == Queued(1, 2)
        await connection.execute("UPDATE procrastinate_jobs SET status = 'failed' WHERE args->>'draft_id' = 'd0'")
        assert await enqueue(postgres_url, queue, some(3)) == Queued(1, 2)


async def test_two_that_queue_the_same_file_at_once(postgres_url: str) -> None:
    await prepare(postgres_url)
    queue = Queue(BASE, "one")
    told = await asyncio.gather(*[enqueue(postgres_url, queue, some(2500)) for _ in range(3)])
    assert sum(queued.new for queued in told) == 2500
    assert await jobs_left(postgres_url) == {queue: Left(2500, 0)}


async def test_the_users_take_turns(postgres_url: str) -> None:
    await prepare(postgres_url)
    drafts = [*some(2000, "alice"), *some(2, "bob"), *some(1, "carol")]
    await enqueue(postgres_url, Queue(BASE, "one"), drafts)
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        reply = await connection.execute("SELECT args->>'user' FROM procrastinate_jobs ORDER BY id")
        users = [user for (user,) in await reply.fetchall()]
    assert users == ["alice", "bob", "carol", "alice", "bob", *["alice"] * 1998]


async def test_a_name_of_any_length_makes_a_queue(postgres_url: str) -> None:
    """The channel that tells of new jobs may have 63 characters."""
    await prepare(postgres_url)
    queue = Queue("https://" + "a" * 200 + ".example.com", "飞书" * 200)
    assert await enqueue(postgres_url, queue, some(1)) == Queued(1, 0)


async def test_tables_of_an_older_procrastinate(postgres_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as connection:
        await connection.execute("CREATE TABLE procrastinate_jobs (id int)")
    with pytest.raises(QueueTrouble, match="older procrastinate"):
        await prepare(postgres_url)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{DATABASE_PASSWORD}@127.0.0.1:1/none",
        f"postgresql://me:{DATABASE_PASSWORD}@127.0.0.1:port/none",
        f"postgresql://me:{DATABASE_PASSWORD}@127.0.0.1:1/none?what={DATABASE_PASSWORD}",
    ],
)
async def test_what_is_said_of_a_database_holds_no_password(url: str) -> None:
    with pytest.raises(QueueTrouble) as caught:
        await prepare(url)
    assert DATABASE_PASSWORD not in str(caught.value)
    assert caught.value.__cause__ is None


def test_those_put_back_are_due_one_after_another() -> None:
    line = _Line(RateLimit(calls=20, per=60))
    waits = [line.wait("alice", 0.0) for _ in range(100)]
    for place, wait in enumerate(waits, 1):
        assert 3 * place <= wait <= 3 * place + 3
    assert line.wait("bob", 0.0) <= 6
    assert line.wait("alice", 1000.0) <= 6


# --- enqueue ----------------------------------------------------------------------------------------------


@pytest.fixture
def cli(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, scene: Scene
) -> Iterator[Callable[..., Ended]]:
    monkeypatch.delenv("FEISHU_USER_ACCESS_TOKEN", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    nobody = Path(os.devnull).open()  # noqa: SIM115 - closed below
    monkeypatch.setattr("sys.stdin", nobody)

    def run(*arguments: str) -> Ended:
        return run_here(capfd, arguments, [DATABASE_PASSWORD, CANARY, *scene.sandbox.tokens.values()])

    yield run
    nobody.close()


def test_enqueue_says_what_it_does(scene: Scene, cli: Callable[..., Ended]) -> None:
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


def test_enqueue_as_json(scene: Scene, cli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LEDGER, scene.url)
    ended = cli("enqueue", scene.file(some(2, None)), *scene.where, "--yes", "--json", "--user", "alice")
    assert json.loads(ended.out) == {"queued": 2, "queued_before": 0}
    assert scene.ask("SELECT DISTINCT args->>'user' FROM procrastinate_jobs") == [("alice",)]


def test_enqueue_checks_the_users_if_it_can(scene: Scene, cli: Callable[..., Ended]) -> None:
    file = scene.file(some(1, "carol"))
    ended = cli(
        "enqueue", file, "--ledger", scene.url, *scene.where, "--yes", "--token-file", str(scene.token_file)
    )
    assert ended.code == 2
    assert "line 2: there is no token for user 'carol'" in ended.err
    assert scene.left == Left()


def test_no_token_is_in_the_database(scene: Scene, cli: Callable[..., Ended]) -> None:
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
    scene: Scene, cli: Callable[..., Ended], command: str, ledger: str | None, said: str
) -> None:
    options = [*scene.where, *(["--ledger", ledger] if ledger else [])]
    options += [scene.file(some(1)), "--yes"] if command == "enqueue" else ["--token-file", str(scene.token_file)]
    ended = cli(command, *options)
    assert ended.code == 2
    assert ended.err.startswith(f"error: {said}")


@pytest.mark.parametrize("command", ["enqueue", "worker", "status"])
def test_a_database_that_is_not_there(scene: Scene, cli: Callable[..., Ended], command: str) -> None:
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
def test_the_app_must_be_named(scene: Scene, cli: Callable[..., Ended], command: str) -> None:
    options = ["--ledger", scene.url] + ([scene.file(some(1))] if command == "enqueue" else [])
    ended = cli(command, *options)
    assert (ended.code, ended.err.partition(":")[2][:7]) == (2, " --app:")


def test_without_the_packages_it_says_how_to_get_them(scene: Scene) -> None:
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


# --- one worker -------------------------------------------------------------------------------------------


def test_a_worker_sends_what_is_queued(scene: Scene) -> None:
    drafts = [*scene.drafts("alice", 30), *scene.drafts("bob", 5)]
    scene.fill(drafts)
    ended = scene.drain()
    assert (ended.code, scene.all_once(drafts), scene.conflicts) == (0, True, 0), ended
    assert ended.err.splitlines() == [
        f"worker for {scene.sandbox.base_url}, app {APP}: 100 calls in 1 s, 1000 drafts at once"
    ]
    assert "35 drafts: 35 sent. 35 calls in " in ended.out
    assert scene.left == Left()


@pytest.mark.soak
def test_what_goes_wrong_is_said_and_ends_the_job(scene: Scene) -> None:
    good, bad, lost, hidden = scene.drafts("alice", 4)
    gone = Draft("no-such-draft", "me", "bob")
    scene.script(bad, Fault.code("ContentRisk"))
    scene.script(lost, Fault.reset_after())
    scene.script(hidden, Fault.code("InternalError"), Fault.gateway())
    drafts = [good, bad, lost, hidden, gone]
    scene.fill(drafts)
    ended = scene.drain("--json")
    assert ended.code == 1
    assert {row["draft_id"]: row["status"] for row in ended.outcomes} == {
        good.draft_id: "sent",
        bad.draft_id: "failed",
        lost.draft_id: "already_sent",
        hidden.draft_id: "sent",
        gone.draft_id: "failed",
    }
    said = ended.err.splitlines()
    assert sum(line.startswith("failed") and bad.draft_id in line for line in said) == 1
    assert sum(line.startswith("failed") and gone.draft_id in line for line in said) == 1
    assert scene.all_once([good, lost, hidden])
    assert scene.left == Left()
    assert scene.ask("SELECT status::text, count(*) FROM procrastinate_jobs GROUP BY 1") == [("failed", 2)]


def test_new_drafts_are_found_while_it_runs(scene: Scene) -> None:
    worker = scene.start()
    assert worker.stderr is not None
    read_until(worker.stderr, "worker for")
    for number in range(3):
        scene.fill(scene.drafts("alice", 3))
        wait_for(lambda number=number: scene.sent.total() == 3 * number + 3)  # type: ignore[misc]
    worker.send_signal(signal.SIGTERM)
    assert scene.finish(worker).code == 0
    assert scene.left == Left()


def test_the_drafts_of_other_apps_and_of_users_without_a_token_stay(scene: Scene) -> None:
    mine, theirs = scene.drafts("alice", 5), scene.drafts("bob", 5)
    scene.fill([*mine, *theirs])
    other = Queue(scene.sandbox.base_url, "another app")
    asyncio.run(enqueue(scene.url, other, scene.drafts("alice", 2)))
    ended = scene.drain(token_file=scene.tokens("alice.json", ["alice"]))
    assert ended.code == 0
    assert scene.all_once(mine)
    assert ended.err.count("the drafts of user 'bob' are left to other workers") == 1
    assert scene.left == Left(5, 0)
    assert asyncio.run(jobs_left(scene.url))[other] == Left(2, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.soak)])
def test_a_signal_finishes_the_calls_under_way_and_puts_back_what_waits(
    scene: Scene, number: signal.Signals
) -> None:
    drafts = [*scene.drafts("alice", 400), *scene.drafts("bob", 400)]
    scene.script(drafts[0], Fault.delay(2.0))
    scene.fill(drafts)
    worker = scene.start(rate=STILL)
    wait_for(lambda: scene.calls == 4)  # the fifth is under way, slowly
    worker.send_signal(number)
    ended = scene.finish(worker)
    assert ended.code == 0
    assert "stopping: no new calls" in ended.err
    assert "5 drafts: 5 sent" in ended.out
    assert scene.sent[drafts[0].draft_id] == 1
    assert scene.left == Left(795, 0)


@pytest.mark.soak
def test_a_second_signal_ends_at_once(scene: Scene) -> None:
    drafts = scene.drafts("alice", 20)
    scene.script(drafts[0], Fault.hang_after())
    scene.fill(drafts)
    worker = scene.start()
    assert worker.stderr is not None
    wait_for(lambda: scene.calls >= 1)
    worker.send_signal(signal.SIGTERM)
    read_until(worker.stderr, "stopping")
    worker.send_signal(signal.SIGTERM)
    assert scene.finish(worker).code == 130
    assert scene.left == Left(20, 0)
    ended = scene.drain()
    assert ended.code == 0, ended
    assert scene.all_once(drafts)


@pytest.mark.soak
def test_many_go_back_when_it_stops(crowd: Scene) -> None:
    drafts = [draft for user in crowd.sandbox.users for draft in crowd.drafts(user, 60)]
    assert crowd.fill(drafts) == Queued(720, 0)
    crowd.do(lambda sandbox: sandbox.limit_now(1000))
    worker = crowd.start("--at-once", "600", rate="720/3600")
    wait_for(lambda: crowd.left == Left(120, 600))
    worker.send_signal(signal.SIGTERM)
    assert crowd.finish(worker).code == 0
    assert crowd.left == Left(720, 0)
    assert crowd.sent.total() == 0


@pytest.mark.soak
def test_a_worker_begins_with_what_one_that_was_killed_had(scene: Scene) -> None:
    drafts = scene.drafts("alice", 10)
    scene.script(drafts[0], Fault.hang_after())
    scene.fill(drafts)
    killed = scene.start()
    wait_for(lambda: scene.calls >= 1 and scene.left.running > 0)
    killed.kill()
    scene.finish(killed)
    assert scene.left.running > 0
    ended = scene.drain(dead="1")
    assert ended.code == 0
    assert "of a worker that has died" in ended.err
    assert scene.all_once(drafts)


@pytest.mark.soak
def test_a_job_that_never_reached_its_worker(scene: Scene) -> None:
    """Its connection broke when it was on its way: it counts as the worker's, which knows nothing of it."""
    draft, later = scene.drafts("alice", 2)
    scene.fill([draft])
    worker = scene.start(dead="1")
    wait_for(lambda: scene.sent.total() == 1)
    scene.fill([later])
    wait_for(lambda: scene.sent.total() == 2)
    (worker_id,) = scene.ask("SELECT id FROM procrastinate_workers")
    scene.ask(
        "INSERT INTO procrastinate_jobs (queue_name, task_name, args, status, worker_id) VALUES"
        f" ('{scene.queue.name}', 'feishu_mail_async.send_draft',"
        f" '{json.dumps(scene.queue.arguments(later))}', 'doing', {worker_id[0]}) RETURNING id"
    )
    wait_for(lambda: scene.left == Left())
    worker.send_signal(signal.SIGTERM)
    assert "2 sent, 1 already sent" in scene.finish(worker).out


@pytest.mark.soak
def test_whoever_reads_the_outcomes_goes_away(scene: Scene) -> None:
    drafts = scene.drafts("alice", 200)
    scene.fill(drafts)
    # The program as its users start it: what is left unwritten at its end is Python's business, and with it the
    # exit code (PYTHONUNBUFFERED decides).
    worker = subprocess.Popen(
        [*COMMAND, "worker", *scene.options(), "--json"],
        env=environment(**{LEDGER: scene.url}),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert worker.stdout is not None
    worker.stdout.readline()
    worker.stdout.close()
    assert worker.wait(PATIENCE) in {0, 4}
    assert scene.left.running == 0
    assert scene.left.queued == 200 - scene.sent.total()


# --- many workers -----------------------------------------------------------------------------------------


FAULTS: list[tuple[int, list[Fault]]] = [
    (60, []),
    (10, [Fault.delay(0.3, 0.3)]),
    (8, [Fault.code("InternalError")]),
    (6, [Fault.gateway(502, accepted=True)]),
    (6, [Fault.code("ConcurrentWrite")]),
    (3, [Fault.broken(accepted=True)]),
    (1, [Fault.reset_before()]),
    (1, [Fault.reset_after()]),
]
"""What goes wrong with how many of a hundred drafts; all of it can be mended. A reset shuts the user's lock for
the ten seconds in which the call may still be on its way."""


def go_wrong(scene: Scene, drafts: Sequence[Draft], seed: int) -> None:
    chance = random.Random(seed)
    weights, scripts = zip(*FAULTS, strict=True)
    for draft in drafts:
        scene.script(draft, *chance.choices(scripts, weights)[0])


def kill_in_flight(scene: Scene, workers: Sequence[Program]) -> Program:
    """Kill one of them while it has a call under way, as the ledger's own table shows."""
    by_pid = {str(worker.pid): worker for worker in workers}
    killed: list[Program] = []

    def kill() -> bool:
        for (holder,) in scene.ask("SELECT holder FROM feishu_mail_permit WHERE ended IS NULL"):
            worker = by_pid[holder.rpartition(":")[2]]
            worker.send_signal(signal.SIGSTOP)
            # It may just have ended.
            if (holder,) in scene.ask("SELECT holder FROM feishu_mail_permit WHERE ended IS NULL"):
                worker.kill()
                killed.append(worker)
                return True
            worker.send_signal(signal.SIGCONT)
        return False

    wait_for(kill)
    return killed[0]


@pytest.mark.soak
def test_three_workers_and_one_of_them_is_killed(crowd: Scene) -> None:
    drafts = [draft for user in crowd.sandbox.users for draft in crowd.drafts(user, 25)]
    go_wrong(crowd, drafts, seed=7)
    workers = [crowd.start("--json") for _ in range(3)]
    for worker in workers:
        read_until(worker.stderr, "worker for")
    crowd.fill(drafts)
    wait_for(lambda: crowd.sent.total() >= 100)
    killed = kill_in_flight(crowd, workers)
    wait_for(lambda: crowd.sent.total() == 300 and crowd.left == Left())
    for worker in workers:
        if worker is not killed:
            worker.send_signal(signal.SIGTERM)
    ended = [crowd.finish(worker) for worker in workers]
    assert sorted(end.code for end in ended) == [-signal.SIGKILL, 0, 0], ended
    assert crowd.all_once(drafts)
    assert (crowd.conflicts, crowd.refusals) == (0, 0)
    assert all(end.outcomes for end in ended), "one had nothing to do"
    told = [row["draft_id"] for end in ended for row in end.outcomes]
    # What the killed one had sent and could not finish was told by one of the others, too.
    assert set(told) == {draft.draft_id for draft in drafts}
    assert "of a worker that has died" in "".join(end.err for end in ended)
    assert crowd.ask("SELECT * FROM procrastinate_jobs") == []


@pytest.mark.soak
def test_a_user_in_a_long_cool_down_delays_nobody(crowd: Scene) -> None:
    """Nor does one with very many drafts fill the places of a worker."""
    slow, *others = crowd.sandbox.users
    many = crowd.drafts(slow, 300)
    for draft in many:
        crowd.script(draft, *[Fault.code("MailThrottled")] * 3)
    crowd.fill(many)
    workers = [crowd.start("--at-once", "150", rate="40/1") for _ in range(2)]
    wait_for(lambda: crowd.left.running >= 40)
    drafts = [draft for user in others for draft in crowd.drafts(user, 10)]
    crowd.fill(drafts)
    wait_for(lambda: {draft.draft_id for draft in drafts} <= crowd.sent.keys())
    assert crowd.sent.total() < 300
    wait_for(lambda: crowd.left.running <= 80)  # the rest of the slow user's drafts is back in the queue
    for worker in workers:
        worker.send_signal(signal.SIGTERM)
    assert [crowd.finish(worker).code for worker in workers] == [0, 0]
    assert crowd.left == Left(310 - 10 + 110 - crowd.sent.total(), 0)


@pytest.mark.soak
def test_the_database_goes_away_for_a_while(tmp_path: Path, own_postgres: PostgresServer) -> None:
    scene = Scene(tmp_path, own_postgres.url(own_postgres.create()), [f"user-{number}" for number in range(6)])
    with contextlib.closing(scene):
        drafts = [draft for user in scene.sandbox.users for draft in scene.drafts(user, 50)]
        for draft in drafts:
            scene.script(draft, Fault.delay(0.05, 0.05))
        scene.fill(drafts)
        workers = [scene.start("--until-empty") for _ in range(2)]
        for crash in (False, True):
            before = scene.sent.total()
            wait_for(lambda before=before: scene.sent.total() > before + 20)  # type: ignore[misc]
            own_postgres.stop(crash=crash)
            for worker in workers:
                read_until(worker.stderr, "the database is not reachable")
            own_postgres.start()
        ended = [scene.finish(worker) for worker in workers]
        assert [end.code for end in ended] == [0, 0], ended
        assert scene.all_once(drafts)
        assert (scene.conflicts, scene.refusals) == (0, 0)
        assert all("the database is reachable again" in end.err for end in ended)
        assert scene.left == Left()


@pytest.mark.soak
def test_a_worker_is_stopped_while_the_database_is_away(tmp_path: Path, own_postgres: PostgresServer) -> None:
    scene = Scene(tmp_path, own_postgres.url(own_postgres.create()), ["alice"])
    with contextlib.closing(scene):
        drafts = scene.drafts("alice", 30)
        scene.fill(drafts)
        worker = scene.start(rate="100/3600")
        wait_for(lambda: scene.sent.total() >= 5)
        own_postgres.stop()
        read_until(worker.stderr, "the database is not reachable")
        worker.send_signal(signal.SIGTERM)
        assert scene.finish(worker).code == 0
        own_postgres.start()
        ended = scene.drain(dead="1")
        assert ended.code == 0, ended
        assert scene.all_once(drafts)


# --- status -----------------------------------------------------------------------------------------------


def test_status(scene: Scene, cli: Callable[..., Ended]) -> None:
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


def test_status_of_a_file(scene: Scene, cli: Callable[..., Ended], tmp_path: Path) -> None:
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
