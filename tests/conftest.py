"""What holds for every test: each has a limit of its own, the same examples every time, and a real PostgreSQL."""

import asyncio
import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from feishu_mail_async.testing import forget_calls
from tests.helpers import nursery
from tests.helpers.postgres import own_postgres, postgres_database, postgres_server, postgres_url

__all__ = [
    "each_its_own_limit",
    "end_nursery",
    "log_as_before",
    "own_postgres",
    "own_state",
    "postgres_database",
    "postgres_server",
    "postgres_url",
]

# Where no loop was ever set, pytest-asyncio's look for the old one makes one, which nobody closes: on Python 3.11
# that is a ResourceWarning at the end of every run whose first test is not asynchronous.
asyncio.set_event_loop(None)

# Shells have what runs in the background ignore Ctrl-C, and all that it starts. The programs of the tests hear it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run: a failure of `make test` is a failure of the code, not of the draw.
# No deadline, because no test may depend on how fast the machine is.
settings.register_profile(
    "seeded", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("seeded")


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """How much one test has logged is nothing to the next one: a log that is heard costs time."""
    loggers = logging.getLogger(), logging.getLogger("feishu_mail_async")
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def each_its_own_limit() -> None:
    """What the clients of one test have used up is nothing to those of the next one."""
    forget_calls()


@pytest.fixture(scope="session", autouse=True)
def end_nursery() -> Iterator[None]:
    """The programs that the tests of this process have started end with it."""
    yield
    nursery.close()


@pytest.fixture
def own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A state directory of the test's own, in which the command line keeps its ledger."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"
