"""Checks of ids and addresses for damage by spreadsheets, word processors and input methods."""

import re
import unicodedata
from typing import Final

from feishu_mail_async._text import name_character

__all__ = ["check_spelling", "is_rounded", "unwrap"]

_AS_TEXT: Final = "make the column text, and put the ids in anew"
# In this order: scientific notation, a decimal, thousands separators, an error value.
_REWRITTEN: Final = (
    (re.compile(r"[+-]?\d+([.,]\d+)?[eE][+-]\d+"), "its last digits are lost"),
    (re.compile(r"\d+[.,]0+"), "its last digits may be lost"),
    (re.compile(r"\d{1,3}([,.'\u2019 \u00a0\u202f]\d{3}){2,}"), "its last digits may be lost"),
    (re.compile(r"#(N/A|REF!|VALUE!|NAME\?|NULL!|NUM!|DIV/0!|#+)"), "what stood there is lost"),
)
_ROUNDED: Final = re.compile(r"[1-9]\d{14}00+")
_WRAPPED: Final = re.compile(r'="([^"]*)"')
_QUOTES: Final = frozenset({"Pi", "Pf"})


def unwrap(cell: str) -> str | None:
    """Return the text in a cell like `="7620"`, a form that keeps spreadsheets from reading a number.

    Args:
        cell: the cell.

    Returns:
        the text in the quotes; None if the cell has another form.
    """
    wrapped = _WRAPPED.fullmatch(cell)
    return None if wrapped is None else wrapped[1]


def check_spelling(name: str, text: str) -> str:
    """Return an id or an address unchanged, unless a program has evidently rewritten it.

    Args:
        name: the name of the value, for the message.
        text: the id or address.

    Raises:
        ValueError: it was rewritten. The message says which part, and what to do.
    """
    for pattern, loss in _REWRITTEN:
        if pattern.fullmatch(text):
            raise ValueError(f"{name}: a spreadsheet has made {text} of it, and {loss}: {_AS_TEXT}")
    if text.strip() and text != text.strip():
        raise ValueError(f"{name}: it begins or ends with a blank; take that out")
    for place, character in enumerate(text):
        if not character.isascii() and _typed(character).isascii():
            raise ValueError(
                f"{name}: character {place} is {name_character(character)}, which looks like another one; "
                "ids and addresses are written without it"
            )
    return text


def is_rounded(text: str) -> bool:
    """Return whether it is a number with only zeros after its fifteenth digit: spreadsheets keep fifteen digits.

    Args:
        text: the id.
    """
    return _ROUNDED.fullmatch(text) is not None


def _typed(character: str) -> str:
    """Return the keyboard's character for a look-alike that word processors and input methods put in its place."""
    kind = unicodedata.category(character)
    if kind == "Pd" or character == "\u2212":
        return "-"
    if kind in _QUOTES or character in "\u201a\u201e\u2032\u2033":
        return '"'
    return unicodedata.normalize("NFKC", character)
