"""Cells of the CSV that `--out` writes: protected from being read as formulas, and restorable exactly."""

import unicodedata
from typing import Final

__all__ = ["MARK", "is_formula", "protect", "restore"]

MARK: Final = "'"
"""The prefix of a text that a spreadsheet could take for a formula, or that itself begins with this prefix."""

_SIGNS: Final = frozenset("=+-@\u2212")
_UNSEEN: Final = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})


def is_formula(text: str) -> bool:
    """Return whether some spreadsheet may take the text for a formula.

    Spreadsheets may skip invisible characters, and take a full-width sign for the plain one. A text that begins
    with a control character (a tab, a line end) counts too: the rest may become the next cell.

    Args:
        text: the text of a cell.
    """
    if text[:1] and unicodedata.category(text[0]) == "Cc":
        return True
    first = next((character for character in text if unicodedata.category(character) not in _UNSEEN), "")
    return unicodedata.normalize("NFKC", first)[:1] in _SIGNS


def protect(text: str) -> str:
    """Return the cell for a text.

    Args:
        text: any text.
    """
    return f"{MARK}{text}" if text.startswith(MARK) or is_formula(text) else text


def restore(cell: str) -> str:
    """Return the text of a cell that `protect` made.

    Args:
        cell: the cell.
    """
    return cell.removeprefix(MARK)
