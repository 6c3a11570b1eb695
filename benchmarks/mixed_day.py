"""A working day: 5,000 drafts of 12 users, urgent sends in between, and faults; our client and what is used today.

Each sender gets the same days, on the sandbox's judge and a clock that leaps (see wire.py), with a sliding window
of 20 calls in 60 s and 0.05-0.25 s there and back. The users' shares are as 1 : 1/2 : 1/3 : ..., in no order.
Urgent sends come at random, one in two minutes on average, while the drafts are under way. A twentieth of all
drafts meets a fault at its first call, and needs a second one: a server error, a gateway's page, a broken or lost
reply, a connection that breaks, a concurrent write, a throttled user.

    ours            the client with its defaults; urgent sends are INTERACTIVE
    ours, smooth    with `RateLimit.smooth()`
    ours, reserve   with `RateLimit(reserve=2)`: two of the 20 calls are kept for urgent sends
    plain           gather, tenacity and AsyncLimiter(20, 60), see plain.py; an urgent send is one more `send`
    batch, at once  the official command line's batch: the drafts of one user, one after another, 50 at most in one
                    go; it stops at a refusal for too many calls or a throttled user, and where no readable answer
                    came; other failures it reports and goes on. It repeats nothing: that is left to a person, who
                    starts it again with whatever was not sent, at once (a start takes a second), and who knows
                    that "sent already" is a success. An urgent send is the same command with one draft.
    batch, told     the same, and before the next start the person waits as long as the server asked

and the table says, as sums or means over the days,

    hours           until the last draft had its end
    over            percent above the least that the limit allows for the calls needed, which are one for each
                    draft and one more for each fault: floor((calls - 1) / 20) minutes
    lost            drafts that were not sent (a sum);  unsure: that were, though their sender was told otherwise
    calls           that arrived;  refused: by the window;  conflicts: of two calls of one user. Both are wasted.
    starts          of the batch by the person
    wait            from asking for an urgent send until it is sent: median and 99th percentile, all days together

    python benchmarks/mixed_day.py            # the table, about a minute
    python benchmarks/mixed_day.py --smoke    # some seconds: two hundred drafts, nothing is written
"""

import asyncio
import itertools
import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import common
from senders import Batch, Letter, Ours, PlainSender, Sender
from wire import CALLS, PER, Server, near, run_virtual

from feishu_mail_async import RateLimit
from feishu_mail_async.sandbox import Fault

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DRAFTS: Final = 5_000
DAYS: Final = 4
SMOKE_DRAFTS: Final = 200
USERS: Final = 12
FAULTY: Final = 0.05
URGENT_EVERY: Final = 120.0
"""Seconds from one urgent send to the next, on average."""

FAULTS: Final = (
    Fault.code("InternalError"),
    Fault.code("InternalError", accepted=True),
    Fault.gateway(accepted=True),
    Fault.broken(accepted=True),
    Fault.reset_before(),
    Fault.reset_after(),
    Fault.hang_after(),
    Fault.code("ConcurrentWrite"),
    Fault.code("MailThrottled"),
)


SENDERS: Final[dict[str, Callable[[Server, Mapping[str, str]], Sender]]] = {
    "ours": lambda server, tokens: Ours(server, tokens, RateLimit()),
    "ours, smooth": lambda server, tokens: Ours(server, tokens, RateLimit.smooth()),
    "ours, reserve": lambda server, tokens: Ours(server, tokens, RateLimit(reserve=2)),
    "plain": lambda server, _: PlainSender(server),
    "batch, at once": lambda server, _: Batch(server, obedient=False),
    "batch, told": lambda server, _: Batch(server, obedient=True),
}


# --- the day -------------------------------------------------------------------------------------------------


