"""The store of one endpoint of an app on a database.

Theory of operation. Each method that changes something starts a task, which does its work in one transaction:

    take, settle, give_back (`turns`) --+                                       +--> rows
    look-ups and notes (`records`)    --+-- `Session.transact`, one at a time --+
    suspensions, the limit            --+                                       +--> `state`, a `replica`
    pruning (`pruning`)               --+

The scheduler reads `state` to see when a try is worthwhile. Whether a call may go is decided in the transaction,
from the rows, where processes come one after another (`database`).

If the ledger cannot be written at the end of a call, its outcome is true all the same: it is reported, and logged
as not on record. The turn's lease keeps permit and locks until it lapses.
"""

import asyncio
import functools
import logging
import math
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from feishu_mail_async._api.protocol import Judgement
from feishu_mail_async._scheduling.record import DraftKey
from feishu_mail_async._scheduling.state import Delays, Permit, Settled
from feishu_mail_async._scheduling.store import Offer, Shut
from feishu_mail_async._scheduling.suspensions import EVERYWHERE, SuspensionKey, subjects
from feishu_mail_async._scheduling.waiters import Turn, Waiter
from feishu_mail_async.codes import ResumeWhen
from feishu_mail_async.errors import FeishuMailError, LedgerError, RecordRefused
from feishu_mail_async.model import OutcomeStatus, RateLimit

from . import drafts, turns
from .pruning import Pruner
from .records import Found, Records, log_lost, refusal
from .session import Session, subjects_of
from .transaction import Transaction

__all__ = ["SqlStore"]

P = ParamSpec("P")
T = TypeVar("T")

_log: Final = logging.getLogger("feishu_mail_async.ledger")


def _in_task(
    method: "Callable[Concatenate[SqlStore, P], Coroutine[Any, Any, T]]",
) -> "Callable[Concatenate[SqlStore, P], asyncio.Task[T]]":
    """Run a method in a task, which is not cancelled with its caller."""

    @functools.wraps(method)
    def start(store: "SqlStore", /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Task[T]:
        return store.session.start(method(store, *args, **kwargs))

    return start


class SqlStore:
    """The store of one endpoint of an app on a database; see `SchedulerStore` for its methods.

    Args:
        session: the session of this process with the ledger.
        holder: the name of this process, for people who read the tables.

    Attributes:
        state: the replica of the endpoint's state, in the loop's time.
        session: as above.
    """

    shared = True
    most = 20

    def __init__(self, session: Session, holder: str) -> None:
        self.session = session
        self.state = session.state
        self._holder = holder
        self._pruner = Pruner(session)
        self._records = Records(session, self._pruner)

    def join(self, loop: asyncio.AbstractEventLoop, changed: Callable[[], None]) -> float:  # noqa: ARG002
        return 0.0

    def look_again(self, now: float) -> float:  # noqa: ARG002
        return math.inf

    # -- turns -----------------------------------------------------------------------------------------

    @_in_task
    async def take(self, waiters: Sequence[Waiter], now: float) -> Offer:  # noqa: ARG002
        offer = Offer()

        async def take(some: Sequence[Waiter]) -> None:
            if offer.granted is not None:
                return
            work = functools.partial(turns.take, waiters=some, holder=self._holder)
            found, shift = await self.session.transact(work, subjects_of(some))
            offer.granted = found.granted
            offer.recorded += found.recorded
            offer.shut += [
                Shut(kind, key, until + shift, backoff_until + shift)
                for kind, key, until, backoff_until in found.shut
            ]

        for waiter, error in await self.session.apart(waiters, take):
            offer.refused.append((waiter, refusal(waiter.draft_id, error)))
        return offer

    @_in_task
    async def settle(
        self, turn: Turn, judgement: Judgement, delays: Delays, now: float, *, renewing: bool
    ) -> Settled:
        recording = turn.waiter.draft_id is not None

        async def settle(transaction: Transaction) -> tuple[Settled, turns.Locks]:
            done = await turns.settle(transaction, turn, judgement, delays, now, renewing=renewing)
            if recording:
                await drafts.end_call(transaction, turn, judgement, renewing=renewing)
            return done

        names = subjects(turn.user.key, turn.mailbox.key)
        try:
            try:
                (settled, locks), shift = await self.session.transact(settle, names)
            except RecordRefused as error:
                log_lost(error, turn.waiter.draft_id)
                recording = False  # permit and locks have to come back all the same: others wait for them
                (settled, locks), shift = await self.session.transact(settle, names)
        except LedgerError as error:
            log_lost(error, turn.waiter.draft_id)
            return self.state.settle(
                turn.permit, judgement, delays, now, turn.user, turn.mailbox, renewing=renewing
            )
        finally:
            self.session.end_turn(turn.permit.turn, called=True)
        for mine, lock in zip((turn.user, turn.mailbox), locks, strict=True):
            mine.open_at = lock.open_at + shift
            mine.backoff_until = lock.backoff_until + shift
            mine.consecutive_refusals = lock.consecutive_refusals
        self._pruner.soon()
        return settled

    @_in_task
    async def give_back(self, permit: Permit) -> None:
        self.session.end_turn(permit.turn, called=False)
        try:
            await self.session.transact(Transaction.load_permits)  # so that `state` has the freed permit
        except LedgerError:  # it is freed by a later transaction, or lapses
            self.state.budget.end(None)
            self.state.give_back(permit.turn)

    # -- suspensions, and the limit ------------------------------------------------------------------

    @_in_task
    async def suspend_user(self, user: str, error: FeishuMailError, fingerprint: str | None, now: float) -> None:
        key = SuspensionKey(f"user:{user}", EVERYWHERE)

        async def suspend(transaction: Transaction) -> None:
            suspensions = transaction.state.suspensions
            suspensions.suspend(key, error, ResumeWhen.TOKEN, transaction.now, fingerprint)

        try:
            await self.session.transact(suspend, (key.subject,))
        except LedgerError as failed:
            _log.error("%s; other processes do not hear that user %s is suspended", failed, user)
            self.state.suspensions.suspend(key, error, ResumeWhen.TOKEN, now, fingerprint)

    def suspended(self, user: str, mailbox: str, now: float) -> SuspensionKey | None:
        return self.state.suspensions.find(self.state.keys_of(user, mailbox), now)

    def resume(self, subject: str, when: ResumeWhen | None = None) -> None:
        self.session.resume(subject, when)
        self._flush()

    def set_limit(self, limit: RateLimit) -> None:
        self.session.set_limit(limit)
        self._flush()

    @_in_task
    async def _flush(self) -> None:
        try:
            await self.session.flush()
        except LedgerError as error:
            _log.error("%s; other processes do not hear of the change", error)

    # -- drafts ----------------------------------------------------------------------------------------

    def records(self, keys: Sequence[DraftKey]) -> asyncio.Task[Found]:
        return self._records.look_up(keys)

    def note(self, key: DraftKey, status: OutcomeStatus, error: FeishuMailError) -> None:
        self._records.note(key, status, error)

    @_in_task
    async def unschedule(self, user: str, mailbox: str, mail: str, *, cancelled: bool) -> None:
        work = functools.partial(drafts.unschedule, user=user, mailbox=mailbox, mail=mail, cancelled=cancelled)
        await self.session.transact(work)

    async def written(self) -> None:
        await self.session.written()
