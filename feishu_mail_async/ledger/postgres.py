"""PostgreSQL's part of a ledger: its address, its connections, and the beginning of a transaction.

A connection has no setting that outlives a transaction, and no prepared statement: behind a pooler in transaction
mode each transaction may run in another session. Nor does it send a startup parameter that poolers refuse.
"""

import os
import re
from itertools import zip_longest
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from feishu_mail_async._api.base_url import is_loopback

from .patience import LONGEST

__all__ = ["caution", "check_encoding", "make_engine", "read_address", "show_address"]

_CONNECTION: Final[dict[str, Any]] = {
    "connect_timeout": 5,
    "application_name": "feishu-mail-async",
    "tcp_user_timeout": 15_000,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "prepare_threshold": None,
}
_ENCODING: Final = {"client_encoding": "utf8"}
"""The encoding of a connection, whatever the environment, the URL or the database's default is."""
_IN_CLEAR: Final = (
    "tokens cross the network to it, and nothing makes it encrypt them: add ?sslmode=verify-full to its URL, or "
    "sslmode=require if its certificate cannot be checked (sslmode=disable if this network is safe without)"
)
_DECIDED: Final = frozenset({"disable", "require", "verify-ca", "verify-full"})
"""Values of `sslmode` that are a deliberate choice: all but the defaults."""
_ENOUGH: Final = frozenset({"UTF8", "SQL_ASCII"})
"""Encodings of databases that hold every text; SQL_ASCII stores bytes as they come."""
_SETTINGS: Final = {
    "lock_timeout": "10s",
    "statement_timeout": "15s",
    # A host that vanishes during a transaction must not keep the app's row locked for longer than this.
    "idle_in_transaction_session_timeout": "10s",
}


def read_address(url: str) -> URL:
    """Return the URL for SQLAlchemy, in which several hosts, HOST:PORT,HOST:PORT, are moved to the query."""
    scheme, _, rest = url.partition("://")
    address, *path = re.split("(?=[/?#])", rest, maxsplit=1)
    user, at, hosts = address.rpartition("@")
    if "," not in hosts:
        return make_url(url)
    parts = [urlsplit(f"//{host}") for host in hosts.split(",")]
    several = {
        "host": ",".join(unquote(part.hostname or "") for part in parts),
        "port": ",".join(str(part.port or "") for part in parts),
    }
    return make_url(f"{scheme}://{user}{at}{''.join(path)}").update_query_dict(several)


def show_address(url: URL) -> str:
    """Return the address as it may be shown: without its password, and without its settings."""
    hosts, ports = (str(url.query.get(name, "")).split(",") for name in ("host", "port"))
    shown = url.set(query={}).render_as_string(hide_password=True)
    if len(hosts) == 1:
        return shown
    pairs = zip_longest(hosts, ports[: len(hosts)], fillvalue="")
    several = ",".join(f"{host}:{port}" if port else host for host, port in pairs)
    head, at, tail = shown.rpartition("@")
    return f"{head}{at}{several}{tail}" if at else shown.replace("://", f"://{several}", 1)


def caution(url: URL) -> str:
    """Return a warning if tokens may cross a network unencrypted without explicit consent; else empty."""
    query = url.query
    if "service" in query:
        return ""
    sslmode = query.get("sslmode") or os.environ.get("PGSSLMODE")
    hosts = query.get("hostaddr") or query.get("host") or url.host or os.environ.get("PGHOST") or ""
    listed = ",".join([hosts] if isinstance(hosts, str) else hosts).split(",")
    return "" if sslmode in _DECIDED or all(map(_is_here, listed)) else _IN_CLEAR


def _is_here(host: str) -> bool:
    """Return whether a PostgreSQL host, with or without a port, is a socket's directory or this machine."""
    name = host.rpartition(":")[0].strip("[]")
    return not host or host.startswith(("/", "@")) or is_loopback(host) or is_loopback(name)


def check_encoding(encoding: str) -> str | None:
    """Return the problem with a database's encoding, and the remedy; None if it holds every text."""
    if encoding in _ENOUGH:
        return None
    return (
        f"its encoding is {encoding}, which cannot hold every id, name and message: make one with "
        "CREATE DATABASE mail TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'"
    )


def make_engine(url: URL) -> AsyncEngine:
    """Return an engine whose transactions are ended by the server when their process vanishes."""
    engine = create_async_engine(
        url.set(drivername="postgresql+psycopg"),
        hide_parameters=True,
        pool_size=2,
        max_overflow=2,
        pool_timeout=LONGEST,
        pool_recycle=1800,
        isolation_level="AUTOCOMMIT",  # transactions begin in `began` below
        use_native_hstore=False,
        connect_args={name: value for name, value in _CONNECTION.items() if name not in url.query} | _ENCODING,
    )
    chosen = str(url.query.get("options", ""))
    settings = [f"SET LOCAL {name} = '{value}'" for name, value in _SETTINGS.items() if name not in chosen]
    begin = "; ".join(["BEGIN", *settings])  # in one message, so that they cost no round trip of their own

    def began(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine.sync_engine, "begin", began)
    return engine
