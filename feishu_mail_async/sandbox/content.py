"""A stored mail as the API shows it when a draft is read."""

import base64
from typing import Any, Final

from .messages import Mail, Party
from .world import StoredDraft

__all__ = ["show_message", "show_party"]

_DRAFT: Final = 3
"""The `message_state` of a draft."""
_NORMAL: Final = 1
"""The `attachment_type` of a file within the mail."""


def show_message(draft: StoredDraft, created: float, *, bodies: bool = True) -> dict[str, Any]:
    """Return the fields of a draft's `message`; those that a mail lacks are left out.

    Args:
        draft: the draft.
        created: its creation, in seconds of Unix time.
        bodies: whether the bodies are among the fields.
    """
    shown: dict[str, Any] = {
        "message_state": _DRAFT,
        "message_id": draft.message_id,
        "smtp_message_id": draft.smtp_message_id,
        "internal_date": int(created * 1000),
    }
    return shown if draft.mail is None else shown | _show(draft.mail, bodies)


def _show(mail: Mail, bodies: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {"subject": mail.subject}
    for name, parties in ("to", mail.to), ("cc", mail.cc), ("bcc", mail.bcc):
        shown[name] = [show_party(party) for party in parties]
    if mail.sender is not None:
        shown["head_from"] = show_party(mail.sender)
    for name, body in ("body_plain_text", mail.text), ("body_html", mail.html):
        if body is not None and bodies:
            shown[name] = base64.urlsafe_b64encode(body.encode()).decode()
    shown["attachments"] = [
        {
            "id": f"attachment{number}",
            "filename": file.name,
            "attachment_type": _NORMAL,
            "is_inline": file.cid is not None,
            "cid": file.cid or "",
        }
        for number, file in enumerate(mail.files, 1)
    ]
    return shown


def show_party(party: Party) -> dict[str, str]:
    """Return a sender or recipient as the API shows it.

    Args:
        party: the sender or recipient.
    """
    return {"mail_address": party.address, "name": party.name}
