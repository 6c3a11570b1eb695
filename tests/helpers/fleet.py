"""A queue, and the workers that empty it."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg

from feishu_mail_async import Draft
from feishu_mail_async.fleet import Left, Queue, Queued, enqueue, jobs_left, prepare
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.cli import Apart, Ended, environment, start_command
from tests.helpers.nursery import Program
from tests.helpers.postgres import DATABASE_PASSWORD

APP = "cli_fleet"
LEDGER = "FEISHU_MAIL_LEDGER"
RATE = "100/1"
STILL = "5/3600"
"""Five calls, and no other while a test lasts."""


class Workers(Apart):
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


def some(number: int, user: str | None = "alice", head: str = "d") -> list[Draft]:
    return [Draft(f"{head}{place}", "me", user) for place in range(number)]
