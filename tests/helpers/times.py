"""Times that the command line is given."""

from datetime import datetime, timedelta

__all__ = ["later", "said"]


def later(**time: float) -> datetime:
    """A time of the local time zone, in whole minutes."""
    return (datetime.now().astimezone() + timedelta(**time)).replace(second=0, microsecond=0)


def said(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M}"
