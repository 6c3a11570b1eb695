"""A Feishu to try against: strict, scriptable, with a ledger.

async with Sandbox() as sandbox:
    token = sandbox.add_user("alice")
    draft_id = sandbox.add_draft("alice")
    sandbox.script(draft_id, Fault.reset_after())
    ...
    assert sandbox.ledger.sent[draft_id] == 1
"""

from .faults import Fault
from .ledger import Arrival, Ledger
from .process import serve
from .server import Sandbox
from .window import Window

__all__ = ["Arrival", "Fault", "Ledger", "Sandbox", "Window", "serve"]
