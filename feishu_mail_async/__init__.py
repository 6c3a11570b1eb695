"""An asyncio client for Feishu and Lark mail drafts: within the rate limit, nothing lost, nothing sent twice."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._public import *  # noqa: F403 - it lists them
    from ._public import __all__ as __all__
else:
    from ._lazy import lazily

    __getattr__, __dir__ = lazily(__name__)
