"""Readers of what a successful answer holds. Pure: what does not have the documented form raises ValueError."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from feishu_mail_async._checks import check_id

__all__ = [
    "Address",
    "Attachment",
    "Created",
    "DraftContent",
    "Page",
    "fields_of",
    "read_address",
    "read_content",
    "read_created",
    "read_nothing",
    "read_page",
    "text_of",
]


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
        smtp_message_id: the Message-ID that the server shows; None if it did not say.
        dated: the time that the server shows of it; None if it did not say.
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
    smtp_message_id: str | None = None
    dated: datetime | None = None


def read_content(data: Mapping[str, Any]) -> DraftContent:
    """Read a draft's content.

    No document of the platform shows this answer; the official command line and SDK read these fields.

    Args:
        data: the `data` of the answer.

    Raises:
        KeyError, TypeError, ValueError: it has no message, or not with these fields.
    """
    message = fields_of(fields_of(data["draft"])["message"])
    sender = message.get("head_from")
    return DraftContent(
        subject=text_of(message, "subject") or "",
        sender=read_address(sender) if sender else None,
        to=_addresses(message, "to"),
        cc=_addresses(message, "cc"),
        bcc=_addresses(message, "bcc"),
        html=_body(message, "body_html"),
        text=_body(message, "body_plain_text"),
        attachments=tuple(
            Attachment(text_of(item, "filename") or "", text_of(item, "id") or "", item.get("is_inline") is True)
            for item in map(fields_of, message.get("attachments") or ())
        ),
        message_id=text_of(message, "message_id"),
        smtp_message_id=text_of(message, "smtp_message_id"),
        dated=_dated(message),
    )


class Created(NamedTuple):
    """What the server says of a draft that it has made.

    Attributes:
        draft_id: the draft's id.
        link: where a person can look at it; None if it did not say.
    """

    draft_id: str
    link: str | None


def read_created(data: Mapping[str, Any]) -> Created:
    """Read the answer to a creation ("创建草稿", 响应体).

    The document has the id in `draft`; some tenants were seen to answer with it at the top, or with the id of the
    message alone.

    Args:
        data: the `data` of the answer.

    Raises:
        KeyError, TypeError, ValueError: it does not have any of these forms.
    """
    draft = fields_of(data.get("draft") or {})
    found = data.get("draft_id") or data.get("id") or draft.get("id") or data["message_id"]
    return Created(check_id("id", found), text_of(data, "reference") or None)


def read_nothing(_: Mapping[str, Any]) -> None:
    """Read an answer that says no more than that it was done."""


def text_of(fields: Mapping[str, Any], name: str) -> str | None:
    """Return a text among the fields; None if there is none by this name."""
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} is no text")
    return value


def fields_of(value: Any) -> Mapping[str, Any]:
    """Return the fields of an object; raise TypeError for what is none."""
    if not isinstance(value, Mapping):
        raise TypeError("there is no object where one belongs")
    return value


def read_address(value: Any) -> Address:
    """Read a party of a mail."""
    item = fields_of(value)
    return Address(text_of(item, "mail_address") or "", text_of(item, "name") or "")


def _dated(message: Mapping[str, Any]) -> datetime | None:
    """Return the time of a message, which is in milliseconds since 1970; None if there is none to be read."""
    try:
        return datetime.fromtimestamp(int(message["internal_date"]) / 1000, UTC)
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return None


def _addresses(message: Mapping[str, Any], name: str) -> tuple[Address, ...]:
    return tuple(read_address(item) for item in message.get(name) or ())


def _body(message: Mapping[str, Any], name: str) -> str | None:
    """Decode a body, which is UTF-8 in base64url, with its padding or without."""
    encoded = text_of(message, name)
    if not encoded:
        return None
    padded = encoded + "=" * (-len(encoded) % 4)
    return base64.b64decode(padded, altchars=b"-_", validate=True).decode(errors="replace")
