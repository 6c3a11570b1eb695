"""The arguments of the client's methods, checked before anything is done."""

import math
from datetime import datetime
from typing import Final, NamedTuple

from feishu_mail_async._checks import check_id, check_number, check_text
from feishu_mail_async._clock import loop_time, wall_clock
from feishu_mail_async._scheduling.record import Schedule
from feishu_mail_async.model import Draft, SendResult

__all__ = [
    "AHEAD",
    "Mail",
    "check_deadline",
    "check_mailbox",
    "end_of",
    "left_until",
    "mail_of",
    "schedule_of",
    "seconds_to",
    "sent_mail",
]

AHEAD: Final = 305
"""Seconds between handing a draft over and the sending that it schedules, at least.

The server wants 300 ("发送草稿", `send_time`); the rest is for clocks that differ and the way to it.
"""


class Mail(NamedTuple):
    """A mail that was handed to the server, as its calls name it.

    Attributes:
        message_id: the mail's id.
        mailbox: the address of its mailbox; `me` is the user's own.
        user: the user whose token is used; None: the client's only user.
        draft: the draft that it was; None if only the id is known.
        scheduled_for: when the server will send it; None: it was sent, or nothing is known of a schedule.
    """

    message_id: str
    mailbox: str
    user: str | None
    draft: Draft | None
    scheduled_for: datetime | None = None

    def goes_out_in(self) -> float:
        """Return the seconds until it is sent; 0 if it is sent already."""
        return 0.0 if self.scheduled_for is None else max(0.0, seconds_to("at", self.scheduled_for))


def mail_of(mail: str | SendResult, mailbox: str, user: str | None) -> Mail:
    """Return the mail; a result brings its id, mailbox and user."""
    if not isinstance(mail, SendResult):
        check_mailbox(mailbox, user)
        return Mail(check_id("mail", mail), mailbox, user, None)
    draft = mail.draft
    if mailbox not in {"me", draft.mailbox} or user not in {None, draft.user}:
        raise ValueError("mailbox, user: the SendResult brings its own; leave them out")
    if mail.message_id is None:
        raise ValueError(
            "mail: the server gave no message_id for it (an earlier call had sent it); give the id itself"
        )
    return Mail(mail.message_id, draft.mailbox, draft.user, draft, mail.scheduled_for)


def sent_mail(mail: str | SendResult, mailbox: str, user: str | None) -> Mail:
    """Return the mail as `mail_of` does; raise ValueError if it is known not to be sent yet."""
    found = mail_of(mail, mailbox, user)
    if found.scheduled_for is not None and found.goes_out_in():
        raise ValueError(
            f"mail: it is scheduled for {found.scheduled_for.isoformat()} and not sent yet; wait for that"
        )
    return found


def schedule_of(at: datetime) -> Schedule:
    """Return the schedule of a send that the server is to make at this moment; call it in the event loop.

    Raises:
        TypeError, ValueError: it is no moment, names no time zone, or is less than five minutes ahead.
    """
    left = seconds_to("at", at) - AHEAD
    if left < 0:
        raise ValueError(f"at: {at.isoformat()} is less than five minutes ahead; give a later time, or none")
    return Schedule(math.ceil(at.timestamp()), loop_time() + left)


def seconds_to(name: str, at: datetime) -> float:
    """Return the seconds until a moment, which may have passed.

    Args:
        name: the name of the parameter, for the message.
        at: the moment.

    Raises:
        TypeError, ValueError: it is no moment, or names no time zone.
    """
    if not isinstance(at, datetime):
        raise TypeError(f"{name}: give a datetime with a time zone, not {type(at).__name__}")
    if at.utcoffset() is None:
        raise ValueError(f"{name}: it names no time zone; give one, as in datetime(..., tzinfo=ZoneInfo(...))")
    return at.timestamp() - wall_clock()


def check_mailbox(mailbox: str, user: str | None) -> None:
    """Raise TypeError or ValueError, naming the parameter, unless these can be a mailbox and its user."""
    check_id("mailbox", mailbox)
    if user is not None:
        check_text("user", user)


def check_deadline(deadline: float) -> None:
    """Raise TypeError or ValueError unless this is a number of seconds."""
    check_number("deadline", deadline, lambda _: True, "seconds, or None")


def end_of(deadline: float | None) -> float | None:
    """Return when a call with this deadline has to be over, in the loop's time; None: there is no limit.

    Raises:
        TypeError, ValueError: it is no number of seconds.
    """
    if deadline is None:
        return None
    check_deadline(deadline)
    return loop_time() + deadline


def left_until(ends: float | None) -> float | None:
    """Return the seconds left until then; None: there is no limit."""
    return None if ends is None else ends - loop_time()
