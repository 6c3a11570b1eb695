"""What an answer can mean: the columns of the tables of codes, and their rows' type."""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Code", "Reach", "ResumeWhen", "Subject", "Verdict"]


class Verdict(StrEnum):
    """The meaning of a reply for the call."""

    DONE = "done"
    ALREADY_DONE = "already done"
    RETRY = "retry"
    FATAL = "fatal"


class Subject(StrEnum):
    """The draft, user, mailbox or app concerned: it waits after a RETRY, and is suspended after a FATAL."""

    DRAFT = "draft"
    USER = "user"
    MAILBOX = "mailbox"
    APP = "app"


class Reach(StrEnum):
    """The endpoints for which a suspension holds."""

    ENDPOINT = "this endpoint"
    SCOPE = "endpoints of the same OAuth scope"
    ALL = "all endpoints"


class ResumeWhen(StrEnum):
    """The condition that ends a suspension after a FATAL verdict."""

    HOUR = "an hour, then one probe"
    TOKEN = "the token changes"  # noqa: S105 - a condition, not a secret
    RESUMED = "resumed by the caller"


@dataclass(frozen=True, slots=True)
class Code:
    """A row of the table.

    Attributes:
        number: the `code` of the reply's body.
        name: a name of its own, which the sandbox and the tests use.
        error: the name of the exception class in `errors`; empty where the call succeeded.
        http_status: the HTTP status the platform sends with it.
        message: the English message the platform sends with it.
        verdict: the meaning for the draft.
        subject: the draft, user, mailbox or app concerned.
        conclusive: true if this answer settles whether the attempt did what it asked for; false only for server
            errors.
        until: the condition that ends the suspension, where a FATAL verdict suspends more than its draft.
        reach: the endpoints for which that suspension holds.
        advice: the remedy, in English.
        advice_zh: the remedy, in Chinese.
    """

    number: int
    name: str
    error: str
    http_status: int
    message: str
    verdict: Verdict
    subject: Subject
    conclusive: bool
    advice: str
    advice_zh: str
    until: ResumeWhen | None = None
    reach: Reach = Reach.ALL
