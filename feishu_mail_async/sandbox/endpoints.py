"""The mail endpoints: for each call that may be carried out, the answer and an effect for later.

The answer is decided when the call arrives, and the effect happens when the call has been processed. The locks
that the call holds in between keep the two consistent.
"""

import asyncio
import base64
import email
import email.policy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs

from feishu_mail_async import codes

from .calllog import SEND, CallLog
from .content import show_message
from .faults import Reply, refusal, success
from .paths import Call
from .world import Mailbox, StoredDraft, User, World

__all__ = ["Case", "Effect", "Endpoints", "now"]

Effect = Callable[[], None]

_PAGE_SIZE: Final = 20
_LARGEST_PAGE: Final = 100
_SCHEDULE_AHEAD: Final = 300
"""The least time between a call and the send it schedules, in seconds."""


@dataclass(frozen=True, slots=True)
class Case:
    """A call that may be carried out, with its user and mailbox.

    Attributes:
        call: the endpoint and ids read from the request line.
        body: the request's body.
        time: the arrival, in seconds of the loop's clock.
        user: the user whose token the call carries.
        mailbox: the mailbox that the path names.
    """

    call: Call
    body: bytes
    time: float
    user: User
    mailbox: Mailbox


class Endpoints:
    """The mail endpoints, without HTTP, tokens, limits or locks.

    Args:
        world: the mail.
        ledger: the call log, which counts the mails sent.
    """

    def __init__(self, world: World, ledger: CallLog) -> None:
        self._world = world
        self._ledger = ledger
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._unix_offset: float | None = None
        self._on_drafts = {SEND: self._send, "cancel": self._cancel, "delete": _delete, "read": _read}

    def close(self) -> None:
        """Cancel the scheduled sends."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def unix_time(self) -> float:
        """Return the sandbox's Unix time in seconds, by which scheduled sends happen."""
        if self._unix_offset is None:
            # The wall clock is read only once. From here on the loop's clock advances this time, so that a
            # virtual clock moves scheduled sends as well.
            self._unix_offset = time.time() - now()
        return self._unix_offset + now()

    def carry_out(self, case: Case) -> tuple[Reply, Effect | None]:
        """Return the answer to a call, and its effect (None if it changes nothing).

        Args:
            case: the call.
        """
        if case.call.endpoint == "list":
            return _list(case), None
        if case.call.endpoint == "create":
            return self._create(case)
        draft = self._world.find_draft(case.mailbox, case.call.draft_id or "")
        if draft is None:
            return refusal(codes.named("DraftNotFound")), None
        return self._on_drafts[case.call.endpoint](case, draft)

    def sending(self, case: Case) -> Effect | None:
        """Return the effect of a send whose answer is scripted; None if there is no such draft.

        Args:
            case: the call.
        """
        draft = self._world.find_draft(case.mailbox, case.call.draft_id or "")
        return None if draft is None else self._sending(draft, case.user)

    def _send(self, case: Case, draft: StoredDraft) -> tuple[Reply, Effect | None]:
        if draft.sent or draft.scheduled:
            return refusal(codes.named("AlreadySent")), None
        if case.mailbox.automation is not None:
            reason, reference = case.mailbox.automation
            return success({"automation_send_disable": {"reason": reason, "reference": reference}}), None
        if not case.user.has_quota(case.time):
            return refusal(codes.named("UserDailyQuota")), None
        try:
            ahead = self._ahead(case.body)
        except (ValueError, TypeError, AttributeError):
            return refusal(codes.named("InvalidRequest")), None
        if ahead is not None:
            return success({}), self._scheduling(draft, case.user, ahead)
        data = {"message_id": self._world.new_id(), "thread_id": self._world.new_id()}
        return success(data), self._sending(draft, case.user)

    def _ahead(self, body: bytes) -> float | None:
        """Return the seconds until a send is due, None for now; raise an exception if the body is invalid."""
        at = json.loads(body).get("send_time") if body else None
        if at is None:
            return None
        ahead = int(at) - self.unix_time()
        if ahead < _SCHEDULE_AHEAD:
            raise ValueError("send_time")
        return ahead

    def _sending(self, draft: StoredDraft, user: User) -> Effect:
        def send() -> None:
            # Checked again here: a fault may let the mail of a refused second call go out "as well".
            if draft.sent:
                return
            draft.sent, draft.scheduled = True, False
            self._ledger.sent[draft.draft_id] += 1
            user.count(now())

        return send

    def _scheduling(self, draft: StoredDraft, user: User, ahead: float) -> Effect:
        def schedule() -> None:
            draft.scheduled = True
            timer = asyncio.get_running_loop().call_later(ahead, self._sending(draft, user))
            self._timers[draft.draft_id] = timer

        return schedule

    def _cancel(self, _: Case, draft: StoredDraft) -> tuple[Reply, Effect | None]:
        if not draft.scheduled:
            return refusal(codes.named("InvalidRequest")), None

        def cancel() -> None:
            # The mail may have become due while the call was processed.
            if draft.scheduled:
                self._timers.pop(draft.draft_id).cancel()
                draft.scheduled = False

        return success({}), cancel

    def _create(self, case: Case) -> tuple[Reply, Effect | None]:
        try:
            raw = json.loads(case.body)["raw"]
            # The API takes base64url with its padding or without.
            text = base64.b64decode(raw + "=" * (-len(raw) % 4), altchars=b"-_", validate=True)
        except (ValueError, TypeError, KeyError):
            return refusal(codes.named("InvalidRequest")), None
        message = email.message_from_bytes(text, policy=email.policy.default)
        draft_id = self._world.new_id()

        def create() -> None:
            self._world.add_draft(case.mailbox, draft_id, message)

        return success({"draft": {"id": draft_id, "message": {}}}), create


def now() -> float:
    """Return the time of the running loop's clock in seconds, the only clock of the sandbox."""
    return asyncio.get_running_loop().time()


def _list(case: Case) -> Reply:
    query = parse_qs(case.call.query)
    try:
        size = int(query.get("page_size", [str(_PAGE_SIZE)])[0])
        token = query.get("page_token", [""])[0]
        start = int(base64.urlsafe_b64decode(token)) if token else 0
    except ValueError:
        return refusal(codes.named("InvalidRequest"))
    if not 1 <= size <= _LARGEST_PAGE or start < 0:
        return refusal(codes.named("InvalidRequest"))
    ids, following = case.mailbox.page(start, size)
    data: dict[str, Any] = {
        "items": [{"id": draft_id} for draft_id in ids],
        "has_more": following is not None,
    }
    if following is not None:
        data["page_token"] = base64.urlsafe_b64encode(str(following).encode()).decode()
    return success(data)


def _read(case: Case, draft: StoredDraft) -> tuple[Reply, Effect | None]:
    if not draft.listed:
        return refusal(codes.named("DraftNotFound")), None
    bodies = parse_qs(case.call.query).get("format") != ["metadata"]
    shown = show_message(draft.message, bodies=bodies)
    return success({"draft": {"id": draft.draft_id, "message": shown}}), None


def _delete(_: Case, draft: StoredDraft) -> tuple[Reply, Effect | None]:
    if not draft.listed:
        return refusal(codes.named("DraftNotFound")), None

    def delete() -> None:
        draft.deleted = True

    return success({}), delete
