"""Failures of a ledger's database: which may pass, which connections they leave behind, what to tell the person.

Whatever is not known to last may pass: it is tried again, on a new connection. There are two kinds that last.
What is wrong with a statement, with the tables or with the file is final. Who is not let in is told so at once by
a database that is used for the first time; one that has let him in before is being changed, and that may pass.
"""

import errno
import re
from typing import Final

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from feishu_mail_async.errors import LedgerError, RecordRefused

__all__ = ["TROUBLE", "busy", "passes", "reason", "stale", "told"]

TROUBLE: Final = (DBAPIError, PoolTimeoutError, OSError)
"""What a database's failure is raised as; TimeoutError is an OSError."""

_FILE_RIGHTS: Final = "it cannot be written: check the rights of the file and of its directory"
_SQLITE: Final = {
    "SQLITE_FULL": "the disk is full: free some space, then run it again",
    "SQLITE_NOTADB": "it is no SQLite file, or a damaged one: give another path, or move it away and run it again",
    "SQLITE_CORRUPT": "it is damaged: restore it, or move it away and run it again (what was sent before is asked "
    "for once more, and not sent twice)",
    "SQLITE_READONLY": _FILE_RIGHTS,
    "SQLITE_PERM": _FILE_RIGHTS,
    "SQLITE_CANTOPEN": "it cannot be opened: check that its directory exists and can be written",
    "SQLITE_IOERR": "the disk fails: check it, then run it again",
    "SQLITE_NOMEM": "there is no memory left: end other programs, then run it again",
}
_SQLITE_DENIED: Final = ("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_CANTOPEN", "SQLITE_AUTH")
_SQLITE_PASSING: Final = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_NOMEM", "SQLITE_INTERRUPT", "SQLITE_ABORT")
_SQLITE_STALE: Final = ("SQLITE_READONLY", "SQLITE_IOERR")
"""Names that a connection repeats though the file has long been writable, or another one."""
_LOCKS: Final = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")

_RIGHTS: Final = "the user may not use the tables, or they are not what they should be: check its rights"
_AWAY: Final = "the database does not answer: check that it runs and can be reached, then run it again"
_SQLSTATES: Final = {
    "08": _AWAY,
    "25006": "the database can only be read: give the address of the one that is written to",
    "28": "the database does not let this user in: check the name and the password",
    "3D": "there is no such database: create it",
    "3F": _RIGHTS,
    "42": _RIGHTS,
    "53100": "the database's disk is full: free some space, then run it again",
    "53300": "the database has no connection left: raise its max_connections, or end other programs",
    "57P": _AWAY,
    "XX001": "the database is damaged: restore it",
    "XX002": "the database is damaged: restore it",
}
_DENIED: Final = ("28", "3D", "42501")
"""States that say who may do what."""
_FINAL: Final = ("0A", "21", "22", "23", "3F", "42", "44", "54", "P0", "XX001", "XX002")
"""States of what is wrong with a statement, its values, or the tables."""
_CONTENDED: Final = ("40", "55")
"""States of transactions that were in each other's way, on connections that are as good as before."""
_SAID: Final = {
    'database ".*" does not exist': "3D",
    'role ".*" (does not exist|is not permitted to log in)': "28",
    "authentication failed|no password supplied|pg_hba.conf": "28",
    "session is read-only|server is in hot standby mode": "25006",
}
"""What a server says that lets nobody in: psycopg gives that no state of its own."""
_REFUSED_BY_DRIVER: Final = frozenset({"DataError", "IntegrityError", "NotSupportedError", "ProgrammingError"})
"""Errors of any driver, by their names in PEP 249."""
_VALUES: Final = ("22", "23", "44", "54", "P0")
"""Data, constraints, a view's check, limits such as an index row's, what a trigger raises."""
_LOCKED: Final = "another program keeps it locked: end that, then run it again"


