"""The section "Measured" of both READMEs: sentences, and the numbers that `make bench` has left for them."""

# ruff: noqa: E501, RUF001 - lines of tables are long, and Chinese sentences keep Chinese punctuation

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

__all__ = ["CHINESE", "ENGLISH", "RESULTS", "measured"]

RESULTS: Final = Path(__file__).parents[1] / "benchmarks" / "results"

ENGLISH: Final = """\
Measured on {day} with `make bench`, which does it anew, on {cpu} with {cores} cores and Python {python}. Each
program says at its top what it does, and beside what is here it has the rest.

**The limit**, [limit.py](benchmarks/limit.py): {limit_drafts} drafts at once, on the sandbox's judge and a clock that leaps, for
{limit_cells} kinds of servers and ways to them (windows that are fixed, sliding, or a token bucket; up to 2 s each way, and stragglers).

| | refused, at most | most calls in 60 s | of the limit used | drafts lost, at most |
|---|---|---|---|---|
| this client | {ours_refused} | {ours_busiest} | {ours_used} % | {ours_lost} |
| this client, `RateLimit.smooth()` | {smooth_refused} | {smooth_busiest} | {smooth_used} % | {smooth_lost} |
| `AsyncLimiter(20, 60)` with tenacity | {plain_refused} | {plain_busiest} | {plain_used} % | {plain_lost} |
| `AsyncLimiter(1, 3)` alone | {steady_refused} | {steady_busiest} | {steady_used} % | {steady_lost} |
| pyrate-limiter alone | {pyrate_refused} | {pyrate_busiest} | {pyrate_used} % | {pyrate_lost} |

![Percent of the limit that each way uses, and whether calls were refused](benchmarks/figures/limit.svg)

**A working day**, [mixed_day.py](benchmarks/mixed_day.py): {day_drafts} drafts of 12 users, faults in 5 % of them, and an urgent send every two
minutes. This client needs {day_over} % more time than the least that the limit allows, and wastes {day_wasted} calls; an urgent send waits
{day_wait} s at the median, {day_wait_99} s at the 99th percentile, and {reserve_wait} s and {reserve_wait_99} s with `reserve=2`, which makes the day
{reserve_over} % longer than the least. With `AsyncLimiter(20, 60)` and tenacity an urgent send waits {day_plain_wait} minutes at the median.

![What the day costs each way, and how long urgent sends wait](benchmarks/figures/mixed_day.svg)

**A call**, [cost.py](benchmarks/cost.py): to a server on loopback, in times of a plain call with aiohttp ({cost_plain_us} µs by the clock).

| | one by one | 50 at once | longest stall of the loop, 50 at once |
|---|---|---|---|
| this client | {cost_ours} | {cost_ours_50} | {cost_ours_stall} ms |
| httpx, one client | {cost_httpx} | {cost_httpx_50} | {cost_httpx_stall} ms |
| lark-oapi {lark}, `asend` | {cost_lark} | {cost_lark_50} | {cost_lark_stall} ms |
| aiohttp | 1 | 1 | {cost_plain_stall} ms |

The target for this client was {cost_target} one by one: {cost_met}. By processor time, without the server's, it takes
{cost_ours_cpu} times. What comes on top of the call is the choice of whose turn it is, the task that finishes a call whose
caller has gone, and judging the answer, in many small steps of which none stands out. All of them kept their connections
then. Since that day this client has a new one for each call, which on loopback takes about as long as the call itself.

![Times a plain call, and the longest stall of the loop](benchmarks/figures/cost.svg)

**Many drafts, and the package**, [scale.py](benchmarks/scale.py):

- Streaming takes {scale_few_us} µs of processor time a draft for {scale_few} drafts, and {scale_most_us} µs for {scale_most} (on {scale_most_day}); the peak of the memory grows
  by {scale_few_mb} MB and {scale_most_mb} MB.
- From {scale_few} to {scale_many} drafts that is {scale_times} times the time per draft (target: {scale_times_target}, {scale_times_met}) and {scale_grown} MB
  more (target: {scale_grown_target}, {scale_grown_met}). About half of the time that is more is the garbage collector's, which walks the drafts
  that have been read ahead.
- Importing takes {import_ours} ms, lark-oapi {import_lark} ms; installed with all they need they have {size_ours} MB and {size_lark} MB.

**A shared ledger**, [crowd.py](benchmarks/crowd.py), in real time, with {crowd_calls} calls in {crowd_per} s, so that what a turn costs shows {crowd_shorter} times
as much as with the real limit:

- 1 to {crowd_most} processes use {crowd_sqlite} % of the limit on SQLite and {crowd_postgres} % on PostgreSQL, of the {crowd_bound} % that can be; with one of
  {crowd_killed} killed and replaced in the midst of it, {killed_sqlite} % and {killed_postgres} %. Refused: {crowd_refused}. Lost: {crowd_lost}. Sent twice: {crowd_twice}.
- A turn costs {turn_memory} ms in memory, {turn_sqlite} ms on SQLite and {turn_postgres} ms on PostgreSQL, which write durably. {crowd_most} processes together take
  {rate_sqlite} a second on SQLite and {rate_postgres} on PostgreSQL; the limit needs 0.33.
"""

