"""What the tests of the fleet are given."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.fleet import Workers


@pytest.fixture
def scene(tmp_path: Path, postgres_url: str) -> Iterator[Workers]:
    made = Workers(tmp_path, postgres_url, ["alice", "bob"])
    yield made
    made.close()
