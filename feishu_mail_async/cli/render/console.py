"""The output of a run of drafts: on a terminal with a live line, elsewhere as plain lines."""

import json
import sys
import textwrap
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from feishu_mail_async.cli.logs import Verbose
from feishu_mail_async.model import OutcomeStatus
from feishu_mail_async.outcomes import Outcome

from .waiting import Wait
from .wording import as_json, detail, name_draft, name_status

__all__ = ["STYLES", "Screen", "console", "living_place", "print_hanging", "print_outcome", "print_rows"]

STYLES: Final = {
    OutcomeStatus.SENT: "green",
    OutcomeStatus.ALREADY_SENT: "green",
    OutcomeStatus.FAILED: "red",
    OutcomeStatus.UNKNOWN: "yellow",
    OutcomeStatus.SKIPPED: "yellow",
}

_STATUS_WIDTH: Final = max(len(name_status(status)) for status in OutcomeStatus) + 2
_NOTED: Final = frozenset({"limit", "pause", "unreachable", "cooling"})
_LONG: Final = 1.0


def console(*, stderr: bool = False) -> Console:
    """Make a console that prints text as it is, without markup or highlighting, and wraps only on a terminal.

    Args:
        stderr: True for standard error, False for standard output.
    """
    place = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    place.soft_wrap = not place.is_terminal
    return place


def living_place(*places: Console) -> Console | None:
    """Return the first console on which a live line disturbs no other output; None if there is none.

    Args:
        *places: the consoles, standard output first.
    """
    for place in places:
        # If standard output goes to the same terminal, a live line on standard error would get mixed into it.
        mixed = place is not places[0] and places[0].is_terminal
        if place.is_terminal and not place.is_dumb_terminal and not mixed:
            return place
    return None


def print_outcome(place: Console, outcome: Outcome, id_width: int, told: str | None = None) -> None:
    """Print the outcome of a draft.

    Args:
        place: the console.
        outcome: the outcome.
        id_width: the width of the drafts' column, in characters.
        told: the text beside it; None for all details.
    """
    status, draft = name_status(outcome.status), name_draft(outcome.draft)
    head = Text(status.ljust(_STATUS_WIDTH), style=STYLES[outcome.status])
    head.append(draft.ljust(id_width), style="default")
    print_hanging(place, head, detail(outcome) if told is None else told)


def print_hanging(place: Console, head: Text, told: str) -> None:
    """Print a head and a text beside it, or on a terminal below it if there is no room.

    Args:
        place: the console.
        head: the head.
        told: the text; may be empty.
    """
    width = head.cell_len + 2 + len(told)
    if not place.is_terminal or width <= place.width:
        place.print(head + Text(f"  {told}" if told else ""), soft_wrap=True)
    else:
        place.print(head, soft_wrap=True)
        place.print(Padding(Text(told), (0, 0, 0, _STATUS_WIDTH)))
    place.file.flush()


class Screen:
    """The output of a run: outcomes as they arrive, and the reason why the other drafts wait.

    Args:
        total: the number of drafts, for a progress bar; None for no bar.
        as_json: print outcomes on standard output as JSON, one a line, and nothing else there.
        verbose: the switch of verbose output; if on, tracebacks are printed.
        shows: a function that returns whether to print an outcome; all are printed if not given.
        id_width: the width of the drafts' column, in characters.

    Attributes:
        out: standard output.
        err: standard error.
    """

    def __init__(
        self,
        *,
        total: int | None = None,
        as_json: bool = False,
        verbose: Verbose,
        shows: Callable[[Outcome], bool] = lambda _: True,
        id_width: int = 0,
    ) -> None:
        self.out = console()
        self.err = console(stderr=True)
        self._json = as_json
        self._verbose = verbose
        self._shows = shows
        self._id_width = id_width
        self._noted: set[str] = set()
        self._wait = ""
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._live: Live | None = None
        place = living_place(self.out, self.err)
        if as_json and place is self.out:
            place = None
        if place is not None and not verbose.on:
            # No auto-refresh: its thread would read the run's state while the loop changes it.
            self._live = Live(console=place, auto_refresh=False, transient=True)
            if total is not None:
                self._progress = Progress(
                    BarColumn(), MofNCompleteColumn(), TextColumn("drafts"), TimeElapsedColumn(), console=place
                )
                self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._wait, self._progress = "", None
            self._refresh()
            self._live.stop()

    def outcome(self, outcome: Outcome) -> None:
        """Show the outcome of a draft.

        Args:
            outcome: the outcome.
        """
        if self._json:
            # Flushed, because the program that reads the pipe may act on each line.
            print(json.dumps(as_json(outcome)), flush=True)  # noqa: T201 - the purpose of the option
        elif self._shows(outcome):
            print_outcome(self.out, outcome, self._id_width)
        if outcome.error is not None:
            self._verbose.traceback(outcome.error)
        if self._progress is not None:
            self._progress.advance(self._task)
            self._refresh()

    def note(self, text: str) -> None:
        """Print a message that is not an outcome.

        Args:
            text: the message.
        """
        place = self._live.console if self._live is not None else self.err
        place.print(Text(text), style="dim")

    def waits(self, wait: Wait | None) -> None:
        """Show the reason why unfinished drafts wait; without a terminal only once for each kind of reason.

        Args:
            wait: the reason; None if there is nothing to show.
        """
        if self._live is not None:
            self._wait = wait.text if wait is not None else ""
            self._refresh()
        elif wait is not None and wait.kind in _NOTED - self._noted and (wait.seconds or 0.0) >= _LONG:
            self._noted.add(wait.kind)
            self.note(f"note: {wait.text}")

    def _refresh(self) -> None:
        if self._live is None:
            return
        lines: list[RenderableType] = [] if self._progress is None else [self._progress]
        if self._wait:
            lines.append(Text(self._wait, style="dim", no_wrap=True, overflow="ellipsis"))
        self._live.update(Group(*lines), refresh=True)


def print_rows(place: Console, rows: Iterable[tuple[Text, str]]) -> None:
    """Print rows of a name and a text in aligned columns; on a terminal, texts wrap within their column.

    Args:
        place: the console.
        rows: (name, text) pairs.
    """
    listed = list(rows)
    width = max((name.cell_len for name, _ in listed), default=0) + 4
    for name, told in listed:
        room = place.width - width if place.is_terminal else sys.maxsize
        # An indented text begins with a number like "3: ". Its further lines are aligned with the text after it.
        inset = " " * (len(told) - len(told.lstrip()) + 3) if told.startswith(" ") else ""
        lines = textwrap.wrap(told, max(room, 20), subsequent_indent=inset) or [""]
        for number, line in enumerate(lines):
            head = Text("  ") + (name if number == 0 else Text())
            head.pad_right(width - head.cell_len)
            head.append(line)
            head.rstrip()
            place.print(head, soft_wrap=True)
