"""What many drafts cost: time and memory by their number, and what installing and importing the package costs.

Drafts of a generator are streamed through `send_drafts`, of 50 users and with the limit lifted, and a stub stands
in for the transport: it answers at once, without HTTP. So what is measured is the package's own part, from reading
the input to handing out the outcome (scheduler, jobs, run). A real call adds aiohttp's part: see cost.py.
Each run has a process of its own, for the peak of a process only grows. Time is processor time, since the clock
counts what else the machine does; the sizes take turns, the median of several processes is taken, and their range
is shown: where it is wide, the ratio says little.

    per draft      microseconds of processor time: the median, and the range
    peak memory    what the peak of the process grew by, in MB: the most of all processes

The package is held against lark-oapi, the official SDK, in an environment that has both:

    import         milliseconds of processor time of a fresh process that imports it, beyond one that imports
                   nothing: a median
    installed      MB of its files and those of all that it requires, without bytecode; ours without extras

    python benchmarks/scale.py            # the tables, about two minutes; targets: from 1,000 to 100,000 drafts at
                                          # most 60 MB more, and at most 1.2 times the time per draft
    python benchmarks/scale.py --full     # a million drafts too, some minutes more; without it their row is kept
                                          # as the last full run has left it
    python benchmarks/scale.py --smoke    # some seconds, small sizes; with --full lark-oapi too
"""

import asyncio
import gc
import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

import common
from borrowed import LARK, lark_packages, lark_python, lark_version
from common import LIFTED
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import feishu_mail_async
from feishu_mail_async import Draft, FeishuMailClient
from feishu_mail_async import client as client_module
from feishu_mail_async._api.protocol import Reply
from feishu_mail_async._transport import NOT_MADE, Failure, Transport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

USERS: Final = 50
ROUNDS: Final = 3
SIZES: Final = {1_000: 5, 10_000: 2, 100_000: 1}
"""How many drafts, and how many processes in a round: more for the small ones, over in a tenth of a second."""
MILLION: Final = {1_000_000: 1}
SMOKE_SIZES: Final = {100: 1, 1_000: 1}
IMPORTS: Final = 5
SMOKE_IMPORTS: Final = 1

MOST_MEGABYTES: Final = 60.0
MOST_TIMES: Final = 1.2

OURS: Final = "feishu-mail-async"
MODULES: Final = {OURS: "feishu_mail_async._public", LARK: "lark_oapi"}  # with all it brings when it is used

ANSWER: Final = Reply(200, b'{"code":0,"msg":"success","data":{"message_id":"m","thread_id":"t"}}')


# --- a stream ------------------------------------------------------------------------------------------------


class StubTransport(Transport):
    """Answers every call after one turn of the loop, and makes none."""

    async def exchange(self, *_: object, may_go: Callable[[], bool] = lambda: True) -> Reply | Failure:
        if not may_go():
            return NOT_MADE
        await asyncio.sleep(0)
        return ANSWER


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


@dataclass(frozen=True)
class Measured:
    """One run: seconds of processor time for each draft, and megabytes by which the process's peak grew."""

    seconds: float
    megabytes: float


def measure(count: int) -> Measured:
    """Stream so many drafts in this process, which has not done that before."""
    asyncio.run(stream(200))  # what is imported and cached at the first use does not count
    gc.collect()
    before = peak()
    start = time.process_time()
    fetched = asyncio.run(stream(count))
    seconds = time.process_time() - start
    if fetched != count:
        raise SystemExit(f"{fetched} outcomes of {count} drafts")
    return Measured(seconds / count, peak() - before)


