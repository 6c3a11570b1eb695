"""Workers: what they send, what goes wrong with it, and what becomes of the queue when they end."""

import asyncio
import contextlib
import json
import random
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from feishu_mail_async import Draft
from feishu_mail_async.fleet import Left, Queue, Queued, enqueue, jobs_left
from feishu_mail_async.sandbox import Fault
from tests.helpers.cli import COMMAND, PATIENCE, environment, read_until, wait_for
from tests.helpers.fleet import APP, LEDGER, STILL, Workers
from tests.helpers.nursery import Program
from tests.helpers.postgres import PostgresServer


@pytest.fixture
def crowd(tmp_path: Path, postgres_url: str) -> Iterator[Workers]:
    made = Workers(tmp_path, postgres_url, [f"user-{number}" for number in range(12)])
    yield made
    made.close()


# --- one worker -------------------------------------------------------------------------------------------


def test_a_worker_sends_what_is_queued(scene: Workers) -> None:
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
def test_what_goes_wrong_is_said_and_ends_the_job(scene: Workers) -> None:
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


def test_new_drafts_are_found_while_it_runs(scene: Workers) -> None:
    worker = scene.start()
    assert worker.stderr is not None
    read_until(worker.stderr, "worker for")
    for number in range(3):
        scene.fill(scene.drafts("alice", 3))
        wait_for(lambda number=number: scene.sent.total() == 3 * number + 3)  # type: ignore[misc]
    worker.send_signal(signal.SIGTERM)
    assert scene.finish(worker).code == 0
    assert scene.left == Left()


def test_the_drafts_of_other_apps_and_of_users_without_a_token_stay(scene: Workers) -> None:
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
    scene: Workers, number: signal.Signals
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
def test_a_second_signal_ends_at_once(scene: Workers) -> None:
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
def test_many_go_back_when_it_stops(crowd: Workers) -> None:
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
def test_a_worker_begins_with_what_one_that_was_killed_had(scene: Workers) -> None:
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
def test_a_job_that_never_reached_its_worker(scene: Workers) -> None:
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
def test_whoever_reads_the_outcomes_goes_away(scene: Workers) -> None:
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


def go_wrong(scene: Workers, drafts: Sequence[Draft], seed: int) -> None:
    chance = random.Random(seed)
    weights, scripts = zip(*FAULTS, strict=True)
    for draft in drafts:
        scene.script(draft, *chance.choices(scripts, weights)[0])


def kill_in_flight(scene: Workers, workers: Sequence[Program]) -> Program:
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
def test_three_workers_and_one_of_them_is_killed(crowd: Workers) -> None:
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
def test_a_user_in_a_long_cool_down_delays_nobody(crowd: Workers) -> None:
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
    scene = Workers(tmp_path, own_postgres.url(own_postgres.create()), [f"user-{number}" for number in range(6)])
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
    scene = Workers(tmp_path, own_postgres.url(own_postgres.create()), ["alice"])
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