CHINESE: Final = """\
以下数据于 {day} 由 `make bench` 测得（该命令会重新测量一遍），机器为 {cpu}，{cores} 核，Python {python}。每个程序的做法写在其
开头，其输出也比这里更全。

**限流**，[limit.py](benchmarks/limit.py)：一次提交 {limit_drafts} 个草稿，由沙箱判定，时钟为虚拟时钟，共
{limit_cells} 种服务器与网络（固定窗口、滑动窗口、令牌桶；单程最长 2 秒，以及个别极慢的请求）。

| | 被拒，最多 | 60 秒内最多调用 | 限额利用率 | 丢失草稿，最多 |
|---|---|---|---|---|
| 本客户端 | {ours_refused} | {ours_busiest} | {ours_used} % | {ours_lost} |
| 本客户端，`RateLimit.smooth()` | {smooth_refused} | {smooth_busiest} | {smooth_used} % | {smooth_lost} |
| `AsyncLimiter(20, 60)` 加 tenacity | {plain_refused} | {plain_busiest} | {plain_used} % | {plain_lost} |
| 仅 `AsyncLimiter(1, 3)` | {steady_refused} | {steady_busiest} | {steady_used} % | {steady_lost} |
| 仅 pyrate-limiter | {pyrate_refused} | {pyrate_busiest} | {pyrate_used} % | {pyrate_lost} |

![各种做法的限额利用率，以及是否有调用被拒](benchmarks/figures/limit.svg)

**一个工作日**，[mixed_day.py](benchmarks/mixed_day.py)：12 个用户的 {day_drafts} 个草稿，5 % 遇到故障，平均每两分钟有一次紧急发送。
本客户端比限额允许的最短时间多用 {day_over} %，浪费 {day_wasted} 次调用；紧急发送等待的中位数为 {day_wait} 秒，第 99 百分位为 {day_wait_99} 秒；
用 `reserve=2` 则为 {reserve_wait} 秒和 {reserve_wait_99} 秒，全天比最短时间多 {reserve_over} %。用 `AsyncLimiter(20, 60)` 加 tenacity，
紧急发送等待的中位数为 {day_plain_wait} 分钟。

![各种做法的代价，以及紧急发送的等待时间](benchmarks/figures/mixed_day.svg)

**一次调用**，[cost.py](benchmarks/cost.py)：调用本机服务器，以直接用 aiohttp 调用一次（{cost_plain_us} 微秒）为单位。

| | 逐个 | 50 个并发 | 事件循环最长停顿，50 个并发 |
|---|---|---|---|
| 本客户端 | {cost_ours} | {cost_ours_50} | {cost_ours_stall} ms |
| httpx，共用一个客户端 | {cost_httpx} | {cost_httpx_50} | {cost_httpx_stall} ms |
| lark-oapi {lark}，`asend` | {cost_lark} | {cost_lark_50} | {cost_lark_stall} ms |
| aiohttp | 1 | 1 | {cost_plain_stall} ms |

本客户端逐个调用的目标是 {cost_target}：{cost_met}。只计处理器时间（不含服务器）为 {cost_ours_cpu} 倍。调用之外的开销在于：决定轮到谁、由独立的任务完成调用者已离开的调用，以及判定应答；都是许多小步骤，没有哪一步特别突出。测量时各方都保持连接；此后本客户端的每次调用都新建一个连接，在本机上约相当于多花一次调用的时间。

![相当于几次直接调用，以及事件循环的最长停顿](benchmarks/figures/cost.svg)

**大量草稿与安装包**，[scale.py](benchmarks/scale.py)：

- {scale_few} 个草稿时每个用 {scale_few_us} 微秒处理器时间，{scale_most} 个时（{scale_most_day}）为 {scale_most_us} 微秒；内存峰值分别增加
  {scale_few_mb} MB 和 {scale_most_mb} MB。
- 从 {scale_few} 个到 {scale_many} 个，每个草稿的用时为 {scale_times} 倍（目标：{scale_times_target}，{scale_times_met}），内存多用 {scale_grown} MB
  （目标：{scale_grown_target}，{scale_grown_met}）。多出的时间约一半花在垃圾回收上：它要反复遍历已预读的草稿。
- 导入用 {import_ours} 毫秒，lark-oapi 用 {import_lark} 毫秒；连同依赖安装后分别为 {size_ours} MB 和 {size_lark} MB。

**共用台账**，[crowd.py](benchmarks/crowd.py)，真实时间，{crowd_per} 秒内 {crowd_calls} 次调用，取得许可的开销因此放大为真实限额下的 {crowd_shorter} 倍：

- 1 至 {crowd_most} 个进程在 SQLite 上用到限额的 {crowd_sqlite} %，在 PostgreSQL 上用到 {crowd_postgres} %，上限为 {crowd_bound} %；
  {crowd_killed} 个进程中途有一个被强行终止并换上新的，则为 {killed_sqlite} % 和 {killed_postgres} %。被拒：{crowd_refused}。丢失：{crowd_lost}。重复发送：{crowd_twice}。
- 一次调用许可在内存中花 {turn_memory} 毫秒，在 SQLite 上 {turn_sqlite} 毫秒，在 PostgreSQL 上 {turn_postgres} 毫秒（后两者持久写入）。{crowd_most} 个进程合计每秒可取
  {rate_sqlite} 次（SQLite）和 {rate_postgres} 次（PostgreSQL）；限额只需 0.33 次。
"""

