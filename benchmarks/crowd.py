"""What a ledger costs that several processes share, and how much of the limit a crowd of them uses.

First a turn alone: taken and settled (permit, both locks, the draft's intent and outcome) without any HTTP in
between, the limit lifted, so that what is measured is the ledger. The databases write durably, SQLite with
synchronous=FULL, PostgreSQL with fsync, so the numbers depend on the disk. What the limit of 20 calls a minute
needs is 0.33 turns a second.

    median, 99 %   milliseconds a turn, one process, one at a time
    a second       turns of all processes together, each for a user of its own

Then the whole client, in real time: processes that send drafts of 40 users with one ledger, to a sandbox in a
process of its own that counts strictly, 20 calls in any 2 s, with 20 ms there and back. Each draft is given to one
process. In one row a process is killed (SIGKILL) in the midst of it, and a new one takes over its drafts at once.
What it held comes back when its calls can no longer arrive, so those permits and users are out of use for 8 s.
The real window is 60 s: what a turn costs weighs 30 times less there.

    used           how much of the limit: 2 s in percent of the mean time from an arrival to the 20th after it
    bound          what that cannot exceed while a permit comes back `per + margin` seconds after its call
    busiest        most calls that arrived within any 2 s
    refused        by the window;  conflicts: of two calls of one user;  lost: drafts that were not sent
    calls          beyond one for each draft: what the killed process had under way is asked for again

    python benchmarks/crowd.py            # the tables, about two minutes
    python benchmarks/crowd.py --smoke    # some seconds: SQLite; with --full PostgreSQL too
"""

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import common
from borrowed import run_server
from children import Child

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CALLS: Final = 20
ROUND_TRIP: Final = 0.02
USERS: Final = 40

SQLITE: Final = "SQLite"
POSTGRESQL: Final = "PostgreSQL"
COLOURS: Final = {SQLITE: common.BLUE, POSTGRESQL: common.RED}


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        processes: so many of them take turns, one number after another.
        crowds: so many of them send, row by row, and how many are killed: one or none.
        drafts: in a row.
        per: the window's length in seconds.
        seconds: that turns are taken for.
        attempt_timeout: of a call, in seconds: what a killed process held is out of use for longer.
    """

    processes: tuple[int, ...]
    crowds: tuple[tuple[int, int], ...]
    drafts: int
    per: float
    seconds: float
    attempt_timeout: float

    @property
    def most(self) -> int:
        """The most processes of all rows."""
        return max(*self.processes, *(processes for processes, _ in self.crowds))


FULL: Final = Size((1, 2, 4, 8), ((1, 0), (2, 0), (4, 0), (8, 0), (4, 1)), 100, 2.0, 3.0, 2.0)
SMOKE: Final = Size((1, 2), ((2, 1),), 30, 0.5, 0.1, 1.0)


# --- the homes of a ledger -----------------------------------------------------------------------------------

Urls = Mapping[str, Callable[[], str]]
"""By kind, what makes a fresh ledger and returns its URL."""


@contextlib.contextmanager
def homes(*, postgresql: bool) -> Iterator[Urls]:
    """Where ledgers are made, until the end: on SQLite, and on a PostgreSQL of their own."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        urls = {SQLITE: lambda: f"sqlite:///{tempfile.mkdtemp(dir=directory)}/ledger.db"}
        if postgresql:
            server = stack.enter_context(run_server(fsync="on", full_page_writes="on"))
            urls[POSTGRESQL] = lambda: server.url(server.create())
        yield urls


# --- a turn --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """What a turn costs in one home of a ledger; the module says what the columns mean."""

    home: str
    median_ms: float
    slow_ms: float
    a_second: dict[str, float]

    @classmethod
    def of(cls, home: str, took: Sequence[float], a_second: dict[str, float]) -> "Turn":
        slow = statistics.quantiles(took, n=100)[-1]
        return cls(home, statistics.median(took) * 1e3, slow * 1e3, a_second)

    @staticmethod
    def head(processes: Sequence[int]) -> str:
        """The head of the table."""
        return f"{'turns':<12}{'median':>12}{'99 %':>12}  a second with" + "".join(
            f"{one:>9}" for one in processes
        )

    def __str__(self) -> str:
        made = "".join(f"{one:>9,.0f}" for one in self.a_second.values())
        return f"{self.home:<12}{self.median_ms:>9.3f} ms{self.slow_ms:>9.3f} ms  {'':<13}{made}"


