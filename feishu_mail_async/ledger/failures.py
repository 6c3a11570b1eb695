"""What went wrong with a ledger's database: whether it may pass, and what to tell the person."""

import errno
import re
from typing import Final

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from feishu_mail_async.errors import LedgerError, RecordRefused

__all__ = ["TROUBLE", "busy", "final", "told"]

TROUBLE: Final = (DBAPIError, PoolTimeoutError, OSError)
"""What a database's failure is raised as; TimeoutError is an OSError."""

_SQLITE: Final = {
    "SQLITE_FULL": "the disk is full: free some space, then run it again",
    "SQLITE_NOTADB": "it is no SQLite file, or a damaged one: give another path, or move it away and run it again",
    "SQLITE_CORRUPT": "it is damaged: restore it, or move it away and run it again (what was sent before is asked "
    "for once more, and not sent twice)",
    "SQLITE_READONLY": "it cannot be written: check the rights of the file and of its directory",
    "SQLITE_PERM": "it cannot be written: check the rights of the file and of its directory",
    "SQLITE_CANTOPEN": "it cannot be opened: check that its directory exists and can be written",
    "SQLITE_IOERR": "the disk fails: check it, then run it again",
}
_SQLSTATES: Final = {
    "28": "the database does not let this user in: check the name and the password",
    "3D": "there is no such database: create it",
    "42": "the user may not use the tables, or they are not what they should be: check its rights",
    "53100": "the database's disk is full: free some space, then run it again",
    "25006": "the database can only be read: give the address of the one that is written to",
}
_SAID: Final = {
    'database ".*" does not exist': "3D",
    'role ".*" (does not exist|is not permitted to log in)': "28",
    "authentication failed|no password supplied|pg_hba.conf": "28",
}
"""What a server says that lets nobody in: psycopg gives that no state of its own."""
_PASSING: Final = ("08", "40", "53", "55", "57")
"""Connections, deadlocks and serialisation, resources, locks, a server that is shut down or starts."""
_VALUES: Final = ("22", "23", "44", "54", "P0")
"""Data, constraints, a view's check, limits such as an index row's, what a trigger raises."""
_LOCKS: Final = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")
_LOCKED: Final = "another program keeps it locked: end that, then run it again"
_AWAY: Final = "the database does not answer: check that it runs and can be reached, then run it again"


def final(error: BaseException) -> str | None:
    """What to tell the person about a failure that waiting does not mend; None if it may pass."""
    if _of_values(error):
        return f"the database refuses a value ({_named(error)})"
    origin = _origin(error)
    name = getattr(origin, "sqlite_errorname", None)
    if name is not None:
        known = next((advice for prefix, advice in _SQLITE.items() if name.startswith(prefix)), None)
        return known or (None if busy(error) else f"{name}: {origin}")
    state = getattr(origin, "sqlstate", None)
    if state is not None:
        known = next((advice for prefix, advice in _SQLSTATES.items() if state.startswith(prefix)), None)
        return known or (None if state.startswith(_PASSING) else f"the database refused it with {state}")
    if isinstance(origin, OSError) and origin.errno in {errno.ENOSPC, errno.EDQUOT}:
        return _SQLITE["SQLITE_FULL"]
    said = str(origin)
    return next((_SQLSTATES[state] for pattern, state in _SAID.items() if re.search(pattern, said)), None)


def busy(error: BaseException) -> bool:
    """Whether a SQLite file was locked by somebody else, so that nothing at all was done."""
    return str(getattr(_origin(error), "sqlite_errorname", "")).startswith(_LOCKS)


def _of_values(error: BaseException) -> bool:
    """Whether it is for the values in a statement that it was refused: with those of others it may succeed."""
    if isinstance(error, DataError | IntegrityError | UnicodeError | OverflowError):
        return True
    return str(getattr(_origin(error), "sqlstate", None)).startswith(_VALUES)


def told(where: str, error: BaseException) -> LedgerError:
    """The error for the person, after waiting did not help or where it would not; RecordRefused if a value is why.

    Args:
        where: the ledger, as it may be shown.
        error: what the database said. It is neither quoted nor kept: the address in it may hold a password.
    """
    advice = final(error)
    if advice is None and not isinstance(error, TROUBLE):
        advice = f"a mistake of this program ({type(error).__name__}): please report it"
    elif advice is None:
        advice = _LOCKED if busy(error) else _AWAY
    kind = RecordRefused if _of_values(error) else LedgerError
    failed = kind(f"ledger: {where}: {advice}")
    failed.__cause__ = _Cause(_named(error))
    return failed


class _Cause(Exception):
    """What stands behind a LedgerError, without the connection and what it knows."""


def _origin(error: BaseException) -> BaseException | None:
    """The driver's own error, where SQLAlchemy has put one of its own around it."""
    return error.orig if isinstance(error, DBAPIError) else error


def _named(error: BaseException) -> str:
    origin = _origin(error)
    name = getattr(origin, "sqlite_errorname", None)
    if name is not None:
        return f"{name}: {origin}"
    return f"{type(origin).__name__} {getattr(origin, 'sqlstate', None) or ''}".strip()
