"""The record of a draft in a ledger."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

__all__ = ["UNREAD", "DraftKey", "DraftState", "Record", "Schedule"]


class DraftKey(NamedTuple):
    """The identity of a draft within one app.

    Attributes:
        user: the user's key.
        mailbox: the mailbox's key.
        draft_id: the draft's id.
    """

    user: str
    mailbox: str
    draft_id: str


class Schedule(NamedTuple):
    """When the server is to send a draft.

    Attributes:
        at: the moment, in seconds since 1970.
        latest: the last moment at which it may be handed over, by the loop's clock.
        message_id: the id of the mail that it will be; None as long as it is not known.
    """

    at: int
    latest: float
    message_id: str | None = None

    def holds(self, *, already: bool, in_doubt: bool) -> bool:
        """Return whether a call that has succeeded means that the server will send the draft then.

        Args:
            already: the server said that the draft was sent already.
            in_doubt: an earlier call had no answer: then it was that one, which scheduled it.
        """
        return in_doubt or not already


class DraftState(StrEnum):
    """The state of a draft in a ledger: the statuses of outcomes, and two before one is reached.

        no record -- take --> IN_FLIGHT -- settle --> WAITING -- take --> IN_FLIGHT
                                        -- settle --> SENT, SCHEDULED, ALREADY_SENT, FAILED, UNKNOWN
        SCHEDULED -- its cancellation begins --> WAITING, in doubt -- it has succeeded --> SKIPPED

    A draft that ends without a call of its own is recorded as FAILED, UNKNOWN or SKIPPED. All states but SENT and
    ALREADY_SENT may be left again: a later run may try the draft once more; SCHEDULED, if it is cancelled.
    """

    WAITING = "waiting"
    """Its last call has ended without settling it; another one is to come."""
    IN_FLIGHT = "in_flight"
    """A call is in flight, or was when its process died."""
    SENT = "sent"
    SCHEDULED = "scheduled"
    ALREADY_SENT = "already_sent"
    FAILED = "failed"
    UNKNOWN = "unknown"
    SKIPPED = "skipped"

    @property
    def done(self) -> bool:
        """True if no call is needed any more: the mail went out, or the server will send it in time."""
        return self in {DraftState.SENT, DraftState.SCHEDULED, DraftState.ALREADY_SENT}


@dataclass(frozen=True, slots=True)
class Record:
    """The record of a draft in a ledger.

    Attributes:
        state: its state.
        message_id: the sent mail's id.
        thread_id: the conversation's id.
        log_id: the `X-Tt-Logid` of the last answer.
        calls: calls made for it so far, in all processes.
        in_doubt: a call may have sent it, and no answer says so.
        error: the last error, in words, where it was not sent.
        scheduled_for: when the server will send it, in seconds since 1970; None if it is not scheduled.
    """

    state: DraftState
    message_id: str | None = None
    thread_id: str | None = None
    log_id: str | None = None
    calls: int = 0
    in_doubt: bool = False
    error: str | None = None
    scheduled_for: float | None = None

    @property
    def maybe_sent(self) -> bool:
        """True if the mail may have gone out although it is not on record as sent."""
        return self.in_doubt or self.state is DraftState.IN_FLIGHT


UNREAD: Final = Record(DraftState.UNKNOWN, in_doubt=True)
"""The record to assume until the real one has been read: an earlier call may have sent the draft."""
