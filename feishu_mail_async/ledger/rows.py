"""The rows of a ledger as values of the scheduler's rules, and back."""

import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from feishu_mail_async._api.endpoints import Endpoint
from feishu_mail_async._api.refusals import api_error
from feishu_mail_async._scheduling.state import EndpointState, Pause
from feishu_mail_async._scheduling.suspensions import SuspensionEntry, SuspensionKey, Suspensions
from feishu_mail_async.codes import ResumeWhen, lookup
from feishu_mail_async.errors import ApiError, AutomatedSendDisabled, FeishuMailError
from feishu_mail_async.model import RateLimit

from . import schema
from .texts import stored

__all__ = [
    "LockRow",
    "PermitRow",
    "budget_columns",
    "budget_of",
    "load_error",
    "look_again",
    "permits_of",
    "state_of",
    "suspension_row",
    "suspensions_of",
]

_LEAST_LOOK: Final = 0.05
"""Seconds between two looks at another process's call, at least."""
_MOST_LOOK: Final = 1.0
"""Seconds between two looks at another process's call, at most."""
_LIMIT: Final = tuple(one.name for one in dataclasses.fields(RateLimit))


def _limit_of(row: sa.Row[Any]) -> RateLimit:
    """Return the limit in an endpoint's row."""
    return RateLimit(**{name: getattr(row, name) for name in _LIMIT})


async def budget_of(
    connection: AsyncConnection, app_id: int, endpoint: str, limit: RateLimit, *, change: bool
) -> sa.Row[Any]:
    """Read the row of an endpoint, making it if there is none. The app's row must be locked.

    A new row has that limit; with `change` an old one gets it, too.
    """
    budget = schema.budget
    mine = budget.c.app_id == app_id, budget.c.endpoint == endpoint
    row = (await connection.execute(sa.select(budget).where(*mine))).one_or_none()
    write: sa.Insert | sa.Update
    if row is None:
        values = {"app_id": app_id, "endpoint": endpoint, "pauses": 0, "unreachable_times": 0}
        write = sa.insert(budget).values(values | dataclasses.asdict(limit))
    elif change and limit != _limit_of(row):
        write = sa.update(budget).where(*mine).values(dataclasses.asdict(limit))
    else:
        return row
    written: sa.Row[Any] = (await connection.execute(write.returning(budget))).one()
    return written


def state_of(endpoint: Endpoint[Any], row: sa.Row[Any], suspensions: Suspensions) -> EndpointState:
    """Return the state of an endpoint from its row; its permits are loaded separately."""
    state = EndpointState(endpoint, _limit_of(row), suspensions)
    state.last = row.last
    state.pauses = row.pauses
    if row.pause_until is not None:
        state.pause = Pause(row.pause_until, row.pause_reason, row.probe, row.probe_lapses)
    state.smooth_until = row.smooth_until
    state.unreachable_since, state.unreachable_times = row.unreachable_since, row.unreachable_times
    return state


def budget_columns(state: EndpointState) -> dict[str, Any]:
    """Return the columns of an endpoint's row for a state."""
    pause = state.pause
    return {
        "last": state.last,
        "pauses": state.pauses,
        "pause_until": None if pause is None else pause.until,
        "pause_reason": None if pause is None else pause.reason,
        "probe": None if pause is None else pause.probe,
        "probe_lapses": math.inf if pause is None or pause.probe is None else pause.probe_lapses,
        "smooth_until": state.smooth_until,
        "unreachable_since": state.unreachable_since,
        "unreachable_times": state.unreachable_times,
    }


async def suspensions_of(
    connection: AsyncConnection, app_id: int, subjects: Iterable[str] | None = None
) -> Suspensions:
    """Read the suspensions of these subjects, or all of an app."""
    suspension = schema.suspension.c
    query = sa.select(schema.suspension).where(suspension.app_id == app_id)
    asked = {} if subjects is None else {stored(subject): subject for subject in subjects}
    if subjects is not None:
        query = query.where(suspension.subject.in_(list(asked)))
    found = Suspensions()
    for row in await connection.execute(query):
        key = SuspensionKey(asked.get(row.subject, row.subject), row.reach)
        found.entries[key] = SuspensionEntry(
            load_error(row.reason), ResumeWhen[row.until], row.ends, row.fingerprint
        )
    return found


