"""Cells of the CSV that `--out` writes: there no text is a formula to a spreadsheet, and all of them come back."""

import unicodedata
from typing import Final

__all__ = ["MARK", "is_formula", "protect", "restore"]

MARK: Final = "'"
"""Stands before a text that could be taken for a formula, and before one that begins with such a mark itself."""

_SIGNS: Final = frozenset("=+-@\u2212")
_UNSEEN: Final = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})


def is_formula(text: str) -> bool:
    """Whether some spreadsheet may take the text for a formula.

    It may look behind what cannot be seen, and take a full-width sign for the plain one. A text that begins with a
    control character (a tab, a line end) is one, too: it may become the next cell.
    """
    if text[:1] and unicodedata.category(text[0]) == "Cc":
        return True
    first = next((character for character in text if unicodedata.category(character) not in _UNSEEN), "")
    return unicodedata.normalize("NFKC", first)[:1] in _SIGNS


def protect(text: str) -> str:
    """Return the text as it may stand in a cell."""
    return f"{MARK}{text}" if text.startswith(MARK) or is_formula(text) else text


def restore(cell: str) -> str:
    """Return the text that `protect` made this cell of."""
    return cell.removeprefix(MARK)