def take_turns(members: Sequence[Child], url: str | None, seconds: float) -> list[list[float]]:
    """Let members take turns on one ledger; the seconds of each turn, by member."""
    for number, member in enumerate(members):
        member.tell(do="turns", url=url, user=f"user{number}", seconds=seconds)
    return [member.hear()["took"] for member in members]


def in_memory(members: Sequence[Child], size: Size) -> Turn:
    """The first row of the first table."""
    (alone,) = take_turns(members[:1], None, size.seconds)
    return Turn.of("memory", alone, {"1": len(alone) / sum(alone)})


def on_database(members: Sequence[Child], home: str, urls: Urls, size: Size) -> Turn:
    """Another row."""
    url = urls[home]()
    took = {number: take_turns(members[:number], url, size.seconds) for number in size.processes}
    a_second = {str(number): sum(map(len, turns)) / size.seconds for number, turns in took.items()}
    return Turn.of(home, took[1][0], a_second)


# --- a crowd -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """What a crowd came to; the module says what the columns mean."""

    home: str
    processes: int
    killed: int
    drafts: int
    used: float
    bound: float
    busiest: int
    refused: int
    conflicts: int
    lost: int
    twice: int
    calls: int

    HEAD = (
        f"{'crowd':<12}{'processes':<15}{'used':>9}{'bound':>9}{'busiest':>9}{'refused':>9}{'conflicts':>11}"
        f"{'lost':>6}{'calls':>7}"
    )

    def __str__(self) -> str:
        who = f"{self.processes}, {self.killed} killed" if self.killed else str(self.processes)
        return (
            f"{self.home:<12}{who:<15}{self.used:>7.1f} %{self.bound:>7.1f} %{self.busiest:>9}{self.refused:>9}"
            f"{self.conflicts:>11}{self.lost:>6}{self.calls - self.drafts:>+7}"
        )