_MET: Final = {ENGLISH: ("met", "missed by {}"), CHINESE: ("已达到", "未达到，超出 {}")}

Row = dict[str, Any]


def measured(text: str, folder: Path = RESULTS) -> str:
    """The section in one language.

    Args:
        text: ENGLISH or CHINESE.
        folder: where the results are.

    Raises:
        ValueError: they are not all of one machine.
    """
    results = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in _READERS}
    facts = _machine([result["machine"] for result in results.values()])
    for name, read in _READERS.items():
        facts |= read(results[name])
    for name, value in facts.items():
        if name.endswith("_met"):
            met, missed = _MET[text]
            facts[name] = missed.format(value) if value else met
    return text.format_map(facts)


def _range(values: Iterable[float], digits: int = 0) -> str:
    """From the least to the greatest, or the one that they are."""
    found = sorted(values)
    low, high = (f"{value:.{digits}f}" for value in (found[0], found[-1]))
    return low if low == high else f"{low}–{high}"


def _machine(machines: list[Row]) -> dict[str, str]:
    days = sorted({machine["date"] for machine in machines})
    facts = {"day": "–".join(dict.fromkeys((days[0], days[-1])))}
    for what in ("cpu", "cores", "python"):
        found = {str(machine[what]) for machine in machines}
        if len(found) > 1:
            raise ValueError(f"the results are of more than one machine ({', '.join(sorted(found))}): make bench")
        (facts[what],) = found
    return facts


def _limit(result: Row) -> dict[str, str]:
    facts = {"limit_drafts": f"{result['drafts']:,}"}
    for name, policy in {
        "ours": "ours",
        "smooth": "ours, smooth",
        "plain": "plain",
        "steady": "AsyncLimiter(1, 3)",
        "pyrate": "pyrate-limiter",
    }.items():
        rows = [row for row in result["rows"] if row["policy"] == policy]
        facts["limit_cells"] = str(len(rows))
        facts[f"{name}_used"] = _range((row["used"] for row in rows), 1)
        for what in ("refused", "busiest", "lost"):
            facts[f"{name}_{what}"] = f"{max(row[what] for row in rows):,}"
    return facts


def _mixed_day(result: Row) -> dict[str, str]:
    rows = {row["sender"]: row for row in result["rows"]}
    ours, reserve = rows["ours"], rows["ours, reserve"]
    return {
        "day_drafts": f"{result['drafts']:,}",
        "day_over": f"{ours['over']:.1f}",
        "day_wasted": f"{ours['refused'] + ours['conflicts']:,.0f}",
        "day_wait": f"{ours['wait_median']:.1f}",
        "day_wait_99": f"{ours['wait_99']:.1f}",
        "reserve_over": f"{reserve['over']:.1f}",
        "reserve_wait": f"{reserve['wait_median']:.1f}",
        "reserve_wait_99": f"{reserve['wait_99']:.1f}",
        "day_plain_wait": f"{rows['plain']['wait_median'] / 60:.0f}",
    }


