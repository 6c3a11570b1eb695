"""The lines of what goes wrong in a run, printed as it happens."""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from rich.console import Console

from feishu_mail_async._causes import root_cause
from feishu_mail_async.errors import Suspended
from feishu_mail_async.model import OutcomeStatus
from feishu_mail_async.outcomes import Outcome

from .console import STYLES, print_hanging, print_outcome, status_head
from .wording import Width, name_subject, say, skipping

__all__ = ["Failures"]

_KEPT: Final = 20


class Failures:
    """Lines of failures: one for each draft that fails, and one for all drafts of a suspended subject.

    Args:
        place: the console.
        id_width: the width of the drafts' column, in characters.
        shows: a function that returns whether an outcome has a line of its own.
        again: the seconds after which a subject that is still suspended gets another line; by default none.
    """

    def __init__(
        self, place: Console, id_width: int, *, shows: Callable[[Outcome], bool], again: float = math.inf
    ) -> None:
        self._place = place
        self._id_width = id_width
        self._shows = shows
        self._again = again
        self._explained: deque[str] = deque(maxlen=_KEPT)
        self._skipping: dict[str, float] = {}

    def tell(self, outcome: Outcome) -> None:
        """Print an outcome if it is a failure, briefly if another line has just explained its cause.

        Args:
            outcome: the outcome.
        """
        error = outcome.error
        if isinstance(error, Suspended):
            self._skip(error)
        elif error is not None and self._shows(outcome):
            known = self._is_known(error)
            print_outcome(self._place, outcome, self._id_width, say(error) if known else None)

    def _skip(self, error: Suspended) -> None:
        now = time.monotonic()
        if now < self._skipping.get(error.subject, now):
            return
        if self._again < math.inf:
            self._skipping = {subject: until for subject, until in self._skipping.items() if until > now}
        self._skipping[error.subject] = now + self._again
        width = Width.CELL if self._is_known(root_cause(error)) else Width.LINE
        head = status_head("skipping", STYLES[OutcomeStatus.SKIPPED], name_subject(error.subject))
        print_hanging(self._place, head, skipping(error, width))

    def _is_known(self, error: Exception) -> bool:
        """Return whether an error has just been explained; from now on it has been."""
        known = str(error) in self._explained
        self._explained.append(str(error))
        return known
