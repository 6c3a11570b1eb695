"""What the tests of logins are given."""

import pytest

from tests.helpers.browser import Desk
from tests.helpers.cli import Feishu


@pytest.fixture
def feishu(desk: Desk) -> Feishu:
    return desk.feishu