def suspension_row(app_id: int, key: SuspensionKey, entry: SuspensionEntry) -> dict[str, Any]:
    """Return the row of a suspension."""
    return {
        "app_id": app_id,
        "subject": key.subject,
        "reach": key.reach,
        "reason": dump_error(entry.reason),
        "until": entry.until.name,
        "ends": entry.ends,
        "fingerprint": entry.fingerprint,
    }


def dump_error(error: FeishuMailError) -> str:
    """Return an error as text, so that other processes can report why a subject is suspended.

    Its cause, and the draft concerned, are not kept.
    """
    kept: dict[str, Any] = {"text": str(error), "log_id": error.log_id}
    if isinstance(error, ApiError):
        kept |= {"code": error.code, "msg": error.msg, "http_status": error.http_status}
    elif isinstance(error, AutomatedSendDisabled):
        kept |= {"reason": error.reason, "reference": error.reference}
    return json.dumps(kept)  # escaped to ASCII: a database does not accept every text of a server


def load_error(text: str) -> FeishuMailError:
    """Return the error that `dump_error` has made a text of."""
    kept = json.loads(text)
    if "code" in kept:
        row = lookup(kept["code"], kept["http_status"])
        return api_error(row, kept["msg"], http_status=kept["http_status"], log_id=kept["log_id"])
    if "reason" in kept:
        return AutomatedSendDisabled(kept["reason"], kept["reference"], log_id=kept["log_id"])
    return FeishuMailError(kept["text"], log_id=kept["log_id"])


@dataclass(slots=True)
class LockRow:
    """The row of a user's or a mailbox's lock.

    Attributes:
        kind: "user" or "mailbox"; for an endpoint that only reads, with the endpoint's name.
        key: the user's or the mailbox's key.
        turn: the turn that holds it, if any.
        taken: when that turn took it.
        lapses: when that turn's lease lapses.
        open_at: see `Lock`; so are the other two.
        backoff_until: the end of a backoff.
        consecutive_refusals: refusals in a row.
    """

    kind: str
    key: str
    turn: str | None = None
    taken: float = -math.inf
    lapses: float = -math.inf
    open_at: float = -math.inf
    backoff_until: float = -math.inf
    consecutive_refusals: int = 0

    def free_at(self, now: float) -> float:
        """Return when to look again; `now` or earlier if it is free."""
        if self.turn is not None and self.lapses > now:
            return max(look_again(self.taken, self.lapses, now), self.open_at)
        return self.open_at

    def at_rest(self, now: float) -> bool:
        """Return whether there is nothing to remember, so that it needs no row."""
        return self.turn is None and not self.consecutive_refusals and max(self.open_at, self.backoff_until) <= now


@dataclass(slots=True)
class PermitRow:
    """The row of a call's permit. The window holds it until `ended`, or else `lapses`, and one window more."""

    turn: str
    taken: float
    lapses: float
    ended: float | None = None

    @property
    def end(self) -> float:
        """The time when the call ended or, without a word of its end, counts as ended."""
        return self.lapses if self.ended is None else self.ended


async def permits_of(connection: AsyncConnection, app_id: int, endpoint: str) -> list[PermitRow]:
    """Read the calls of an endpoint that are on record; the window may not hold some of them any more."""
    permit = schema.permit.c
    columns = permit.turn, permit.taken, permit.lapses, permit.ended
    query = sa.select(*columns).where(permit.app_id == app_id, permit.endpoint == endpoint)
    return [PermitRow(*row) for row in await connection.execute(query)]


def look_again(since: float, until: float, now: float) -> float:
    """Return when to look whether another process's call has ended: after a quarter of its age so far.

    Most calls end soon, so a young one is worth a look soon; an old one hangs, or its process has died.

    Args:
        since: when the call was made.
        until: when its lease lapses: there is no need to look later.
        now: the time.
    """
    return min(until, now + min(_MOST_LOOK, max(_LEAST_LOOK, (now - since) / 4)))
