"""What the tests of the scheduler are given."""

from collections.abc import Iterator

import pytest

from feishu_mail_async.model import RateLimit
from tests.models.scheduler_world import World


@pytest.fixture
def world() -> Iterator[World]:
    """Two calls in eight seconds, with room between them, to tell a story in."""
    world = World(RateLimit(2, 8.0, 0.0, 2.0, 0.5))
    yield world
    world.end()
