"""A mail, written the way the platform is said to read it.

Nobody documents what the server can read. The official command line writes as if it had to be this way, and so
does this module; if it turns out otherwise, this and `message_headers` are the places to mend.

    lines       end with LF; no header is folded; all is ASCII
    headers     RFC 2047 words in base64 for what is not ASCII, file names too
    bodies      UTF-8 in base64, 76 characters a line; a text that is ASCII with short lines stays as it is
    files       base64, their bytes as they were
    inline      Content-ID, Content-Disposition: inline, X-Attachment-Id and X-Image-Id with the same id

The tree of parts stays what it is. A message is surveyed first (each part's kind, names and texts), then checked,
then written in one pass. Content that is base64 already is copied in pieces and not decoded: beside the result it
takes next to no memory. An image that the HTML shows is inline even if it is called an attachment, as the standard
library's `add_related` does as soon as a file name is given.

The same message gives the same bytes, since boundaries are counted and not drawn by lot: a digest can be its key.
"""

import base64
import binascii
import io
import re
from email import errors, message_from_bytes
from email.message import EmailMessage, Message
from typing import Final

from feishu_mail_async._text import escape

from .attachments import check_filename, check_image, check_references, references
from .message_headers import Parameters, header_line, recipients, text_of
from .message_parts import Kind, Part, content_of, payload_of, survey, walk

__all__ = ["marker_of", "write_message"]

_LARGEST: Final = 37_500_000
"""Bytes of a whole message, at most. The documents say 37.5 MB; should they mean MiB, this is on the safe side."""
_MOST_RECIPIENTS: Final = 500
_MOST_ATTACHMENTS: Final = 250
_LONGEST_LINE: Final = 998
"""Characters of a line, at most (RFC 5322)."""

