"""Texts of strangers: servers, proxies, databases, files. What is shown of them is visible, and on one line."""

import re
import unicodedata
from typing import Final

__all__ = ["escape", "escape_lines", "name_character", "unseen"]

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


_BLANK: Final = re.compile(
    # No format characters, and nothing is drawn for them: the rest of Unicode's Default_Ignorable_Code_Point, and
    # the Braille pattern without a dot.
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u2800\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def unseen(text: str) -> int | None:
    """Return the place of the first character that cannot be seen, or only looks like a blank; None if all can."""
    if text.isascii() and text.isprintable():
        return None
    return next(
        (
            place
            for place, character in enumerate(text)
            if unicodedata.category(character) in _HIDDEN
            or (unicodedata.category(character) == "Zs" and character != " ")
            or _BLANK.match(character)
        ),
        None,
    )


def name_character(character: str) -> str:
    """Return the number and the name of a character, for one that cannot be seen: "U+200B (ZERO WIDTH SPACE)"."""
    name = unicodedata.name(character, "")
    return f"U+{ord(character):04X}" + (f" ({name})" if name else "")


def _is_hidden(text: str, place: int) -> bool:
    if unicodedata.category(text[place]) not in _HIDDEN:
        return False
    beside = text[max(0, place - 1) : place], text[place + 1 : place + 2]
    return text[place] != _JOINER or not all(map(_is_picture, beside))


def _is_picture(character: str) -> bool:
    return character == _AS_PICTURE or (bool(character) and unicodedata.category(character) in _PICTURES)
