"""The endpoints by which a mail goes out: send, at once or at a time, and cancel what is scheduled."""

import asyncio
import json
from typing import Final

from feishu_mail_async import codes

from .calllog import CallLog
from .case import Answer, Case, Clock, Effect, now
from .faults import refusal, success
from .world import StoredDraft, User, World

__all__ = ["Sending"]

_SCHEDULE_AHEAD: Final = 300
"""The least time between a call and the send it schedules, in seconds."""


class Sending:
    """The endpoints by which a mail goes out.

    Args:
        world: the mail.
        ledger: the call log, which notes what goes out, and what is scheduled and cancelled.
        clock: the Unix time.
    """

    def __init__(self, world: World, ledger: CallLog, clock: Clock) -> None:
        self._world = world
        self._ledger = ledger
        self._clock = clock
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def close(self) -> None:
        """Cancel the scheduled sends."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def send(self, case: Case) -> Answer:
        """Answer a call that sends a draft, or schedules it."""
        draft = self._world.find_draft(case.mailbox, case.call.draft_id)
        if draft is None:
            return refusal(codes.named("DraftNotFound")), None
        if not draft.listed:
            return refusal(codes.named("AlreadySent")), None
        if case.mailbox.automation is not None:
            reason, reference = case.mailbox.automation
            return success({"automation_send_disable": {"reason": reason, "reference": reference}}), None
        if not case.user.has_quota(case.time):
            return refusal(codes.named("UserDailyQuota")), None
        leaving = self._leaving(case, draft)
        if leaving is None:
            return refusal(codes.named("InvalidRequest")), None
        data, effect = leaving
        return success(data), effect

    def forced(self, case: Case) -> Effect | None:
        """Return the effect of a send that is refused, and goes out all the same because a fault says so.

        Args:
            case: the call.

        Returns:
            the effect; None if there is no such draft, or the call asks for nothing possible.
        """
        draft = self._world.find_draft(case.mailbox, case.call.draft_id)
        if draft is None or not draft.listed:
            return None
        leaving = self._leaving(case, draft)
        return None if leaving is None else leaving[1]

    def cancel(self, case: Case) -> Answer:
        """Answer a call that cancels a scheduled send."""
        draft = self._world.find_message(case.mailbox, case.call.message_id)
        if draft is None or not draft.scheduled:
            known = draft or self._world.find_draft(case.mailbox, case.call.message_id)
            return refusal(codes.named("DraftNotFound" if known is None else "NotScheduled")), None

        def cancel() -> None:
            draft.due = None
            self._ledger.cancelled[draft.draft_id] += 1

        return success({}), cancel

    def hold(self, case: Case) -> None:
        """Stop the timer of a mail whose cancelling has begun, so that it does not go out before that is done.

        Args:
            case: the call that cancels it.
        """
        draft = self._world.find_message(case.mailbox, case.call.message_id)
        if draft is not None and (timer := self._timers.pop(draft.draft_id, None)) is not None:
            timer.cancel()

    def _leaving(self, case: Case, draft: StoredDraft) -> tuple[dict[str, str], Effect] | None:
        """Return the `data` and the effect of sending a draft as the call asks; None if its body is invalid."""
        try:
            ahead = self._ahead(case.body, draft)
        except (ValueError, TypeError, AttributeError):
            return None
        if ahead is not None:
            # Neither id: the platform has no message id for a mail that is not on its way yet.
            return {}, self._scheduling(draft, case.user, ahead)
        data = {
            "message_id": draft.message_id,
            "thread_id": self._world.new_id(),
            "recall_status": "available",
        }
        return data, self._going_out(draft, case.user)

    def _ahead(self, body: bytes, draft: StoredDraft) -> float | None:
        """Return the seconds until a send is due, None for now; raise an exception if the body is invalid."""
        at = json.loads(body).get("send_time") if body else None
        if at is None:
            return None
        if not isinstance(at, str) or not (at.isascii() and at.isdigit()):
            raise ValueError("send_time: a text of whole seconds")
        if draft.mail is not None and draft.mail.invites:
            raise ValueError("send_time: not with an invitation")
        ahead = int(at) - self._clock.unix()
        if ahead < _SCHEDULE_AHEAD:
            raise ValueError("send_time: too early")
        return ahead

    def _going_out(self, draft: StoredDraft, user: User) -> Effect:
        def go_out() -> None:
            # Checked again here: a fault may let the mail of a refused second call go out "as well".
            if draft.sent_at is not None:
                return
            self._timers.pop(draft.draft_id, None)
            draft.sent_at, draft.due = now(), None
            self._ledger.sent[draft.draft_id] += 1
            user.count(now())

        return go_out

    def _scheduling(self, draft: StoredDraft, user: User, ahead: float) -> Effect:
        due = now() + ahead

        def schedule() -> None:
            draft.due = due
            timer = asyncio.get_running_loop().call_at(due, self._going_out(draft, user))
            self._timers[draft.draft_id] = timer
            self._ledger.scheduled[draft.draft_id] += 1

        return schedule
