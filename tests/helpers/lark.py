"""Where the official SDK, lark-oapi, is: in an environment of its own, for it is large."""

import sys
from pathlib import Path
from typing import Final

import pytest

__all__ = ["lark_python"]

_ENVIRONMENT: Final = Path(f"{sys.prefix}-lark")


def lark_python() -> str:
    """The Python of the environment that has lark-oapi; the test fails where there is none."""
    if not (_ENVIRONMENT / ".ready").exists():
        pytest.fail(f"this test needs lark-oapi in {_ENVIRONMENT.name} beside this environment: run `make test`")
    return str(_ENVIRONMENT / "bin" / "python")
