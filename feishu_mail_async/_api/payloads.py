"""Readers of what a successful answer holds. Pure: what does not have the documented form raises ValueError."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from feishu_mail_async._checks import check_id

__all__ = ["Address", "Attachment", "DraftContent", "Page", "read_content", "read_page"]


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a mailbox's drafts.

    Attributes:
        draft_ids: the ids of the drafts, in the server's order.
        next_token: the `page_token` of the next page; None on the last one.
    """

    draft_ids: tuple[str, ...]
    next_token: str | None


def read_page(data: Mapping[str, Any]) -> Page:
    """Read a page of drafts ("列出草稿", 响应体).

    Args:
        data: the `data` of the answer.

    Raises:
        KeyError, TypeError, ValueError: it does not have the documented form.
    """
    items = data.get("items") or []
    more = data.get("has_more") is True
    next_token = data.get("page_token") if more else None
    draft_ids = tuple(check_id("id", item["id"]) for item in items)
    if more and not (isinstance(next_token, str) and next_token and next_token.encode()):
        raise ValueError("there is more, but no page_token")
    return Page(draft_ids, next_token)


@dataclass(frozen=True, slots=True)
class Address:
    """A party of a mail.

    Attributes:
        address: the mail address.
        name: the name beside it; empty if there is none.
    """

    address: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file in a mail, without its content.

    Attributes:
        filename: its name.
        attachment_id: its id at the server.
        inline: whether it is an image within the HTML body.
    """

    filename: str
    attachment_id: str
    inline: bool


@dataclass(frozen=True, slots=True)
class DraftContent:
    """A draft as it would be sent.

    Attributes:
        subject: the subject; empty if there is none.
        sender: the address that it is sent from; None if the server did not say.
        to: the recipients.
        cc: those who get a copy.
        bcc: those who get a copy that the others do not see.
        html: the HTML body; None if there is none.
        text: the plain text body; None if there is none.
        attachments: the files and the inline images.
        message_id: the message's own id at the server; None if it did not say.
    """

    subject: str
    sender: Address | None
    to: tuple[Address, ...]
    cc: tuple[Address, ...]
    bcc: tuple[Address, ...]
    html: str | None
    text: str | None
    attachments: tuple[Attachment, ...]
    message_id: str | None


def read_content(data: Mapping[str, Any]) -> DraftContent:
    """Read a draft's content.

    No document of the platform shows this answer; the official command line and SDK read these fields.

    Args:
        data: the `data` of the answer.

    Raises:
        KeyError, TypeError, ValueError: it has no message, or not with these fields.
    """
    message = _fields(_fields(data["draft"])["message"])
    sender = message.get("head_from")
    return DraftContent(
        subject=_text(message, "subject") or "",
        sender=_address(sender) if sender else None,
        to=_addresses(message, "to"),
        cc=_addresses(message, "cc"),
        bcc=_addresses(message, "bcc"),
        html=_body(message, "body_html"),
        text=_body(message, "body_plain_text"),
        attachments=tuple(
            Attachment(_text(item, "filename") or "", _text(item, "id") or "", item.get("is_inline") is True)
            for item in map(_fields, message.get("attachments") or ())
        ),
        message_id=_text(message, "message_id"),
    )


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} is no text")
    return value


def _fields(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError("there is no object where one belongs")
    return value


def _address(value: Any) -> Address:
    item = _fields(value)
    return Address(_text(item, "mail_address") or "", _text(item, "name") or "")


def _addresses(message: Mapping[str, Any], name: str) -> tuple[Address, ...]:
    return tuple(_address(item) for item in message.get(name) or ())


def _body(message: Mapping[str, Any], name: str) -> str | None:
    """Decode a body, which is UTF-8 in base64url, with its padding or without."""
    encoded = _text(message, name)
    if not encoded:
        return None
    padded = encoded + "=" * (-len(encoded) % 4)
    return base64.b64decode(padded, altchars=b"-_", validate=True).decode(errors="replace")
