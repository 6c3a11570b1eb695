"""SQLite's part of a ledger: its file, the file's owner, and the beginning of a transaction.

A user who can open the file can read the tokens in it, and change the records by which the limit is kept. So the
file, those beside it and their directory have to belong to the user who runs the program. And the file is the
record of the calls made: if it was removed or replaced while it was in use, it must not be followed by an empty
one, which would let a whole window's calls go at once.
"""

import contextlib
import logging
import os
import shlex
import stat
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from feishu_mail_async._rights import SHARED_FILES, shared_allowed, too_open
from feishu_mail_async.errors import LedgerError

from . import schema

__all__ = ["LedgerFile", "make_engine"]

_ROOT: Final = 0
_PRAGMAS: Final = (
    "busy_timeout=0",
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    "secure_delete=ON",  # so that deleted or replaced tokens do not remain in free pages of the file
)


class LedgerFile:
    """The file of a ledger. The path must lead to the same file as long as the ledger lives.

    Args:
        path: the path of the file.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._beside = [Path(f"{path}-wal"), Path(f"{path}-shm")]
        self._known: tuple[int, int] | None = None

    def prepare(self) -> None:
        """Make the file if there is none, for its owner alone, and check its owner, rights and identity.

        SQLite gives the files beside it the same rights.

        Raises:
            LedgerError: it cannot be opened or made, other users may read it or own it, or it was replaced.
        """
        self.check()
        try:
            if not self._path.exists():
                self._make()
            found = self._path.stat()
        except OSError as error:
            raise self._unusable(error.strerror or "") from error
        if not stat.S_ISREG(found.st_mode):
            raise self._unusable("it is no file")
        if not os.access(self._path, os.R_OK | os.W_OK):
            raise self._unusable("its rights do not allow it")
        if os.name == "posix":
            _check_owner(self._path.parent, {os.geteuid(), _ROOT})
            for name in (self._path, *self._beside):
                with contextlib.suppress(FileNotFoundError):
                    _check_owner(name, {os.geteuid()})
                    if (wrong := too_open(str(name), str(name))) is not None:
                        raise LedgerError(f"ledger: {name}: {wrong}")
        self._known = found.st_dev, found.st_ino

    def check(self) -> None:
        """Check that the path still leads to the same file.

        Raises:
            LedgerError: the file was removed or replaced.
        """
        if self._known is None:
            return
        try:
            found = self._path.stat()
        except OSError:
            what = "it was taken away"
        else:
            if (found.st_dev, found.st_ino) == self._known:
                return
            what = "it was replaced by another"
        raise LedgerError(
            f"ledger: {self._path}: {what} while it was in use, and with it the record of the calls just made: "
            "end the programs that use it, put it back or wait a few minutes, then run them again"
        )

    def _make(self) -> None:
        left = next((str(name) for name in self._beside if name.exists()), None)
        if left is not None:
            raise LedgerError(
                f"ledger: {self._path}: it was taken away, and {left} is left: put it back; or end the programs "
                f"that use it, remove {left}, and wait a few minutes"
            )
        # Only where there is no file: closing any descriptor of a file frees all POSIX locks of this process on
        # it, and SQLite's are such locks.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600))

    def _unusable(self, why: str) -> LedgerError:
        advice = f"it cannot be opened ({why}): check its path, and the rights of its directory"
        return LedgerError(f"ledger: {self._path}: {advice}")


def _check_owner(name: Path, owners: set[int]) -> None:
    owner = name.stat().st_uid
    if owner not in owners and not shared_allowed():
        raise LedgerError(
            f"ledger: {name}: it belongs to another user ({owner}), who may read and change what is in it: give a "
            f"path of your own, or set {SHARED_FILES}=allow to accept it, or make it yours: "
            f"chown {os.geteuid()} {shlex.quote(str(name))}"
        )


def make_engine(path: str, file: LedgerFile, patience: float) -> AsyncEngine:
    """Return an engine with one connection to the file.

    Args:
        path: the path of the file.
        file: checks the file before each connection and transaction.
        patience: seconds for which a transaction waits for the connection.
    """
    engine = create_async_engine(
        URL.create("sqlite+aiosqlite", database=path),
        hide_parameters=True,
        pool_size=1,
        max_overflow=0,
        pool_timeout=patience,
    )

    def connecting(*_: object) -> None:
        file.prepare()

    def connected(connection: Any, _: object) -> None:
        try:
            connection.isolation_level = None  # transactions begin in `began` below
            cursor = connection.cursor()
            for pragma in _PRAGMAS:
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()
        except BaseException:
            connection.close()  # the pool does not know it yet
            raise

    def began(connection: sa.Connection) -> None:
        file.check()
        # IMMEDIATE takes the write lock at once: a transaction that reads first and writes later may fail.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    logging.getLogger("aiosqlite").addFilter(_names_no_token)
    event.listen(engine.sync_engine, "do_connect", connecting)
    event.listen(engine.sync_engine, "connect", connected)
    event.listen(engine.sync_engine, "begin", began)
    return engine


def _names_no_token(record: logging.LogRecord) -> bool:
    """Return whether a log record of aiosqlite may pass: at DEBUG it quotes statements with all their values."""
    return schema.token.name not in record.getMessage()
