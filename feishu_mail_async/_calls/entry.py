"""A party that wants a call made, from the intake to its end."""

from typing import Protocol

from feishu_mail_async._scheduling.record import Record
from feishu_mail_async.errors import FeishuMailError, NotSent

from .context import Listener
from .job import Job

__all__ = ["Entry"]


class Entry(Listener, Protocol):
    """A party that wants a call made: a caller who waits, or an input of a run.

    Attributes:
        record: the ledger's record of its draft; UNREAD before it is known.
        job: its job, which may have other listeners; None before there is one.
    """

    record: Record | None
    job: Job | None

    @property
    def wanted(self) -> bool:
        """True if it waits for its end; one that has gone is passed over, and told nothing."""

    def given_up(self) -> NotSent:
        """Return the error for an entry without a job that wants no calls any more."""

    def failed(self, error: FeishuMailError) -> None:
        """Handle its end without a job. It must be quick and must not raise."""
