"""How well the limit of 20 calls a minute is kept, and how much of it is used: our client and six other ways.

Each cell of the table sends 10,000 drafts, all given at once and each of a user of its own (so that the server's
locks play no part), to the sandbox's judge on a clock that leaps (see wire.py). It differs in

    who sends   ours: the client with its defaults; ours, smooth: with `RateLimit.smooth()`; ours, 12 s: with
                `attempt_timeout=12`, so that the slowest stragglers are given up and arrive within the `grace`
                of 10 s (this one among stragglers only; elsewhere nothing takes 12 s)
                plain: gather, tenacity and AsyncLimiter(20, 60), see plain.py
                limiters alone, with `gather`; what is refused is not tried again, and lost: aiolimiter's
                AsyncLimiter(20, 60) and (1, 3), a window of 20 in 60 s counted from each dispatch, and
                pyrate-limiter's Rate(20, Duration.MINUTE) on the loop's clock
    server      its window: fixed, sliding, sliding with refusals counted too, token bucket
    ways        near: a round trip of 0.05-0.25 s; far: 0-2 s each way; stragglers: near, but 2 % of the calls take
                up to 20 s to the server

and says

    calls       that arrived
    refused     calls that the server's window refused
    busiest     most calls, refused or not, that arrived within any 60 s
    used        how much of the limit: 60 s in percent of the mean cycle, which is the time from the arrival of an
                accepted call to that of the 20th accepted after it. A client that makes 20 calls at once each
                minute and one that makes a call every 3 s both come to 100 %.
    bound       what "used" cannot exceed while a permit comes back `per + margin` seconds after its call has
                ended: per / (per + margin + round trip), with the mean round trip of these very calls. A call
                that was given up ends `grace` after that. For ours alone: the others do not wait for answers.
    lost        drafts that were not sent

    python benchmarks/limit.py            # the table, some minutes; targets: 0 refused, 0.3 % below the bound
    python benchmarks/limit.py --smoke    # some seconds: a hundred drafts a cell, nothing is written
"""

import asyncio
import gc
import itertools
import random
import statistics
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import common
from aiolimiter import AsyncLimiter
from plain import Plain
from pyrate_limiter import Duration, InMemoryBucket, Limiter, Rate, SingleBucketFactory
from wire import CALLS, PER, Server, Ways, near, ours, run_virtual

from feishu_mail_async import Draft, RateLimit
from feishu_mail_async.sandbox import Window

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DRAFTS: Final = 10_000
SMOKE_DRAFTS: Final = 100

MOST_BELOW: Final = 0.3
MOST_BELOW_SMOOTH: Final = 1.5
"""Percent that ours may stay below the bound."""

PATIENT: Final = 30.0
"""Seconds after which our client gives a call up, if nobody changes it."""

IMPATIENT: Final = 12.0
"""Seconds after which a call is given up so that the slowest stragglers come later, and within `grace`."""


# --- who sends -----------------------------------------------------------------------------------------------


class Post(NamedTuple):
    """A draft to be sent, and whose it is."""

    draft_id: str
    user: str
    token: str


Policy = Callable[[Server, Sequence[Post]], Awaitable[None]]


def client(rate_limit: RateLimit, attempt_timeout: float = PATIENT) -> Policy:
    """Our client, over a run of all the drafts."""

    async def send(server: Server, posts: Sequence[Post]) -> None:
        tokens = {post.user: post.token for post in posts}
        drafts = [Draft(post.draft_id, user=post.user) for post in posts]
        mail = ours(server, tokens, rate_limit=rate_limit, attempt_timeout=attempt_timeout)
        async with mail, mail.send_drafts(drafts) as run:
            async for _ in run:
                pass

    return send


async def plain(server: Server, posts: Sequence[Post]) -> None:
    """Gather, tenacity and AsyncLimiter."""
    sender = Plain(server)
    sends = (sender.send(post.draft_id, post.token) for post in posts)
    await asyncio.gather(*sends, return_exceptions=True)


def limiter(make: Callable[[], Callable[[], Awaitable[object]]]) -> Policy:
    """A limiter alone: `make` returns what each call awaits before it sets out."""

    async def send_all(server: Server, posts: Sequence[Post]) -> None:
        acquire = make()

        async def send(post: Post) -> None:
            await acquire()
            await server.send(post.draft_id, post.token)

        await asyncio.gather(*map(send, posts))

    return send_all


