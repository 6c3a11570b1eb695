"""What the tests of the command line share: how it is run, as a program of its own or in this process."""

import asyncio
import contextlib
import csv
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from feishu_mail_async.cli import app
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers import nursery

T = TypeVar("T")

FAST = "10000/60"

TOKEN_VARIABLE = "FEISHU_USER_ACCESS_TOKEN"
CANARY = "u-CANARY0123456789abcdefCANARY"
PATIENCE = 60.0
"""Seconds before a test gives up; none passes or fails by it."""

COMMAND = [sys.executable, "-m", "feishu_mail_async"]
"""The command line, started anew: the program as its users start it. `start_command` is far quicker."""


def environment(**more: str) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("FEISHU", "COLUMNS"))}
    return env | {"PYTHONWARNINGS": "error", "NO_COLOR": "1", "TERM": "xterm"} | more


def run_process(
    command: list[str], env: dict[str, str] | None = None, told: str | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        check=False,
        env=env or environment(),
        input=told,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def start_command(*arguments: str, env: dict[str, str] | None = None, **streams: int | None) -> nursery.Program:
    """Start the command line as a program of its own, forked from one that has imported it."""
    return nursery.start("feishu_mail_async.cli:main", *arguments, env=env or environment(), **streams)


def wait_for(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def outcomes(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


def run_here(capfd: pytest.CaptureFixture[str], arguments: Iterable[str], secrets: Iterable[str]) -> Ended:
    """Run the command line in this process; whatever it prints, no secret is in it."""
    # In a thread, because it has a loop of its own, and pytest's plugins care for the one of this thread.
    with _logging_as_before(), ThreadPoolExecutor(1) as pool:
        code = pool.submit(app.run, [*arguments]).result(PATIENCE)
    out, err = capfd.readouterr()
    for secret in secrets:
        assert secret not in out + err
    return Ended(code, out, err)


@contextlib.contextmanager
def _logging_as_before() -> Iterator[None]:
    """What `--verbose` sets up writes to a stream that is closed when the test has ended."""
    root = logging.getLogger()
    handlers = [*root.handlers]
    try:
        yield
    finally:
        root.handlers[:] = handlers


class Apart:
    """A sandbox in a thread of its own, for programs in processes of their own.

    Attributes:
        directory: where the files of the programs lie.
        sandbox: what runs in the thread: ask `do` for what it knows.
        token_file: a file of the tokens of all its users.
    """

    def __init__(self, directory: Path, sandbox: Sandbox) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.directory = directory
        self.sandbox = sandbox
        self.wait(sandbox.start())
        self.token_file = self.tokens("tokens.json", sandbox.users)

    def wait(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)

    def do(self, what: Callable[[Sandbox], T]) -> T:
        async def done() -> T:
            return what(self.sandbox)

        return self.wait(done())  # type: ignore[no-any-return]

    def close(self) -> None:
        self.wait(self.sandbox.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def tokens(self, name: str, users: Iterable[str]) -> Path:
        """Write a file of the tokens of these users."""
        path = self.directory / name
        path.write_text(json.dumps({user: self.sandbox.token(user) for user in users}))
        path.chmod(0o600)
        return path

    @property
    def sent(self) -> Counter[str]:
        return self.do(lambda sandbox: Counter(sandbox.ledger.sent))

    @property
    def calls(self) -> int:
        return self.do(lambda sandbox: len(sandbox.ledger.sends))

    def finish(self, process: nursery.Program, told: str = "") -> Ended:
        """Wait for the end of a program, in whose output there is no token."""
        out, err = process.communicate(told, timeout=PATIENCE)
        for token in self.sandbox.tokens.values():
            assert token not in out + err
        return Ended(process.wait(), out, err)


class Feishu(Apart):
    """A sandbox of alice's and bob's, with next to no limit."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, Sandbox(calls=10_000, latency=0, users=("alice", "bob")))

    def drafts(self, user: str, number: int, mailbox: str = "me") -> list[str]:
        return self.do(lambda sandbox: sandbox.add_drafts(user, number, mailbox=mailbox))

    def script(self, draft_id: str, *faults: Fault) -> None:
        self.do(lambda sandbox: sandbox.script(draft_id, *faults))

    def write(self, name: str, *lines: str) -> str:
        path = self.directory / name
        path.write_text("".join(f"{line}\n" for line in lines))
        return str(path)

    def csv(self, drafts: Sequence[str], user: str = "alice") -> str:
        return self.write("drafts.csv", "draft_id,user", *[f"{draft_id},{user}" for draft_id in drafts])

    def options(self, rate: str = FAST) -> list[str]:
        return ["--base-url", self.sandbox.base_url, "--token-file", str(self.token_file), "--rate", rate]

    def start(
        self,
        *arguments: str,
        rate: str = FAST,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
    ) -> nursery.Program:
        command = ["bulk", *arguments, *self.options(rate)]
        return start_command(*command, stdin=stdin, stdout=stdout, stderr=stderr)

    @property
    def out(self) -> Path:
        return self.directory / "results.csv"

    def rows(self) -> list[dict[str, str]]:
        """The results, in which there is no token."""
        text = self.out.read_text()
        for token in self.sandbox.tokens.values():
            assert token not in text
        return list(csv.DictReader(text.splitlines()))

    def statuses(self) -> dict[str, str]:
        return {row["draft_id"]: row["status"] for row in self.rows()}


@pytest.fixture
def feishu(tmp_path: Path) -> Iterator[Feishu]:
    """A sandbox of alice's and bob's, in a thread of its own."""
    server = Feishu(tmp_path)
    yield server
    server.close()


def read_until(stream: Any, wanted: str) -> str:
    """Read lines up to one that holds this."""
    text = ""
    while wanted not in text:
        line = stream.readline()
        assert line, f"it ended without {wanted!r}: {text}"
        text += line
    return text
