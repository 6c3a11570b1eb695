"""The judgement of a submitted message: whether the platform would read it, and what it keeps of it.

The demands are those that the official command line states of the server: LF line ends, no folded header lines,
only ASCII in headers, base64 for every part that is not ASCII. The documents name sizes, numbers and types.
"""

import base64
import email
import email.policy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.utils import getaddresses
from typing import Final

from feishu_mail_async import codes

__all__ = [
    "LARGEST",
    "_MOST_ATTACHMENTS",
    "_MOST_RECIPIENTS",
    "File",
    "Mail",
    "Party",
    "read_mail",
    "read_submission",
]

LARGEST: Final = 37_500_000
"""The largest message in bytes, as it is before base64url: 37.5 MB, in the strict reading."""
_MOST_RECIPIENTS: Final = 500
_MOST_ATTACHMENTS: Final = 250

_BLOCKED_TEXT: Final = """
action apk app applescript asp awk bash bat bin cdxml chm cmd coffee com command cpl csh dart dll es exe
fish gadget go hta inf1 ins inx ipa isu jar job js jse ksh lnk lua msc msh msh1 msh1xml msh2 msh2xml
mshxml msi msp mst msu osx out paf php pif pl plist pls pm prg ps ps1 ps1xml ps2 ps2xml psc1 psc2 psd1
psdm1 psm1 pssc py pyc pyo pyw pyz pyzw rb reg rgs run scf scr sct sh shb shs tcsh terminal ts tsx u3p
vb vbe vbs vbscript ws wsc wsf wsh zsh
"""
_BLOCKED: Final = frozenset(_BLOCKED_TEXT.split())
"""Extensions that no file may have, as the official command line knows them; html is allowed."""

_IMAGES: Final = {
    "jpeg": (b"\xff\xd8\xff",),
    "png": (b"\x89PNG\r\n\x1a\n",),
    "gif": (b"GIF87a", b"GIF89a"),
    "webp": (b"RIFF",),
}
"""Subtypes that an image within the text may have -> how its content begins."""
_WEBP: Final = b"WEBP"
_WEBP_AT: Final = 8


@dataclass(frozen=True, slots=True)
class Party:
    """A sender or a recipient.

    Attributes:
        address: the address.
        name: the display name; empty if there is none.
    """

    address: str
    name: str


@dataclass(frozen=True, slots=True)
class File:
    """An attachment or an inline image, without its content.

    Attributes:
        name: the file's name.
        cid: the Content-ID of an inline file, without its angle brackets; None for an attachment.
    """

    name: str
    cid: str | None


@dataclass(frozen=True, slots=True)
class Mail:
    """What the sandbox keeps of a message: not the files' contents, so that many large ones fit in memory.

    Attributes:
        subject: the subject.
        sender: the first address of From; None if there is none.
        to: the recipients of To.
        cc: the recipients of Cc.
        bcc: the recipients of Bcc.
        smtp_id: the Message-ID header; None if there is none.
        text: the body as plain text; None if there is none.
        html: the body as HTML; None if there is none.
        files: the attachments and the inline images.
        invites: True if it has a calendar part.
    """

    subject: str = ""
    sender: Party | None = None
    to: tuple[Party, ...] = ()
    cc: tuple[Party, ...] = ()
    bcc: tuple[Party, ...] = ()
    smtp_id: str | None = None
    text: str | None = None
    html: str | None = None
    files: tuple[File, ...] = ()
    invites: bool = False

    @property
    def recipients(self) -> list[Party]:
        """Every recipient once, whatever the case of the address."""
        found: dict[str, Party] = {}
        for party in (*self.to, *self.cc, *self.bcc):
            found.setdefault(party.address.casefold(), party)
        return list(found.values())


def read_submission(body: bytes) -> Mail | codes.Code:
    """Return the mail in the body of a create or an update, or the row of the code that refuses it.

    Args:
        body: the request's body, `{"raw": ...}`.
    """
    try:
        raw = json.loads(body)["raw"]
        # The API takes base64url with its padding or without.
        eml = base64.b64decode(raw + "=" * (-len(raw) % 4), altchars=b"-_", validate=True)
    except (ValueError, TypeError, KeyError):
        return codes.named("InvalidRequest")
    if len(eml) > LARGEST:
        return codes.named("MessageTooLarge")
    if b"\r" in eml:
        return codes.named("MessageMalformed")
    message = email.message_from_bytes(eml, policy=email.policy.default)
    try:
        mail = read_mail(message)
        wrong = _wrong(message, mail)
    except (ValueError, LookupError, TypeError, AttributeError):
        # The parser of the standard library takes nearly everything, and fails where the mail is used.
        wrong = "MessageMalformed"
    return codes.named(wrong) if wrong is not None else mail


