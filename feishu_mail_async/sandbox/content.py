"""A stored mail as the API shows it when a draft is read."""

import base64
from email.message import EmailMessage
from typing import Any, Final

__all__ = ["show_message"]

_DRAFT: Final = 3
"""The `message_state` of a draft."""


def show_message(message: EmailMessage | None, *, bodies: bool = True) -> dict[str, Any]:
    """Return the fields of a draft's `message`; those that a mail lacks are left out.

    Args:
        message: the mail.
        bodies: whether the bodies are among them.
    """
    shown: dict[str, Any] = {"message_state": _DRAFT}
    if message is None:
        return shown
    shown["subject"] = str(message["subject"] or "")
    for name in ("to", "cc", "bcc"):
        shown[name] = _parties(message, name)
    if sender := _parties(message, "from"):
        shown["head_from"] = sender[0]
    for kind, name in ("plain", "body_plain_text"), ("html", "body_html"):
        body = message.get_body((kind,))
        if body is not None and bodies:
            shown[name] = base64.urlsafe_b64encode(str(body.get_content()).encode()).decode()
    shown["attachments"] = [
        {"id": f"attachment{number}", "filename": part.get_filename() or "", "is_inline": False}
        for number, part in enumerate(message.iter_attachments(), 1)
    ]
    return shown


def _parties(message: EmailMessage, name: str) -> list[dict[str, str]]:
    header = message[name]
    if header is None:
        return []
    return [{"mail_address": one.addr_spec, "name": one.display_name} for one in header.addresses]
