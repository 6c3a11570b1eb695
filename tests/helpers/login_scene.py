"""A login over the sandbox's token endpoint: a store, and tokens that renew themselves over it."""

import asyncio
from collections import Counter
from typing import Any, Final

from feishu_mail_async import FeishuMailClient, InvalidToken, RefreshingTokens
from feishu_mail_async._auth.store import MemoryTokens, StoredToken, TokenStore
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.clock import now

USERS: Final = ("alice", "bob")
HOUR: Final = 3600.0
MARGIN: Final = 300.0


def stored(issued: dict[str, Any]) -> StoredToken:
    """What the sandbox issued, as a store keeps it."""
    return StoredToken(
        issued["access_token"],
        now() + issued["expires_in"],
        issued["expires_in"],
        issued.get("refresh_token"),
        scope=issued["scope"],
    )


class FailingTokens(MemoryTokens):
    """A store that fails to save while it is broken."""

    broken = False

    async def save(self, user: str, token: StoredToken, lease: str | None = None) -> bool:
        if self.broken:
            raise OSError("no space left")
        return await super().save(user, token, lease)


class LoginScene:
    """A sandbox, a store in which its users have logged in, and tokens over it."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.store: TokenStore = MemoryTokens()
        self.tokens = self.another()

    def another(self, margin: float = MARGIN, store: TokenStore | None = None) -> RefreshingTokens:
        """Tokens of another process, as it were, over the same store."""
        sandbox = self.sandbox
        return RefreshingTokens(
            sandbox.client_id,
            sandbox.client_secret,
            store or self.store,
            base_url=sandbox.base_url,
            margin=margin,
            clock=now,
        )

    async def log_in(self, user: str = "alice", **scopes: Any) -> StoredToken:
        token = stored(self.sandbox.issue_tokens(user, **scopes))
        await self.store.save(user, token)
        return token

    async def expire_over(self, store: TokenStore) -> None:
        """Go on over another store, in which alice logs in and her token expires."""
        self.store = store
        self.tokens = self.another()
        await self.log_in()
        await asyncio.sleep(HOUR)

    @property
    def refreshes(self) -> Counter[str]:
        return self.sandbox.ledger.refreshes

    async def works(self, token: str, user: str = "alice") -> bool:
        """Whether the server takes this token."""
        (draft_id,) = self.sandbox.add_drafts(user, 1)
        async with FeishuMailClient(token, base_url=self.sandbox.base_url) as client:
            try:
                await client.send_draft(draft_id)
            except InvalidToken:
                return False
        return True
