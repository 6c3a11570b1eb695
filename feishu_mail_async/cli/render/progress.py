"""The display of a run of drafts: a bar and the reason for waiting, with outcomes in lines above it."""

from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from feishu_mail_async._api.protocol import CallEnd
from feishu_mail_async._causes import root_cause
from feishu_mail_async._clock import loop_time
from feishu_mail_async._scheduling.snapshot import Snapshot
from feishu_mail_async.errors import Suspended
from feishu_mail_async.events import AttemptEnded, Event
from feishu_mail_async.model import OutcomeStatus, RateLimit
from feishu_mail_async.outcomes import Outcome

from .console import STYLES, console, living_place
from .estimate import Pace
from .failures import Failures
from .summary import Tally
from .waiting import Wait, why_waiting
from .wording import Width, count, name_status, name_subject, say, span

__all__ = ["Board"]

_STEPS: Final = 20
_MINUTE: Final = 60.0
_BAR: Final = 40
_MOST_SUSPENDED: Final = 4
_STOPS: Final = {
    "pause": "going on after a pause of {} that the server asked for",
    "unreachable": "the server is reachable again after {}",
}
_TOLD: Final = frozenset({OutcomeStatus.FAILED, OutcomeStatus.UNKNOWN})
_NOTED: Final = frozenset({"limit", "pause", "unreachable", "cooling"})


