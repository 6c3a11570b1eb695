"""Processes that share a ledger, the sandbox that judges them, and what holds whatever was done to them."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from feishu_mail_async import Draft, FeishuMailClient, RateLimit
from feishu_mail_async.ledger import Record
from feishu_mail_async.sandbox import Arrival, Sandbox
from tests.helpers import nursery

__all__ = ["PATIENCE", "Program", "Programs", "Pulse", "pulse"]

PATIENCE: Final = 100.0
"""Seconds after which something that never comes is given up."""


class Program:
    """A process that sends drafts.

    Attributes:
        lines: what it has said.
    """

    def __init__(self, heard: Callable[[dict[str, Any]], None]) -> None:
        self.lines: list[dict[str, Any]] = []
        self._heard = heard
        self._news = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._process: nursery.Program | None = None

    async def begin(self, task: dict[str, Any]) -> None:
        """Start it; it runs once this returns."""
        output, theirs = os.pipe()
        try:
            # In a thread: the server that it will call may have others to answer.
            process = await asyncio.to_thread(
                nursery.start, "tests.helpers.programs.ledger:main", json.dumps(task), stdout=theirs, stderr=2
            )
        finally:
            os.close(theirs)
        reader = asyncio.StreamReader(limit=1 << 24)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(output, "rb", buffering=0)
        )

        async def read() -> None:
            try:
                while line := await reader.readline():
                    told = json.loads(line)
                    self.lines.append(told)
                    self._heard(told)
                    self._news.set()
            finally:
                transport.close()
                self._news.set()

        self._process = process
        self._reading = loop.create_task(read())
        await self.says("pid")

    async def says(self, key: str) -> dict[str, Any]:
        """The first line with that key; an error where it ends without one."""
        assert self._reading is not None
        async with asyncio.timeout(PATIENCE):
            while True:
                found = next((line for line in self.lines if key in line), None)
                if found is not None:
                    return found
                assert not self._reading.done(), f"it ended without {key}: {self.lines[-5:]}"
                self._news.clear()
                await self._news.wait()

    async def ended(self) -> None:
        """Wait until it has ended, by itself or not."""
        assert self._reading is not None
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait([self._reading])
        await self._reading
        assert self._process is not None
        await asyncio.to_thread(self._process.wait, PATIENCE)

    async def done(self) -> None:
        """Wait until it has ended by itself."""
        await self.ended()
        assert self.by_itself, f"it was killed, or failed: {self.lines[-5:]}"

    @property
    def running(self) -> bool:
        assert self._reading is not None
        return not self._reading.done()

    @property
    def by_itself(self) -> bool:
        return any("end" in line for line in self.lines)

    def signal(self, number: int) -> None:
        """Send it a signal, if it is still there."""
        assert self._process is not None
        self._process.send_signal(number)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self.ended()

    @property
    def outcomes(self) -> dict[str, str]:
        """Draft -> status."""
        told = [line for line in self.lines if "outcome" in line]
        assert len({line["outcome"] for line in told}) == len(told), "two outcomes of one draft"
        return {line["outcome"]: line["status"] for line in told}

    @property
    def transactions(self) -> list[tuple[float, float]]:
        """When it asked its ledger, in seconds of the host's monotonic clock, and for how long."""
        return [(line["asked"], line["took"]) for line in self.lines if "asked" in line]

    @property
    def logged(self) -> list[str]:
        return [line["log"] for line in self.lines if "log" in line]


@dataclass
class Pulse:
    """How long this process, and so the sandbox in it, stood still at most.

    What the package takes for granted of a server, that nothing arrives later than `grace` after it was given up,
    does not hold of one that stands still for longer.
    """

    longest: float = 0.0


@contextlib.asynccontextmanager
async def pulse() -> AsyncIterator[Pulse]:
    found = Pulse()

    async def beat() -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.02)
            now = time.monotonic()
            found.longest, last = max(found.longest, now - last - 0.02), now

    beating = asyncio.create_task(beat())
    try:
        yield found
    finally:
        beating.cancel()
        await asyncio.wait([beating])


