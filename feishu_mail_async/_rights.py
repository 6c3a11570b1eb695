"""Permissions of files that hold secrets: who else may read them, and the remedy."""

import os
import shlex
import stat
from typing import Final

__all__ = ["SHARED_FILES", "shared_allowed", "too_open"]

SHARED_FILES: Final = "FEISHU_MAIL_SHARED_FILES"
"""The environment variable that accepts files which others may read, if it is set to "allow"."""

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
"""Permission bits of everyone but the owner."""
_GROUP_READS: Final = stat.S_IRGRP | stat.S_IRWXU
"""Permission bits that a file of root's may have: all of the owner's, and reading for the group."""


def shared_allowed() -> bool:
    """Return whether the environment accepts files that others may read."""
    return os.environ.get(SHARED_FILES) == "allow"


def too_open(file: int | str, path: str) -> str | None:
    """Return the remedy for a file that others may read; None if it is accepted.

    Accepted are files about which the program's user can do nothing, and which were set up by the owner of the
    machine: a file on a mount that is read-only, as containers get their secrets, and one that root lets a group
    read. So are all files on Windows, where the mode means nothing, and all files if the environment says so: some
    mounts have one mode for all.

    Args:
        file: its descriptor, or its path.
        path: its path, to be shown.
    """
    if os.name != "posix":
        return None
    found = os.stat(file)  # noqa: PTH116 - of a descriptor, too
    mode = stat.S_IMODE(found.st_mode)
    if not mode & _OTHERS or shared_allowed() or os.statvfs(file).f_flag & os.ST_RDONLY:
        return None
    me = os.geteuid()
    if found.st_uid == 0 != me and not mode & ~_GROUP_READS:
        return None
    whoever = "keep it to yourself" if me in {0, found.st_uid} else "make a copy of your own, or have its owner do"
    # The command stands at the end, so that it can be copied.
    return (
        f"others may read it; where its mode cannot be changed, {SHARED_FILES}=allow accepts it; else {whoever}: "
        f"chmod 600 {shlex.quote(path)}"
    )
