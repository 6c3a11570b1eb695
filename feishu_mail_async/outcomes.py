"""The outcomes of a run, and their counts."""

from collections import Counter
from dataclasses import dataclass, field

from ._causes import root_cause
from .errors import ApiError, FeishuMailError
from .model import Draft, OutcomeStatus, SendResult

__all__ = ["Outcome", "Summary"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one draft of a run: either `result` or `error` is set.

    Attributes:
        draft: the draft as it was given.
        status: sent, already_sent; failed (certainly not sent, for a reason of its own); unknown (it may have been
            sent); skipped (not sent, for a reason that is not its own).
        result: set if it was sent.
        error: set if it was not, or may not have been.
    """

    draft: Draft
    status: OutcomeStatus
    result: SendResult | None
    error: FeishuMailError | None


@dataclass(slots=True)
class Summary:
    """The counts of a run so far.

    Attributes:
        statuses: outcomes by status.
        codes: outcomes that an answer of the API decided, by its code.
        errors: outcomes that ended in an error, by the class of the deciding one: for an unknown outcome the last
            error, for a skipped draft the one that suspended its subject.
        calls: calls made for the drafts that have an outcome.
    """

    statuses: Counter[OutcomeStatus] = field(default_factory=Counter)
    codes: Counter[int] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    calls: int = 0

    @property
    def total(self) -> int:
        """The number of outcomes."""
        return self.statuses.total()

    def count(self, outcome: Outcome, calls: int) -> None:
        """Add one outcome.

        Args:
            outcome: the outcome.
            calls: calls made for its draft.
        """
        self.statuses[outcome.status] += 1
        self.calls += calls
        if outcome.error is None:
            return
        told = root_cause(outcome.error)
        self.errors[type(told).__name__] += 1
        if isinstance(told, ApiError):
            self.codes[told.code] += 1