@dataclass
class Programs:
    """A sandbox with drafts, and the programs that send them.

    Every outcome is held against the sandbox the moment it is heard.
    """

    sandbox: Sandbox
    url: str
    limit: dict[str, Any]
    app: str = "cli_a"
    attempt_timeout: float = 30.0
    slack: float | None = None
    retry: dict[str, Any] = field(default_factory=dict)
    owners: dict[str, tuple[str, str]] = field(default_factory=dict)
    programs: list[Program] = field(default_factory=list)
    told: dict[str, int] = field(default_factory=dict)

    def add(self, user: str, count: int = 1, mailbox: str = "me") -> list[str]:
        """More drafts."""
        found = self.sandbox.add_drafts(user, count, mailbox=mailbox)
        self.owners |= dict.fromkeys(found, (user, mailbox))
        return found

    async def start(self, drafts: Iterable[str] | None = None, **more: Any) -> Program:
        """Start a program that sends these drafts, or all."""
        task = {
            "base_url": self.sandbox.base_url,
            "tokens": self.sandbox.tokens,
            "app": self.app,
            "ledger": self.url,
            "limit": self.limit,
            "retry": self.retry,
            "attempt_timeout": self.attempt_timeout,
            "drafts": [(draft, *self.owners[draft]) for draft in (self.owners if drafts is None else drafts)],
            "vars": {} if self.slack is None else {"ledger.turns.SLACK": self.slack},
        }
        program = Program(self._heard)
        await program.begin(task | more)
        self.programs.append(program)
        return program

    async def run(self, drafts: Iterable[str] | None = None, **more: Any) -> dict[str, str]:
        """Run a program to its own end; the outcomes."""
        program = await self.start(drafts, **more)
        await program.done()
        return program.outcomes

    def _heard(self, told: dict[str, Any]) -> None:
        assert "crash" not in told, told["crash"]
        if "outcome" not in told:
            return
        times = self.sandbox.ledger.sent[told["outcome"]]
        match told["status"]:
            case "sent" | "already_sent":
                assert times == 1, told
                # It is on record now: no call is made for it any more.
                self.told.setdefault(told["outcome"], len(self.sandbox.ledger.calls(told["outcome"])))
            case "failed" | "skipped":
                assert times == 0, told

    async def recall(self) -> dict[str, Record | None]:
        """What the ledger knows of the drafts."""
        drafts = [Draft(draft, mailbox, user) for draft, (user, mailbox) in self.owners.items()]
        async with FeishuMailClient(
            self.sandbox.tokens,
            app=self.app,
            base_url=self.sandbox.base_url,
            rate_limit=RateLimit(**self.limit),
            ledger=self.url,
        ) as client:
            return dict(zip(self.owners, await client.records(drafts), strict=True))

    def check(self) -> None:
        """What holds whatever happened."""
        ledger = self.sandbox.ledger
        assert (ledger.refusals, ledger.conflicts) == (0, 0), ledger
        assert max(ledger.sent.values(), default=0) <= 1
        for draft, calls in self.told.items():
            assert len(ledger.calls(draft)) == calls, "a call for a draft that is known to be sent"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for program in self.programs:
            await program.kill()
        if error is None:
            self.check()


def cycles(sends: list[Arrival], calls: int) -> list[float]:
    """Seconds from each arrival to the one that has its permit next."""
    times = [send.time for send in sends]
    return [later - earlier for earlier, later in zip(times, times[calls:], strict=False)]


def shares(programs: Iterable[Program]) -> Counter[str]:
    """How often each status was told."""
    return Counter(itertools.chain.from_iterable(program.outcomes.values() for program in programs))


async def steadily(act: Callable[[], Awaitable[None]], stall: float) -> None:
    """Do something that takes a server for granted which does not stand still for that long.

    Where this process, and so the sandbox in it, stood still for longer, that tells nothing of the package: it is
    done again.
    """
    for last in (False, False, True):
        async with pulse() as beat:
            try:
                await act()
            except AssertionError:
                if last or beat.longest < stall:
                    raise
            else:
                return


SHORT: Final[dict[str, Any]] = {"calls": 10, "per": 1.0, "spacing": 0.0, "grace": 0.7, "margin": 0.05}
"""A limit whose windows pass quickly."""
TIMEOUT: Final = 0.7
SLACK: Final = 0.3
STUBBORN: Final[dict[str, Any]] = {"attempts": 15, "refusals": 60, "initial": 0.05, "maximum": 0.2, "outage": None}
"""As many attempts as it takes."""
