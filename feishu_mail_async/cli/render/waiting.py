"""The reason, in words, why unfinished drafts wait."""

import math
import re
from dataclasses import dataclass
from typing import Final

from feishu_mail_async._scheduling.snapshot import Snapshot
from feishu_mail_async._text import escape

from .wording import count

__all__ = ["Wait", "why_waiting"]

_API_ERROR: Final = re.compile(r"\d+: ")
_MINUTE: Final = 60.0
_LONG: Final = 1.0


@dataclass(frozen=True, slots=True)
class Wait:
    """A reason for waiting.

    Attributes:
        kind: the kind of reason, which stays the same while the numbers in the text change.
        text: the reason, for a person.
        seconds: the time left, in seconds; None if it is not known.
    """

    kind: str
    text: str
    seconds: float | None = None

    @property
    def is_long(self) -> bool:
        """True if it is known to take long enough for a person to wonder."""
        return (self.seconds or 0.0) >= _LONG


def why_waiting(snapshot: Snapshot, unfinished: int) -> Wait | None:
    """Return the most important reason why drafts wait; None if there is none.

    Args:
        snapshot: the scheduler's state.
        unfinished: the number of drafts without an outcome. Those that neither wait for a turn nor are in flight
            wait for their own retry.
    """
    # By reach: a pause stops the whole app, a full window all its calls, a backoff one user, a retry one draft.
    waiting = sum(snapshot.waiting.values())
    retrying = max(0, unfinished - waiting - snapshot.in_flight)
    if snapshot.paused is not None:
        return _paused(snapshot, max(1, unfinished - snapshot.in_flight))
    if waiting and not snapshot.permits:
        depends = snapshot.next_permit is None
        when = " for a call under way to end" if depends else f", next call in {_s(snapshot.next_permit or 0)}"
        limit = snapshot.limit
        window = "this minute" if limit.per == _MINUTE else f"these {limit.per:g} s"
        return Wait(
            "limit",
            f"{waiting} waiting{when} ({limit.calls} of {limit.calls} calls of {window} made)",
            snapshot.next_permit,
        )
    if waiting and snapshot.cooling:
        user, seconds = min(snapshot.cooling.items(), key=lambda item: item[1])
        # An unnamed user goes by a token fingerprint in parentheses, which means nothing to a person.
        who = "the user" if user.startswith("(") else user
        return Wait(
            "cooling", f"{waiting} waiting: the server slows {who} down, next try in {_s(seconds)}", seconds
        )
    if snapshot.in_flight:
        rest = f", {waiting} waiting for their turn" if waiting else ""
        return Wait("calls", f"{count(snapshot.in_flight, 'call')} under way{rest}")
    if retrying:
        return Wait("retry", f"{retrying} to be tried again shortly")
    return None


def _paused(snapshot: Snapshot, waiting: int) -> Wait:
    assert snapshot.paused is not None
    reason = snapshot.pause_reason or ""
    api = _API_ERROR.match(reason)
    why = "the server asked for a pause" if api is not None else reason
    when = f"next try in {_s(snapshot.paused)}" if snapshot.paused > 0 else "trying one call"
    return Wait(
        "pause" if api is not None else "unreachable", f"{waiting} waiting, {when}: {escape(why)}", snapshot.paused
    )


def _s(seconds: float) -> str:
    return f"{max(1, math.ceil(seconds))} s"