def peak() -> float:
    """The most memory this process has held so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not `getrusage`, which on Linux begins with what the parent held.
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / (1 << 10)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1 << 20) if sys.platform == "darwin" else most / (1 << 10)


@dataclass(frozen=True)
class Row:
    """What several processes measured for one size, and when; the module says what the columns mean."""

    drafts: int
    processes: int
    microseconds: float
    least: float
    most: float
    megabytes: float
    date: str

    HEAD = f"{'drafts':>10}  {'per draft':>10}  {'range':>11}  {'peak memory':>12}"

    @classmethod
    def of(cls, count: int, runs: Sequence[Measured], date: str) -> "Row":
        times = [run.seconds * 1e6 for run in runs]
        return cls(
            count,
            len(runs),
            statistics.median(times),
            min(times),
            max(times),
            max(run.megabytes for run in runs),
            date,
        )

    def __str__(self) -> str:
        spread = f"{self.least:.0f}-{self.most:.0f}"
        return f"{self.drafts:>10,}  {self.microseconds:>7.0f} us  {spread:>11}  {self.megabytes:>+9.1f} MB"


def streams(rounds: int, sizes: Mapping[int, int], date: str) -> list[Row]:
    """The rows. All sizes have their turn in each round: a machine is slower for a while, and then faster."""
    fresh = multiprocessing.get_context("spawn")
    order = [count for _ in range(rounds) for count, processes in sizes.items() for _ in range(processes)]
    found: dict[int, list[Measured]] = {count: [] for count in sizes}
    with ProcessPoolExecutor(1, fresh, max_tasks_per_child=1) as pool:
        for count, measured in zip(order, pool.map(measure, order), strict=True):
            found[count].append(measured)
    return [Row.of(count, runs, date) for count, runs in found.items()]


def verdict(few: Row, many: Row) -> dict[str, Any]:
    """What came of the targets."""
    grown, times = many.megabytes - few.megabytes, many.microseconds / few.microseconds
    return {
        "few": few.drafts,
        "many": many.drafts,
        "megabytes": {"grown": grown, "target": MOST_MEGABYTES},
        "microseconds": {"times": times, "target": MOST_TIMES},
    }


# --- the package ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Package:
    """What a package costs; the module says what the columns mean."""

    name: str
    import_ms: float
    distributions: int
    megabytes: float

    HEAD = f"{'package':<18} {'import':>9} {'installed':>10} {'distributions':>14}"

    def __str__(self) -> str:
        return f"{self.name:<18} {self.import_ms:>6.0f} ms {self.megabytes:>7.1f} MB {self.distributions:>14}"


def packages(names: Sequence[str], times: int) -> list[Package]:
    """What these cost, each imported so many times."""
    took = {name: list[float]() for name in ["", *names]}
    for _ in range(times):
        for name, seconds in took.items():
            seconds.append(_imported(MODULES.get(name)))
    found = {name: list(_installed(name, lark_packages())) for name in names}
    return [
        Package(
            name,
            import_ms=(statistics.median(took[name]) - statistics.median(took[""])) * 1e3,
            distributions=len(every),
            megabytes=sum(map(_size, every)) / 1e6,
        )
        for name, every in found.items()
    ]


def _imported(module: str | None) -> float:
    """Seconds of processor time that a fresh process takes for an import, or for nothing at all."""
    script = f"{'' if module is None else f'import {module}'}\nimport time; print(time.process_time())"
    done = subprocess.run([lark_python(), "-c", script], check=True, capture_output=True, text=True)
    return float(done.stdout)


def _installed(name: str, folder: str) -> Iterator[Distribution]:
    """A distribution in a folder of them and, once each, all that it requires."""
    there = {canonicalize_name(found.metadata["Name"]): found for found in distributions(path=[folder])}
    todo, seen = [name], set[str]()
    while todo:
        key = canonicalize_name(todo.pop())
        if key in seen:
            continue
        seen.add(key)
        yield there[key]
        wanted = map(Requirement, there[key].requires or ())
        todo += [one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]


def _size(distribution: Distribution) -> int:
    """Bytes of its files. Bytecode is left out: whether it is there depends on who has run what."""
    files = [Path(str(file.locate())) for file in distribution.files or ()]
    if canonicalize_name(distribution.metadata["Name"]) == OURS:
        files += Path(feishu_mail_async.__file__).parent.rglob("*")  # installed in place: only a pointer is listed
    return sum(file.stat().st_size for file in files if file.is_file() and file.suffix != ".pyc")


# --- the figure, and the program -----------------------------------------------------------------------------


def draw(result: Mapping[str, Any]) -> "Figure":
    """Time and memory by the number of drafts."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - optional

    figure = Figure(figsize=(8.6, 2.6))
    time_panel, memory_panel = figure.subplots(1, 2)
    rows = result["rows"]
    counts = [row["drafts"] for row in rows]
    time_panel.set_title("processor time per draft (median and range)", loc="left")
    time_panel.vlines(
        counts, [row["least"] for row in rows], [row["most"] for row in rows], color=common.BLUE, linewidth=1.2
    )
    time_panel.plot(counts, [row["microseconds"] for row in rows], "o-", color=common.BLUE, markersize=4)
    time_panel.set_ylim(0, 1.25 * max(row["most"] for row in rows))
    time_panel.yaxis.set_major_formatter("{x:.0f} us")
    memory_panel.set_title("growth of the peak memory", loc="left")
    memory_panel.plot(counts, [row["megabytes"] for row in rows], "o-", color=common.BLUE, markersize=4)
    memory_panel.set_ylim(0, 1.25 * max(1.0, *(row["megabytes"] for row in rows)))
    memory_panel.yaxis.set_major_formatter("{x:.0f} MB")
    for panel in (time_panel, memory_panel):
        panel.set_xscale("log")
        panel.set_xticks(counts, [f"{count:,}" for count in counts])
        panel.set_xticks([], minor=True)
        panel.set_xlabel("drafts")
    foot = f"Streamed without a limit and without HTTP. {common.caption(result)}"
    figure.text(0.01, 0.02, foot, fontsize=6, color=common.GREY)
    figure.subplots_adjust(left=0.07, right=0.975, top=0.88, bottom=0.25, wspace=0.2)
    return figure


