"""Text from outside (servers, proxies, databases, files), made visible and kept on one line."""

import re
import unicodedata
from typing import Final

__all__ = ["escape", "escape_lines", "name_character", "sentence", "unseen"]

_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories of characters that are not seen: controls, formats, surrogates, separators of lines."""
_JOINER: Final = "\u200d"
"""The character that joins emoji into one picture."""
_PICTURES: Final = frozenset({"So", "Sk"})
"""Unicode categories of emoji and their modifiers."""
_AS_PICTURE: Final = "\ufe0f"
"""The selector that makes the character before it an emoji."""


def escape(text: str) -> str:
    r"""Return the text with its invisible and steering characters escaped, as `\n`, `\x1b`, `\u202e`.

    These are control and format characters (line ends, a terminal's commands, changes of the direction) and lone
    surrogates. The joiner of emoji stays. Escaping a text twice changes nothing.
    """
    if text.isprintable():
        return text  # the fast path
    return "".join(
        character.encode("unicode_escape").decode() if _is_hidden(text, place) else character
        for place, character in enumerate(text)
    )


def escape_lines(text: str) -> str:
    """Return the text with each of its lines escaped, for a text whose line ends are our own."""
    return "\n".join(map(escape, text.split("\n")))


_BLANK: Final = re.compile(
    # No format characters, and nothing is drawn for them: the rest of Unicode's Default_Ignorable_Code_Point, and
    # the Braille pattern without a dot.
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u2800\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Pattern of characters that are drawn as nothing, though they are no format characters."""


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


def sentence(text: str) -> str:
    """Return the text with a full stop at its end, so that another sentence can follow."""
    return text if text.endswith((".", "!", "?", "。")) else f"{text}."


def _is_hidden(text: str, place: int) -> bool:
    if unicodedata.category(text[place]) not in _HIDDEN:
        return False
    beside = text[max(0, place - 1) : place], text[place + 1 : place + 2]
    return text[place] != _JOINER or not all(map(_is_picture, beside))


def _is_picture(character: str) -> bool:
    return character == _AS_PICTURE or (bool(character) and unicodedata.category(character) in _PICTURES)
