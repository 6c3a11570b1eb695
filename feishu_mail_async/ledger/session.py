"""The session of one process with the ledger, for one endpoint of an app: its transactions, one at a time.

A transaction locks the app's row, so processes decide one after another; two transactions of one process would
only contend for that row. What need not be on record at once is noted here, and written at the beginning of the
next transaction: orphaned turns, resumed subjects, a new limit.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from feishu_mail_async._api.endpoints import Endpoint
from feishu_mail_async._clock import loop_time
from feishu_mail_async._scheduling.record import DraftKey
from feishu_mail_async._scheduling.state import EndpointState
from feishu_mail_async._scheduling.suspensions import Suspensions, subjects
from feishu_mail_async._scheduling.waiters import Waiter
from feishu_mail_async._tasks import look_at, start_task
from feishu_mail_async.codes import ResumeWhen
from feishu_mail_async.errors import LedgerError, RecordRefused
from feishu_mail_async.model import RateLimit

from . import turns
from .database import Database
from .replica import refresh
from .rows import budget_of, state_of, suspensions_of
from .transaction import Transaction

__all__ = ["Session", "subjects_of"]

S = TypeVar("S")
T = TypeVar("T")


class Session:
    """The session of one process with the ledger, for one endpoint of an app.

    Args:
        database: the database.
        base_url: the API's host.
        app: the app's name.
        endpoint: the endpoint.
        limit: the limit to keep; it replaces the one that is in force, for all processes.

    Attributes:
        state: the replica of the endpoint's state.
    """

    def __init__(
        self, database: Database, base_url: str, app: str, endpoint: Endpoint[Any], limit: RateLimit
    ) -> None:
        self.state = EndpointState(endpoint, limit, Suspensions())
        self._database = database
        self._base_url = base_url
        self._app = app
        self._one_at_a_time = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._live: set[str] = set()  # turns whose calls this process makes now
        # Turns without a call that may be on record: given back, or of a commit whose answer was lost. The next
        # transaction frees their permits and locks before it looks at anything else.
        self._orphans: set[str] = set()
        self._resumed: dict[str, ResumeWhen | None] = {}
        self._new_limit: RateLimit | None = limit

    # -- notes for the next transaction ----------------------------------------------------------------

    def end_turn(self, turn: str, *, called: bool) -> None:
        """Note that this process makes no call in a turn any more; without any call the turn becomes an orphan."""
        self._live.discard(turn)
        if not called:
            self._orphans.add(turn)

    def resume(self, subject: str, when: ResumeWhen | None) -> None:
        """Note that suspensions are ended, as `Suspensions.resume` ends them."""
        self.state.suspensions.resume(subject, when)
        self._resumed[subject] = when if self._resumed.get(subject, when) is when else None

    def set_limit(self, limit: RateLimit) -> None:
        """Note a new limit."""
        self.state.budget.limit = limit
        self._new_limit = limit

    async def flush(self) -> None:
        """Write what is noted."""
        await self.transact(_nothing)

    # -- transactions ----------------------------------------------------------------------------------

    async def transact(
        self, work: Callable[[Transaction], Awaitable[T]], subjects: Iterable[str] = ()
    ) -> tuple[T, float]:
        """Run work in a transaction, after writing what is noted, and refresh the replica by what it has found.

        Args:
            work: the work; it is repeated in a new transaction if one fails, and must be idempotent, or name a
                turn of its own each time (`Transaction.granted`).
            subjects: the subjects whose suspensions it needs.

        Returns:
            the work's result, and the seconds by which the loop's time is ahead of the ledger's.
        """
        async with self._one_at_a_time:
            resumed, limit = dict(self._resumed), self._new_limit
            wanted = {*subjects, *resumed}

            async def attempt(connection: AsyncConnection) -> tuple[T, Transaction, set[str]]:
                transaction = await self._begin(connection, wanted, limit)
                freed = set(self._orphans)
                for turn in freed:
                    await turns.free(transaction, turn)
                for subject, when in resumed.items():
                    transaction.state.suspensions.resume(subject, when)
                await transaction.lapse()
                done = await work(transaction)
                await transaction.write_back()
                if transaction.granted is not None:
                    self._orphans.add(transaction.granted)  # until the commit is known to have succeeded
                return done, transaction, freed

            done, transaction, freed = await self._database.transact(attempt)
            shift = loop_time() - transaction.now
            self._orphans -= freed
            if transaction.granted is not None:
                self._orphans.remove(transaction.granted)
                self._live.add(transaction.granted)
            for subject, when in resumed.items():
                if self._resumed.get(subject, ...) is when:
                    del self._resumed[subject]
            if self._new_limit is limit:
                self._new_limit = None
            refresh(self.state, transaction, wanted, self._live, shift)
            return done, shift

    async def _begin(
        self, connection: AsyncConnection, subjects: set[str], limit: RateLimit | None
    ) -> Transaction:
        database, endpoint = self._database, self.state.endpoint
        app_id = await database.hold(connection, self._base_url, self._app)
        began = loop_time()
        now = await database.synchronize(connection, app_id)
        kept = self.state.budget.limit
        row = await budget_of(connection, app_id, endpoint.name, limit or kept, change=limit is not None)
        state = state_of(endpoint, row, await suspensions_of(connection, app_id, subjects))
        return Transaction(database, connection, app_id, now, began, state)

    async def apart(
        self, items: Sequence[S], work: Callable[[Sequence[S]], Awaitable[None]]
    ) -> list[tuple[S, RecordRefused]]:
        """Do work for many items in one transaction; if the database refuses a value, in halves, down to one item.

        Args:
            items: the items.
            work: does the work for some of them, in their order, with `transact`.

        Returns:
            the items whose values (such as ids) are refused, with the errors; for all others the work is done.

        Raises:
            LedgerError: the work cannot be done for any of them.
        """
        try:
            await work(items)
        except RecordRefused as error:
            if len(items) == 1:
                await self._check()
                return [(items[0], error)]
        else:
            return []
        half = len(items) // 2
        return [*await self.apart(items[:half], work), *await self.apart(items[half:], work)]

    async def _check(self) -> None:
        """Raise LedgerError unless the database accepts a transaction that concerns no draft."""
        try:
            await self.flush()
        except RecordRefused as error:
            raise LedgerError(str(error)) from error.__cause__

    async def idle(self) -> None:
        """Wait until no transaction is under way."""
        async with self._one_at_a_time:
            pass

    # -- tasks -----------------------------------------------------------------------------------------

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task that is not cancelled with its caller."""
        task = start_task(work, "feishu-mail-ledger", self._tasks)
        task.add_done_callback(look_at)
        return task

    async def written(self) -> None:
        """Wait until the tasks started so far have ended."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def abandon(self) -> None:
        """Cancel the tasks under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _nothing(_: Transaction) -> None:
    pass


def subjects_of(wanted: Iterable[Waiter | DraftKey]) -> set[str]:
    """Return the subjects of these calls or drafts; none of them may be suspended."""
    return {name for one in wanted for name in subjects(one.user, one.mailbox)}
