"""What the tests of single modules are given."""

from tests.helpers.telemetry import seen

__all__ = ["seen"]
