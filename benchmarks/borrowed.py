"""What the benchmarks borrow from the tests: a real PostgreSQL, and the environment of the official SDK."""

import sys
import sysconfig
from importlib.metadata import distributions
from pathlib import Path
from typing import Final

sys.path.append(str(Path(__file__).parents[1]))
from tests.helpers.lark import lark_python
from tests.helpers.postgres import run_server

__all__ = ["LARK", "lark_packages", "lark_python", "lark_version", "run_server"]

LARK: Final = "lark-oapi"


def lark_packages() -> str:
    """Where the packages of that environment are."""
    base = str(Path(lark_python()).parent.parent)
    return sysconfig.get_path("purelib", vars={"base": base})


def lark_version() -> str:
    """The official SDK's version."""
    (found,) = distributions(name=LARK, path=[lark_packages()])
    return found.version
