"""What the tests of the documents are given."""

from tests.helpers.cli import feishu

__all__ = ["feishu"]