def _cost(result: Row) -> dict[str, str]:
    target = result["target"]
    facts = {
        "lark": result["machine"]["versions"]["lark-oapi"],
        "cost_target": f"{target['target']}",
        "cost_met": _excess(target["times"], target["target"]),
    }
    rows = {(row["contestant"], row["at_once"]): row for row in result["rows"]}
    for name, contestant in {"plain": "aiohttp", "ours": "ours", "httpx": "httpx", "lark": "lark-oapi"}.items():
        alone, crowd = rows[contestant, 1], rows[contestant, 50]
        facts |= {
            f"cost_{name}": _times(alone["wall_ratio"]),
            f"cost_{name}_50": _times(crowd["wall_ratio"]),
            f"cost_{name}_cpu": _times(alone["cpu_ratio"]),
            f"cost_{name}_us": f"{alone['wall_us']:.0f}",
            f"cost_{name}_stall": f"{crowd['stall_ms']:,.0f}",
        }
    return facts


def _times(ratio: Row) -> str:
    """A ratio with three digits or so."""
    median: float = ratio["median"]
    return f"{median:.0f}" if median >= 20 else f"{median:.2f}"


def _excess(value: float, target: float) -> str:
    """By how much a target is missed; nothing if it is met."""
    return f"{value - target:.2f}" if value > target else ""


def _scale(result: Row) -> dict[str, str]:
    rows = {row["drafts"]: row for row in result["rows"]}
    targets = result["targets"]
    grown, times = targets["megabytes"], targets["microseconds"]
    few, many, most = targets["few"], targets["many"], max(rows)
    ours, lark = result["packages"]
    return {
        "scale_few": f"{few:,}",
        "scale_few_us": f"{rows[few]['microseconds']:.0f}",
        "scale_few_mb": f"{rows[few]['megabytes']:.1f}",
        "scale_many": f"{many:,}",
        "scale_most": f"{most:,}",
        "scale_most_day": rows[most]["date"],
        "scale_most_us": f"{rows[most]['microseconds']:.0f}",
        "scale_most_mb": f"{rows[most]['megabytes']:.1f}",
        "scale_times": f"{times['times']:.2f}",
        "scale_times_target": f"{times['target']:g}",
        "scale_times_met": _excess(times["times"], times["target"]),
        "scale_grown": f"{grown['grown']:.1f}",
        "scale_grown_target": f"{grown['target']:g}",
        "scale_grown_met": _excess(grown["grown"], grown["target"]),
        "import_ours": f"{ours['import_ms']:,.0f}",
        "import_lark": f"{lark['import_ms']:,.0f}",
        "size_ours": f"{ours['megabytes']:.1f}",
        "size_lark": f"{lark['megabytes']:.1f}",
    }


def _crowd(result: Row) -> dict[str, str]:
    shares = result["shares"]
    (killed,) = {row["processes"] for row in shares if row["killed"]}
    facts = {
        "crowd_most": str(max(row["processes"] for row in shares)),
        "crowd_killed": str(killed),
        "crowd_calls": str(result["calls"]),
        "crowd_per": f"{result['per']:g}",
        "crowd_shorter": f"{60 / result['per']:g}",
        "crowd_bound": f"{shares[0]['bound']:.0f}",
    }
    for what in ("refused", "lost", "twice"):
        facts[f"crowd_{what}"] = str(sum(row[what] for row in shares))
    turns = {row["home"]: row for row in result["turns"]}
    facts["turn_memory"] = f"{turns['memory']['median_ms']:.3f}"
    for name, home in {"sqlite": "SQLite", "postgres": "PostgreSQL"}.items():
        mine = [row for row in shares if row["home"] == home]
        facts |= {
            f"crowd_{name}": _range(row["used"] for row in mine if not row["killed"]),
            f"killed_{name}": _range(row["used"] for row in mine if row["killed"]),
            f"turn_{name}": f"{turns[home]['median_ms']:.1f}",
            f"rate_{name}": f"{turns[home]['a_second'][facts['crowd_most']]:,.0f}",
        }
    return facts


_READERS: Final[dict[str, Callable[[Row], dict[str, str]]]] = {
    "limit": _limit,
    "mixed_day": _mixed_day,
    "cost": _cost,
    "scale": _scale,
    "crowd": _crowd,
}
