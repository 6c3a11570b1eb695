"""The replica of an endpoint's state that a process keeps between transactions.

It may be out of date, so it only says when a try is worthwhile. The ends of this process's own calls in flight are
reported to it, those of other processes' calls are not. So the latter count as ending soon (`look_again`), and the
dispatcher looks at the ledger again then.

Rows are in the ledger's time, the replica is in the loop's: `shift` is what is added to the former.
"""

import math
from collections.abc import Container

from feishu_mail_async._scheduling.state import EndpointState
from feishu_mail_async._scheduling.suspensions import APP, Suspensions

from .rows import PermitRow, look_again
from .transaction import Transaction

__all__ = ["refresh"]


def refresh(
    replica: EndpointState,
    transaction: Transaction,
    subjects: Container[str],
    own: Container[str],
    shift: float,
) -> None:
    """Replace what a replica says by what a transaction has found.

    Args:
        replica: the replica.
        transaction: the transaction, which has been committed. Its state is of no use any more.
        subjects: the subjects whose suspensions it has read; what is known of others stays.
        own: the turns whose calls this process makes now.
        shift: the seconds by which the loop's time is ahead of the ledger's.
    """
    found, now = transaction.state, transaction.now + shift
    replica.last = max(found.last + shift, replica.last)
    replica.smooth_until = found.smooth_until + shift
    since = found.unreachable_since
    replica.unreachable_since = None if since is None else since + shift
    replica.unreachable_times, replica.unreachable_lasted = found.unreachable_times, found.unreachable_lasted
    replica.pauses, pause = found.pauses, found.pause
    if pause is not None:
        pause.until += shift
        lapses = math.inf
        if pause.probe is not None and pause.probe not in own:
            lapses = look_again(replica.last, pause.probe_lapses + shift, now)
        pause.probe_lapses = lapses
    replica.pause = pause
    _refresh_suspensions(replica.suspensions, found.suspensions, subjects, now, shift)
    replica.budget.limit = found.budget.limit
    if transaction.permits is not None:
        _refresh_budget(replica, transaction.permits, own, now, shift)


def _refresh_suspensions(
    replica: Suspensions, found: Suspensions, subjects: Container[str], now: float, shift: float
) -> None:
    for entry in found.entries.values():
        entry.ends += shift
    others = {
        key: entry
        for key, entry in replica.entries.items()
        if key.subject not in subjects and (entry.ends > now or key.subject == APP)
    }
    entries = others | found.entries
    replica.changes += entries.keys() != replica.entries.keys()
    replica.entries = entries


def _refresh_budget(
    replica: EndpointState, permits: list[PermitRow], own: Container[str], now: float, shift: float
) -> None:
    limit = replica.budget.limit
    window = limit.per + limit.margin
    in_flight, ended = 0, []
    for row in permits:
        if row.ended is not None:
            ended.append(row.ended + shift)
        elif row.turn in own:
            in_flight += 1
        else:
            ended.append(look_again(row.taken + shift, row.lapses + window + shift, now) - window)
    replica.budget.load(in_flight, ended)
