"""The endpoints of mails on their way and after: list, delivery, recall and its progress."""

from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qs

from feishu_mail_async import codes

from .case import Answer, Case, Handlers, now
from .content import show_party
from .faults import refusal, success
from .messages import Party
from .pages import read_page, show_page
from .world import DAY, StoredDraft

__all__ = ["BOUNCING", "Mails"]

BOUNCING: Final = "@bounce.example"
"""The end of the addresses that bounce whatever they are sent."""

_LARGEST_PAGE: Final = 20
_UNKNOWN, _DELIVERING, _BOUNCED, _DELIVERED = 0, 1, 3, 4
_FOLDERS: Final[dict[str, Callable[[StoredDraft], bool]]] = {
    "DRAFT": lambda draft: draft.listed,
    "SCHEDULED": lambda draft: draft.scheduled and not draft.deleted,
    "SENT": lambda draft: draft.sent_at is not None,
}


class Mails(Handlers):
    """The endpoints of mails."""

    def list(self, case: Case) -> Answer:
        """Answer a call for a page of the mails in a folder."""
        page = read_page(case.call.query, _LARGEST_PAGE)
        folder = _FOLDERS.get(parse_qs(case.call.query).get("folder_id", [""])[0])
        if page is None or folder is None:
            return refusal(codes.named("InvalidRequest")), None
        mails, following = case.mailbox.page(*page, folder)
        return success(show_page([mail.message_id for mail in mails], following)), None

    def delivery(self, case: Case) -> Answer:
        """Answer a call for the delivery status of each recipient."""
        mail = self._find(case)
        if mail is None:
            return refusal(codes.named("DraftNotFound")), None
        details = []
        for party in _recipients(mail):
            status, since = self._status(mail, party.address)
            details.append(
                {
                    "recipient": show_party(party),
                    "status": status,
                    "last_updated_time": int(self._clock.unix(since)),
                }
            )
        return success({"message_id": mail.message_id, "details": details}), None

    def recall(self, case: Case) -> Answer:
        """Answer a call that recalls a mail: code 0 also where it cannot be recalled."""
        mail = self._find(case)
        if mail is None:
            return refusal(codes.named("DraftNotFound")), None
        if (reason := self._restriction(mail)) is not None:
            return success({"recall_status": "unavailable", "recall_restriction_reason": reason}), None

        def recall() -> None:
            mail.recalled_at = now()
            self._ledger.recalled[mail.draft_id] += 1

        return success({"recall_status": "available"}), recall

    def progress(self, case: Case) -> Answer:
        """Answer a call for the progress of a recall."""
        mail = self._find(case)
        if mail is None:
            return refusal(codes.named("DraftNotFound")), None
        if mail.recalled_at is None:
            return refusal(codes.named("InvalidRequest")), None
        done = case.time >= mail.recalled_at + self._knobs.recall_seconds
        items = [self._recalled(mail, party, done) for party in _recipients(mail)]
        found = [item["status"] for item in items]
        succeeded, failed = found.count("success"), found.count("fail")
        result = "all_success" if not failed else "some_fail" if succeeded else "all_fail"
        data = {
            "recall_status": "done" if done else "in_progress",
            "recall_result": result if done else "processing",
            "success_count": succeeded,
            "failure_count": failed,
            "processing_count": found.count("processing"),
            "items": items,
        }
        return success(data), None

    def _find(self, case: Case) -> StoredDraft | None:
        return self._world.find_message(case.mailbox, case.call.message_id)

    def _status(self, mail: StoredDraft, address: str) -> tuple[int, float]:
        """Return the delivery status for a recipient, and the time since which it holds."""
        if mail.sent_at is None:
            return _UNKNOWN, mail.created
        if (told := mail.delivery.get(address.casefold())) is not None:
            status, since = told
            return status, max(since, mail.sent_at)
        settled = mail.sent_at + self._knobs.delivery_seconds
        if now() < settled:
            return _DELIVERING, mail.sent_at
        return (_BOUNCED if address.casefold().endswith(BOUNCING) else _DELIVERED), settled

    def _restriction(self, mail: StoredDraft) -> str | None:
        """Return the reason why a mail cannot be recalled; None if it can."""
        if mail.recalled_at is not None:
            return "already_recalled"
        if mail.sent_at is None:
            return "not_delivered"
        if now() >= mail.sent_at + DAY:
            return "exceeded_time_limit"
        # A mail that a test has put there without recipients is delivered as if it had one.
        addresses = [party.address for party in _recipients(mail)] or [""]
        if not any(self._status(mail, address)[0] == _DELIVERED for address in addresses):
            return "not_delivered"
        return None

    def _recalled(self, mail: StoredDraft, party: Party, done: bool) -> dict[str, Any]:
        item: dict[str, Any] = {
            "recipient_address": party.address,
            "recipient_name": party.name,
            "status": "processing",
            "is_mailing_list": False,
        }
        if not done:
            return item
        reason = mail.recall_failures.get(party.address.casefold())
        if reason is None and self._status(mail, party.address)[0] == _BOUNCED:
            reason = "invalid_address"
        return item | ({"status": "success"} if reason is None else {"status": "fail", "fail_reason": reason})


def _recipients(mail: StoredDraft) -> list[Party]:
    return [] if mail.mail is None else mail.mail.recipients
