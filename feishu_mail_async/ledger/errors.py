"""Classification of database errors: transient (retried) or permanent (raised, with a remedy).

An error that is not known to be permanent is transient, and retried on a new connection. There are two permanent
kinds. An error in a statement, in the tables, the file or the URL is final. A refusal to let the user in is final
for a database that is used for the first time, so that it is reported at once; a database that has let the user in
before is just being changed, so there it is transient.
"""

import errno
import re
from collections.abc import Set as AbstractSet
from typing import Final

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from feishu_mail_async.errors import LedgerError, RecordRefused

__all__ = [
    "TROUBLE",
    "is_locked",
    "is_transient",
    "must_reconnect",
    "reason",
    "remedy",
    "server_message",
    "to_ledger_error",
]

TROUBLE: Final = (DBAPIError, PoolTimeoutError, OSError)
"""The types that errors of a database are raised as; TimeoutError is an OSError."""

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
"""Errors that a connection keeps raising although the file has become writable, or is another one."""
_LOCKS: Final = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")
_LOCKED: Final = "another program keeps it locked: end that, then run it again"

_AWAY: Final = "the database does not answer: check that it runs and can be reached, then run it again"
_RIGHTS: Final = "the user may not use the tables, or they are not what they should be: check its rights"
_DAMAGED: Final = "the database is damaged: restore it"
_STATES: Final = {
    "08": _AWAY,
    "25006": "the database can only be read: give the address of the one that is written to",
    "28": "the database does not let this user in: check the name and the password",
    "3D": "there is no such database: create it",
    "3F": _RIGHTS,
    "42": _RIGHTS,
    "53100": "the database's disk is full: free some space, then run it again",
    "53300": "the database has no connection left: raise its max_connections, or end other programs",
    "57P": _AWAY,
    "XX001": _DAMAGED,
    "XX002": _DAMAGED,
    "SSL": "the server takes no SSL, and the URL asks for it: switch it on there, or give another sslmode if the "
    "way to it is safe without",
    "TLS": "the way to the server cannot be made secure: check sslmode and sslrootcert in the URL, and the "
    "certificate of the server",
    "POOLER": "the pooler takes no such setting: leave it out of the URL, or name it in the pooler's "
    "ignore_startup_parameters",
    "URL": "a setting in the URL is refused: correct it, or leave it out",
}
_DENIED: Final = ("28", "3D", "42501", "SSL", "TLS")
"""SQLSTATEs (and our own) of refused access: rights, logins, encryption."""
_FINAL: Final = ("0A", "21", "22", "23", "3F", "42", "44", "54", "P0", "XX001", "XX002", "POOLER", "URL")
"""SQLSTATEs of errors in a statement, its values, the tables, or the URL."""
_QUOTING: Final = ("22", "23")
"""SQLSTATEs whose messages quote values."""
_CONTENDED: Final = ("40", "55")
"""SQLSTATEs of transactions that got in each other's way; their connections are still good."""
_NO_STATE: Final = frozenset({None, "08P01"})
"""SQLSTATEs that say nothing: libpq gives None while it connects, and poolers give 08P01 for anything."""
_PATTERNS: Final = {
    'database ".*" (does not exist|不存在)|数据库 ".*" 不存在|no such database': "3D",
    'role ".*" (does not exist|is not permitted to log in)|角色 ".*" 不存在|no such user': "28",
    "auth(entication)? failed|认证失败|no password supplied|pg_hba.conf": "28",
    "server does not support SSL": "SSL",
    "certificate|private key|SSL error: .*(alert|verify|wrong version|unsupported protocol)": "TLS",
    "unsupported startup parameter": "POOLER",
    "unrecognized configuration parameter|invalid (port number|value for parameter|.* value:)": "URL",
    "too many (clients|connections)|remaining connection slots|no more connections allowed": "53300",
    "session is read-only|server is in hot standby mode": "25006",
}
"""Patterns of messages without a useful SQLSTATE, and the SQLSTATE (or our own) to take instead."""
_REFUSED_BY_DRIVER: Final = frozenset({"DataError", "IntegrityError", "NotSupportedError", "ProgrammingError"})
"""Errors by which a driver itself refuses its input, by their names in PEP 249."""
_VALUES: Final = ("22", "23", "44", "54", "P0")
"""SQLSTATEs of refused values: data, constraints, a view's check, limits such as an index row's, triggers."""
_LONGEST_MESSAGE: Final = 300


