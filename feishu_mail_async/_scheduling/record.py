"""What a ledger knows of a draft."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

__all__ = ["UNREAD", "DraftKey", "DraftState", "Record"]


class DraftKey(NamedTuple):
    """What tells the drafts of one app apart.

    Attributes:
        user: the user's key.
        mailbox: the mailbox's key.
        draft_id: the draft's id.
    """

    user: str
    mailbox: str
    draft_id: str


class DraftState(StrEnum):
    """How a draft stands in a ledger: the statuses of outcomes, and two on the way there."""

    WAITING = "waiting"
    """Its last call has ended without settling it; another is to come."""
    IN_FLIGHT = "in_flight"
    """A call is being made, or was being made when its process died."""
    SENT = "sent"
    ALREADY_SENT = "already_sent"
    FAILED = "failed"
    UNKNOWN = "unknown"
    SKIPPED = "skipped"

    @property
    def settled(self) -> bool:
        """Whether the mail went out, so that no call is needed any more."""
        return self in {DraftState.SENT, DraftState.ALREADY_SENT}


@dataclass(frozen=True, slots=True)
class Record:
    """What a ledger knows of a draft.

    Attributes:
        state: how it stands.
        message_id: the sent mail's id.
        thread_id: the conversation's id.
        log_id: the `X-Tt-Logid` of the last answer.
        calls: calls made for it so far, in all processes.
        in_doubt: a call may have sent it without anybody's knowing.
        error: what came last, in words, where it was not sent.
    """

    state: DraftState
    message_id: str | None = None
    thread_id: str | None = None
    log_id: str | None = None
    calls: int = 0
    in_doubt: bool = False
    error: str | None = None

    @property
    def maybe_sent(self) -> bool:
        """Whether the mail may have gone out though it is not on record as sent."""
        return self.in_doubt or self.state is DraftState.IN_FLIGHT


UNREAD: Final = Record(DraftState.UNKNOWN, in_doubt=True)
"""Stands for a record until it has been read: an earlier call may have sent the draft."""
