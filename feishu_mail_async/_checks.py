"""Checks of parameters: each names the parameter and the remedy."""

import math
import unicodedata
from collections.abc import Callable
from typing import Any, Final

from ._text import name_character, unseen

__all__ = ["check_count", "check_id", "check_number", "check_text", "check_type"]

_LONGEST: Final = 512
"""Characters of an id, an address or a name, at most (the limit of `draft_id` in "发送草稿")."""
_FORBIDDEN: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode categories that no text may hold: controls, lone surrogates, line and paragraph separators."""


def check_text(name: str, value: object, *, longest: int = _LONGEST) -> str:
    """Return `value` if it can stand in a path; otherwise raise an error that names the parameter.

    Args:
        name: the name of the parameter, for the message.
        value: the value to check.
        longest: the most characters allowed.

    Raises:
        TypeError: it is not a string.
        ValueError: it is empty, longer than `longest` characters, or holds control characters.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name}: give a string, not {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{name}: it is empty; give its value")
    if len(value) > longest:
        raise ValueError(f"{name}: {len(value)} characters are too many; {longest} are allowed")
    if value.isprintable():
        return value  # the fast path: a printable text holds none of the forbidden categories
    for place, character in enumerate(value):
        if unicodedata.category(character) in _FORBIDDEN:
            raise ValueError(
                f"{name}: character {place} is the control character U+{ord(character):04X}; take it out"
            )
    return value


def check_id(name: str, value: object) -> str:
    """Return `value` if it can be an id or an address; otherwise raise an error that names the parameter.

    Args:
        name: the name of the parameter, for the message.
        value: the value to check.

    Raises:
        TypeError: it is not a string.
        ValueError: as `check_text`, or it holds characters that cannot be seen. Copying adds them, and with them
            the call would ask the server for something else.
    """
    text = check_text(name, value)
    if text.isascii():
        return text  # the fast path: of ASCII only control characters cannot be seen
    place = unseen(text)
    if place is not None:
        raise ValueError(
            f"{name}: character {place} is {name_character(text[place])}, which cannot be seen; take it out"
        )
    return text


def check_number(
    name: str, value: object, accepts: Callable[[float], bool], wanted: str, *, infinite: bool = False
) -> None:
    """Raise TypeError or ValueError, naming the parameter, unless `value` is an accepted number.

    Args:
        name: the name of the parameter, for the message.
        value: the value to check.
        accepts: returns whether a number is in range.
        wanted: a description of the accepted values, for the message.
        infinite: whether infinity and NaN are passed to `accepts` instead of being refused.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: give {wanted}, not {type(value).__name__}")
    if (not infinite and not math.isfinite(value)) or not accepts(value):
        raise ValueError(f"{name}: give {wanted}, not {value!r}")


def check_count(name: str, value: object, least: int, wanted: str) -> None:
    """Raise TypeError or ValueError, naming the parameter, unless `value` is a whole number of at least `least`.

    Args:
        name: the name of the parameter, for the message.
        value: the value to check.
        least: the least number allowed.
        wanted: a description of the accepted values, for the message.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: give {wanted}, not {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name}: give {wanted}, not {value!r}")


def check_type(name: str, value: Any, wanted: type[Any]) -> Any:
    """Return the value if it is of this type; otherwise raise a TypeError that names the parameter.

    Args:
        name: the name of the parameter, for the message.
        value: the value to check.
        wanted: the type.
    """
    if not isinstance(value, wanted):
        raise TypeError(f"{name}: give a {wanted.__name__}, not {type(value).__name__}")
    return value
