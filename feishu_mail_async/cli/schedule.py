"""The option `--at`: when the server is to send the drafts, and how many can be handed over in time."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import typer

from feishu_mail_async._client.arguments import AHEAD
from feishu_mail_async._clock import wall_clock
from feishu_mail_async.model import RateLimit

from .problems import WrongUsage
from .render.estimate import fit_into
from .render.wording import count, moment

__all__ = ["AtOption", "Schedule", "read_at"]

AtOption = Annotated[
    str | None,
    typer.Option(
        "--at",
        metavar="TIME",
        help='Have Feishu send them at this time, five minutes ahead at least: "2026-12-01 09:00", or with a '
        "time zone, 2026-12-01T09:00+08:00.",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class Schedule:
    """When the server is to send the drafts.

    Attributes:
        at: the time.
    """

    at: datetime

    @property
    def name(self) -> str:
        """The time for a person, in the local time zone."""
        return moment(self.at.timestamp())

    @property
    def question(self) -> str:
        """The question before the drafts are handed over."""
        return f"Have them sent at {self.name}?"

    def fitting(self, drafts: int, limit: RateLimit) -> int:
        """Return how many of these drafts can be handed over in time, if all calls go to them."""
        return min(drafts, fit_into(self.at.timestamp() - AHEAD - wall_clock(), limit))

    def sentence(self, drafts: int, limit: RateLimit) -> str:
        """Return in words whether so many drafts can be handed over in time."""
        fitting = self.fitting(drafts, limit)
        last = moment(self.at.timestamp() - AHEAD)
        if fitting == drafts:
            return f"Feishu sends them at {self.name}; they are handed over before {last}."
        late = f"the other {drafts - fitting} will fail, and are not sent"
        return (
            f"Only {count(fitting, 'draft')} can be handed over before {last}, to be sent at {self.name}: {late}."
        )


def read_at(text: str | None) -> Schedule | None:
    """Return the schedule that `--at` names; None if it was not given.

    Args:
        text: a date and a time; without a time zone it is the local one.

    Raises:
        WrongUsage: it is none, or less than five minutes ahead.
    """
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text.strip())
        at = at if at.utcoffset() is not None else at.astimezone()
        ahead = at.timestamp() - AHEAD - wall_clock()
    except (ValueError, OverflowError, OSError):
        raise WrongUsage("--at", f'give a date and a time like "2026-12-01 09:00", not {text!r}') from None
    if len(text.strip()) <= len("2026-12-01"):
        raise WrongUsage("--at", f'give the time, too, like "{text.strip()} 09:00"')
    if ahead < 0:
        raise WrongUsage("--at", f"{moment(at.timestamp())} is less than five minutes ahead; give a later time")
    return Schedule(at)
