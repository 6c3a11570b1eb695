"""The suspensions of an app: subjects for which no call is attempted, on which endpoints, and until when.

Theory of operation. A code of the API that is final for more than one draft suspends a *subject*: a user, a
mailbox or the app. The *reach* of that is in the code's row: this endpoint alone, the endpoints of the same OAuth
scope, or all of them. Subject and reach together identify a suspension, and a call is attempted only if none holds
that has one of its subjects and one of its endpoint's reaches.

    free -- suspend --> suspended -- resume, the token changes, an hour has passed --> free

All endpoints of an app share one `Suspensions`. Pure: time is passed in.
"""

import math
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from feishu_mail_async._api.endpoints import Endpoint
from feishu_mail_async._causes import without_traceback
from feishu_mail_async.codes import Reach, ResumeWhen
from feishu_mail_async.errors import FeishuMailError, Suspended

__all__ = [
    "APP",
    "EVERYWHERE",
    "Suspension",
    "SuspensionEntry",
    "SuspensionKey",
    "Suspensions",
    "reach_of",
    "reaches",
    "subjects",
]

APP: Final = "app"
"""The subject that is the whole app."""

EVERYWHERE: Final = ""
"""The reach of a suspension that holds for all endpoints."""

_HOUR: Final = 3600.0
_FEW: Final = 64
"""Suspensions that are kept before the expired ones among them are looked for."""


class SuspensionKey(NamedTuple):
    """The identity of a suspension.

    Attributes:
        subject: "app", "user:NAME" or "mailbox:ADDRESS".
        reach: the name of an endpoint, an OAuth scope, or `EVERYWHERE`.
    """

    subject: str
    reach: str


@dataclass(slots=True)
class SuspensionEntry:
    """A suspension as it is kept.

    Attributes:
        reason: the error that brought it about.
        until: the event that ends it.
        ends: the time that ends it; infinity if time does not.
        fingerprint: the fingerprint of the refused token, where that is the reason.
    """

    reason: FeishuMailError
    until: ResumeWhen
    ends: float
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class Suspension:
    """A suspension as it is shown: the drafts of its subject are skipped.

    Attributes:
        subject: "app", "user:NAME" or "mailbox:ADDRESS", as `FeishuMailClient.resume` takes it.
        reason: the error that brought it about, in words.
        seconds: until one draft may try again; None if it takes a new token or `resume`.
        until: the event that ends it.
        reach: the endpoint or the OAuth scope for which it holds; empty: for all endpoints.
    """

    subject: str
    reason: str
    seconds: float | None
    until: ResumeWhen
    reach: str = EVERYWHERE


def subjects(user: str, mailbox: str) -> tuple[str, str, str]:
    """Return the subjects of a call: none of them may be suspended."""
    return APP, f"user:{user}", f"mailbox:{mailbox}"


def reaches(endpoint: Endpoint[Any]) -> tuple[str, str, str]:
    """Return the reaches that hold for an endpoint: a call of it has to heed suspensions with any of them."""
    return EVERYWHERE, endpoint.scope, endpoint.name


def reach_of(endpoint: Endpoint[Any], reach: Reach) -> str:
    """Return the reach of a suspension that a call of this endpoint brought about."""
    return {Reach.ENDPOINT: endpoint.name, Reach.SCOPE: endpoint.scope}.get(reach, EVERYWHERE)


class Suspensions:
    """All suspensions of an app.

    Attributes:
        entries: the suspensions; some of them may be over by time.
        changes: the number of times that `entries` has changed.
        probing: called with the time, the key and the reason when time has ended a suspension of the app: the
            calls that it reached have to begin with one probe.
    """

    __slots__ = ("_crowded", "changes", "entries", "probing")

    def __init__(self) -> None:
        self.entries: dict[SuspensionKey, SuspensionEntry] = {}
        self.changes = 0
        self.probing: list[Callable[[float, SuspensionKey, str], None]] = []
        self._crowded = _FEW  # the number at which the next `suspend` drops those that have expired

    def suspend(
        self,
        key: SuspensionKey,
        reason: FeishuMailError | None,
        until: ResumeWhen,
        now: float,
        fingerprint: str | None = None,
    ) -> None:
        """Suspend a subject, as far as the key reaches."""
        if len(self.entries) >= self._crowded:
            self.lapse([*self.entries], now)  # of users and mailboxes for which no call comes any more
            self._crowded = max(_FEW, 2 * len(self.entries))
        # A copy: the error itself is raised to a caller, whose frames its traceback keeps alive.
        kept = FeishuMailError(f"{key.subject} is suspended") if reason is None else without_traceback(reason)
        ends = now + _HOUR if until is ResumeWhen.HOUR else math.inf
        self.entries[key] = SuspensionEntry(kept, until, ends, fingerprint)
        self.changes += 1

    def lapse(self, keys: Iterable[SuspensionKey], now: float) -> None:
        """Drop those of these suspensions whose time is over.

        The calls of a user go one at a time, so the next one is the probe; the app's do not.
        """
        for key in keys:
            entry = self.entries.get(key)
            if entry is not None and entry.ends <= now:
                self._drop(key)
                if key.subject == APP:
                    for probe in self.probing:
                        probe(now, key, str(entry.reason))

    def resume(self, subject: str, when: ResumeWhen | None = None) -> None:
        """End the suspensions of a subject.

        Args:
            subject: the subject; it need not be suspended.
            when: only the suspensions that end by this event; None: all of them.
        """
        for key in [key for key in self.entries if key.subject == subject]:
            if when is None or self.entries[key].until is when:
                self._drop(key)

    def _drop(self, key: SuspensionKey) -> None:
        del self.entries[key]
        self.changes += 1

    def find(self, keys: Iterable[SuspensionKey], now: float) -> SuspensionKey | None:
        """Return the first of these keys under which a suspension holds."""
        for key in keys:
            entry = self.entries.get(key)
            if entry is not None and entry.ends > now:
                return key
        return None

    def holding(self, now: float, but: Container[SuspensionKey] = ()) -> tuple[Suspension, ...]:
        """Return the suspensions that hold, for showing; those under the keys `but` are left out."""
        return tuple(
            Suspension(
                key.subject,
                str(entry.reason),
                None if entry.ends == math.inf else entry.ends - now,
                entry.until,
                key.reach,
            )
            for key, entry in self.entries.items()
            if entry.ends > now and key not in but
        )

    def refusal(self, key: SuspensionKey, now: float) -> Suspended:
        """Return the error for calls that are not attempted because of a suspension."""
        entry = self.entries[key]
        left = None if entry.ends == math.inf else max(0.0, entry.ends - now)
        ends = f"until {entry.until}" if left is None else f"for another {left:.0f} s"
        error = Suspended(
            f"not attempted: {key.subject} is suspended {ends}, because of: {entry.reason}",
            subject=key.subject,
            until=left,
        )
        error.__cause__ = entry.reason
        return error

    def at_rest(self, now: float) -> bool:
        """Return whether nothing would be lost if all were forgotten."""
        # When the app's suspension is over, one call has to probe; a user's and a mailbox's just ends.
        return not any(entry.ends > now or key.subject == APP for key, entry in self.entries.items())
