"""The records of drafts: what a transaction reads and writes of them. `DraftState` draws the states of a record.

A record names the turn whose call is under way. The end of a call finds the record by its turn, so it does nothing
if that turn was freed meanwhile, or if it was written before.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Final

import sqlalchemy as sa

from feishu_mail_async._api.protocol import CallEnd, Judgement
from feishu_mail_async._causes import root_cause
from feishu_mail_async._clock import wall_clock
from feishu_mail_async._scheduling.record import DraftKey, DraftState, Record
from feishu_mail_async._scheduling.waiters import Turn
from feishu_mail_async.codes import Verdict
from feishu_mail_async.errors import ApiError, FeishuMailError
from feishu_mail_async.model import OutcomeStatus

from . import schema
from .lookup import rows_of
from .texts import stored
from .transaction import Transaction

__all__ = ["Note", "begin_call", "end_call", "free", "read", "unschedule", "write_notes"]

Note = tuple[OutcomeStatus, FeishuMailError]
"""The outcome of a draft that ended without a call of its own."""

_draft: Final = schema.draft.c
_KEY: Final = schema.draft.primary_key.columns
_RECORD: Final = tuple(field.name for field in dataclasses.fields(Record))
_KEPT: Final = tuple(state for state in DraftState if state.done or state is DraftState.IN_FLIGHT)
"""States that a note does not change: another process has sent the draft, or is sending it."""
_CANCELLED: Final = "its scheduled sending was cancelled"
_LARGEST_CODE: Final = 2**31 - 1


async def read(transaction: Transaction, keys: Iterable[DraftKey]) -> dict[DraftKey, Record]:
    """Read the records of these drafts; one without a record is left out."""
    asked = {tuple(map(stored, key)): key for key in keys}
    return {
        asked[row.user_key, row.mailbox_key, row.draft_id]: Record(
            **{name: getattr(row, name) for name in _RECORD} | {"state": DraftState(row.state)}
        )
        for row in await rows_of(transaction.connection, schema.draft, transaction.app_id, asked)
    }


async def begin_call(transaction: Transaction, key: DraftKey, turn: str, record: Record | None) -> bool:
    """Record the intent to send a draft, and return whether an earlier call may have sent it."""
    in_doubt = record is not None and record.maybe_sent
    values = {
        "state": DraftState.IN_FLIGHT,
        "in_doubt": in_doubt,
        "turn": turn,
        "calls": (0 if record is None else record.calls) + 1,
        "changed": wall_clock(),
    }
    insert = transaction.database.insert(schema.draft).values(_key_columns(transaction, key) | values)
    await transaction.run(insert.on_conflict_do_update(index_elements=_KEY, set_=values))
    return in_doubt


async def end_call(transaction: Transaction, turn: Turn, judgement: Judgement, *, renewing: bool) -> None:
    """Write the judgement on a call into the record of its draft; `renewing` as in `EndpointState.settle`."""
    in_doubt = not judgement.good and (turn.permit.in_doubt or not judgement.conclusive)
    values: dict[str, Any] = {"turn": None, "in_doubt": in_doubt, "log_id": judgement.log_id}
    if judgement.good:
        state = DraftState.SENT if judgement.verdict is Verdict.DONE else DraftState.ALREADY_SENT
        values |= {name: judgement.text(name) for name in ("message_id", "thread_id")}
        values |= {"code": None, "error": None}
        schedule, already = turn.waiter.schedule, state is DraftState.ALREADY_SENT
        if schedule is not None and schedule.holds(already=already, in_doubt=turn.permit.in_doubt):
            state = DraftState.SCHEDULED
            values |= {"scheduled_for": schedule.at, "message_id": values["message_id"] or schedule.message_id}
    elif judgement.verdict is Verdict.FATAL and not renewing:
        state = DraftState.UNKNOWN if in_doubt else DraftState.FAILED
    else:
        state = DraftState.WAITING
    if judgement.error is not None:
        values |= _error_columns(judgement.error)
    if judgement.end is CallEnd.NEVER_LEFT:
        values["calls"] = _draft.calls - 1
    mine = sa.update(schema.draft).where(_draft.turn == turn.permit.turn)
    await transaction.run(mine.values(state=state, changed=wall_clock(), **values))


async def free(transaction: Transaction, turn: str) -> None:
    """Record that no call was made in a turn."""
    mine = sa.update(schema.draft).where(_draft.turn == turn, _draft.state == DraftState.IN_FLIGHT)
    await transaction.run(mine.values(state=DraftState.WAITING, turn=None, calls=_draft.calls - 1))


async def unschedule(transaction: Transaction, user: str, mailbox: str, mail: str, *, cancelled: bool) -> None:
    """Record that a scheduled mail, named by its own id or its draft's, is being cancelled, or that it was."""
    mine = (_draft.app_id == transaction.app_id, _draft.user_key == user, _draft.mailbox_key == mailbox)
    named = sa.or_(_draft.message_id == mail, _draft.draft_id == mail)
    states, values = [DraftState.SCHEDULED], {"state": DraftState.WAITING, "in_doubt": True}
    if cancelled:
        states.append(DraftState.WAITING)
        values = {"state": DraftState.SKIPPED, "in_doubt": False, "scheduled_for": None, "error": _CANCELLED}
    found = sa.update(schema.draft).where(*mine, _draft.state.in_(states), named)
    await transaction.run(found.values(**values, changed=wall_clock()))


async def write_notes(transaction: Transaction, notes: Mapping[DraftKey, Note]) -> None:
    """Write the outcomes of drafts that were not sent."""
    rows = [
        {
            **_key_columns(transaction, key),
            "state": status.value,
            "in_doubt": status is OutcomeStatus.UNKNOWN,
            "calls": error.attempts,
            "changed": wall_clock(),
            **_error_columns(error),
        }
        for key, (status, error) in notes.items()
    ]
    insert = transaction.database.insert(schema.draft)
    new = {name: insert.excluded[name] for name in ("state", "changed", "error", "code")}
    new["in_doubt"] = sa.or_(_draft.in_doubt, insert.excluded.in_doubt)
    # Not as a list: a statement for many rows cannot hold one.
    changed = sa.and_(*(_draft.state != state for state in _KEPT))
    await transaction.run(insert.on_conflict_do_update(index_elements=_KEY, set_=new, where=changed), rows)


def _key_columns(transaction: Transaction, key: DraftKey) -> dict[str, Any]:
    user, mailbox, draft_id = key
    return {"app_id": transaction.app_id, "user_key": user, "mailbox_key": mailbox, "draft_id": draft_id}


def _error_columns(error: FeishuMailError) -> dict[str, Any]:
    decided = root_cause(error)
    code = decided.code if isinstance(decided, ApiError) and abs(decided.code) <= _LARGEST_CODE else None
    return {"error": str(error), "code": code}
