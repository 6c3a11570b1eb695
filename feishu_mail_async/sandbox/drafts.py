"""The endpoints of drafts as such: create, list, read, update, delete."""

from typing import Any, Final
from urllib.parse import parse_qs

from feishu_mail_async import codes

from .case import Answer, Case, Handlers
from .content import show_message
from .faults import refusal, success
from .messages import Mail
from .pages import read_page, show_page
from .world import StoredDraft

__all__ = ["Drafts"]

_LARGEST_PAGE: Final = 100
_REFERENCE: Final = "https://mail.example.com/draft/"
"""The page where a person can open a draft, without the draft's id."""


class Drafts(Handlers):
    """The endpoints of drafts."""

    def list(self, case: Case) -> Answer:
        """Answer a call for a page of the mailbox's drafts."""
        page = read_page(case.call.query, _LARGEST_PAGE)
        if page is None:
            return refusal(codes.named("InvalidRequest")), None
        drafts, following = case.mailbox.page(*page, lambda draft: draft.listed)
        return success(show_page([{"id": draft.draft_id} for draft in drafts], following)), None

    def create(self, case: Case) -> Answer:
        """Answer a call that creates a draft."""
        mail = case.submitted
        if not isinstance(mail, Mail):
            return refusal(_refusing(mail)), None
        draft = self._world.make_draft(
            case.mailbox, mail, created=case.time, keeps_message_id=self._knobs.keeps_message_ids
        )

        def create() -> None:
            self._world.put_draft(case.mailbox, draft)
            self._ledger.created[draft.draft_id] = mail.smtp_id

        ids = {"id": draft.draft_id, "draft_id": draft.draft_id, "message_id": draft.message_id}
        place = self._knobs.create_reply
        return success({place: ids[place]} if place in ids else _whole(draft)), create

    def read(self, case: Case) -> Answer:
        """Answer a call that reads a draft."""
        draft = self._find(case)
        if draft is None:
            return refusal(codes.named("DraftNotFound")), None
        form = parse_qs(case.call.query).get("format", ["full"])
        # "raw" is documented, too. The sandbox does not keep messages whole, so it cannot show one.
        if form not in (["full"], ["metadata"]):
            return refusal(codes.named("InvalidRequest")), None
        shown = show_message(draft, self._clock.unix(draft.created), bodies=form == ["full"])
        return success({"draft": {"id": draft.draft_id, "message": shown}}), None

    def update(self, case: Case) -> Answer:
        """Answer a call that replaces the whole mail of a draft."""
        draft, mail = self._find(case), case.submitted
        if draft is None:
            return refusal(codes.named("DraftNotFound")), None
        if not isinstance(mail, Mail):
            return refusal(_refusing(mail)), None

        def update() -> None:
            draft.replace(mail, keeps_message_id=self._knobs.keeps_message_ids)
            self._ledger.updated[draft.draft_id] += 1

        return success(_whole(draft)), update

    def delete(self, case: Case) -> Answer:
        """Answer a call that deletes a draft for ever."""
        draft = self._find(case)
        if draft is None:
            return refusal(codes.named("DraftNotFound")), None

        def delete() -> None:
            draft.deleted = True
            self._ledger.deleted[draft.draft_id] += 1

        return success({}), delete

    def _find(self, case: Case) -> StoredDraft | None:
        """Return the draft that a call names; None if it is none any more."""
        draft = self._world.find_draft(case.mailbox, case.call.draft_id)
        return draft if draft is not None and draft.listed else None


def _whole(draft: StoredDraft) -> dict[str, Any]:
    return {"draft": {"id": draft.draft_id, "message": {}}, "reference": _REFERENCE + draft.draft_id}


def _refusing(submitted: codes.Code | None) -> codes.Code:
    return codes.named("InvalidRequest") if submitted is None else submitted