class FromDispatch:
    """At most 20 dispatches within any 60 s: a window that is counted from where the client stands."""

    def __init__(self) -> None:
        self._made: deque[float] = deque(maxlen=CALLS)
        self._turn = asyncio.Lock()

    async def acquire(self) -> None:
        """Wait until one more call may be dispatched."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            if len(self._made) == CALLS:
                await asyncio.sleep(self._made[0] + PER - loop.time())
            self._made.append(loop.time())


class LoopBucket(InMemoryBucket):
    """pyrate-limiter's own bucket, on the running loop's clock."""

    def now(self) -> int:
        return int(asyncio.get_running_loop().time() * 1000)


def pyrate() -> Callable[[], Awaitable[object]]:
    # Its thread that forgets old calls is left out: it would look at the clock from outside the loop.
    bucket = LoopBucket([Rate(CALLS, Duration.MINUTE)])
    return Limiter(SingleBucketFactory(bucket, schedule_leak=False)).try_acquire_async


OURS: Final = "ours"
SMOOTH: Final = "ours, smooth"
HASTY: Final = f"ours, {IMPATIENT:g} s"
POLICIES: Final[dict[str, Policy]] = {
    OURS: client(RateLimit()),
    SMOOTH: client(RateLimit.smooth()),
    HASTY: client(RateLimit(), IMPATIENT),
    "plain": plain,
    "AsyncLimiter(20, 60)": limiter(lambda: AsyncLimiter(CALLS, PER).acquire),
    "AsyncLimiter(1, 3)": limiter(lambda: AsyncLimiter(1, PER / CALLS).acquire),
    "from dispatch": limiter(lambda: FromDispatch().acquire),
    "pyrate-limiter": limiter(pyrate),
}


# --- the servers, and the ways there -------------------------------------------------------------------------

SERVERS: Final[dict[str, tuple[Window, bool]]] = {
    "fixed window": (Window.FIXED, False),
    "sliding window": (Window.SLIDING, False),
    "sliding, refusals count": (Window.SLIDING, True),
    "token bucket": (Window.TOKEN_BUCKET, False),
}
"""How the window is laid, and whether refusals fill it too."""


def far(draw: random.Random) -> tuple[float, float]:
    """0 to 2 s each way."""
    return draw.uniform(0, 2), draw.uniform(0, 2)


def stragglers(draw: random.Random) -> tuple[float, float]:
    """As near, but every fiftieth call takes up to 20 s to the server."""
    there, back = near(draw)
    return (draw.uniform(0.125, 20), back) if draw.random() < 0.02 else (there, back)


WAYS: Final[dict[str, Ways]] = {"near": near, "far": far, "stragglers": stragglers}


# --- the measure ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One run; its parts are names in the tables above."""

    ways: str
    policy: str
    server: str
    drafts: int


@dataclass(frozen=True)
class Row:
    """What one run came to; the module says what the columns mean. Hours are of the virtual clock."""

    ways: str
    policy: str
    server: str
    calls: int
    refused: int
    busiest: int
    used: float
    bound: float | None
    lost: int
    hours: float

    HEAD = (
        f"{'ways':<11} {'who sends':<21} {'server':<23} {'calls':>7} {'refused':>8} {'busiest':>8}"
        f"{'used':>9} {'bound':>8} {'lost':>6}"
    )

    def __str__(self) -> str:
        bound = "" if self.bound is None else f"{self.bound:.2f} %"
        return (
            f"{self.ways:<11} {self.policy:<21} {self.server:<23} {self.calls:>7,} {self.refused:>8,} "
            f"{self.busiest:>8}{self.used:>7.2f} % {bound:>8} {self.lost:>6,}"
        )


def bound(policy: str, round_trips: Iterable[float]) -> float | None:
    """What "used" cannot exceed, in percent; None for what is not ours."""
    if policy not in {OURS, SMOOTH, HASTY}:
        return None
    limit = RateLimit()
    given_up = IMPATIENT if policy == HASTY else PATIENT
    held = [took if took < given_up else given_up + limit.grace for took in round_trips]
    return 100 * PER / (PER + limit.margin + statistics.fmean(held))


async def _run(cell: Cell) -> Row:
    window, count_refusals = SERVERS[cell.server]
    seed = list(WAYS).index(cell.ways)
    server = Server(WAYS[cell.ways], window=window, count_refusals=count_refusals, seed=seed)
    users = [f"user{number}" for number in range(cell.drafts)]
    posts = [Post(server.add_draft(user), user, token) for user in users for token in [server.add_user(user)]]
    await POLICIES[cell.policy](server, posts)
    ledger = server.ledger
    accepted = [call.time for call in ledger.sends if call.accepted]
    return Row(
        cell.ways,
        cell.policy,
        cell.server,
        calls=len(ledger.sends),
        refused=ledger.refusals,
        busiest=ledger.busiest_window(accepted_only=False),
        used=100
        * PER
        / statistics.fmean(later - time for time, later in zip(accepted, accepted[CALLS:], strict=False)),
        bound=bound(cell.policy, server.round_trips),
        lost=cell.drafts - len(ledger.sent),
        hours=asyncio.get_running_loop().time() / 3600,
    )


def run(cell: Cell) -> Row:
    """Run one cell, the same way each time."""
    random.seed(1)  # of tenacity's jitter, and of ours
    gc.set_threshold(100_000)  # ten thousand tasks that wait are no rubbish to be sorted again and again
    return run_virtual(_run(cell))