def kept(folder: Path | None) -> list[Row]:
    """What the last full run has left."""
    path = None if folder is None else folder / "results" / "scale.json"
    if path is None or not path.exists():
        return []
    rows = [Row(**row) for row in json.loads(path.read_text())["rows"]]
    return [row for row in rows if row.drafts in MILLION]


def main() -> None:
    """Read the arguments, and measure."""
    arguments = common.options(
        __doc__ or "", full="a million drafts too, some minutes more; with --smoke: lark-oapi too"
    )
    machine = common.machine("aiohttp")
    machine["versions"][LARK] = lark_version()
    date = machine["date"]
    rows = streams(1, SMOKE_SIZES, date) if arguments.smoke else streams(ROUNDS, SIZES, date)
    target = verdict(rows[0], rows[-1])
    if not arguments.smoke:
        rows += streams(1, MILLION, date) if arguments.full else kept(arguments.out)
    print(Row.HEAD)
    for row in rows:
        print(row if row.date == date else f"{row}  (measured on {row.date})")
    print(
        f"from {target['few']:,} to {target['many']:,} drafts: {target['megabytes']['grown']:+.1f} MB "
        f"(target: +{MOST_MEGABYTES:.0f} at most), {target['microseconds']['times']:.2f} times the time per draft "
        f"(target: {MOST_TIMES:.1f} at most)"
    )
    print()
    print(Package.HEAD)
    names = (OURS,) if arguments.smoke and not arguments.full else tuple(MODULES)
    held = packages(names, SMOKE_IMPORTS if arguments.smoke else IMPORTS)
    for package in held:
        print(package)
    if arguments.out is not None:
        result = {
            "benchmark": "scale",
            "machine": machine,
            "targets": target,
            "rows": [asdict(row) for row in rows],
            "packages": [asdict(package) for package in held],
        }
        common.save("scale", arguments.out, result, draw)


if __name__ == "__main__":
    main()
