"""What the benchmarks share: their options, what they say of the machine, and where results and figures go."""

import argparse
import contextlib
import datetime as dt
import importlib.util
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from feishu_mail_async import RateLimit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BLUE", "GREY", "LIFTED", "RED", "caption", "machine", "options", "save"]

LIFTED: Final = RateLimit(calls=1_000_000, per=0.001, spacing=0, margin=0)
"""For what is measured without a limit."""

BLUE: Final = "#0072b2"
RED: Final = "#d55e00"
GREY: Final = "#6e7781"
"""Colours that also those can tell apart who do not see all of them."""

_STYLE: Final[Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e7ea",
    "grid.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "feishu-mail-async",  # the same numbers make the same file
}


def options(description: str, *, full: str | None = None) -> argparse.Namespace:
    """The options that every benchmark has.

    Args:
        description: of the benchmark.
        full: what `--full` adds, where there is such an option.

    Returns:
        smoke: whether only to see that it runs; out: the folder for results and figures, or None for none; full.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="small: does it still run?")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where results/ and figures/ go (otherwise beside this file; with --smoke nowhere)",
    )
    if full is not None:
        parser.add_argument("--full", action="store_true", help=full)
    arguments = parser.parse_args()
    if arguments.out is None and not arguments.smoke:
        arguments.out = Path(__file__).parent
    return arguments


def machine(*libraries: str) -> dict[str, Any]:
    """What a result depends on besides the code: processor, Python, the versions of these libraries, the day."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {library: version(library) for library in libraries},
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
    }


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def caption(result: Mapping[str, Any]) -> str:
    """A line for the foot of a figure that says where its numbers come from."""
    facts = result["machine"]
    versions = ", ".join(f"{library} {number}" for library, number in facts["versions"].items())
    return f"{facts['cpu']}, {facts['cores']} cores, Python {facts['python']}, {versions}; {facts['date']}"


def save(
    name: str, folder: Path, result: Mapping[str, Any], draw: Callable[[Mapping[str, Any]], "Figure"]
) -> None:
    """Write `results/NAME.json`, and `figures/NAME.svg` if matplotlib is installed.

    Args:
        name: the benchmark's.
        folder: where both folders are, or are made.
        result: what was measured; `machine` is among it.
        draw: makes the figure of it.
    """
    path = folder / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {path}")
    if importlib.util.find_spec("matplotlib") is None:
        print("no figure: matplotlib is not installed")
        return
    path = folder / "figures" / f"{name}.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    with _style():
        # Without the day of drawing the same numbers make the same file.
        draw(result).savefig(path, metadata={"Date": None})
    print(f"written: {path}")


@contextlib.contextmanager
def _style() -> Iterator[None]:
    import matplotlib as mpl  # noqa: PLC0415 - optional

    mpl.use("svg")
    with mpl.rc_context(_STYLE):
        yield
