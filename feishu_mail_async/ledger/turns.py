"""The changes of a turn on record, each made in one transaction.

A turn is taken before its call, and settled after it. What it holds meanwhile is a *lease*: a process that dies
leaves its permit and locks behind, and they lapse when its call cannot arrive any more.

    take --> live -- settle --> ended: its permit counts for one window more
              |  -- give_back --> orphan -- `free`, in the next transaction --> gone
              |  -- its process dies --> lapsed at `lapses`, counted as a call that ended then
    take, the commit's answer is lost --> orphan, and another turn is tried

Each transaction names its turn, so a commit whose answer was lost is safe: `settle` is idempotent, `free` may find
nothing, and `take` draws another name.
"""

import uuid
from collections.abc import Sequence

import sqlalchemy as sa

from feishu_mail_async._api.protocol import Judgement
from feishu_mail_async._scheduling.record import DraftKey, Record
from feishu_mail_async._scheduling.state import Delays, Permit, Settled
from feishu_mail_async._scheduling.store import SLACK, Offer, Shut
from feishu_mail_async._scheduling.waiters import Turn, Waiter

from . import drafts, schema
from .rows import LockRow, PermitRow
from .transaction import Transaction

__all__ = ["Locks", "free", "settle", "take"]

Locks = tuple[LockRow, LockRow]
"""The locks of a call: its user's, and its mailbox's."""


async def take(transaction: Transaction, waiters: Sequence[Waiter], holder: str) -> Offer:
    """Take a permit and the locks, and record the intent to send, for the first of these that may go.

    The times in the answer are the ledger's. `holder` names this process, for people who read the tables.
    """
    state, now = transaction.state, transaction.now
    await transaction.load_permits()
    records = await drafts.read(transaction, [key for one in waiters if (key := _key(one)) is not None])
    locks = await transaction.locks(
        pair for one in waiters for pair in transaction.lock_keys(one.user, one.mailbox)
    )
    offer = Offer()
    for waiter in waiters:
        key = _key(waiter)
        record = None if key is None else records.get(key)
        if record is not None and record.state.done:
            offer.recorded.append((waiter, record))
            continue
        if state.suspensions.find(state.keys_of(waiter.user, waiter.mailbox), now) is not None:
            continue
        user, mailbox = transaction.lock_keys(waiter.user, waiter.mailbox)
        pair = locks[user], locks[mailbox]
        shut = [
            Shut(kind, lock.key, until, lock.backoff_until)
            for kind, lock in zip(("user", "mailbox"), pair, strict=True)
            if (until := lock.free_at(now)) > now
        ]
        offer.shut += shut
        if not shut and offer.granted is None and state.may_go(waiter.priority, now):
            offer.granted = waiter, await _grant(transaction, waiter, pair, record, holder)
    return offer


async def _grant(
    transaction: Transaction, waiter: Waiter, locks: Locks, record: Record | None, holder: str
) -> Permit:
    now, key = transaction.now, _key(waiter)
    turn = transaction.granted = uuid.uuid4().hex
    lapses = now + waiter.timeout + transaction.state.budget.limit.grace + SLACK
    permit = transaction.state.dispatch(turn, now, lapses)
    transaction.state.last = now
    row = {"turn": turn, "app_id": transaction.app_id, "endpoint": transaction.endpoint.name}
    await transaction.run(sa.insert(schema.permit), row | {"holder": holder, "taken": now, "lapses": lapses})
    if transaction.permits is not None:
        transaction.permits.append(PermitRow(turn, now, lapses))
    if transaction.endpoint.writes:
        for lock in locks:
            lock.turn, lock.taken, lock.lapses = turn, now, lapses
        await transaction.write_locks(locks)
    in_doubt = key is not None and await drafts.begin_call(transaction, key, turn, record)
    began = transaction.began
    return permit._replace(at=began, in_doubt=in_doubt, good_until=began + SLACK)


async def settle(
    transaction: Transaction, turn: Turn, judgement: Judgement, delays: Delays, at: float, *, renewing: bool
) -> tuple[Settled, Locks]:
    """End a turn whose call has ended, as `EndpointState.settle` does, and return its locks, too.

    `at` is the loop's time when the call ended. The record of its draft is left alone.
    """
    name = turn.permit.turn
    # The wait for the database, which may be long, is not part of the call.
    now = transaction.now - max(0.0, transaction.began - at)
    user, mailbox = transaction.lock_keys(turn.user.key, turn.mailbox.key)
    found = await transaction.locks([user, mailbox])
    locks = found[user], found[mailbox]
    permits = await transaction.load_permits()
    row = next((one for one in permits if one.turn == name), None)
    if row is not None and row.ended is not None:
        return Settled(row.ended, None, None), locks  # the commit before succeeded, and its answer was lost
    permit = turn.permit._replace(at=now if row is None else row.taken)
    settled = transaction.state.settle(permit, judgement, delays, now, *locks, renewing=renewing)
    table = schema.permit
    if row is not None and settled.ended is None:
        permits.remove(row)
        await transaction.run(sa.delete(table).where(table.c.turn == name))
    elif row is not None:
        row.ended = settled.ended
        await transaction.run(sa.update(table).where(table.c.turn == name).values(ended=settled.ended))
    for lock in locks:
        if lock.turn == name:
            lock.turn = None
    await transaction.write_locks(locks)
    return settled, locks


async def free(transaction: Transaction, turn: str) -> None:
    """Free permit, locks and draft of a turn in which no call was made; the turn need not be on record."""
    await transaction.run(sa.delete(schema.permit).where(schema.permit.c.turn == turn))
    await transaction.run(sa.update(schema.lock).where(schema.lock.c.turn == turn).values(turn=None))
    await drafts.free(transaction, turn)
    transaction.state.give_back(turn)


def _key(waiter: Waiter) -> DraftKey | None:
    """Return the draft that a waiter's call sends, if it sends one."""
    return None if waiter.draft_id is None else DraftKey(waiter.user, waiter.mailbox, waiter.draft_id)
