"""The summary of a run: outcomes counted by status and reason."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from rich.console import Console
from rich.text import Text

from feishu_mail_async._causes import root_cause
from feishu_mail_async.errors import ApiError, AutomatedSendDisabled, FeishuMailError, Suspended
from feishu_mail_async.model import OutcomeStatus
from feishu_mail_async.outcomes import Outcome

from .console import STYLES, print_line, print_rows
from .wording import SENT_BEFORE, advise, count, name_status, name_subject, say, span

__all__ = ["Tally", "print_table"]

_MOST_REASONS: Final = 12
_MOST_SCOPES: Final = 3


@dataclass(slots=True)
class _Group:
    """The outcomes of one status with the same reason."""

    error: FeishuMailError
    number: int = 0
    subjects: dict[str, None] = field(default_factory=dict)


class Tally:
    """The counts of a run's outcomes.

    Attributes:
        statuses: status -> number of outcomes.
    """

    def __init__(self) -> None:
        self.statuses: Counter[OutcomeStatus] = Counter()
        self._groups: dict[OutcomeStatus, dict[object, _Group]] = {status: {} for status in OutcomeStatus}

    @property
    def total(self) -> int:
        """The number of outcomes."""
        return self.statuses.total()

    @property
    def all_sent(self) -> bool:
        """True if every draft is sent, by this run or before."""
        return all(status.done for status in self.statuses)

    @property
    def counts(self) -> str:
        """The numbers of outcomes by status: "9 sent, 1 already sent, 2 failed"."""
        return ", ".join(f"{number} {name_status(status)}" for status, number in self.in_order())

    def in_order(self) -> Iterator[tuple[OutcomeStatus, int]]:
        """Yield the statuses that occur, in their order, with the numbers of outcomes."""
        yield from ((status, self.statuses[status]) for status in OutcomeStatus if self.statuses[status])

    def add(self, outcome: Outcome) -> None:
        """Count an outcome.

        Args:
            outcome: the outcome.
        """
        self.statuses[outcome.status] += 1
        error = outcome.error
        if error is None:
            return
        decided = root_cause(error)
        suspended = isinstance(error, Suspended)
        # Grouped by code: the server's messages for one code may differ in details.
        why = decided.code if isinstance(decided, ApiError) else say(decided)
        group = self._groups[outcome.status].setdefault((suspended, why), _Group(error))
        group.number += 1
        if isinstance(error, Suspended):
            group.subjects[error.subject] = None

    def rows(self, *, advice: bool = True) -> Iterator[tuple[Text, str]]:
        """Yield the rows of a table for `print_rows`.

        Args:
            advice: False for reasons without their advice, which is otherwise given once.
        """
        told = {""}
        for status, number in self.in_order():
            name = Text(name_status(status), style=STYLES[status])
            reasons = list(_reasons(self._groups[status], told if advice else None))
            if status is OutcomeStatus.ALREADY_SENT:
                reasons = [f"{number}: {SENT_BEFORE}"]
            if len(reasons) == 1:
                yield name, reasons[0]
                continue
            yield name, str(number)
            yield from ((Text(), f"  {line}") for line in reasons)

    def __str__(self) -> str:
        """Return all outcomes in one line: "12 drafts: 9 sent, 1 already sent, 2 failed"."""
        return f"{count(self.total, 'draft')}: {self.counts}" if self.total else count(0, "draft")

    def sentence(self, calls: int, seconds: float) -> str:
        """Return all outcomes, the calls made for them and their time, in a line.

        Args:
            calls: the number of calls.
            seconds: the duration, in seconds.
        """
        return f"{self}. {count(calls, 'call')} in {span(max(1, seconds))}."


def print_table(place: Console, counts: Tally, *, advice: bool = True) -> None:
    """Print what became of the drafts, and an empty line.

    Args:
        place: the console.
        counts: the counts.
        advice: False for reasons without their advice.
    """
    print_line(place, "What became of the drafts", "bold")
    print_rows(place, counts.rows(advice=advice))
    print_line(place)


def _reasons(groups: dict[object, _Group], told: set[str] | None) -> Iterator[str]:
    """Yield a line for each reason, with its advice unless that has been told; None: without any."""
    ordered = sorted(groups.values(), key=lambda group: -group.number)
    for group in ordered[:_MOST_REASONS]:
        why = _scoped(group) if group.subjects else say(group.error)
        advice = _advice(group)
        yield f"{group.number}: {why}" if told is None or advice in told else f"{group.number}: {why}. {advice}"
        if told is not None:
            told.add(advice)
    rest = ordered[_MOST_REASONS:]
    if rest:
        yield f"{sum(group.number for group in rest)}: for {len(rest)} other reasons"


def _advice(group: _Group) -> str:
    if isinstance(group.error, AutomatedSendDisabled):
        # Without the link, which would be that of one draft among them.
        return advise(AutomatedSendDisabled("", None))
    return advise(group.error)


def _scoped(group: _Group) -> str:
    names = [name_subject(subject) for subject in group.subjects]
    more = len(names) - _MOST_SCOPES
    listed = ", ".join(names[:_MOST_SCOPES]) + (f" and {more} more" if more > 0 else "")
    return f"because of {listed}: {say(root_cause(group.error))}"
