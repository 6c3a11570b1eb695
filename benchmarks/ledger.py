"""What a turn costs in the three homes of a ledger, and how many a second several processes take from one.

A turn is taken and settled (permit, both locks, the draft's intent and outcome) without any HTTP in between, and
the limit is lifted: so what is measured is the ledger alone. The databases write durably, SQLite with
synchronous=FULL, PostgreSQL with fsync, so the numbers depend on the disk. What the limit of 20 calls a minute
needs is 0.33 turns a second.

    python benchmarks/ledger.py            # the tables, about a minute
    python benchmarks/ledger.py --smoke    # a few seconds: does it still run?
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from feishu_mail_async import FeishuMailError, Priority, RateLimit, open_ledger
from feishu_mail_async.codes import Verdict
from feishu_mail_async.lanes import Ask, Gate, Turn
from feishu_mail_async.ledger import Record
from feishu_mail_async.ledger.book import Book, MemoryBook, of
from feishu_mail_async.model import RetryPolicy
from feishu_mail_async.protocol import Judgement
from feishu_mail_async.retry import PolicyDelays

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from databases import run_server

LIFTED: Final = RateLimit(calls=1_000_000, per=0.001, spacing=0, margin=0)
SENT: Final = Judgement(Verdict.SENT, data={"message_id": "m", "thread_id": "t"}, log_id="log")
DELAYS: Final = PolicyDelays(RetryPolicy())
PROCESSES: Final = (1, 2, 4, 8)
_LEAST: Final = 3
"""Turns that are measured at least, however slow the machine is."""
HOST: Final = "https://open.feishu.cn"
APP: Final = "cli_benchmark"


class Nobody:
    """Is told of turns, and does nothing about it."""

    def granted(self, turn: Turn) -> None: ...

    def refused(self, error: FeishuMailError) -> None: ...

    def recorded(self, record: Record) -> None: ...


async def turns(book: Book, whose: str, *, seconds: float) -> list[float]:
    """Take and settle turns for a while; the seconds that each took."""
    loop = asyncio.get_running_loop()
    taker, took, drafts = Nobody(), list[float](), uuid.uuid4().hex
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end or len(took) < _LEAST:
        ask = Ask(whose, whose, Priority.BULK, taker, draft_id=f"{drafts}-{len(took)}")
        taken = await of(book.take([ask], loop.time()))
        if taken.granted is None:
            continue  # the window of a thousandth of a second was full
        turn = Turn(Gate(whose), Gate(whose), ask, taken.granted[1])
        await of(book.settle(turn, SENT, DELAYS, loop.time(), renewing=False))
        took.append(time.perf_counter() - began)
    return took


async def on_database(url: str, whose: str, seconds: float) -> list[float]:
    """The same on a database."""
    ledger = open_ledger(url)
    try:
        book = ledger.book(HOST, APP, LIFTED)
        await turns(book, whose, seconds=0.05)  # opens it
        return await turns(book, whose, seconds=seconds)
    finally:
        await ledger.close()


async def in_memory(seconds: float) -> list[float]:
    """The same in memory."""
    return await turns(MemoryBook(LIFTED), "alice", seconds=seconds)


def crowd(url: str, processes: int, seconds: float) -> float:
    """Turns a second of several processes on one ledger, each for a user of its own."""
    command = [sys.executable, __file__, "--turns", str(seconds)]
    environment = os.environ | {"BENCHMARK_LEDGER": url}
    running = [
        subprocess.Popen([*command, f"user-{number}"], env=environment, stdout=subprocess.PIPE, text=True)
        for number in range(processes)
    ]
    made = [int(process.communicate()[0]) for process in running]
    return sum(made) / seconds


@contextlib.contextmanager
def homes() -> Iterator[dict[str, str]]:
    """A fresh ledger of each kind on disk, by its name."""
    with tempfile.TemporaryDirectory() as directory, run_server(fsync="on", full_page_writes="on") as server:
        yield {
            "SQLite": f"sqlite:///{Path(directory) / 'ledger.db'}",
            "PostgreSQL": server.url(server.create()),
        }


def report(seconds: float, processes: tuple[int, ...]) -> None:
    """Measure, and print the tables."""
    with homes() as urls:
        costs = {"memory": asyncio.run(in_memory(seconds))}
        costs |= {name: asyncio.run(on_database(url, "alice", seconds)) for name, url in urls.items()}
        print("One turn, taken and settled (one process, one at a time)")
        print(f"{'home':<12}{'median':>12}{'99 %':>12}{'a second':>12}")
        for name, took in costs.items():
            median, slow = statistics.median(took), statistics.quantiles(took, n=100)[-1]
            print(f"{name:<12}{median * 1000:>9.3f} ms{slow * 1000:>9.3f} ms{len(took) / sum(took):>12.0f}")
        print()
        print("Turns a second of several processes on one ledger")
        print(f"{'processes':<12}" + "".join(f"{name:>12}" for name in urls))
        for number in processes:
            made = [crowd(url, number, seconds) for url in urls.values()]
            print(f"{number:<12}" + "".join(f"{one:>12.0f}" for one in made))


def main() -> None:
    """Read the arguments, and measure."""
    parser = argparse.ArgumentParser(description="What a turn costs in the three homes of a ledger.")
    parser.add_argument("--smoke", action="store_true", help="small: does it still run?")
    parser.add_argument("--turns", nargs=2, metavar=("SECONDS", "USER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.turns is not None:
        seconds, whose = arguments.turns
        print(len(asyncio.run(on_database(os.environ["BENCHMARK_LEDGER"], whose, float(seconds)))))
    elif arguments.smoke:
        report(0.1, (1,))
    else:
        report(5.0, PROCESSES)


if __name__ == "__main__":
    main()
