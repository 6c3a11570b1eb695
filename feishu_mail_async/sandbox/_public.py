"""The public names of the sandbox."""

from .faults import Fault
from .ledger import Arrival, Ledger
from .process import serve
from .server import Sandbox
from .window import Window

__all__ = ["Arrival", "Fault", "Ledger", "Sandbox", "Window", "serve"]
