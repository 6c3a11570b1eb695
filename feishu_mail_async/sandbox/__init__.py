"""A Feishu to try against: strict, scriptable, with a ledger.

async with Sandbox() as sandbox:
    token = sandbox.add_user("alice")
    draft_id = sandbox.add_draft("alice")
    sandbox.script(draft_id, Fault.reset_after())
    ...
    assert sandbox.ledger.sent[draft_id] == 1
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._public import *  # noqa: F403 - it lists them
    from ._public import __all__ as __all__
else:
    from feishu_mail_async._lazy import lazily

    __getattr__, __dir__ = lazily(__name__)
