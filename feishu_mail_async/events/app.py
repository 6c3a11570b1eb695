"""The events of an app, its users and its mailboxes."""

import logging
from dataclasses import dataclass
from typing import ClassVar

from feishu_mail_async._text import escape
from feishu_mail_async.codes import ResumeWhen

from .event import Event

__all__ = [
    "AppPaused",
    "AppResumed",
    "DraftMayBeLeft",
    "EventsLost",
    "SuspensionEnded",
    "SuspensionStarted",
    "TokenRefreshed",
    "UserCooled",
]


@dataclass(frozen=True, slots=True)
class UserCooled(Event):
    """The start of a user's backoff: the server slows the user down. Drafts of other users go on.

    Attributes:
        user: the user's name.
        seconds: the length of the backoff.
        times: the number of consecutive refusals, this one included.
    """

    user: str
    seconds: float
    times: int

    def __str__(self) -> str:
        return f"user {escape(self.user)} cools down for {self.seconds:.1f} s (refusal {self.times} in a row)"


@dataclass(frozen=True, slots=True)
class AppPaused(Event):
    """The start, or the extension, of a pause of the app's calls to one endpoint; at its end one call probes.

    Attributes:
        endpoint: the name of the endpoint; each has a limit of its own.
        seconds: seconds until the probe.
        reason: the reason.
    """

    level: ClassVar[int] = logging.WARNING

    endpoint: str
    seconds: float
    reason: str

    def __str__(self) -> str:
        return f"all {self.endpoint} calls of the app wait for {self.seconds:.1f} s: {self.reason}"


@dataclass(frozen=True, slots=True)
class AppResumed(Event):
    """The end of a pause of the app's calls to one endpoint: a probe was answered.

    Attributes:
        endpoint: the name of its endpoint, such as "send" or "list".
        lasted: the length of the pause, in seconds.
    """

    endpoint: str
    lasted: float

    def __str__(self) -> str:
        return f"the {self.endpoint} calls of the app go on after {self.lasted:.1f} s"


@dataclass(frozen=True, slots=True)
class SuspensionStarted(Event):
    """The start of a suspension of a user, a mailbox or the app: its drafts are skipped, without calls.

    Attributes:
        endpoint: the name of the endpoint whose answer has suspended it.
        subject: "app", "user:NAME" or "mailbox:ADDRESS", as `FeishuMailClient.resume` takes it.
        seconds: seconds until one draft may try again; None if it takes a new token or `resume`.
        until: the condition that ends the suspension.
        reason: the error that suspended it.
    """

    level: ClassVar[int] = logging.WARNING

    endpoint: str
    subject: str
    seconds: float | None
    until: ResumeWhen
    reason: str

    def __str__(self) -> str:
        ends = f"until {self.until}" if self.seconds is None else f"for {self.seconds:.0f} s"
        return f"{escape(self.subject)} is suspended {ends}: {self.reason}"


@dataclass(frozen=True, slots=True)
class SuspensionEnded(Event):
    """The end of a suspension.

    The end of a timed one is noticed, and published, when the subject's next draft comes.

    Attributes:
        endpoint: the name of its endpoint, such as "send" or "list".
        subject: as in its `SuspensionStarted`.
    """

    endpoint: str
    subject: str

    def __str__(self) -> str:
        return f"{escape(self.subject)} is no longer suspended"


@dataclass(frozen=True, slots=True)
class TokenRefreshed(Event):
    """A new token for a user, as the token source has returned it.

    Attributes:
        user: the user's name.
    """

    user: str

    def __str__(self) -> str:
        return f"user {escape(self.user)} has a new token"


@dataclass(frozen=True, slots=True)
class EventsLost(Event):
    """A gap: a reader of `FeishuMailClient.events` fell behind, and the oldest events were dropped here.

    Attributes:
        number: the number of events dropped.
    """

    number: int

    def __str__(self) -> str:
        return f"{self.number} events were lost: they were not read in time"


@dataclass(frozen=True, slots=True)
class DraftMayBeLeft(Event):
    """A draft that may lie in a mailbox beside the one that was created: nobody sends it.

    A creation had no answer, and what it may have made was not found, so it was repeated.

    Attributes:
        user: the user's name.
        mailbox: the address of the mailbox.
        message_id: the Message-ID by which the draft can be told from others, if the server has kept it.
    """

    level: ClassVar[int] = logging.WARNING

    user: str
    mailbox: str
    message_id: str

    def __str__(self) -> str:
        return (
            f"user {escape(self.user)}, mailbox {escape(self.mailbox)}: a draft may be left over with the "
            f"Message-ID {escape(self.message_id)}; its creation had no answer and was repeated"
        )
