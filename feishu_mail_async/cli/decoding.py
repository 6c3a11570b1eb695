"""The text in a file's bytes, whichever program has written it; what holds none is named."""

import codecs
from typing import Final

__all__ = ["decode", "marked_encoding"]

_SPREADSHEET: Final = 'open it in the spreadsheet, save it as "CSV UTF-8", and give that file'
_NO_TEXT: Final = (
    (b"PK\x03\x04", f"it is a workbook (.xlsx, .ods), no CSV: {_SPREADSHEET}"),
    (b"\xd0\xcf\x11\xe0", f"it is a workbook (.xls), no CSV: {_SPREADSHEET}"),
    (b"\x1f\x8b", "it is compressed: unpack it first, as with gunzip"),
    (b"%PDF", "it is a PDF: give the table that it was made of, as CSV"),
)
_MARKS: Final = (
    # The longer ones first: one of them begins as a shorter one does.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LOOKED_AT: Final = 4096


def decode(content: bytes) -> tuple[str, str]:
    """Return the text and, unless it is UTF-8, the name of its encoding.

    Bytes that are no text in it stand there as surrogates or U+FFFD: they matter only where one looks at them.

    Raises:
        ValueError: it is no text; the sentence says what it is, and what to do.
    """
    for magic, sentence in _NO_TEXT:
        if content.startswith(magic):
            raise ValueError(sentence)
    text, encoding = _decode(content)
    return text.lstrip("\ufeff"), encoding  # two programs may each have put a mark before it


def _decode(content: bytes) -> tuple[str, str]:
    encoding = marked_encoding(content) or _unmarked(content)
    if encoding is not None:
        return content.decode(encoding, errors="replace"), encoding.upper()
    try:
        return content.decode("utf-8"), ""
    except UnicodeDecodeError:
        pass
    if not _is_damaged(content):
        try:
            return content.decode("gb18030"), "GB18030"  # what a Chinese Excel calls CSV
        except UnicodeDecodeError:
            pass
    return content.decode("utf-8", errors="surrogateescape"), ""


def marked_encoding(content: bytes) -> str | None:
    """Name the encoding that a byte order mark tells of, other than UTF-8's."""
    return next((encoding for mark, encoding in _MARKS if content.startswith(mark)), None)


def _unmarked(content: bytes) -> str | None:
    """UTF-16 without its mark: of a table in it, every other byte is nearly always 0."""
    head = content[:_LOOKED_AT]
    even, odd = head[::2].count(0), head[1::2].count(0)
    most = len(head) // 4
    if odd > most and not even:
        return "utf-16-le"
    return "utf-16-be" if even > most and not odd else None


def _is_damaged(content: bytes) -> bool:
    """Whether it is UTF-8 all the same: most of what is not ASCII can be read as that."""
    text = content.decode("utf-8", errors="replace")
    bad = text.count("\ufffd")
    return sum(not character.isascii() for character in text) - bad > bad
