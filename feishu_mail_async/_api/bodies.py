"""The JSON bodies of requests, in pieces: writing a large one at once would hold up everything else."""

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from feishu_mail_async._secrecy import Hidden

__all__ = ["Body", "json_body", "message_body", "secret_body"]

_PIECE: Final = 48 * 1024
"""Bytes of a message that are encoded at once; a multiple of 3, so that base64 pads the last piece alone."""
_BEFORE, _AFTER = b'{"raw":"', b'"}'


class Body(NamedTuple):
    """A request's body. Its repr shows nothing of it.

    Attributes:
        size: its length, in bytes.
        pieces: returns it anew for each attempt, piece by piece.
        secrets: what must not be shown if an error's text holds it.
    """

    size: int
    pieces: Callable[[], Iterator[bytes]]
    secrets: Hidden[tuple[str, ...]] = Hidden(())


def json_body(fields: Mapping[str, str]) -> Body:
    """Return the body that has these fields."""
    encoded = json.dumps(dict(fields)).encode()
    return Body(len(encoded), lambda: iter((encoded,)))


def secret_body(fields: Hidden[dict[str, str]]) -> Body:
    """Return the body that has these fields, all of them secrets."""
    return json_body(fields.value)._replace(secrets=Hidden(tuple(fields.value.values())))


def message_body(message: bytes) -> Body:
    """Return the body that carries a whole message, in base64url ("创建草稿", 请求体 `raw`)."""

    def pieces() -> Iterator[bytes]:
        yield _BEFORE
        for start in range(0, len(message), _PIECE):
            yield base64.urlsafe_b64encode(message[start : start + _PIECE])
        yield _AFTER

    return Body(len(_BEFORE) + -(-len(message) // 3) * 4 + len(_AFTER), pieces)