def cells(drafts: int) -> list[Cell]:
    """All cells of the table."""
    every = itertools.product(WAYS, POLICIES, SERVERS)
    return [
        Cell(ways, policy, server, drafts)
        for ways, policy, server in every
        if policy != HASTY or ways == "stragglers"
    ]


def verdicts(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """What came of the targets: of each of ours, the refusals and the most percent below the bound."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row.bound is None:
            continue
        target = MOST_BELOW_SMOOTH if row.policy == SMOOTH else MOST_BELOW
        worst = found.setdefault(row.policy, {"refused": 0, "below": 0.0, "target": target})
        worst["refused"] += row.refused
        worst["below"] = max(worst["below"], row.bound - row.used)
    for worst in found.values():
        worst["met"] = worst["refused"] == 0 and worst["below"] <= worst["target"]
    return found


# --- the figure, and the program -----------------------------------------------------------------------------

MARKERS: Final = dict(zip(SERVERS, "so^v", strict=True))
TITLES: Final = {
    "near": "0.05-0.25 s there and back",
    "far": "0-2 s each way",
    "stragglers": "2 % take up to 20 s",
}


def draw(result: Mapping[str, Any]) -> "Figure":
    """How much of the limit each policy uses, and whether calls were refused for it."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - optional

    figure = Figure(figsize=(8.6, 4.3))
    panels = figure.subplots(1, len(WAYS), sharey=True)
    for panel, ways in zip(panels, WAYS, strict=True):
        _draw_panel(panel, ways, [row for row in result["rows"] if row["ways"] == ways])
    panels[0].set_yticks(range(len(POLICIES)), list(POLICIES))
    panels[0].set_ylim(len(POLICIES) - 0.5, -0.5)
    panels[1].set_xlabel("percent of the limit used")
    _draw_legend(figure)
    dots = f"{result['drafts']:,} drafts a dot, on a virtual clock; refused: by the server that refuses most."
    foot = f"{dots} {common.caption(result)}"
    figure.text(0.01, 0.015, foot, fontsize=6, color=common.GREY)
    figure.subplots_adjust(left=0.165, right=0.985, top=0.93, bottom=0.235, wspace=0.06)
    return figure


def _draw_panel(panel: "Axes", ways: str, rows: list[dict[str, Any]]) -> None:
    panel.set_title(TITLES[ways], loc="left")
    panel.set_xlim(42, 122)
    panel.set_xticks(range(50, 101, 10))
    panel.axvline(100, color=common.GREY, linewidth=0.8)
    panel.tick_params(length=0)
    for place, policy in enumerate(POLICIES):
        mine = [row for row in rows if row["policy"] == policy]
        for row in mine:
            panel.plot(
                row["used"],
                place + 0.16 * (list(SERVERS).index(row["server"]) - 1.5),
                MARKERS[row["server"]],
                markersize=4,
                color=common.RED if row["refused"] else common.BLUE,
            )
        if mine:
            most = max(row["refused"] for row in mine)
            colour = common.RED if most else common.BLUE
            panel.text(121, place, f"{most:,}", ha="right", va="center", color=colour, fontsize=7)
    panel.text(121, -0.62, "refused", ha="right", va="bottom", color=common.GREY, fontsize=6.5)


def _draw_legend(figure: "Figure") -> None:
    from matplotlib.lines import Line2D  # noqa: PLC0415 - optional

    def dot(marker: str, colour: str, label: str) -> Line2D:
        return Line2D([], [], linestyle="", marker=marker, markersize=4, color=colour, label=label)

    dots = [dot(marker, common.GREY, server) for server, marker in MARKERS.items()]
    dots += [dot("o", common.BLUE, "no call refused"), dot("o", common.RED, "calls refused")]
    figure.legend(handles=dots, loc="lower center", bbox_to_anchor=(0.5, 0.045), ncols=6, columnspacing=1.2)


def main() -> None:
    """Read the arguments, and measure."""
    arguments = common.options(__doc__ or "")
    drafts = SMOKE_DRAFTS if arguments.smoke else DRAFTS
    rows: list[Row] = []
    print(Row.HEAD)
    with ProcessPoolExecutor() as pool:
        for row in pool.map(run, cells(drafts)):
            print(row, flush=True)
            rows.append(row)
    found = verdicts(rows)
    for policy, verdict in found.items():
        print(verdict_line(policy, verdict))
    if arguments.out is not None:
        libraries = ("aiohttp", "aiolimiter", "tenacity", "pyrate-limiter")
        result = {
            "benchmark": "limit",
            "machine": common.machine(*libraries),
            "drafts": drafts,
            "targets": found,
            "rows": [asdict(row) for row in rows],
        }
        common.save("limit", arguments.out, result, draw)


def verdict_line(policy: str, verdict: Mapping[str, Any]) -> str:
    """What came of a policy's targets, as a sentence."""
    return (
        f"{policy}: {verdict['refused']} refused (target: 0), at most {verdict['below']:.2f} % below the bound "
        f"(target: {verdict['target']} %)"
    )


if __name__ == "__main__":
    main()
