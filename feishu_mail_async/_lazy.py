"""Lazy loading of a package's public names, at the first access to one of them.

Python imports a package before any module in it. So the parts that have to start at once, the command line's
handling of signals and the pytest plugin, would wait for all the rest, which takes a while.
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["lazily"]


def lazily(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package whose public names are those of its module `_public`.

    Args:
        package: its name.
    """

    def load() -> dict[str, Any]:
        public = importlib.import_module("._public", package)
        names: dict[str, Any] = vars(sys.modules[package])
        # All at once: from now on `__getattr__` is not called for them any more.
        names.update({name: getattr(public, name) for name in ("__all__", *public.__all__)})
        return names

    def get(name: str) -> Any:
        if name == "__all__" or not name.startswith("_"):
            names = load()
            if name in names:
                return names[name]
        raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])

    return get, lambda: sorted(load())
