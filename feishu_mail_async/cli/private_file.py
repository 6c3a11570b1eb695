"""Files with a secret: read only if nobody but their owner may."""

import errno
import os
import stat
from collections.abc import Callable

from feishu_mail_async._rights import too_open

from .problems import CannotStart

__all__ = ["read_private"]

_PIECE = 65_536


def read_private(path: str, name: str, *, wants: Callable[[bytes], bool]) -> bytes:
    """Read a file that only its owner may read.

    Args:
        path: the file's path.
        name: the file's name in messages.
        wants: a function that returns whether more is to be read, given what has been read so far.

    Raises:
        CannotStart: other users may read it. The message says what to do.
        OSError, ValueError: it cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        # Checked on the open file: the path may name another file a moment later.
        if (wrong := too_open(handle, path)) is not None:
            raise CannotStart(f"{name}: {wrong}")
        content = b""
        while wants(content) and (piece := os.read(handle, _PIECE)):
            content += piece
        return content
    finally:
        os.close(handle)
