"""The port of the scheduler to a ledger: one protocol, implemented in memory and on a database."""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol, TypeAlias, TypeVar

from feishu_mail_async._api.protocol import Judgement
from feishu_mail_async._tasks import outcome_of
from feishu_mail_async.codes import ResumeWhen
from feishu_mail_async.errors import FeishuMailError, LedgerError, RecordRefused
from feishu_mail_async.model import OutcomeStatus, RateLimit

from .record import DraftKey, Record
from .state import Delays, EndpointState, Permit, Settled
from .suspensions import SuspensionKey
from .waiters import Turn, Waiter

__all__ = ["SLACK", "Answer", "Offer", "SchedulerStore", "Shut", "answer_of", "mutex", "of", "result_of"]

T = TypeVar("T")

Answer: TypeAlias = T | asyncio.Future[T]
"""The answer of a store: a value from memory, a future for it from a database. `Scheduler._after` decides once."""


async def of(answer: Answer[T]) -> T:
    """Return the value, awaiting it where it is a future. Cancelling the caller does not cancel the work.

    Raises:
        LedgerError: the ledger was closed, or its work cancelled, before it answered.
    """
    return await answer_of(answer) if isinstance(answer, asyncio.Future) else answer


async def answer_of(work: asyncio.Future[T]) -> T:
    """Await a future as `of` does."""
    return await outcome_of(work, _broken_off)


def result_of(work: asyncio.Future[T]) -> T:
    """Return the value of a future that is done; it raises what `of` would."""
    if work.cancelled():
        raise _broken_off()
    return work.result()


def _broken_off() -> LedgerError:
    return LedgerError("ledger: it was closed, or its tasks were cancelled, before it answered")


SLACK: Final = 5.0
"""Seconds that may pass between taking a turn and making its call."""

mutex: Final = threading.RLock()
"""The lock of the process that guards every `EndpointState`, which other threads may use too: see `memory`.

Reentrant, because a finalizer in the user's code may run at any bytecode, while it is held, and call us.
"""


class Shut(NamedTuple):
    """A lock that calls of other loops or processes keep shut.

    Attributes:
        kind: "user" or "mailbox".
        key: the user's or the mailbox's key.
        until: when to look again; infinity: when the store notifies of a change.
        backoff_until: the end of its backoff.
    """

    kind: str
    key: str
    until: float
    backoff_until: float


@dataclass(slots=True)
class Offer:
    """The store's answer to waiters that were offered to it for one turn.

    Attributes:
        granted: the waiter whose turn it is, and its permit; None if no call may go now.
        recorded: waiters whose drafts were sent before, with their records.
        refused: waiters for whose drafts no record can be made, and the errors.
        shut: locks that calls of other processes or loops keep shut.
    """

    granted: tuple[Waiter, Permit] | None = None
    recorded: list[tuple[Waiter, Record]] = field(default_factory=list)
    refused: list[tuple[Waiter, RecordRefused]] = field(default_factory=list)
    shut: list[Shut] = field(default_factory=list)


class SchedulerStore(Protocol):
    """The store of one endpoint of an app: its permits, locks and pauses, the app's suspensions, and drafts.

    Times are seconds of the running loop's clock plus the offset that `join` returns. A method's changes are in
    `state` too, at the latest when its future is done; a method that has nothing to wait for returns a value.

    Attributes:
        state: the endpoint's state, as far as this process knows; read under `mutex`, except single numbers.
        shared: other processes, or a later one, see the changes of this one.
        most: the number of waiters that are worth offering at once.
    """

    state: EndpointState
    shared: bool
    most: int

    def join(self, loop: asyncio.AbstractEventLoop, changed: Callable[[], None]) -> float:
        """Bind the store to the loop of its scheduler.

        Args:
            loop: the loop.
            changed: a method that is called in this loop when others of the process have changed something; the
                store holds it weakly.

        Returns:
            the seconds by which the store's time is ahead of the loop's.
        """

    def look_again(self, now: float) -> float:
        """Return when to look again at the latest, if the store notifies of nothing before."""

    def take(self, waiters: Sequence[Waiter], now: float) -> Answer[Offer]:
        """Take a permit and the locks, and record the intent to send, for the first of these that may go."""

    def settle(
        self, turn: Turn, judgement: Judgement, delays: Delays, now: float, *, renewing: bool
    ) -> Answer[Settled]:
        """End a turn whose call has ended, as `EndpointState.settle` does, and record the draft's outcome."""

    def give_back(self, permit: Permit) -> Answer[None]:
        """End a turn in which no call was made."""

    def suspend_user(self, user: str, error: FeishuMailError, fingerprint: str | None, now: float) -> Answer[None]:
        """Suspend a user whose token was refused for good, until the token changes."""

    def suspended(self, user: str, mailbox: str, now: float) -> SuspensionKey | None:
        """Return the first suspension that keeps calls of this user and mailbox from being made."""

    def resume(self, subject: str, when: ResumeWhen | None = None) -> None:
        """End the suspensions of a subject; with `when` only those that end by that event."""

    def set_limit(self, limit: RateLimit) -> None:
        """Change the limit."""

    def records(self, keys: Sequence[DraftKey]) -> Answer[Mapping[DraftKey, Record | RecordRefused]]:
        """Look up the records of these drafts, or the errors why there can be none.

        It also reads the suspensions of their subjects into `state`.
        """

    def note(self, key: DraftKey, status: OutcomeStatus, error: FeishuMailError) -> None:
        """Record the outcome of a draft that ended without being sent, as far as is known."""

    def unschedule(self, user: str, mailbox: str, mail: str, *, cancelled: bool) -> Answer[None]:
        """Record that a scheduled mail, named by its own id or its draft's, is being cancelled, or that it was."""

    async def written(self) -> None:
        """Wait until everything begun so far is written."""
