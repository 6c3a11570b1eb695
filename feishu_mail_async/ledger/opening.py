"""Ledger backends by URL."""

import importlib
import re
from typing import Any, Final, Protocol, runtime_checkable
from urllib.parse import urlsplit

from feishu_mail_async._api.endpoints import SEND, Endpoint
from feishu_mail_async._auth.store import TokenStore
from feishu_mail_async._scheduling.store import SchedulerStore
from feishu_mail_async.errors import LedgerError
from feishu_mail_async.model import RateLimit

from .overview import Overview

__all__ = ["Ledger", "StoringLedger", "check_url", "open_ledger", "open_stores"]

_FORMS: Final = '"sqlite:///PATH" (one host) or "postgresql://USER@HOST/NAME" (many hosts)'
_NEEDED: Final = {
    "sqlite": (("sqlalchemy", "aiosqlite"), "ledger"),
    "postgresql": (("sqlalchemy", "psycopg"), "fleet"),
}
_SCHEME: Final = re.compile(r"([a-z0-9+]+)://")


@runtime_checkable
class Ledger(Protocol):
    """A persistent store of permits, locks, drafts and tokens, for one app or several."""

    def tokens(self, base_url: str, app: str) -> TokenStore:
        """Return the tokens of one app's users.

        Args:
            base_url: the API's host.
            app: the app's name.
        """

    async def apps(self) -> list[tuple[str, str]]:
        """Return the apps that have a store: base_url and app.

        Raises:
            LedgerError: the database cannot be read; the message says what to do.
        """

    async def overview(self, base_url: str, app: str) -> Overview | None:
        """Return the state of an app's sends; None if the app has no store.

        Args:
            base_url: the API's host.
            app: the app's name.

        Raises:
            LedgerError: the database cannot be read; the message says what to do.
        """

    async def close(self) -> None:
        """Close the connections. Close the clients that use the ledger before."""


@runtime_checkable
class StoringLedger(Ledger, Protocol):
    """A ledger that also has the stores of schedulers, as clients need it."""

    def store(self, base_url: str, app: str, limit: RateLimit, endpoint: Endpoint[Any] = SEND) -> SchedulerStore:
        """Return a store of one app and endpoint. The database is opened when the store is first used."""


def check_url(url: str) -> str:
    """Return the kind of database that a URL names: "sqlite" or "postgresql".

    Args:
        url: the URL of a ledger.

    Raises:
        ValueError: it is not the URL of a ledger. The message does not quote the URL, which may hold a password.
    """
    scheme = _SCHEME.match(url)
    kind = scheme.group(1) if scheme else ""
    if kind == "postgres":  # as many hosting services write it
        kind = "postgresql"
    if kind not in _NEEDED:
        raise ValueError(f"ledger: give {_FORMS}" + (f", not {kind}://…" if kind else ""))
    (_check_path if kind == "sqlite" else _check_address)(url)
    return kind


def _check_path(url: str) -> None:
    path = url.removeprefix("sqlite:///")
    if path.startswith("sqlite:"):
        raise ValueError("ledger: three slashes come before a relative path, four before an absolute one")
    if not path.strip("/") or path == ":memory:":
        raise ValueError("ledger: sqlite:///PATH needs a path; for a ledger in memory leave ledger out")
    if "?" in path:
        raise ValueError("ledger: a path in sqlite:///PATH cannot hold a question mark; give another")


def _check_address(url: str) -> None:
    """Check that the password ends where its writer thinks it does: the rest of the URL is shown and logged."""
    address = re.split("[/?#]", url.partition("://")[2], maxsplit=1)[0]
    hosts = address.rpartition("@")[2].split(",")  # as libpq takes them, which tries one after the other
    if address.count("@") > 1 or not all(map(_readable, hosts)):
        raise ValueError(
            "ledger: the URL cannot be read; give postgresql://USER:PASSWORD@HOST:PORT/NAME, and in the password "
            "write @ as %40, : as %3A, / as %2F, ? as %3F, # as %23 and % as %25"
        )


def _readable(host: str) -> bool:
    try:
        return urlsplit(f"//{host}").port != 0
    except ValueError:
        return False


def open_ledger(url: str) -> Ledger:
    """Return a ledger on a database, to be given to clients. The database is opened when the ledger is first used.

    Args:
        url: "sqlite:///PATH" for the processes of one host, "postgresql://…" for many hosts.

    Raises:
        ValueError: the URL is neither.
        LedgerError: packages are missing; the message says which extra brings them.
    """
    return open_stores(url)


def open_stores(url: str) -> StoringLedger:
    """Return a ledger, as `open_ledger` does, typed for callers that need its stores."""
    modules, extra = _NEEDED[check_url(url)]
    try:
        for module in modules:
            importlib.import_module(module)
        sql = importlib.import_module(".sql", __package__)
        database = importlib.import_module(".database", __package__)
    except ImportError as error:
        raise LedgerError(
            f"ledger: {error.name} is missing; install it with: pip install 'feishu-mail-async[{extra}]'"
        ) from None
    ledger: StoringLedger = sql.SqlLedger(database.Database(url))
    return ledger
