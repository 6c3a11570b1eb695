"""Text decoding of files from any program, by byte order mark or by content. Files that are not text are named."""

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
    # Longer marks first: that of UTF-32-LE begins with that of UTF-16-LE.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LOOKED_AT: Final = 4096


def decode(content: bytes) -> tuple[str, str]:
    """Decode a file's content.

    Bytes that cannot be decoded become surrogates or U+FFFD. They are errors only in the cells that are used.

    Args:
        content: the file's bytes.

    Returns:
        the text, and the name of its encoding (empty for UTF-8).

    Raises:
        ValueError: it is not text. The message says which kind of file it is, and what to do.
    """
    for magic, sentence in _NO_TEXT:
        if content.startswith(magic):
            raise ValueError(sentence)
    text, encoding = _decode(content)
    return text.lstrip("\ufeff"), encoding  # several programs may each have added a byte order mark


def _decode(content: bytes) -> tuple[str, str]:
    encoding = marked_encoding(content) or _unmarked(content)
    if encoding is not None:
        return content.decode(encoding, errors="replace"), encoding.upper()
    # UTF-8 is tried before GB18030: a text in GB18030 is hardly ever valid UTF-8, but many texts in UTF-8 are also
    # valid GB18030.
    try:
        return content.decode("utf-8"), ""
    except UnicodeDecodeError:
        pass
    if not _is_damaged(content):
        try:
            return content.decode("gb18030"), "GB18030"  # the encoding of CSV from a Chinese Excel
        except UnicodeDecodeError:
            pass
    return content.decode("utf-8", errors="surrogateescape"), ""


def marked_encoding(content: bytes) -> str | None:
    """Return the encoding of the byte order mark; None if there is none, or UTF-8's.

    Args:
        content: the beginning of a file.
    """
    return next((encoding for mark, encoding in _MARKS if content.startswith(mark)), None)


def _unmarked(content: bytes) -> str | None:
    """Return the encoding of UTF-16 without a mark: in a table, nearly every other byte is 0."""
    head = content[:_LOOKED_AT]
    even, odd = head[::2].count(0), head[1::2].count(0)
    most = len(head) // 4
    if odd > most and not even:
        return "utf-16-le"
    return "utf-16-be" if even > most and not odd else None


def _is_damaged(content: bytes) -> bool:
    """Return whether it is damaged UTF-8: most characters beyond ASCII can be decoded."""
    text = content.decode("utf-8", errors="replace")
    bad = text.count("\ufffd")
    return sum(not character.isascii() for character in text) - bad > bad