@dataclass
class Day:
    """What there is to send, the same for every sender.

    Attributes:
        server: where to.
        tokens: by user.
        bulk: the drafts that are there at the beginning.
        urgent: the others, and when they are asked for.
        calls: that are needed for all of them.
    """

    server: Server
    tokens: dict[str, str]
    bulk: list[Letter] = field(default_factory=list)
    urgent: list[tuple[float, Letter]] = field(default_factory=list)
    calls: int = 0

    @classmethod
    def make(cls, drafts: int, seed: int) -> "Day":
        """A day with so many drafts beside the urgent ones."""
        draw = random.Random(seed)
        server = Server(near, seed=seed)
        users = [f"user{number}" for number in range(USERS)]
        day = cls(server, {user: server.add_user(user) for user in users})
        shares = [1 / (place + 1) for place in range(USERS)]
        day.bulk = [day._letter(user, draw) for user in draw.choices(users, shares, k=drafts)]
        at = draw.expovariate(1 / URGENT_EVERY)
        while at < 0.95 * drafts / CALLS * PER:
            day.urgent.append((at, day._letter(draw.choice(users), draw)))
            at += draw.expovariate(1 / URGENT_EVERY)
        return day

    def _letter(self, user: str, draw: random.Random) -> Letter:
        letter = Letter(self.server.add_draft(user), user, self.tokens[user])
        self.calls += 1
        if draw.random() < FAULTY:
            self.server.script(letter.draft_id, draw.choice(FAULTS))
            self.calls += 1
        return letter

    @property
    def least(self) -> float:
        """Seconds that the limit allows for no less, however it is done."""
        return (self.calls - 1) // CALLS * PER


@dataclass(frozen=True)
class Course:
    """How a day went for a sender; seconds, and counts."""

    seconds: float
    least: float
    lost: int
    unsure: int
    calls: int
    refused: int
    conflicts: int
    starts: int
    waits: list[float]


async def _spend(who: str, drafts: int, seed: int) -> Course:
    day = Day.make(drafts, seed)
    sender = SENDERS[who](day.server, day.tokens)
    loop = asyncio.get_running_loop()

    async def urgently(at: float, letter: Letter) -> tuple[bool, float]:
        await asyncio.sleep(at)
        sent = await sender.send_urgent(letter)
        return sent, loop.time() - at

    urgent = [asyncio.create_task(urgently(*one)) for one in day.urgent]
    known = await sender.send_all(day.bulk)
    seconds = loop.time()
    ends = await asyncio.gather(*urgent)
    await sender.close()
    known += sum(sent for sent, _ in ends)
    ledger = day.server.ledger
    return Course(
        seconds,
        day.least,
        lost=len(day.bulk) + len(day.urgent) - len(ledger.sent),
        unsure=len(ledger.sent) - known,
        calls=len(ledger.sends),
        refused=ledger.refusals,
        conflicts=ledger.conflicts,
        starts=sender.starts,
        waits=[wait for sent, wait in ends if sent],
    )


def spend(work: tuple[str, int, int]) -> Course:
    """One day of one sender, the same way each time.

    Args:
        work: who sends, how many drafts, and the day's number.
    """
    random.seed(work[2])  # of tenacity's jitter, and of ours
    return run_virtual(_spend(*work))


# --- the table -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What the days of one sender come to; the module says what the columns mean."""

    sender: str
    hours: float
    least_hours: float
    over: float
    lost: int
    unsure: int
    calls: float
    refused: float
    conflicts: float
    starts: float
    urgent: int
    wait_median: float
    wait_99: float

    HEAD = (
        f"{'sender':<15} {'hours':>6} {'over':>8} {'lost':>5} {'unsure':>7} {'calls':>7} {'refused':>8} "
        f"{'conflicts':>10} {'starts':>7} {'wait, median':>13} {'99 %':>8}"
    )

    @classmethod
    def of(cls, sender: str, days: Sequence[Course]) -> "Row":
        seconds, least = (sum(getattr(day, name) for day in days) for name in ("seconds", "least"))
        waits = list(itertools.chain.from_iterable(day.waits for day in days))
        mean = {
            name: statistics.fmean(getattr(day, name) for day in days)
            for name in ("calls", "refused", "conflicts", "starts")
        }
        return cls(
            sender,
            hours=seconds / len(days) / 3600,
            least_hours=least / len(days) / 3600,
            over=100 * (seconds / least - 1),
            lost=sum(day.lost for day in days),
            unsure=sum(day.unsure for day in days),
            **mean,
            urgent=len(waits),
            wait_median=statistics.median(waits),
            wait_99=statistics.quantiles(waits, n=100, method="inclusive")[-1],
        )

    def __str__(self) -> str:
        return (
            f"{self.sender:<15} {self.hours:>6.2f} {self.over:>6.1f} % {self.lost:>5,} {self.unsure:>7,} "
            f"{self.calls:>7,.0f} {self.refused:>8,.0f} {self.conflicts:>10,.0f} {self.starts:>7,.0f} "
            f"{spoken(self.wait_median):>13} {spoken(self.wait_99):>8}"
        )


