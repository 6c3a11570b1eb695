"""Texts in a form that both databases accept: keys that fit into an index, and texts of servers."""

import hashlib
from typing import Final

__all__ = ["storable", "stored"]

_LONGEST: Final = 768
"""Bytes of the longest key that is stored unchanged: an index row of PostgreSQL's holds 2,704, for three keys."""
_HEAD: Final = 100
_MARK: Final = "\x1f"
"""The separator before a digest. No user, mailbox, id or name of an app may contain it, so no two are confused."""


def storable(text: str | None) -> str | None:
    """Return a text without what a database does not accept: NUL, and lone surrogates."""
    return text and text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")


def stored(key: str) -> str:
    """Return the stored form of a key: the key, or its beginning and its digest if it would not fit into an index.

    It is idempotent: the stored form of a stored form is the same.
    """
    if key.isascii() and len(key) <= _LONGEST and "\0" not in key:
        return key  # the fast path of nearly every key
    data = key.encode("utf-8", "surrogatepass")
    if len(data) <= _LONGEST and storable(key) == key:
        return key
    return f"{storable(key[:_HEAD])}{_MARK}{hashlib.sha256(data).hexdigest()}"