def read_mail(message: EmailMessage) -> Mail:
    """Return what is kept of a message, which is not judged.

    Args:
        message: the message.
    """
    # The headers are read without the policy's own parser, which takes a second for some hundred recipients.
    headers: dict[str, str] = {}
    for name, value in message.raw_items():
        headers.setdefault(name.lower(), str(value))
    senders = _parties(headers.get("from"))
    plain, html = (message.get_body((kind,)) for kind in ("plain", "html"))
    return Mail(
        subject=_decoded(headers.get("subject", "")),
        sender=senders[0] if senders else None,
        to=_parties(headers.get("to")),
        cc=_parties(headers.get("cc")),
        bcc=_parties(headers.get("bcc")),
        smtp_id=headers.get("message-id", "").strip() or None,
        text=None if plain is None else str(plain.get_content()),
        html=None if html is None else str(html.get_content()),
        files=tuple(File(_decoded(part.get_filename() or ""), cid) for part, cid in _files(message)),
        invites=any(part.get_content_type() == "text/calendar" for part in message.walk()),
    )


def _wrong(message: EmailMessage, mail: Mail) -> str | None:
    """Return the name of the code that refuses a message; None if it is fine."""
    if not message.keys() or not all(map(_well_formed, message.walk())):
        return "MessageMalformed"
    if len(mail.to) + len(mail.cc) + len(mail.bcc) > _MOST_RECIPIENTS:
        return "TooManyRecipients"
    if len(mail.files) > _MOST_ATTACHMENTS:
        return "TooManyAttachments"
    if any(_extension(file.name) in _BLOCKED for file in mail.files):
        return "AttachmentBlocked"
    if not all(_is_image(part) for part, cid in _files(message) if cid is not None):
        return "InlineImageRejected"
    return None


def _well_formed(part: EmailMessage) -> bool:
    if not all(str(value).isascii() and "\n" not in str(value) for _, value in part.raw_items()):
        return False
    if not part.is_multipart():
        # It is decoded for the defects, too: only then are those of base64 found.
        content = part.get_payload(decode=True)
        encoding = str(part.get("Content-Transfer-Encoding", "")).strip().lower()
        if isinstance(content, bytes) and not content.isascii() and encoding != "base64":
            return False
    return not part.defects


def _files(part: EmailMessage, *, related: bool = False) -> Iterator[tuple[EmailMessage, str | None]]:
    """Yield each part that is neither a container nor a body, with its Content-ID if it belongs into the text."""
    # A message within the message is one file, whatever it contains.
    if part.is_multipart() and part.get_content_maintype() != "message":
        related = part.get_content_subtype() == "related"
        for inner in part.iter_parts():
            if isinstance(inner, EmailMessage):
                yield from _files(inner, related=related)
        return
    # The standard library calls a related part with a file name an attachment, and mail programs give attachments
    # a Content-ID, too. So neither alone says it.
    inline = "Content-ID" in part and (related or not part.is_attachment())
    if inline or part.get_content_maintype() != "text" or part.get_filename() or part.is_attachment():
        yield part, str(part["Content-ID"]).strip().removeprefix("<").removesuffix(">") if inline else None


def _is_image(part: EmailMessage) -> bool:
    begins = _IMAGES.get(part.get_content_subtype()) if part.get_content_maintype() == "image" else None
    content = part.get_payload(decode=True)
    if begins is None or not isinstance(content, bytes) or not content.startswith(begins):
        return False
    return part.get_content_subtype() != "webp" or content[_WEBP_AT:].startswith(_WEBP)


def _extension(name: str) -> str:
    # Windows drops dots and spaces at the end, so "run.exe. " is a program.
    _, dot, extension = name.rstrip(". ").rpartition(".")
    return extension.casefold() if dot else ""


def _parties(header: str | None) -> tuple[Party, ...]:
    found = getaddresses([header]) if header else []
    return tuple(Party(address, _decoded(name)) for name, address in found if address)


def _decoded(text: str) -> str:
    return str(make_header(decode_header(text))) if "=?" in text else text
