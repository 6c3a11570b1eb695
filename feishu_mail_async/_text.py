"""Texts of strangers: servers, proxies, databases, files. What is shown of them is visible, and on one line."""

import unicodedata
from typing import Final

__all__ = ["escape", "escape_lines"]

_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINER: Final = "\u200d"
_PICTURES: Final = frozenset({"So", "Sk"})
_AS_PICTURE: Final = "\ufe0f"


def escape(text: str) -> str:
    r"""Return the text with everything in it that is not seen, or steers what shows it, as `\n`, `\x1b`, `\u202e`.

    These are control and format characters (line ends, a terminal's commands, changes of the direction) and halves
    of characters. What joins emoji into one picture stays. Nothing happens to a text that was escaped before.
    """
    if text.isprintable():
        return text  # looking at each character takes its time
    return "".join(
        character.encode("unicode_escape").decode() if _is_hidden(text, place) else character
        for place, character in enumerate(text)
    )


def escape_lines(text: str) -> str:
    """Return the text with each of its lines escaped, for one whose line ends are our own."""
    return "\n".join(map(escape, text.split("\n")))


def _is_hidden(text: str, place: int) -> bool:
    if unicodedata.category(text[place]) not in _HIDDEN:
        return False
    beside = text[max(0, place - 1) : place], text[place + 1 : place + 2]
    return text[place] != _JOINER or not all(map(_is_picture, beside))


def _is_picture(character: str) -> bool:
    return character == _AS_PICTURE or (bool(character) and unicodedata.category(character) in _PICTURES)
