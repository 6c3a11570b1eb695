"""The port of a token store, so that several processes can share one login, and the store in memory.

A refresh token works once: a process that refreshes takes the user's lease first, looks again whether another
process has refreshed meanwhile, and saves the new tokens before using them. No transaction is open while the
server is asked.
"""

import uuid
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from feishu_mail_async._clock import loop_time

__all__ = ["MemoryTokens", "StoredToken", "TokenStore"]


@dataclass(frozen=True, slots=True)
class StoredToken:
    """The tokens of a user. Neither of the two is in the repr.

    Attributes:
        access_token: the user_access_token.
        expires: the moment it expires, in seconds since 1970.
        lifetime: seconds for which it was issued.
        refresh_token: the token for the next refresh, good for one use; None if the user did not grant
            offline_access.
        refresh_expires: the moment that one expires, in seconds since 1970; None if the server did not say.
        scope: the OAuth scopes granted, with spaces between them.
    """

    access_token: str = field(repr=False)
    expires: float
    lifetime: float
    refresh_token: str | None = field(default=None, repr=False)
    refresh_expires: float | None = None
    scope: str = ""


class TokenStore(Protocol):
    """The tokens of one app's users, and the leases for refreshing them."""

    async def users(self) -> list[str]:
        """Return all users of whom there are tokens, in order."""

    async def load(self, user: str) -> StoredToken | None:
        """Return a user's tokens; None if there are none.

        Args:
            user: the user.
        """

    async def lease(self, user: str, seconds: float) -> str | None:
        """Take the lease for refreshing a user's tokens.

        Args:
            user: the user.
            seconds: the seconds after which it lapses by itself, because its holder has died.

        Returns:
            the lease, for `save` or `release`; None while another holder has it.
        """

    async def save(self, user: str, token: StoredToken, lease: str | None = None) -> bool:
        """Keep a user's tokens, durably, and end the lease.

        Args:
            user: the user.
            token: the tokens.
            lease: the lease under which they were refreshed; None for those of a login, which are always kept.

        Returns:
            true if they were kept; false if the lease has lapsed and another holder has refreshed since.
        """

    async def release(self, user: str, lease: str) -> None:
        """End a lease without new tokens.

        Args:
            user: the user.
            lease: the lease, as `lease` returned it.
        """

    async def delete(self, user: str) -> bool:
        """Delete a user's tokens.

        Args:
            user: the user.

        Returns:
            true if there were any.
        """


_NOBODY: Final = ("", 0.0)
"""The lease that a user without one has: of no holder, and lapsed."""


class MemoryTokens:
    """A token store in the memory of the process."""

    def __init__(self) -> None:
        self._tokens: dict[str, StoredToken] = {}
        self._leases: dict[str, tuple[str, float]] = {}

    async def users(self) -> list[str]:
        """See `TokenStore`."""
        return sorted(self._tokens)

    async def load(self, user: str) -> StoredToken | None:
        """See `TokenStore`."""
        return self._tokens.get(user)

    async def lease(self, user: str, seconds: float) -> str | None:
        """See `TokenStore`."""
        now = loop_time()
        # A user who has logged out has nothing to refresh.
        if user not in self._tokens or self._leases.get(user, _NOBODY)[1] > now:
            return None
        lease = uuid.uuid4().hex
        self._leases[user] = lease, now + seconds
        return lease

    async def save(self, user: str, token: StoredToken, lease: str | None = None) -> bool:
        """See `TokenStore`."""
        if lease is not None and self._leases.get(user, _NOBODY)[0] != lease:
            return False
        self._tokens[user] = replace(token)
        self._leases.pop(user, None)
        return True

    async def release(self, user: str, lease: str) -> None:
        """See `TokenStore`."""
        if self._leases.get(user, _NOBODY)[0] == lease:
            del self._leases[user]

    async def delete(self, user: str) -> bool:
        """See `TokenStore`."""
        self._leases.pop(user, None)
        return self._tokens.pop(user, None) is not None