def is_transient(error: BaseException, *, opened: bool) -> bool:
    """Return whether an error is transient, so that it is worth trying again.

    Args:
        error: the error.
        opened: the database has let this user in before.
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
    return not _is(origin, _REFUSED_BY_DRIVER)


def must_reconnect(error: BaseException) -> bool:
    """Return whether the connection is of no use any more, nor are older ones, which lead to the same server."""
    origin = _origin(error)
    name = _sqlite_name(origin)
    if name:
        return name.startswith(_SQLITE_STALE)
    return is_transient(error, opened=True) and not _state(origin).startswith(_CONTENDED)


def is_locked(error: BaseException) -> bool:
    """Return whether another process had locked the SQLite file, so that nothing at all was done."""
    return _sqlite_name(_origin(error)).startswith(_LOCKS)


def reason(error: BaseException) -> str:
    """Return the problem in a few words."""
    return _advice(error).partition(":")[0]


def remedy(error: BaseException) -> str:
    """Return the remedy in a few words."""
    return _advice(error).partition(": ")[2]


def server_message(error: BaseException, secret: str) -> str:
    """Return the server's own message in brackets; empty where it may quote values, or parts of the URL.

    Args:
        error: the error.
        secret: the password, which is replaced by stars.
    """
    origin = _origin(error)
    state = getattr(origin, "sqlstate", None)
    if state:
        said = "" if state.startswith(_QUOTING) else str(origin.diag.message_primary or "")  # type: ignore[union-attr]
    elif _is(origin, {"OperationalError"}) and not _sqlite_name(origin):
        # A line for each host that was tried: connection to server at …, port … failed: FATAL:  …
        lines = str(origin).splitlines()
        tried = [line.rpartition("failed: ")[2] for line in lines if "failed: " in line] or lines[:1]
        said = "; ".join(dict.fromkeys(re.sub(r"^\w+:  ", "", line) for line in tried))
    else:
        said = ""
    said = " ".join("".join(letter if letter.isprintable() else " " for letter in said).split())
    said = said.replace(secret, "***") if secret else said
    return f" ({said if len(said) <= _LONGEST_MESSAGE else f'{said[:_LONGEST_MESSAGE]}…'})" if said else ""


def _refuses_value(error: BaseException) -> bool:
    """Return whether a statement was refused for its values, so that it may succeed with other values."""
    if isinstance(error, DataError | IntegrityError | UnicodeError | OverflowError):
        return True
    return _state(_origin(error)).startswith(_VALUES)


def to_ledger_error(where: str, error: BaseException, secret: str = "") -> LedgerError:
    """Return the LedgerError to raise where waiting has not helped or would not; RecordRefused if a value is why.

    Args:
        where: the ledger, as it may be shown.
        error: the database's error. It is not kept as the cause: the address in it may hold a password.
        secret: the password, which is replaced by stars.
    """
    kind = RecordRefused if _refuses_value(error) else LedgerError
    if isinstance(error, TROUBLE) or kind is RecordRefused:
        advice = _advice(error) + server_message(error, secret)
    else:
        advice = f"a mistake of this program ({type(error).__name__}): please report it"
    failed = kind(f"ledger: {where}: {advice}")
    failed.__cause__ = _Cause(_name_of(error))
    return failed


class _Cause(Exception):
    """The cause of a LedgerError: the name of the database's error, without its statement and connection."""


def _advice(error: BaseException) -> str:
    """Return the problem and, after a colon, the remedy."""
    if _refuses_value(error):
        return f"the database refuses a value ({_name_of(error)})"
    origin = _origin(error)
    if isinstance(origin, OSError) and origin.errno in {errno.ENOSPC, errno.EDQUOT}:
        return _SQLITE["SQLITE_FULL"]
    name = _sqlite_name(origin)
    if is_locked(error):
        return _LOCKED
    if name:
        return _advice_in(_SQLITE, name) or f"{name}: {origin}"
    state = _state(origin)
    if state:
        return _advice_in(_STATES, state) or f"the database refused it with {state}: look into its log"
    return _STATES["URL"] if _is(origin, _REFUSED_BY_DRIVER) else _AWAY


def _advice_in(table: dict[str, str], name: str) -> str | None:
    return next((advice for prefix, advice in table.items() if name.startswith(prefix)), None)


def _origin(error: BaseException) -> BaseException | None:
    """Return the driver's own error, where SQLAlchemy has wrapped it."""
    return error.orig if isinstance(error, DBAPIError) else error


def _is(origin: BaseException | None, names: AbstractSet[str]) -> bool:
    """Return whether it is one of these errors of PEP 249, whatever the driver."""
    return not names.isdisjoint(base.__name__ for base in type(origin).__mro__)


def _sqlite_name(origin: BaseException | None) -> str:
    return str(getattr(origin, "sqlite_errorname", None) or "")


def _state(origin: BaseException | None) -> str:
    """Return the SQLSTATE, derived from the message where a connection is refused; empty if there is none."""
    state = getattr(origin, "sqlstate", None)
    said = str(origin) if state in _NO_STATE else ""
    known = next((known for pattern, known in _PATTERNS.items() if re.search(pattern, said)), None)
    return known or str(state or "")


def _name_of(error: BaseException) -> str:
    origin = _origin(error)
    name = _sqlite_name(origin)
    if name:
        return f"{name}: {origin}"
    return f"{type(origin).__name__} {getattr(origin, 'sqlstate', None) or ''}".strip()
