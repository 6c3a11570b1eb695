"""The user_access_tokens of `--token-file`: one token, or JSON of users."""

import codecs
import json
from typing import Final

from feishu_mail_async._checks import check_text
from feishu_mail_async._text import escape

from .decoding import marked_encoding
from .private_file import read_private
from .problems import CannotStart, unreadable

__all__ = ["read_token_file"]

_MOST_READ: Final = 16 * 1024 * 1024
_WANTED: Final = 'give one token, or JSON such as {"alice": "u-…", "bob": "u-…"}'


def read_token_file(path: str) -> dict[str | None, str]:
    """Read a file of tokens: user -> token, with the key None for a single token.

    Args:
        path: the file's path.

    Raises:
        CannotStart: it cannot be read, others may read it, or it has no tokens. The message quotes no token.
    """
    name = f"--token-file {escape(path)}"
    try:
        content = read_private(path, name, wants=_is_unfinished)
    except (OSError, ValueError) as error:
        raise CannotStart(f"{name}: {unreadable(error)}") from None
    return _find_tokens(content, name)


def _find_tokens(content: bytes, name: str) -> dict[str | None, str]:
    """Find the tokens in a file's content: JSON, or one token in its first line (the other lines are ignored)."""
    encoding = marked_encoding(content) or "utf-8-sig"
    whole = _is_json(content) or encoding != "utf-8-sig"
    try:
        text = (content if whole else content.partition(b"\n")[0]).decode(encoding).strip()
    except UnicodeDecodeError:
        raise CannotStart(f"{name}: its first line is no text; put the user_access_token there") from None
    if "\0" in text:
        raise CannotStart(f"{name}: it is in UTF-16; save it as UTF-8")
    if text.startswith("{"):
        return _parse_tokens(text, name)
    if text.startswith(("[", '"', "'")):
        raise CannotStart(f"{name}: it is JSON of another shape; {_WANTED}")
    token = text.partition("\n")[0].strip()
    if not token:
        raise CannotStart(f"{name}: its first line is empty; put the user_access_token there")
    return {None: token}


def _is_json(content: bytes) -> bool:
    return content.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{")


def _is_unfinished(content: bytes) -> bool:
    """Return whether more is to be read: to the end for JSON and UTF-16, else to the end of the first line."""
    whole = _is_json(content) or marked_encoding(content) is not None
    return len(content) < _MOST_READ and (whole or b"\n" not in content)


def _parse_tokens(text: str, name: str) -> dict[str | None, str]:
    """Parse a JSON object of user -> token; the messages quote no token."""
    try:
        pairs = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        where = f", line {error.lineno} column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise CannotStart(f"{name}: it is no readable JSON{where}; {_WANTED}") from None
    if not pairs:
        raise CannotStart(f"{name}: it names no user; {_WANTED}")
    if any(user == "access_token" for user, _ in pairs):
        raise CannotStart(f"{name}: it is a login's answer, with an access_token in it; {_WANTED}")
    tokens: dict[str | None, str] = {}
    for user, token in pairs:
        try:
            check_text("a user's name", user)
        except ValueError as error:
            raise CannotStart(f"{name}: {error}") from None
        if not isinstance(token, str):
            raise CannotStart(f"{name}: what stands there for {user!r} is no text; {_WANTED}")
        if user in tokens:
            raise CannotStart(f"{name}: it names {user!r} twice; keep one of the two")
        tokens[user] = token.strip()
    return tokens
