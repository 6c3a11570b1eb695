"""Looks at the events that were told."""

from typing import TypeVar

from feishu_mail_async.events import Event

E = TypeVar("E", bound=Event)


def only(events: list[Event], kind: type[E]) -> list[E]:
    return [event for event in events if isinstance(event, kind)]


def kinds(events: list[Event]) -> list[type[Event]]:
    return [type(event) for event in events]