class Stage:
    """A judge, and processes to be judged.

    Args:
        processes: how many there are.

    Attributes:
        members: the processes. One that is killed is replaced.
    """

    def __init__(self, processes: int) -> None:
        self.members = [Child("member") for _ in range(processes)]
        self._judge = Child("judge")

    def share(self, home: str, url: str, size: Size, processes: int, killed: int) -> Share:
        """A row of the second table.

        Args:
            home: the kind of the ledger.
            url: of a fresh one.
            size: how much is done.
            processes: how many of them take part.
            killed: how many are killed: one or none.
        """
        limit = {"calls": CALLS, "per": size.per, "spacing": 0.0, "margin": size.per / 100, "grace": 1.0}
        scene = self._judge.ask(
            do="open", calls=CALLS, per=size.per, latency=ROUND_TRIP, users=USERS, drafts=size.drafts
        )
        drafts = scene.pop("drafts")
        settings = scene | {"do": "send", "limit": limit, "ledger": url, "attempt_timeout": size.attempt_timeout}
        work = [settings | {"drafts": drafts[number::processes]} for number in range(processes)]
        for member, one in zip(self.members, work, strict=False):
            member.tell(**one)
        if killed:
            self._judge.ask(do="wait", sends=size.drafts // 3)
            self.members[0].kill()
            # What is left is in the ledger, so all of its drafts can be given again.
            self.members[0] = Child("member")
            self.members[0].tell(**work[0])
        for member in self.members[:processes]:
            member.hear()
        seen = self._judge.ask(do="judge")
        return Share(
            home,
            processes,
            killed,
            drafts=size.drafts,
            bound=100 * size.per / (size.per + limit["margin"] + ROUND_TRIP),
            lost=size.drafts - seen.pop("sent"),
            **seen,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in (*self.members, self._judge):
            child.close()


def shares(stage: Stage, urls: Urls, home: str, size: Size) -> list[Share]:
    """The rows of one home."""
    return [stage.share(home, urls[home](), size, processes, killed) for processes, killed in size.crowds]


# --- the figure, and the program -----------------------------------------------------------------------------


def draw(result: Mapping[str, Any]) -> "Figure":
    """How much of the limit crowds use, and how many turns a ledger gives."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - optional

    figure = Figure(figsize=(8.6, 2.8))
    used, made = figure.subplots(1, 2, width_ratios=(1.3, 1))
    _draw_shares(used, result["shares"])
    made.set_title("turns a second, all processes together", loc="left")
    for row in result["turns"]:
        if row["home"] in COLOURS:
            counts = [int(number) for number in row["a_second"]]
            made.plot(counts, list(row["a_second"].values()), "o-", color=COLOURS[row["home"]], markersize=4)
            made.set_xticks(counts)
    made.set_ylim(bottom=0)
    made.set_xlabel("processes")
    foot = f"Real time; the sandbox counts strictly. {common.caption(result)}"
    figure.text(0.01, 0.02, foot, fontsize=6, color=common.GREY)
    figure.subplots_adjust(left=0.06, right=0.985, top=0.89, bottom=0.24, wspace=0.12)
    return figure


def _draw_shares(panel: "Axes", rows: Sequence[Mapping[str, Any]]) -> None:
    panel.set_title("percent of the limit used; the line: the bound", loc="left")
    scenes = list(dict.fromkeys((row["processes"], row["killed"]) for row in rows))
    measured = dict.fromkeys(row["home"] for row in rows)
    for offset, home in zip((-0.19, 0.19), measured, strict=False):
        mine = {(row["processes"], row["killed"]): row["used"] for row in rows if row["home"] == home}
        places = [place + offset for place in range(len(scenes))]
        bars = panel.bar(places, [mine[scene] for scene in scenes], width=0.34, color=COLOURS[home], label=home)
        panel.bar_label(bars, fmt="%.0f", label_type="center", color="white", fontsize=7)
    panel.axhline(rows[0]["bound"], color=common.GREY, linewidth=0.8)
    panel.set_xticks(
        range(len(scenes)), [f"{number}, {killed} killed" if killed else str(number) for number, killed in scenes]
    )
    panel.set_ylim(0, 125)
    panel.set_yticks(range(0, 101, 25))
    panel.set_xlabel("processes")
    panel.tick_params(axis="x", length=0)
    panel.legend(loc="upper right", ncols=2)


def main() -> None:
    """Read the arguments, and measure."""
    arguments = common.options(__doc__ or "", full="with --smoke: PostgreSQL too, as without it")
    size = SMOKE if arguments.smoke else FULL
    with contextlib.ExitStack() as stack:
        urls = stack.enter_context(homes(postgresql=arguments.full or not arguments.smoke))
        stages = [stack.enter_context(Stage(size.most)) for _ in urls]
        members = stages[0].members
        print(Turn.head(size.processes))
        turns = [in_memory(members, size)]
        print(turns[-1], flush=True)
        for home in urls:
            turns.append(on_database(members, home, urls, size))
            print(turns[-1], flush=True)
        print()
        print(Share.HEAD)
        with ThreadPoolExecutor() as pool:
            # All homes at once: they wait for the limit, nearly all the time.
            found = pool.map(lambda stage, home: shares(stage, urls, home, size), stages, urls)
            rows = [row for rows in found for row in rows]
        for row in rows:
            print(row)
    if arguments.out is not None:
        result = {
            "benchmark": "crowd",
            "machine": common.machine("sqlalchemy", "aiosqlite", "psycopg"),
            "calls": CALLS,
            "per": size.per,
            "turns": [asdict(row) for row in turns],
            "shares": [asdict(row) for row in rows],
        }
        common.save("crowd", arguments.out, result, draw)


if __name__ == "__main__":
    main()
