"""Jobs that can never be done leave the queue, by name, and hold up no other."""

import asyncio
import json
from typing import Any

import psycopg

from feishu_mail_async import Draft, FeishuMailClient, Outcome, OutcomeStatus, RateLimit
from feishu_mail_async.fleet import Left, Queue, enqueue, prepare
from feishu_mail_async.fleet.jobs import TASK
from feishu_mail_async.fleet.worker import DraftWorker, Times
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.fleet import APP, Workers
from tests.helpers.refusals import POISON, make_refuse

UNREADABLE: list[Any] = [
    {},
    [],
    [1, 2],
    "text",
    5,
    None,
    {"self": 1, "context": 2, "arguments": 3},
    {"user": "alice", "mailbox": "me"},
    {"user": "alice", "draft_id": "d1"},
    {"mailbox": "me", "draft_id": "d1"},
    {"user": "alice", "mailbox": "me", "draft_id": 5},
    {"user": "alice", "mailbox": "me", "draft_id": ""},
    {"user": "alice", "mailbox": "me", "draft_id": "odd\u0007id"},
    {"user": "alice", "mailbox": "me", "draft_id": "d" * 513},
    {"user": "alice", "mailbox": None, "draft_id": "d1"},
    {"user": "alice", "mailbox": {"a": 1}, "draft_id": "d1"},
    {"user": ["alice"], "mailbox": "me", "draft_id": "d1"},
    {"user": "ali\nce", "mailbox": "me", "draft_id": "d1"},
]


def queue_raw(url: str, queue: Queue, arguments: list[Any]) -> list[int]:
    """Put jobs into a queue whatever they say; their numbers."""
    with psycopg.connect(url, autocommit=True) as connection:
        return [
            connection.execute(
                "INSERT INTO procrastinate_jobs (queue_name, task_name, args) VALUES (%s, %s, %s) RETURNING id",
                [queue.name, TASK, json.dumps(one)],
            ).fetchone()[0]  # type: ignore[index]  # it returns one
            for one in arguments
        ]


def test_jobs_that_cannot_be_read_fail_by_name(scene: Workers) -> None:
    before, after = scene.drafts("alice", 5), scene.drafts("bob", 5)
    scene.fill(before)
    numbers = queue_raw(scene.url, scene.queue, UNREADABLE)
    scene.fill(after)
    ended = scene.drain()
    assert ended.code == 1
    assert scene.all_once([*before, *after])
    assert scene.left == Left()
    [(failed,)] = scene.ask("SELECT count(*) FROM procrastinate_jobs WHERE status = 'failed'")
    assert failed == len(UNREADABLE)
    for number in numbers:
        assert f"job {number} " in ended.err, ended.err
    assert "513 characters are too many" in " ".join(ended.err.split())


def test_a_draft_without_a_record_ends_its_job(scene: Workers) -> None:
    """What the ledger refuses for good is not tried again and again."""
    good = scene.drafts("alice", 8)
    scene.fill(good[:1])
    assert scene.drain().code == 0
    make_refuse(scene.url, "INSERT", kind="54000")
    odd = [Draft(f"{POISON}{number}", "me", user) for number, user in enumerate(["alice", "bob", "alice"])]
    scene.fill([*good[1:4], *odd, *good[4:]])
    ended = scene.drain("--json")
    assert ended.code == 1
    assert {row["draft_id"]: row["status"] for row in ended.outcomes} == {
        **{draft.draft_id: "sent" for draft in good[1:]},
        **{draft.draft_id: "failed" for draft in odd},
    }
    for draft in odd:
        assert draft.draft_id in ended.err
    assert scene.all_once(good)
    assert scene.left == Left()


class Odd(FeishuMailClient):
    """A client with a mistake that shows with one draft."""

    async def send_draft(self, draft: Any, **more: Any) -> Any:
        if draft.draft_id == "odd":
            raise KeyError("a mistake")
        return await super().send_draft(draft, **more)


async def test_a_draft_with_which_the_program_fails_each_time(postgres_url: str) -> None:
    """It is tried a few times, and then it ends by name: nobody knows what became of it."""
    outcomes: list[Outcome] = []
    notes: list[str] = []
    async with Sandbox(users=["alice"], latency=0, calls=100_000) as sandbox:
        queue = Queue(sandbox.base_url, APP)
        good = [Draft(one, "me", "alice") for one in sandbox.add_drafts("alice", 4)]
        await prepare(postgres_url)
        await enqueue(postgres_url, queue, [good[0], Draft("odd", "me", "alice"), *good[1:]])
        limit = RateLimit(calls=1000, per=1.0, spacing=0)
        async with Odd(
            sandbox.tokens, app=APP, base_url=sandbox.base_url, rate_limit=limit, ledger=postgres_url
        ) as client:
            worker = DraftWorker(
                postgres_url,
                queue,
                client,
                user_of=lambda user: user,
                limit=limit,
                at_once=10,
                times=Times(beat=0.2, poll=0.05, unknown=0.05),
                tell=outcomes.append,
                note=notes.append,
            )
            await asyncio.wait_for(worker.run(until_empty=True), 60)
        assert sandbox.ledger.sent == dict.fromkeys([draft.draft_id for draft in good], 1)
    statuses = {one.draft.draft_id: one.status for one in outcomes}
    assert statuses == {draft.draft_id: OutcomeStatus.SENT for draft in good} | {"odd": OutcomeStatus.UNKNOWN}
    assert any("odd" in note and "KeyError" in note for note in notes)