def spoken(seconds: float) -> str:
    """A time as one says it."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


# --- the figure, and the program -----------------------------------------------------------------------------


def draw(result: Mapping[str, Any]) -> "Figure":
    """How long each sender takes, what it wastes, and how long urgent sends wait."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - optional

    rows = result["rows"]
    figure = Figure(figsize=(8.6, 3.1))
    over, wasted, waits = figure.subplots(1, 3, sharey=True, width_ratios=(1, 1, 1.5))
    _draw_bars(over, "time above the least", [row["over"] for row in rows], "{:.1f} %")
    _draw_bars(wasted, "calls wasted a day", [row["refused"] + row["conflicts"] for row in rows], "{:,.0f}")
    _draw_waits(waits, rows)
    over.set_yticks(range(len(rows)), [row["sender"] for row in rows])
    over.set_ylim(len(rows) - 0.5, -0.5)
    urgent = rows[0]["urgent"] / result["days"]
    day = f"{result['drafts']:,} drafts of {USERS} users and {urgent:.0f} urgent ones a day"
    foot = f"{day}, {result['days']} days, on a virtual clock. {common.caption(result)}"
    figure.text(0.01, 0.02, foot, fontsize=6, color=common.GREY)
    figure.subplots_adjust(left=0.115, right=0.985, top=0.9, bottom=0.2, wspace=0.08)
    return figure


def _colours(count: int) -> list[str]:
    """One for each sender: ours come first."""
    mine = sum(sender.startswith("ours") for sender in SENDERS)
    return [common.BLUE if place < mine else common.RED for place in range(count)]


def _draw_bars(panel: "Axes", title: str, values: Sequence[float], label: str) -> None:
    panel.set_title(title, loc="left")
    bars = panel.barh(range(len(values)), values, height=0.5, color=_colours(len(values)))
    panel.bar_label(bars, [label.format(value) for value in values], padding=3, fontsize=7)
    panel.set_xlim(0, 1.4 * max(*values, 1))
    panel.xaxis.set_visible(False)
    panel.spines["bottom"].set_visible(False)
    panel.tick_params(length=0)


def _draw_waits(panel: "Axes", rows: Sequence[Mapping[str, Any]]) -> None:
    panel.set_title("wait of an urgent send: median to 99 %", loc="left")
    for place, (row, colour) in enumerate(zip(rows, _colours(len(rows)), strict=True)):
        median, most = row["wait_median"], row["wait_99"]
        panel.plot([median, most], [place, place], color=colour, linewidth=1.2)
        panel.plot(median, place, "o", color=colour, markersize=5)
        panel.plot(most, place, "|", color=colour, markersize=9, markeredgewidth=1.6)
    panel.set_xscale("log")
    panel.set_xlim(0.1, 36_000)
    marks = {0.1: "0.1 s", 1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3600: "1 h", 18_000: "5 h"}
    panel.set_xticks(list(marks), list(marks.values()))
    panel.set_xticks([], minor=True)
    panel.tick_params(length=0)


def days_of(pool: ProcessPoolExecutor, drafts: int, days: int) -> Iterable[Row]:
    """The rows of the table, each as soon as it is known."""
    work = [(sender, drafts, day) for sender in SENDERS for day in range(days)]
    courses = pool.map(spend, work)
    for sender in SENDERS:
        yield Row.of(sender, list(itertools.islice(courses, days)))


def main() -> None:
    """Read the arguments, and measure."""
    arguments = common.options(__doc__ or "")
    drafts, days = (SMOKE_DRAFTS, 1) if arguments.smoke else (DRAFTS, DAYS)
    rows: list[Row] = []
    print(Row.HEAD)
    with ProcessPoolExecutor() as pool:
        for row in days_of(pool, drafts, days):
            print(row, flush=True)
            rows.append(row)
    print(f"the least that the limit allows: {rows[0].least_hours:.2f} hours; {rows[0].urgent} urgent sends")
    if arguments.out is not None:
        result = {
            "benchmark": "mixed_day",
            "machine": common.machine("aiohttp", "aiolimiter", "tenacity"),
            "drafts": drafts,
            "days": days,
            "rows": [asdict(row) for row in rows],
        }
        common.save("mixed_day", arguments.out, result, draw)


if __name__ == "__main__":
    main()
