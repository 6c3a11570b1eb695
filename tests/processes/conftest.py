"""What the tests with real processes are given."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.cli import feishu

__all__ = ["feishu"]


@pytest.fixture
def sqlite_urls(tmp_path: Path) -> Iterator[str]:
    """URLs of files that are not there yet."""
    return (f"sqlite:///{tmp_path}/ledger{number}.db" for number in itertools.count())
