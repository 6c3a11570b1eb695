"""Workers whose database changes under them: read-only for a while, or without what they need."""

from pathlib import Path

import psycopg
import pytest

from feishu_mail_async.fleet import Left, QueueTrouble, prepare
from feishu_mail_async.sandbox import Fault
from tests.helpers.cli import read_until, wait_for
from tests.helpers.fleet import Workers
from tests.helpers.postgres import read_only
from tests.processes.fleet.conftest import scene

__all__ = ["scene"]


def cut(scene: Workers) -> None:
    """End every connection to the database: what comes next is new."""
    scene.ask(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


def test_a_database_that_can_only_be_read_for_a_while(scene: Workers) -> None:
    """Each pooled connection leads to the wrong server for good; the worker waits, goes on, and says so once."""
    drafts = [*scene.drafts("alice", 40), *scene.drafts("bob", 40)]
    for draft in drafts:
        scene.script(draft, Fault.delay(0.05, 0.05))
    scene.fill(drafts)
    worker = scene.start("--until-empty")
    wait_for(lambda: scene.sent.total() >= 10)
    with read_only(scene.url):
        cut(scene)
        assert worker.stderr is not None
        told = read_until(worker.stderr, "the database is not reachable (the database can only be read)")
    ended = scene.finish(worker, told)
    assert ended.code == 0, ended
    assert scene.all_once(drafts)
    assert (scene.conflicts, scene.refusals) == (0, 0)
    assert scene.left == Left()
    lines = [line for line in ended.err.splitlines() if "the database" in line]
    assert sum("waiting until" in line for line in lines) <= 2  # it may be seen as it goes away, too
    assert "is reachable again" in lines[-1]
    assert "a mistake of this program" not in ended.err


def test_tables_that_are_taken_away(scene: Workers) -> None:
    """Waiting does not mend it: it ends with a sentence, and not as one that could not start."""
    drafts = scene.drafts("alice", 40)
    for draft in drafts:
        scene.script(draft, Fault.delay(0.05, 0.05))
    scene.fill(drafts)
    worker = scene.start()
    wait_for(lambda: scene.sent.total() >= 3)
    with psycopg.connect(scene.url, autocommit=True) as connection:
        connection.execute("DROP TABLE procrastinate_jobs CASCADE")
    ended = scene.finish(worker)
    assert ended.code == 1
    assert "error: --ledger: the queue cannot be used: " in ended.err
    assert "a mistake of this program" not in ended.err
    assert len(ended.err.splitlines()) < 6


async def test_what_cannot_be_written_is_said(postgres_url: str, tmp_path: Path) -> None:
    with read_only(postgres_url), pytest.raises(QueueTrouble, match="read-only") as caught:
        await prepare(postgres_url)
    assert caught.value.__cause__ is None