def passes(error: BaseException, *, opened: bool) -> bool:
    """Whether a failure may pass, so that it is worth trying again.

    Args:
        error: what was raised.
        opened: whether the database has let this user in before.
    """
    origin = _origin(error)
    name = _sqlite_name(origin)
    if name:
        return name.startswith((*_LOCKS, *_SQLITE_PASSING)) or (opened and name.startswith(_SQLITE_DENIED))
    state = _state(origin)
    if state.startswith(_DENIED):
        return opened
    if state:
        return not state.startswith(_FINAL)
    # Without a state a connection was lost, or did not come about; or the driver itself refuses what it is given.
    return _REFUSED_BY_DRIVER.isdisjoint(base.__name__ for base in type(origin).__mro__)


def stale(error: BaseException) -> bool:
    """Whether the connection is of no use any more, nor those from before: they lead to the same server."""
    origin = _origin(error)
    name = _sqlite_name(origin)
    if name:
        return name.startswith(_SQLITE_STALE)
    return passes(error, opened=True) and not _state(origin).startswith(_CONTENDED)


def busy(error: BaseException) -> bool:
    """Whether a SQLite file was locked by somebody else, so that nothing at all was done."""
    return _sqlite_name(_origin(error)).startswith(_LOCKS)


def reason(error: BaseException) -> str:
    """What is wrong, in a few words."""
    return _advice(error).partition(":")[0]


def _of_values(error: BaseException) -> bool:
    """Whether it is for the values in a statement that it was refused: with those of others it may succeed."""
    if isinstance(error, DataError | IntegrityError | UnicodeError | OverflowError):
        return True
    return _state(_origin(error)).startswith(_VALUES)


def told(where: str, error: BaseException) -> LedgerError:
    """The error for the person, after waiting did not help or where it would not; RecordRefused if a value is why.

    Args:
        where: the ledger, as it may be shown.
        error: what the database said. It is neither quoted nor kept: the address in it may hold a password.
    """
    mistake = f"a mistake of this program ({type(error).__name__}): please report it"
    kind = RecordRefused if _of_values(error) else LedgerError
    known = isinstance(error, TROUBLE) or kind is RecordRefused
    failed = kind(f"ledger: {where}: {_advice(error) if known else mistake}")
    failed.__cause__ = _Cause(_named(error))
    return failed


class _Cause(Exception):
    """What stands behind a LedgerError, without the connection and what it knows."""


def _advice(error: BaseException) -> str:
    """What is wrong, and after a colon what to do."""
    if _of_values(error):
        return f"the database refuses a value ({_named(error)})"
    origin = _origin(error)
    if isinstance(origin, OSError) and origin.errno in {errno.ENOSPC, errno.EDQUOT}:
        return _SQLITE["SQLITE_FULL"]
    name = _sqlite_name(origin)
    if busy(error):
        return _LOCKED
    if name:
        return _longest(_SQLITE, name) or f"{name}: {origin}"
    state = _state(origin)
    if state:
        return _longest(_SQLSTATES, state) or f"the database refused it with {state}"
    return _AWAY


def _longest(table: dict[str, str], name: str) -> str | None:
    return next((advice for prefix, advice in table.items() if name.startswith(prefix)), None)


def _origin(error: BaseException) -> BaseException | None:
    """The driver's own error, where SQLAlchemy has put one of its own around it."""
    return error.orig if isinstance(error, DBAPIError) else error


def _sqlite_name(origin: BaseException | None) -> str:
    return str(getattr(origin, "sqlite_errorname", None) or "")


def _state(origin: BaseException | None) -> str:
    """The SQLSTATE, also of a server that lets nobody in; empty if there is none."""
    state = getattr(origin, "sqlstate", None)
    if state is not None:
        return str(state)
    said = str(origin)
    return next((state for pattern, state in _SAID.items() if re.search(pattern, said)), "")


def _named(error: BaseException) -> str:
    origin = _origin(error)
    name = _sqlite_name(origin)
    if name:
        return f"{name}: {origin}"
    return f"{type(origin).__name__} {getattr(origin, 'sqlstate', None) or ''}".strip()
