"""What a call costs: our client, httpx and the official SDK against a plain call with aiohttp.

Each sends drafts to a server on loopback that answers at once, all with different ids: one after another, and 50
at once (of 50 users). The contestants are

    aiohttp       POST, read the JSON, look at its code. What the others are measured by. One session for all,
                  and a connection for each call, as ours: only so an answer is sure to be that of its request
    aiohttp-pool  the same with aiohttp's pool of connections, as it comes
    ours          `client.send_draft`, its limit lifted: a turn and its record, the call, the verdict, the result
    httpx         one client for all, its settings untouched (it keeps 20 connections)
    lark-oapi     the official SDK's `asend`, which makes a new httpx client for every call: each time it reads the
                  certificates of all authorities anew, and connects anew

Each runs in a process of its own, the server in another. Machines are noisy, so there are many short rounds, in
each of which everyone has a turn (the slow ones in every sixth), and what counts is the ratio to aiohttp of the
same round. The table has

    wall        microseconds a call by the clock, the server's work included: a median
    cpu         microseconds a call of processor time, of the caller's process alone: a median
    ratio       to aiohttp in the same round: the median, and from the lower to the upper quartile
    stall       milliseconds by which a task came late that wants to be woken every millisecond, at the worst of a
                round: a median. (In rounds of their own. 50 at once keep the loop busy anyhow: see aiohttp.)

    python benchmarks/cost.py            # the table, about a minute; target: ours at most 1.25 times, one by one
    python benchmarks/cost.py --smoke    # some seconds: both of aiohttp and ours; with --full all of them
"""

import contextlib
import itertools
import statistics
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import common
from borrowed import LARK, lark_python, lark_version
from caller import CONTESTANTS, USERS
from children import Child

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLAIN: Final = "aiohttp"
POOLED: Final = "aiohttp-pool"
OURS: Final = "ours"

DEAR: Final = {"httpx", LARK}
"""Who takes so long that few calls are enough."""

AT_ONCE: Final = (1, USERS)
MOST_TIMES: Final = 1.25
"""Times a plain call that ours may take, one by one."""


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        rounds: of measuring.
        watched: rounds of watching the loop.
        calls: in a round, for each number of calls at once.
        dear_calls: the same for the dear ones.
        dear_every: they take part in every so many rounds.
    """

    rounds: int
    watched: int
    calls: Mapping[int, int]
    dear_calls: Mapping[int, int]
    dear_every: int


FULL: Final = Size(48, 4, {1: 100, USERS: 200}, {1: 10, USERS: 50}, 6)
SMOKE: Final = Size(2, 1, {1: 5, USERS: 50}, {1: 2, USERS: 2}, 2)


# --- the measure ---------------------------------------------------------------------------------------------

Key = tuple[str, int]
"""A contestant, and how many calls at once."""


@dataclass
class Rounds:
    """What was measured, for each contestant and number of calls at once, by round."""

    wall: defaultdict[Key, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    cpu: defaultdict[Key, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    stall: defaultdict[Key, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))


@contextlib.contextmanager
def contestants(names: Collection[str]) -> Iterator[dict[str, Child]]:
    """The server, and those who call it, by name."""
    with contextlib.ExitStack() as stack:
        base_url = stack.enter_context(Child("answers")).ask()["base_url"]
        yield {
            name: stack.enter_context(
                Child("caller", name, base_url, python=lark_python() if name == LARK else None)
            )
            for name in names
        }


def play(callers: Mapping[str, Child], size: Size) -> Rounds:
    """All rounds."""
    found = Rounds()
    _round(callers, size, 0, Rounds(), watch=False)  # connections are made, and what is made at the first use
    for number in range(size.rounds):
        _round(callers, size, number, found, watch=False)
    for number in range(size.watched):
        # All of them take part.
        _round(callers, size, number * size.dear_every, found, watch=True)
    return found


def _round(callers: Mapping[str, Child], size: Size, number: int, found: Rounds, *, watch: bool) -> None:
    names = list(callers)
    for at_once, place in itertools.product(AT_ONCE, range(len(names))):
        name = names[(place + number) % len(names)]  # nobody always comes first
        if name in DEAR and number % size.dear_every:
            continue
        calls = (size.dear_calls if name in DEAR else size.calls)[at_once]
        drafts = [str(uuid.uuid4()) for _ in range(calls)]
        told = callers[name].ask(drafts=drafts, at_once=at_once, watch=watch)
        for what, seconds in told.items():
            getattr(found, what)[name, at_once][number] = seconds


# --- the table -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ratio:
    """To aiohttp in the same round: the quartiles."""

    lower: float
    median: float
    upper: float

    @classmethod
    def of(cls, mine: Mapping[int, float], plain: Mapping[int, float]) -> "Ratio":
        """Of what was measured, by round."""
        ratios = [value / plain[number] for number, value in mine.items()]
        if len(ratios) == 1:
            ratios *= 2
        return cls(*statistics.quantiles(ratios, n=4, method="inclusive"))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.lower:.2f}-{self.upper:.2f})"


@dataclass(frozen=True)
class Row:
    """What one contestant came to; the module says what the columns mean."""

    contestant: str
    at_once: int
    rounds: int
    wall_us: float
    cpu_us: float
    wall_ratio: Ratio
    cpu_ratio: Ratio
    stall_ms: float

    HEAD = (
        f"{'at once':>7}  {'contestant':<12} {'wall':>10} {'cpu':>10}  {'ratio, wall':<22} {'ratio, cpu':<22} "
        f"{'stall':>9}"
    )

    @classmethod
    def of(cls, key: Key, found: Rounds) -> "Row":
        name, at_once = key
        wall, cpu = found.wall[key], found.cpu[key]
        return cls(
            name,
            at_once,
            rounds=len(wall),
            wall_us=statistics.median(wall.values()) * 1e6,
            cpu_us=statistics.median(cpu.values()) * 1e6,
            wall_ratio=Ratio.of(wall, found.wall[PLAIN, at_once]),
            cpu_ratio=Ratio.of(cpu, found.cpu[PLAIN, at_once]),
            stall_ms=statistics.median(found.stall[key].values()) * 1e3,
        )

    def __str__(self) -> str:
        return (
            f"{self.at_once:>7}  {self.contestant:<12} {self.wall_us:>7,.0f} us {self.cpu_us:>7,.0f} us  "
            f"{self.wall_ratio!s:<22} {self.cpu_ratio!s:<22} {self.stall_ms:>6.1f} ms"
        )


def verdict(rows: Sequence[Row], found: Rounds) -> dict[str, Any]:
    """What came of the target."""
    (ours,) = (row for row in rows if (row.contestant, row.at_once) == (OURS, 1))
    return {
        "times": ours.wall_ratio.median,
        "cpu_times": ours.cpu_ratio.median,
        "pool_times": Ratio.of(found.wall[OURS, 1], found.wall[POOLED, 1]).median,
        "target": MOST_TIMES,
    }


# --- the figure, and the program -----------------------------------------------------------------------------


def draw(result: Mapping[str, Any]) -> "Figure":
    """How many times a plain call each costs, and for how long it stalls the loop."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - optional

    figure = Figure(figsize=(8.6, 2.6))
    panels = figure.subplots(1, 3, sharey=True)
    one_by_one, crowd = ([row for row in result["rows"] if row["at_once"] == at_once] for at_once in AT_ONCE)
    names = [row["contestant"] for row in crowd]
    stalls = f"longest stall, {USERS} at once"
    _draw_dots(panels[0], "one by one", names, [row["wall_ratio"]["median"] for row in one_by_one], "{:.3g}x")
    _draw_dots(panels[1], f"{USERS} at once", names, [row["wall_ratio"]["median"] for row in crowd], "{:.3g}x")
    _draw_dots(panels[2], stalls, names, [row["stall_ms"] for row in crowd], "{:,.0f} ms")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    foot = f"Times a plain aiohttp call of the same round, by the clock; ms. {common.caption(result)}"
    figure.text(0.01, 0.02, foot, fontsize=6, color=common.GREY)
    figure.subplots_adjust(left=0.1, right=0.985, top=0.88, bottom=0.22, wspace=0.08)
    return figure


