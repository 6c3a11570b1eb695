"""The parts of a message: what each is, what it is called, and what it holds.

A part is known by its type and its disposition, as mail programs know it. What the HTML says of images is left to
`message`.
"""

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from enum import Enum, auto
from typing import Any, Final

from feishu_mail_async._text import escape

from .message_headers import Parameters, decode, read_parameters, text_of

__all__ = ["Kind", "Part", "content_of", "payload_of", "survey", "walk"]

_LINE_END: Final = re.compile(r"\r\n?")
_AS_IS: Final = frozenset({"", "7bit", "8bit", "binary"})
_ENCODINGS: Final = _AS_IS | {"base64", "quoted-printable"}
_SPELLINGS: Final = {"image/jpg": "image/jpeg", "image/pjpeg": "image/jpeg", "image/x-png": "image/png"}
"""Types of images that are often given by a name that is not registered."""


class Kind(Enum):
    """What is done with a part."""

    MULTIPART = auto()
    MESSAGE = auto()  # another mail, written by the same rules
    BLOCKS = auto()  # groups of headers (message/delivery-status)
    BODY = auto()
    INLINE = auto()
    FILE = auto()


@dataclass(slots=True)
class Part:
    """A part of a message, surveyed.

    Attributes:
        source: the part itself, which is never changed.
        media_type: its type, without parameters.
        parameters: the parameters of its type.
        disposition: its Content-Disposition.
        encoding: how its content is encoded.
        cid: its Content-ID without brackets; empty if it has none.
        kind: what is done with it.
        text: the text of a body.
        parts: what it consists of.
    """

    source: Message
    media_type: str
    parameters: dict[str, str]
    disposition: Parameters
    encoding: str
    cid: str
    kind: Kind = Kind.FILE
    text: str = ""
    parts: list["Part"] = field(default_factory=list)

    @property
    def filename(self) -> str:
        """Its name as a file; empty if it has none."""
        return self.disposition.parameters.get("filename") or self.parameters.get("name", "")

    def __str__(self) -> str:
        """Return it as a sentence names it."""
        name = f" {escape(self.filename)!r}" if self.filename else ""
        return f"the part{name} ({escape(self.media_type)})"


def survey(source: Message, default: str = "text/plain") -> Part:
    """Read what a part is, and its parts.

    Args:
        source: the part.
        default: its type if it does not say one.

    Raises:
        ValueError: it cannot be read, or not be written anew without losing something.
    """
    first: dict[str, Any] = {}
    for name, value in source.raw_items():
        first.setdefault(name.lower(), value)
    content_type = read_parameters("Content-Type", first.get("content-type", ""))
    media_type = content_type.value or default
    if media_type.count("/") != 1:  # what is no type stands for plain text (RFC 2045, 5.2)
        media_type = "text/plain"
    part = Part(
        source,
        _SPELLINGS.get(media_type, media_type),
        dict(content_type.parameters),
        read_parameters("Content-Disposition", first.get("content-disposition", "")),
        text_of("Content-Transfer-Encoding", first.get("content-transfer-encoding", "")).strip().lower(),
        text_of("Content-ID", first.get("content-id", "")).strip().removeprefix("<").removesuffix(">"),
    )
    if part.encoding not in _ENCODINGS:
        raise ValueError(f"message: {part} is encoded as {escape(part.encoding)!r}; encode it as base64")
    if not part.cid.isascii() or any(character.isspace() for character in part.cid):
        raise ValueError(
            f"message: the Content-ID {escape(part.cid)!r} must be ASCII without blanks; give another"
        )
    part.kind = _kind(part)
    if part.kind in {Kind.MULTIPART, Kind.MESSAGE, Kind.BLOCKS}:
        default = "message/rfc822" if part.media_type == "multipart/digest" else "text/plain"
        part.parts = [survey(one, default) for one in _parts(part)]
        if part.kind is Kind.BLOCKS:
            if any(block.text.strip() or block.parts for block in part.parts):
                raise ValueError(f"message: {part} holds more than headers; attach it as text")
            part.parts = [block for block in part.parts if block.source.keys()]
    elif part.kind is Kind.BODY:
        part.text = _text(part)
    return part


def walk(part: Part) -> Iterator[Part]:
    """Yield a part and what it consists of, but not what is in a mail within it: that counts as one file.

    Args:
        part: the part to begin with.
    """
    yield part
    if part.kind is Kind.MULTIPART:
        for one in part.parts:
            yield from walk(one)


def payload_of(part: Part) -> Any:
    """Return what a part holds, as its source has it: encoded, or parts, or None.

    Args:
        part: the part.

    Raises:
        ValueError: it holds lone surrogates.
    """
    try:
        return part.source.get_payload()
    except UnicodeEncodeError:
        raise ValueError(f"message: {part} holds lone surrogates; take them out") from None


def content_of(part: Part) -> bytes | str:
    """Return a part's content, decoded from its encoding; a text if it was set as a text beyond ASCII.

    Args:
        part: a part that has no parts.

    Raises:
        ValueError: it is not encoded as it says.
    """
    held = payload_of(part)
    if held is None:
        return b""
    if part.source.is_multipart():
        raise ValueError(f"message: {part} has parts, which its type does not allow; make it a multipart")
    if part.encoding in _AS_IS:
        if held.isascii():
            return bytes(held, "ascii")
        data: Any = part.source.get_payload(decode=True)
        # `set_payload` without a charset: of such a text the library has no bytes, and these are its way out.
        return held if data == held.encode("raw-unicode-escape") else bytes(data)
    try:
        if part.encoding == "base64":  # the standard library would leave out what it cannot read
            return base64.b64decode("".join(held.split()), validate=True)
        return binascii.a2b_qp(held)
    except ValueError:
        raise ValueError(f"message: {part} is not the {part.encoding} it is said to be; attach it anew") from None


def _kind(part: Part) -> Kind:
    main, _, sub = part.media_type.partition("/")
    said = part.disposition.value
    if main == "multipart":
        if sub == "signed":
            raise ValueError(
                "message: it has a signed part (multipart/signed), and writing it anew would break the signature; "
                "attach it as a file (application/octet-stream)"
            )
        return Kind.MULTIPART
    if main == "message":
        if part.encoding not in _AS_IS or not part.source.is_multipart():
            raise ValueError(
                f"message: {part} cannot be read as a mail, since it is encoded; "
                "attach it as an EmailMessage, or as a file (application/octet-stream)"
            )
        return Kind.BLOCKS if sub == "delivery-status" else Kind.MESSAGE
    if main == "text" and said != "attachment" and "filename" not in part.disposition.parameters:
        return Kind.BODY
    return Kind.INLINE if part.cid and said == "inline" else Kind.FILE


def _parts(part: Part) -> list[Message]:
    held: Any = part.source.get_payload()
    if not isinstance(held, list) or not held:
        raise ValueError(f"message: {part} has no parts; add some, or give the whole message if it was cut off")
    if part.kind is Kind.MESSAGE and len(held) > 1:
        raise ValueError(f"message: {part} holds {len(held)} mails, and can hold one; attach each by itself")
    return held


def _text(part: Part) -> str:
    """Return the text of a body, with LF as line ends."""
    data = content_of(part)
    text = data if isinstance(data, str) else decode(str(part), data, part.parameters.get("charset") or "utf-8")
    if "\0" in text:
        raise ValueError(f"message: {part} holds NUL characters; take them out")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"message: {part} holds lone surrogates; take them out") from None
    return _LINE_END.sub("\n", text)
