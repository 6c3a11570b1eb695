"""Texts in the form in which both databases take them: keys that fit into an index, and the words of others."""

import hashlib
from typing import Final

__all__ = ["storable", "stored"]

_LONGEST: Final = 768
"""Bytes of a key that is kept as it is: an index row of PostgreSQL's holds 2,704, and a draft has three keys."""
_HEAD: Final = 100
_MARK: Final = "\x1f"
"""Stands before a digest. No user, mailbox, id or name of an app may hold it, so none is taken for another."""


def storable(text: str | None) -> str | None:
    """A text without what a database does not take: NUL, and halves of characters."""
    return text and text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")


def stored(key: str) -> str:
    """The form in which a key is kept: itself, or its beginning and its digest if no index would take it.

    The form of a form is itself.
    """
    if key.isascii() and len(key) <= _LONGEST and "\0" not in key:
        return key  # nearly every one is like that, and the rest takes its time
    data = key.encode("utf-8", "surrogatepass")
    if len(data) <= _LONGEST and storable(key) == key:
        return key
    return f"{storable(key[:_HEAD])}{_MARK}{hashlib.sha256(data).hexdigest()}"