_WIDTH: Final = 76
"""Characters of a line of base64."""
_PIECE: Final = 6144 * (_WIDTH + 1)
"""Characters of base64 that are copied at once: whole lines, about 470 kB."""
_PIECE_OF_BYTES: Final = 6144 * (_WIDTH // 4 * 3)
_DIGITS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_PADDINGS: Final = (b"", b"=", b"==")
_BOUNDARY: Final = "=_part_"
"""How all boundaries begin. No header and no base64 begins like that with hyphens; `_is_plain` looks at texts."""

_HEADERS_END: Final = re.compile(rb"\r?\n\r?\n|\r\r")
_MARKER: Final = re.compile(r"[!-;=?A-~]{1,400}@[!-;=?A-~]{1,400}")
_BROKEN: Final = (
    errors.NoBoundaryInMultipartDefect,
    errors.StartBoundaryNotFoundDefect,
    errors.CloseBoundaryNotFoundDefect,
    errors.FirstHeaderLineIsContinuationDefect,
    errors.MissingHeaderBodySeparatorDefect,
    errors.MultipartInvariantViolationDefect,
)
"""What the parser finds in bytes that were cut off, or are no message."""


def write_message(message: EmailMessage | bytes, *, marker: str | None = None) -> bytes:
    """Write a whole message the way the platform is said to read it.

    Args:
        message: the message, which is not changed; or its bytes, with line ends and encodings of any kind.
        marker: the Message-ID to write, without brackets, if the message has none of its own.

    Returns:
        ASCII bytes with LF as line ends. Written again, they stay the same.

    Raises:
        TypeError: the message or the marker is of another type.
        ValueError: the platform would refuse the message (no recipient or too many, too large, too many
            attachments, an extension or an inline image that it does not take), or it cannot be written
            without losing something. The sentence names the remedy.
    """
    added = _check_marker(marker)
    try:
        root = survey(_parsed(message))
        _check(root)
        return _Writer().write(root, added)
    except RecursionError:
        raise ValueError("message: its parts are nested too deeply; put them side by side") from None


def marker_of(message: EmailMessage | bytes) -> str | None:
    """Return a message's own Message-ID without brackets; None if it has none.

    Args:
        message: the message, or its bytes.

    Raises:
        TypeError: it is of another type.
        ValueError: the Message-ID cannot be read.
    """
    if isinstance(message, bytes):
        end = _HEADERS_END.search(message)
        message = message if end is None else message[: end.start()]
    return _own_id(_parsed(message)) or None


def _parsed(message: object) -> Message:
    if isinstance(message, EmailMessage):
        return message
    if not isinstance(message, bytes):
        raise TypeError(
            f"message: give an email.message.EmailMessage or bytes, not {type(message).__name__}; "
            "email.message_from_bytes(..., policy=email.policy.default) makes one"
        )
    if len(message) > 3 * _LARGEST:  # quoted-printable may take three times the room, nothing takes more
        raise _too_large()
    # The older policy, whose headers stay raw: with `policy.default` the parser reads each of them many times.
    return message_from_bytes(message)


def _check_marker(marker: object) -> str:
    if marker is None:
        return ""
    if not isinstance(marker, str):
        raise TypeError(f"marker: give a string, not {type(marker).__name__}")
    if _MARKER.fullmatch(marker) is None:
        raise ValueError(f"marker: {escape(marker)!r} cannot be a Message-ID; give ASCII like name@example.com")
    return marker


def _own_id(message: Message) -> str:
    """Return the Message-ID without brackets; empty if there is none."""
    found = next((value for name, value in message.raw_items() if name.lower() == "message-id"), "")
    return text_of("Message-ID", found).strip().removeprefix("<").removesuffix(">").strip()


# --- the checks


def _check(root: Part) -> None:
    """Raise ValueError for what the platform would refuse, and make images inline that the HTML shows."""
    _check_recipients(root.source)
    parts = list(walk(root))
    for part in parts:
        if any(isinstance(defect, _BROKEN) for defect in part.source.defects):
            raise ValueError(f"message: {part} is broken or was cut off; give the whole message")
    files = [part for part in parts if part.kind not in {Kind.MULTIPART, Kind.BODY}]
    if len(files) > _MOST_ATTACHMENTS:
        raise ValueError(
            f"message: {len(files)} attachments are too many, {_MOST_ATTACHMENTS} are allowed, inline images "
            "included; put them into an archive"
        )
    for part in files:
        check_filename(part.filename)
        check_filename(part.parameters.get("name", ""))
    bodies = [part.text for part in parts if part.kind is Kind.BODY and part.media_type == "text/html"]
    named = references(bodies)
    for part in files:
        if part.cid in named and part.media_type.startswith("image/"):
            part.kind = Kind.INLINE
        if part.kind is Kind.INLINE:
            check_image(part.cid, part.media_type, _head(part))
    check_references(
        bodies, [part.cid for part in files if part.kind is Kind.INLINE], {part.cid for part in parts}
    )


def _check_recipients(message: Message) -> None:
    named = [(name, value) for name, value in message.raw_items() if name.lower() in {"to", "cc", "bcc"}]
    count = sum(recipients(name, value) for name, value in named)
    if not count:
        raise ValueError("message: it has no recipient; set To, Cc or Bcc")
    if count > _MOST_RECIPIENTS:
        raise ValueError(f"message: {count} recipients are too many, {_MOST_RECIPIENTS} are allowed; split it")


def _head(part: Part) -> bytes:
    """Return the first bytes of a file."""
    held = payload_of(part)
    if part.encoding == "base64" and isinstance(held, str):
        try:
            return binascii.a2b_base64("".join(held[:80].split())[:32])
        except ValueError:
            return b""
    data = content_of(part)
    return data if isinstance(data, bytes) else b""


def _too_large() -> ValueError:
    return ValueError(
        f"message: it is larger than {_LARGEST / 1e6:g} MB, attachments as they are encoded included; "
        "make it smaller, or send links"
    )


# --- the writer


class _Writer:
    """Writes one message."""

    def __init__(self) -> None:
        self._out = io.BytesIO()
        self._boundaries = 0

    def write(self, root: Part, marker: str) -> bytes:
        """Return the whole message.

        Args:
            root: the message, surveyed and checked.
            marker: the Message-ID if it has none; empty for none.
        """
        added = {}
        if not _own_id(root.source):
            added["message-id"] = f"Message-ID: <{marker}>" if marker else ""
        if not any(name.lower() == "mime-version" for name, _ in root.source.raw_items()):
            added["mime-version"] = "MIME-Version: 1.0"
        self._part(root, added, strict=True)
        if root.kind in {Kind.MULTIPART, Kind.FILE}:
            self._put("\n")
        return self._out.getvalue()

    def _put(self, text: str) -> None:
        self._out.write(text.encode("ascii"))
        if self._out.tell() > _LARGEST:
            raise _too_large()

    def _part(self, part: Part, added: dict[str, str], *, strict: bool = False) -> None:
        """Write a part, without a line end behind it.

        Args:
            part: the part.
            added: lines of headers that stand for those of the source, by name in small letters; empty: none.
            strict: whether address headers must hold addresses.
        """
        boundary = ""
        if part.kind is Kind.MULTIPART:
            self._boundaries += 1
            boundary = f"{_BOUNDARY}{self._boundaries}"
        self._headers(part.source, added | _headers_of(part, boundary), strict=strict)
        match part.kind:
            case Kind.MULTIPART:
                for one in part.parts:
                    self._put(f"--{boundary}\n")
                    self._part(one, {})
                    self._put("\n")
                self._put(f"--{boundary}--")
            case Kind.MESSAGE:
                self._part(part.parts[0], {})
            case Kind.BLOCKS:
                for place, one in enumerate(part.parts):
                    self._put("\n" if place else "")
                    self._headers(one.source, {}, end="")
            case Kind.BODY if _is_plain(part.text):
                self._put(part.text)
            case Kind.BODY:
                self._encode(part.text.encode())
            case _:
                self._file(part)

    def _headers(self, source: Message, lines: dict[str, str], *, strict: bool = False, end: str = "\n") -> None:
        """Write the headers in their order; each of `lines` in the place of the source's, or else behind all."""
        left = dict(lines)
        for name, value in source.raw_items():
            key = name.lower()
            line = left.pop(key, "") if key in lines else header_line(name, value, strict=strict)
            self._put(f"{line}\n" if line else "")
        for line in left.values():
            self._put(f"{line}\n" if line else "")
        self._put(end)

    def _file(self, part: Part) -> None:
        held = payload_of(part)
        if part.encoding == "base64" and isinstance(held, str) and _is_wrapped(held):
            end = len(held.rstrip("\n"))
            for start in range(0, end, _PIECE):
                self._put(held[start : min(start + _PIECE, end)])
        else:
            data = content_of(part)
            self._encode(data.encode() if isinstance(data, str) else data)

    def _encode(self, data: bytes) -> None:
        """Write bytes as base64, without a line end behind the last line."""
        for start in range(0, len(data), _PIECE_OF_BYTES):
            piece = base64.encodebytes(data[start : start + _PIECE_OF_BYTES]).decode()
            self._put(piece if start + _PIECE_OF_BYTES < len(data) else piece.removesuffix("\n"))


def _headers_of(part: Part, boundary: str) -> dict[str, str]:
    """Return the lines of headers that say what a part is, by name in small letters; empty: not to be written."""
    parameters, disposition = dict(part.parameters), dict(part.disposition.parameters)
    encoding, said = "", part.disposition.value
    if part.kind is Kind.MULTIPART:
        parameters["boundary"] = boundary
    elif part.kind is Kind.BODY:
        parameters["charset"] = "utf-8"
        encoding = "7bit" if _is_plain(part.text) else "base64"
    else:
        encoding = "base64" if part.kind in {Kind.INLINE, Kind.FILE} else ""
        # What has a Content-ID and no disposition is asked for by the HTML, and is not shown beside it.
        said = "inline" if part.kind is Kind.INLINE else said or ("" if part.cid else "attachment")
        if part.filename:
            parameters["name"] = disposition["filename"] = part.filename
    lines = {
        "content-type": f"Content-Type: {Parameters(part.media_type, parameters)}",
        "content-transfer-encoding": f"Content-Transfer-Encoding: {encoding}" if encoding else "",
        "content-disposition": f"Content-Disposition: {Parameters(said, disposition)}" if said else "",
        "content-id": f"Content-ID: <{part.cid}>" if part.cid else "",
    }
    if part.kind is Kind.INLINE:
        lines |= {"x-attachment-id": f"X-Attachment-Id: {part.cid}", "x-image-id": f"X-Image-Id: {part.cid}"}
    return lines


def _is_plain(text: str) -> bool:
    """Return whether a text can stand as it is, without being taken for a boundary."""
    return text.isascii() and f"--{_BOUNDARY}" not in text and max(map(len, text.split("\n"))) <= _LONGEST_LINE


def _is_wrapped(text: str) -> bool:
    """Return whether this is base64 in lines of 76 characters with LF between them. It is looked at in pieces."""
    end = len(text.rstrip("\n"))
    if not text.isascii() or (end - end // (_WIDTH + 1)) % 4:
        return False
    for start in range(0, end, _PIECE):
        piece = text[start : min(start + _PIECE, end)].encode("ascii")
        ends = b"\n" * (len(piece) // (_WIDTH + 1))
        padding = piece.translate(None, _DIGITS).removeprefix(ends)
        is_last = start + _PIECE >= end
        if (
            piece[_WIDTH :: _WIDTH + 1] != ends
            or padding not in (_PADDINGS if is_last else _PADDINGS[:1])
            or not piece.endswith(padding)
        ):
            return False
    return True
