"""What streaming 1,000 and 100,000 drafts through `send_drafts` costs: peak memory, and time per draft.

The limit is lifted, and a stub stands in for the transport: it answers at once, without HTTP. So what is measured
is the package's own part, from reading the input to handing out the outcome (scheduler, jobs, run); a real call
adds about a millisecond of aiohttp's. Each size runs in fresh processes, for the peak of a process only grows.
Time is CPU time of the process, since wall time counts what else the machine does; the median of several
processes is taken, and their range is shown: where it is wide, the ratio says little.

    python benchmarks/stream.py            # the table; targets: +60 MB, 1.2 times the time per draft
    python benchmarks/stream.py --smoke    # a second or two, small sizes: does it still run?
"""

import argparse
import asyncio
import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final
from unittest import mock

from feishu_mail_async import Draft, FeishuMailClient, RateLimit
from feishu_mail_async import client as client_module
from feishu_mail_async.protocol import Reply
from feishu_mail_async.transport import Transport

SIZES: Final = (1_000, 100_000)
SMOKE_SIZES: Final = (200, 2_000)
USERS: Final = 50
REPEATS: Final = (15, 5)
"""Processes for each size: more for the small one, which is over in a tenth of a second."""

MOST_MEGABYTES: Final = 60.0
MOST_TIMES: Final = 1.2

LIFTED: Final = RateLimit(calls=1_000_000, per=0.001, spacing=0, margin=0)
ANSWER: Final = Reply(200, b'{"code":0,"msg":"success","data":{"message_id":"m","thread_id":"t"}}')


class StubTransport(Transport):
    """Answers every call after one turn of the loop, and makes none."""

    async def exchange(self, *_: object) -> Reply:
        await asyncio.sleep(0)
        return ANSWER


@dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        drafts: how many.
        seconds: of CPU time, for all of them.
        megabytes: what the process's peak has grown by.
    """

    drafts: int
    seconds: float
    megabytes: float

    @property
    def microseconds(self) -> float:
        """Time per draft."""
        return self.seconds / self.drafts * 1e6


def peak() -> float:
    """The most memory this process has held so far, in MB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1 << 20) if sys.platform == "darwin" else most / (1 << 10)


def drafts(count: int) -> Iterator[Draft]:
    for number in range(count):
        yield Draft(f"draft-{number}", user=f"user{number % USERS}")


async def stream(count: int, **settings: Any) -> int:
    """Send `count` drafts of a generator, and return how many outcomes came."""
    tokens = {f"user{number}": f"u-token-{number}" for number in range(USERS)}
    fetched = 0
    with mock.patch.object(client_module, "Transport", StubTransport):
        client = FeishuMailClient(tokens, rate_limit=LIFTED)
        async with client, client.send_drafts(drafts(count), **settings) as run:
            async for _ in run:
                fetched += 1
    return fetched


def measure(count: int) -> Measured:
    asyncio.run(stream(200))  # what is imported and cached at the first use does not count
    gc.collect()
    before = peak()
    start = time.process_time()
    fetched = asyncio.run(stream(count))
    seconds = time.process_time() - start
    if fetched != count:
        raise SystemExit(f"{fetched} outcomes of {count} drafts")
    return Measured(count, seconds, peak() - before)


def in_fresh_process(count: int) -> Measured:
    command = [sys.executable, __file__, "--measure", str(count)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Measured(**json.loads(done.stdout))


@dataclass(frozen=True)
class Row:
    """What several processes measured for one size."""

    runs: list[Measured]

    @property
    def microseconds(self) -> float:
        return statistics.median(run.microseconds for run in self.runs)

    @property
    def megabytes(self) -> float:
        return max(run.megabytes for run in self.runs)

    def __str__(self) -> str:
        times = [run.microseconds for run in self.runs]
        spread = f"{min(times):.0f}-{max(times):.0f}"
        return (
            f"{self.runs[0].drafts:>10,}  {self.microseconds:>7.0f} us  {spread:>11}  {self.megabytes:>+9.1f} MB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="small sizes, once each")
    parser.add_argument("--measure", type=int, metavar="N", help="measure N drafts in this process, print JSON")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(asdict(measure(arguments.measure))))
        return
    sizes, repeats = (SMOKE_SIZES, (1, 1)) if arguments.smoke else (SIZES, REPEATS)
    few, many = (
        Row([in_fresh_process(size) for _ in range(times)]) for size, times in zip(sizes, repeats, strict=True)
    )
    print(f"{'drafts':>10}  {'per draft':>10}  {'range':>11}  {'peak memory':>12}")
    print(few)
    print(many)
    grown = many.megabytes - few.megabytes
    times = many.microseconds / few.microseconds
    print(f"memory: {grown:+.1f} MB (target: +{MOST_MEGABYTES:.0f} at most)")
    print(f"CPU time per draft: {times:.2f} times (target: {MOST_TIMES:.1f} at most)")


if __name__ == "__main__":
    main()
