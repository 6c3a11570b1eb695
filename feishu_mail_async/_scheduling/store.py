"""What the scheduler asks of a ledger: one protocol, which memory and a database fulfil."""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias, TypeVar

from feishu_mail_async._api.protocol import Judgement
from feishu_mail_async._tasks import outcome_of
from feishu_mail_async.codes import ResumeWhen
from feishu_mail_async.errors import FeishuMailError, LedgerError, RecordRefused
from feishu_mail_async.model import OutcomeStatus, RateLimit

from .record import DraftKey, Record
from .state import Delays, EndpointState, Permit, Settled
from .suspensions import SuspensionKey

if TYPE_CHECKING:
    from .lanes import Turn, Waiter

__all__ = ["SLACK", "Later", "Offer", "SchedulerStore", "Shut", "answer_of", "mutex", "of"]

T = TypeVar("T")

Later: TypeAlias = T | asyncio.Future[T]
"""What memory answers at once and a database in a while."""


async def of(later: Later[T]) -> T:
    """Wait for the answer, where it takes a while. Whoever gives up waiting does not break it off.

    Raises:
        LedgerError: the ledger was closed, or its work cancelled, before it answered.
    """
    return await answer_of(later) if isinstance(later, asyncio.Future) else later


async def answer_of(work: asyncio.Future[T]) -> T:
    """The same of what always takes a while."""
    return await outcome_of(work, _broken_off)


def _broken_off() -> LedgerError:
    return LedgerError("ledger: it was closed, or its tasks were cancelled, before it answered")


SLACK: Final = 5.0
"""Seconds that may pass between taking a turn and making its call."""

mutex: Final = threading.RLock()
"""Held while a standing is read or changed, which other threads may use too: see `memory`.

Reentrant, because a finalizer of a user's may call us while it is held, in the midst of anything.
"""


class Shut(NamedTuple):
    """What calls of others keep shut.

    Attributes:
        kind: "user" or "mailbox".
        key: its key.
        until: when to look again; infinity: when the book tells of a change.
        backoff_until: the end of its cool-down.
    """

    kind: str
    key: str
    until: float
    backoff_until: float


@dataclass(slots=True)
class Offer:
    """What came of offering asks for a turn.

    Attributes:
        granted: the ask whose turn it is, and what it was granted with; None if no call may go now.
        recorded: asks whose drafts were sent before, with what is known of them.
        refused: asks of whose drafts no record can be made, and why.
        shut: what calls of other processes or loops keep shut.
    """

    granted: "tuple[Waiter, Permit] | None" = None
    recorded: "list[tuple[Waiter, Record]]" = field(default_factory=list)
    refused: "list[tuple[Waiter, RecordRefused]]" = field(default_factory=list)
    shut: list[Shut] = field(default_factory=list)


class SchedulerStore(Protocol):
    """The permits, locks, pauses, suspensions and drafts of one app.

    Times are seconds of the running loop's clock and the offset that `join` tells. What a method changes it
    changes in `state` too, at the latest when its answer is there; one that has nothing to wait for answers at
    once.

    Attributes:
        state: how the endpoint stands, as far as this process knows; read under `mutex`, but for single numbers.
        shared: whether other processes, or a later one, see what this one does.
        most: asks worth offering at once.
    """

    state: EndpointState
    shared: bool
    most: int

    def join(self, loop: asyncio.AbstractEventLoop, changed: Callable[[], None]) -> float:
        """Its scheduler is bound to this loop.

        Args:
            loop: the loop.
            changed: a method that is called in this loop when others of the process have changed something; it
                keeps nobody alive.

        Returns:
            what the book's time is ahead of the loop's.
        """

    def look_again(self, now: float) -> float:
        """When to look again, at the latest, if nothing is told before."""

    def take(self, waiters: "Sequence[Waiter]", now: float) -> Later[Offer]:
        """Take a permit, the locks and the intent to send for the first of these asks that may go."""

    def settle(
        self, turn: "Turn", judgement: Judgement, delays: Delays, now: float, *, renewing: bool
    ) -> Later[Settled]:
        """The call of a turn has ended; see `Standing.settle`. The draft's record says what came of it."""

    def give_back(self, permit: Permit) -> Later[None]:
        """No call was made in the turn of this grant."""

    def suspend_user(self, user: str, error: FeishuMailError, fingerprint: str | None, now: float) -> Later[None]:
        """A user's token was refused for good: close the user until the token changes."""

    def suspended(self, user: str, mailbox: str, now: float) -> SuspensionKey | None:
        """Return the first suspension that keeps calls of this user and mailbox from being made."""

    def resume(self, subject: str, when: ResumeWhen | None = None) -> None:
        """End the suspensions of a subject; with `when` only those that end by it."""

    def set_limit(self, limit: RateLimit) -> None:
        """Change the limit."""

    def records(self, keys: Sequence[DraftKey]) -> Later[Mapping[DraftKey, Record | RecordRefused]]:
        """Look up what is known of these drafts, or why nothing can be; and what is suspended of theirs."""

    def note(self, key: DraftKey, status: OutcomeStatus, error: FeishuMailError) -> None:
        """A draft has ended without being sent, for all that is known."""

    async def written(self) -> None:
        """Wait until all that was begun so far is written."""
