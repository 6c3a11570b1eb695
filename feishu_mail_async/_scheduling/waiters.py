"""Waiters, and what they wait for: the locks of their users, mailboxes and runs, and their turns. Values only."""

import functools
import math
from collections import OrderedDict
from dataclasses import KW_ONLY, dataclass, field
from typing import Final, Protocol

from feishu_mail_async.errors import FeishuMailError
from feishu_mail_async.model import Priority

from .record import Record, Schedule
from .state import Permit

__all__ = ["OWN", "CallLock", "Lane", "Stream", "Turn", "TurnCallbacks", "Waiter", "mailbox_key"]

OWN: Final = "me/"
"""The prefix of the key of a user's own mailbox, where its address is not known."""

_NAMES_KEPT: Final = 1000


@functools.lru_cache(_NAMES_KEPT)  # the drafts of a mailbox share its name, and the time to make it
def mailbox_key(user: str, mailbox: str) -> str:
    """Return the key under which a mailbox is locked: addresses compare without case, `me` is the user's own."""
    folded = mailbox.casefold()
    if folded != "me":
        return folded
    return user.casefold() if "@" in user else f"{OWN}{user}"


@dataclass(slots=True, eq=False, repr=False)
class CallLock:
    """What can keep the waiters of a user, a mailbox or a run from going.

    A call of a writing endpoint holds its user's and its mailbox's, alone. A call that only reads holds none, and
    no call holds a run's (`Stream`).

    Attributes:
        key: the user's or the mailbox's key.
        busy: a call holds it.
        held: the user's token is being renewed, or a run is held back.
        sweeps: the sweeps under way that end its waiters.
        open_at: the time until which it stays shut after a lost call or during a backoff.
        backoff_until: the end of the backoff alone, for the snapshot.
        served: the number of the last turn that it had; 0: none so far.
        consecutive_refusals: refusals in a row.
        lanes: all lanes that need it, in the order in which they came.
        representative: the ready lane on whose behalf the others wait while it is open.
        alarm: the time of its alarm; infinity if it has none.
    """

    key: str
    busy: bool = False
    held: bool = False
    sweeps: int = 0
    open_at: float = -math.inf
    backoff_until: float = -math.inf
    served: int = 0
    consecutive_refusals: int = 0
    lanes: "dict[Lane, None]" = field(default_factory=dict)  # a set that keeps its order
    representative: "Lane | None" = None
    alarm: float = math.inf


class Stream(CallLock):
    """The lock of one run, whose waiters can be held back together. Several of them may have a turn at once."""

    __slots__ = ()


@dataclass(slots=True, eq=False, repr=False)
class Lane:
    """The queue of the waiters of one user, mailbox, priority and stream; see `lanes`.

    Attributes:
        user: the user's lock.
        mailbox: the mailbox's lock.
        priority: the rank of its waiters.
        stream: their run; None if they belong to none.
        locks: the two or three locks that all have to be open.
        waiters: the waiters in their order. (A linked list: any of them may leave at any time, at the same cost.)
        ready: it is in the heap of ready lanes.
        parked_on: the lock on which it is parked; None if it is not.
        ticket: the number of its record in the heap where it is.
    """

    user: CallLock
    mailbox: CallLock
    priority: Priority
    stream: Stream | None
    locks: tuple[CallLock, ...]
    waiters: "OrderedDict[Waiter, None]" = field(default_factory=OrderedDict)
    ready: bool = False
    parked_on: CallLock | None = None
    ticket: int = 0


class TurnCallbacks(Protocol):
    """The callbacks of a waiter: one of them is called, once. They must be quick and must not raise."""

    def granted(self, turn: "Turn") -> None:
        """Make the call now, then settle the turn."""

    def refused(self, error: FeishuMailError) -> None:
        """End without a turn: suspended, nothing reachable for too long, or the ledger fails."""

    def recorded(self, record: Record) -> None:
        """End without a turn: the ledger's record says that the draft was sent."""


@dataclass(slots=True, eq=False, repr=False)
class Waiter:
    """One draft that waits for its turn.

    Attributes:
        user: the user's key; calls of one user go one at a time.
        mailbox: the mailbox's key (see `mailbox_key`).
        priority: its rank; the smallest value goes first.
        callbacks: called when it is granted a turn, or ends without one.
        outage: seconds for which nothing may be reachable before it is refused; infinity: as long as it takes.
        stream: the run it belongs to, which can be held back as a whole.
        draft_id: the draft that its call sends; None for a call that changes nothing at the server.
        schedule: when the server is to send the draft; None: at once.
        timeout: seconds after which its call is cancelled.
        seq: its number in the order of arrival; 0 before it is added.
        lane: the lane in which it waits; None while it does not wait.
    """

    user: str
    mailbox: str
    priority: Priority
    callbacks: TurnCallbacks
    _: KW_ONLY
    outage: float = math.inf
    stream: Stream | None = None
    draft_id: str | None = None
    schedule: Schedule | None = None
    timeout: float = 30.0
    seq: int = field(default=0, init=False)
    lane: Lane | None = field(default=None, init=False)


@dataclass(slots=True, eq=False, repr=False)
class Turn:
    """The permission to make one call. It must be passed to the scheduler's `settle` or `give_back`, once.

    Attributes:
        user: the user's lock; no other call of the user is made meanwhile.
        mailbox: the mailbox's lock, likewise.
        waiter: the waiter whose turn it is.
        permit: the permit that the store has granted.
    """

    user: CallLock
    mailbox: CallLock
    waiter: Waiter
    permit: Permit
