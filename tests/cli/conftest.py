"""What the tests of the command line are given."""

from tests.helpers.browser import desk
from tests.helpers.cli import feishu

__all__ = ["desk", "feishu"]
