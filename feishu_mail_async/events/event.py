"""What all events have."""

import functools
import logging
import re
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, ClassVar

from feishu_mail_async.errors import FeishuMailError
from feishu_mail_async.model import Draft, SendResult

__all__ = ["Event"]


@functools.cache
def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. `str()` of it is a sentence for people.

    Attributes:
        time: the moment, in seconds of the running loop's clock.
        level: the level at which it is logged (set by class).
    """

    level: ClassVar[int] = logging.INFO
    """The level at which the event is logged."""

    time: float

    @property
    def name(self) -> str:
        """The kind of the event, as logs and metrics name it: "turn_granted"."""
        return _snake_case(type(self).__name__)

    def extra(self) -> dict[str, Any]:
        """Return the fields as a log record takes them: plain values, without those that are None.

        Returns:
            values by name, with `event` and `at` (the event's name and time) beside the fields; a draft is given
            as its `draft_id` and `mailbox`, an error as its `error` and `error_type`, a result as its
            `message_id`.
        """
        extra: dict[str, Any] = {"event": self.name, "at": self.time}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Draft):
                extra |= {"draft_id": value.draft_id, "mailbox": value.mailbox}
            elif isinstance(value, FeishuMailError):
                extra |= {"error": str(value), "error_type": type(value).__name__}
            elif isinstance(value, SendResult):
                extra |= {"message_id": value.message_id}
            elif value is not None and one.name != "time":  # formatters use that name for the wall clock
                extra[one.name] = value.value if isinstance(value, Enum) else value
        return extra