class Board:
    """The display of a run: on a terminal a live picture, elsewhere a line now and then.

    The lines say how far the run is, at each twentieth of the drafts and at least once a minute. Where the command
    prints the outcomes itself, they only say, once for each kind of reason, why it waits.

    Args:
        total: the number of drafts.
        limit: the rate limit.
        id_width: the width of the drafts' column, in characters.
        lines: print lines even on a terminal, because other output is written between them.
        bar: False for a picture without a bar and counts: only the reason for waiting.
        tell: a function that prints an outcome; None: failures are printed.

    Attributes:
        out: standard output.
        err: standard error.
        tally: the counts of outcomes.
    """

    def __init__(
        self,
        total: int,
        limit: RateLimit,
        id_width: int,
        *,
        lines: bool = False,
        bar: bool = True,
        tell: Callable[[Outcome], None] | None = None,
    ) -> None:
        self.out, self.err = console(), console(stderr=True)
        self.tally = Tally()
        self._total = total
        self._pace = Pace(limit)
        self._bar = bar
        self._follows = tell is None
        self._tell = tell or Failures(self.out, id_width, shows=self._is_told).tell
        self._skipped: dict[str, tuple[str, int]] = {}
        self._noted: set[str] = set()
        self._stop: tuple[str, float] | None = None
        self._printed = 0.0
        self._rest = ""
        self._ending = False
        place = living_place(self.out, self.err)
        # No auto-refresh: its thread would read the run's state while the loop changes it.
        self._live = Live(console=place, auto_refresh=False, transient=True) if place and not lines else None

    def __enter__(self) -> Self:
        self._printed = loop_time()
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._note_wait(None)
        if self._live is not None:
            self._live.update(Group(), refresh=True)
            self._live.stop()

    def note(self, text: str) -> None:
        """Print a message that is not an outcome.

        Args:
            text: the message.
        """
        place = self._live.console if self._live is not None else self.err
        place.print(Text(text), style="dim")

    def ending(self) -> None:
        """Switch to the display of a run that stops: no calls are made from now on."""
        self._ending = True

    # -- events ----------------------------------------------------------------------------------------

    def hear(self, event: Event) -> None:
        """Count the calls; to be subscribed to the client's events.

        Args:
            event: the event.
        """
        if isinstance(event, AttemptEnded) and event.end is not CallEnd.NEVER_LEFT:
            self._pace.ended(event.time)

    def outcome(self, outcome: Outcome) -> None:
        """Show the outcome of a draft.

        Args:
            outcome: the outcome.
        """
        before = self._step()
        self.tally.add(outcome)
        if isinstance(outcome.error, Suspended):
            self._count_skipped(outcome.error)
        self._tell(outcome)
        if not self._follows or self._live is not None or self._ending:
            return
        # A run of fewer drafts than steps would get a progress line for each draft, which says nothing new.
        if self._step() > before and self.tally.total < self._total >= _STEPS:
            self._progress()

    def _is_told(self, outcome: Outcome) -> bool:
        """Return whether a draft has a line of its own.

        Those that a stop keeps from being looked up have one reason, and may be a million: they are counted.
        """
        assert outcome.error is not None
        stopped = self._ending and outcome.status is OutcomeStatus.UNKNOWN and not outcome.error.attempts
        return outcome.status in _TOLD and not stopped

    def _step(self) -> int:
        return self.tally.total * _STEPS // self._total

    def _count_skipped(self, error: Suspended) -> None:
        _, number = self._skipped.get(error.subject, ("", 0))
        text = f"{name_subject(error.subject)}: {say(root_cause(error), Width.BAR)}"
        self._skipped[error.subject] = text, number + 1

    # -- progress --------------------------------------------------------------------------------------

    def look(self, snapshot: Snapshot, unfinished: int) -> None:
        """Update the display; to be called periodically.

        Args:
            snapshot: the scheduler's state.
            unfinished: the number of drafts without an outcome.
        """
        wait = why_waiting(snapshot, unfinished)
        self._note_wait(wait)
        self._rest = self._reckon(snapshot, unfinished, wait)
        if self._live is not None:
            self._live.update(self._picture(self._waits(wait)), refresh=True)
        elif self._follows and loop_time() - self._printed >= _MINUTE:
            self._progress(self._waits(wait) if self._stop is not None else "")

    def _reckon(self, snapshot: Snapshot, unfinished: int, wait: Wait | None) -> str:
        """Return the rate and the time left, in words."""
        rate = f"{count(self._pace.last_minute(loop_time()), 'call')} in the last minute"
        if self._ending:
            return f"{rate}, stopping"
        if wait is not None and wait.kind == "unreachable":
            return rate
        left = self._pace.left(snapshot, max(0, unfinished - snapshot.in_flight), loop_time())
        return f"{rate}, about {span(max(1, left))} left"

    def _waits(self, wait: Wait | None) -> str:
        if wait is None:
            return ""
        if self._stop is not None and wait.kind == "unreachable":
            return f"nothing reachable for {span(loop_time() - self._stop[1])}: {wait.text}"
        return wait.text

    def _note_wait(self, wait: Wait | None) -> None:
        if self._follows:
            self._note_stops(wait)
        elif self._live is None and wait is not None and wait.kind in _NOTED - self._noted and wait.is_long:
            self._noted.add(wait.kind)
            self.note(f"note: {wait.text}")

    def _note_stops(self, wait: Wait | None) -> None:
        """Print a note when the whole app begins to wait, and when it goes on."""
        kind = wait.kind if wait is not None and wait.kind in _STOPS else None
        if self._stop is not None and kind != self._stop[0]:
            name, since = self._stop
            self._stop = None
            if not self._ending:
                self.note(f"note: {_STOPS[name].format(span(loop_time() - since))}")
        if kind is not None and wait is not None and self._stop is None:
            self._stop = kind, loop_time()
            if self._live is None:
                patience = " (waiting as long as it takes; Ctrl-C stops)" if kind == "unreachable" else ""
                self.note(f"note: {wait.text}{patience}")

    def _progress(self, waits: str = "") -> None:
        self._printed = loop_time()
        done = f"{self.tally.total} of {count(self._total, 'draft')}"
        told = [part for part in (self.tally.counts, self._rest, waits) if part]
        self.note(f"progress: {done}: {'; '.join(told)}")

    def _picture(self, waits: str) -> RenderableType:
        if not self._bar:
            return Text(waits, style="dim", no_wrap=True, overflow="ellipsis")
        bar = Table.grid(padding=(0, 2))
        done = self.tally.total
        bar.add_row(ProgressBar(self._total, done, width=_BAR), f"{done} of {count(self._total, 'draft')}")
        counts = Text(", ").join(
            Text(f"{number} {name_status(status)}", style=STYLES[status])
            for status, number in self.tally.in_order()
        )
        lines = [counts, Text(self._rest), Text(waits, style="dim"), *self._closed()]
        for line in lines:
            line.no_wrap, line.overflow = True, "ellipsis"
        return Group(bar, *(line for line in lines if line.plain))

    def _closed(self) -> list[Text]:
        told = [Text(f"{text}, {number} skipped") for text, number in self._skipped.values()]
        more = len(told) - _MOST_SUSPENDED
        return told[-_MOST_SUSPENDED:] + ([Text(f"and {more} more that are suspended")] if more > 0 else [])
