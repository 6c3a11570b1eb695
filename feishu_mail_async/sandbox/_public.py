"""The public names of the sandbox."""

from .calllog import Arrival, CallLog
from .faults import Fault
from .process import serve
from .server import Sandbox
from .window import Window

__all__ = ["Arrival", "CallLog", "Fault", "Sandbox", "Window", "serve"]
