"""What the scheduler asks of a ledger: one protocol, and its default, the memory of the process."""

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, TypeVar

from feishu_mail_async.codes import Until
from feishu_mail_async.errors import FeishuMailError, LedgerError, RecordRefused
from feishu_mail_async.model import OutcomeStatus, RateLimit
from feishu_mail_async.protocol import Judgement
from feishu_mail_async.tasks import being_cancelled

from .record import DraftKey, Record
from .standing import Delays, Grant, Settled, Standing

if TYPE_CHECKING:
    from feishu_mail_async.lanes import Ask, Turn

__all__ = ["Book", "Later", "MemoryBook", "Taken", "of"]

T = TypeVar("T")

Later: TypeAlias = T | asyncio.Future[T]
"""What memory answers at once and a database in a while."""


async def of(later: Later[T]) -> T:
    """Wait for the answer, where it takes a while. Whoever gives up waiting does not break it off.

    Raises:
        LedgerError: the ledger was closed before it answered.
    """
    if not isinstance(later, asyncio.Future):
        return later
    try:
        return await asyncio.shield(later)
    except asyncio.CancelledError:
        if being_cancelled():
            raise
    raise LedgerError("ledger: it was closed before it answered")


_turns: Final = itertools.count(1)


@dataclass(slots=True)
class Taken:
    """What came of offering asks for a turn.

    Attributes:
        granted: the ask whose turn it is, and what it was granted with; None if no call may go now.
        recorded: asks whose drafts were sent before, with what is known of them.
        refused: asks of whose drafts no record can be made, and why.
        shut: what calls of other processes keep shut: "user" or "mailbox", its key, and until when.
    """

    granted: "tuple[Ask, Grant] | None" = None
    recorded: "list[tuple[Ask, Record]]" = field(default_factory=list)
    refused: "list[tuple[Ask, RecordRefused]]" = field(default_factory=list)
    shut: list[tuple[str, str, float]] = field(default_factory=list)


class Book(Protocol):
    """The permits, locks, pauses, closures and drafts of one app.

    Times are seconds of the running loop's clock. What a method changes it changes in `standing` too, at the
    latest when its answer is there; one that has nothing to wait for answers at once.

    Attributes:
        standing: how the app stands, as far as this process knows.
        shared: whether other processes, or a later one, see what this one does.
        most: asks worth offering at once.
    """

    standing: Standing
    shared: bool
    most: int

    def take(self, asks: "Sequence[Ask]", now: float) -> Later[Taken]:
        """Take a permit, the locks and the intent to send for the first of these asks that may go."""

    def settle(
        self, turn: "Turn", judgement: Judgement, delays: Delays, now: float, *, renewing: bool
    ) -> Later[Settled]:
        """The call of a turn has ended; see `Standing.settle`. The draft's record says what came of it."""

    def give_back(self, grant: Grant) -> Later[None]:
        """No call was made in the turn of this grant."""

    def close_user(self, user: str, error: FeishuMailError, mark: str | None, now: float) -> Later[None]:
        """A user's token was refused for good: close the user until the token changes."""

    def closed(self, names: Sequence[str], now: float) -> str | None:
        """The first of these scopes that is closed."""

    def reopen(self, scope: str) -> None:
        """Reopen a scope."""

    def set_limit(self, limit: RateLimit) -> None:
        """Change the limit."""

    def recall(self, keys: Sequence[DraftKey]) -> Later[Mapping[DraftKey, Record | RecordRefused]]:
        """What is known of these drafts, if anything is, or why nothing can be; and what is closed of theirs."""

    def note(self, key: DraftKey, status: OutcomeStatus, error: FeishuMailError) -> None:
        """A draft has ended without being sent, for all that is known."""

    async def written(self) -> None:
        """Wait until all that was begun so far is written."""


class MemoryBook:
    """The book of an app in the memory of its process: exact, at once, and gone with the process.

    Drafts are not remembered in it: the server says of one that was sent that it was.

    Args:
        limit: the rate limit to keep.
    """

    shared = False
    most = 1

    def __init__(self, limit: RateLimit) -> None:
        self.standing = Standing(limit)

    def take(self, asks: "Sequence[Ask]", now: float) -> Taken:
        """The scheduler has seen to it that the first one may go."""
        return Taken((asks[0], self.standing.grant(str(next(_turns)), now)))

    def settle(self, turn: "Turn", judgement: Judgement, delays: Delays, now: float, *, renewing: bool) -> Settled:
        return self.standing.end(turn, judgement, delays, now, renewing=renewing)

    def give_back(self, grant: Grant) -> None:
        self.standing.refund(grant)

    def close_user(self, user: str, error: FeishuMailError, mark: str | None, now: float) -> None:
        self.standing.close(f"user:{user}", error, Until.TOKEN, now, mark)

    def closed(self, names: Sequence[str], now: float) -> str | None:
        self.standing.lapse(names, now)
        return self.standing.closed_of(names, now)

    def reopen(self, scope: str) -> None:
        self.standing.reopen(scope)

    def set_limit(self, limit: RateLimit) -> None:
        self.standing.budget.limit = limit

    def recall(self, keys: Sequence[DraftKey]) -> Mapping[DraftKey, Record | RecordRefused]:  # noqa: ARG002
        return {}

    def note(self, key: DraftKey, status: OutcomeStatus, error: FeishuMailError) -> None:
        pass

    async def written(self) -> None:
        pass
