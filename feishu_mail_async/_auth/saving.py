"""New tokens on their way into a store: no other copy of them exists until they are saved."""

import asyncio
import random
from dataclasses import dataclass
from typing import Final

from feishu_mail_async._tasks import finish

from .store import StoredToken, TokenStore

__all__ = ["LEASE", "NewTokens", "SavedTokens", "look_again"]

LEASE: Final = 90.0
"""Seconds after which the holder of a lease is taken to have died: more than all tries of a refresh can take."""
_LOOK_AGAIN: Final = 0.2
"""Mean seconds between two looks at the store while another process refreshes."""


async def look_again() -> None:
    """Wait while another process refreshes; the next look at the store may find its tokens."""
    await asyncio.sleep(_LOOK_AGAIN * random.uniform(0.5, 1.5))


@dataclass(frozen=True, slots=True)
class NewTokens:
    """Tokens that are not saved yet.

    Attributes:
        token: the tokens.
        before: the tokens they were refreshed from; None for a login's, which replace any others.
        lease: the lease under which they were refreshed.
    """

    token: StoredToken
    before: StoredToken | None = None
    lease: str | None = None

    def outdated(self, kept: StoredToken | None) -> bool:
        """Return whether the stored tokens take precedence: newer ones, or none, after a logout.

        A process that refreshes in vain removes the spent refresh token; a record that lacks it is no newer for
        that.

        Args:
            kept: the stored tokens.
        """
        if kept is None:
            return True
        if self.before is None:
            return False
        spent = {self.before.refresh_token, None}
        return kept.access_token != self.before.access_token or kept.refresh_token not in spent


class SavedTokens:
    """The tokens of a store, as far as they are known here, and new ones until the store has them.

    Args:
        store: the store.

    Attributes:
        known: the tokens that each user had when they were last loaded or saved.
        unsaved: the new tokens of users that the store does not have yet.
    """

    def __init__(self, store: TokenStore) -> None:
        self._store = store
        self.known: Final[dict[str, StoredToken]] = {}
        self.unsaved: Final[dict[str, NewTokens]] = {}

    async def load(self, user: str) -> StoredToken | None:
        """Load a user's tokens; return None if there are none.

        Args:
            user: the user.

        Raises:
            LedgerError: the store cannot be used.
        """
        kept = await self._store.load(user)
        if kept is None:
            self.known.pop(user, None)
        else:
            self.known[user] = kept
        return kept

    async def save(self, user: str, new: NewTokens) -> bool:
        """Save tokens before they are used, even if the caller is cancelled. If that fails, they stay unsaved.

        Args:
            user: the user.
            new: the tokens.

        Returns:
            true if they were saved; false if those of another process count.

        Raises:
            LedgerError: the store cannot be used.
        """
        self.unsaved[user] = new
        return await finish(self._save(user, new), "feishu-mail-save")

    async def _save(self, user: str, new: NewTokens) -> bool:
        saved = await self._store.save(user, new.token, new.lease)
        while not saved:
            # The lease has lapsed (the process stood still). These tokens are the only ones alive all the same,
            # unless newer ones were saved since: so take a lease again, and compare.
            lease = await self._store.lease(user, LEASE)
            kept = await self._store.load(user)
            if lease is None and kept is not None:
                await look_again()
            elif new.outdated(kept):
                if lease is not None:
                    await self._store.release(user, lease)
                break
            else:
                saved = await self._store.save(user, new.token, lease)
        if self.unsaved.get(user) is new:
            del self.unsaved[user]
        if saved:
            self.known[user] = new.token
        return saved
