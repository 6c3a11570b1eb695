"""What the tests with real processes are given."""

from tests.helpers.cli import feishu

__all__ = ["feishu"]