def _draw_dots(panel: "Axes", title: str, names: Sequence[str], values: Sequence[float], label: str) -> None:
    panel.set_title(title, loc="left")
    panel.set_xscale("log")
    panel.set_xlim(min(*values) / 2, max(*values) * 6)
    panel.xaxis.set_major_formatter("{x:,g}")
    panel.tick_params(axis="y", length=0)
    for place, (name, value) in enumerate(zip(names, values, strict=True)):
        colour = {PLAIN: common.GREY, POOLED: common.GREY, OURS: common.BLUE}.get(name, common.RED)
        panel.plot(value, place, "o", color=colour)
        panel.annotate(
            label.format(value), (value, place), (7, 0), textcoords="offset points", va="center", fontsize=7
        )


def main() -> None:
    """Read the arguments, and measure."""
    arguments = common.options(__doc__ or "", full="with --smoke: httpx and lark-oapi too, as without it")
    names = (PLAIN, POOLED, OURS) if arguments.smoke and not arguments.full else tuple(CONTESTANTS)
    with contestants(names) as callers:
        found = play(callers, SMOKE if arguments.smoke else FULL)
    rows = [Row.of((name, at_once), found) for at_once in AT_ONCE for name in names]
    print(Row.HEAD)
    for row in rows:
        print(row)
    target = verdict(rows, found)
    print(
        f"ours, one by one: {target['times']:.2f} times by the clock (target: {MOST_TIMES} at most), "
        f"{target['cpu_times']:.2f} times by processor time; "
        f"{target['pool_times']:.2f} times a call on a pooled connection"
    )
    if arguments.out is not None:
        machine = common.machine(*(name for name in names if name not in {POOLED, OURS, LARK}))
        if LARK in names:
            machine["versions"][LARK] = lark_version()
        result = {
            "benchmark": "cost",
            "machine": machine,
            "target": target,
            "rows": [asdict(row) for row in rows],
        }
        common.save("cost", arguments.out, result, draw)


if __name__ == "__main__":
    main()
