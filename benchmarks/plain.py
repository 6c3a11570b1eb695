"""The client that one writes today: what the endpoint's page asks for, with the usual libraries.

`AsyncLimiter(20, 60)` for the limit, tenacity for the codes of which the page says "try again" (and for whatever
has no readable answer), `gather` over the drafts. It takes "sent already" for the success that it is, and gives a
call the 30 s that ours gets.
"""

import asyncio
import json
from typing import Final

from aiolimiter import AsyncLimiter
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential
from wire import CALLS, PER, Server

__all__ = ["TIMEOUT", "NotSentError", "Plain"]

TIMEOUT: Final = 30.0
"""Seconds for one call."""

_ATTEMPTS: Final = 6
_LONGEST_WAIT: Final = 60.0
_SUCCESSES: Final = {0, 1236005}
_TRY_AGAIN: Final = {99991400, 1236006, 1236010, 1236019}


class NotSentError(Exception):
    """The server refused the draft for good."""


class _AgainError(Exception):
    """The server asks to try again, or gave no answer that can be read."""


class Plain:
    """Sends drafts.

    Args:
        server: where to.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._limiter = AsyncLimiter(CALLS, PER)

    @retry(
        retry=retry_if_exception_type(_AgainError),
        wait=wait_random_exponential(multiplier=1, max=_LONGEST_WAIT),
        stop=stop_after_attempt(_ATTEMPTS),
        reraise=True,
    )
    async def send(self, draft_id: str, token: str) -> None:
        """Send one draft; an exception if that was to no avail."""
        async with self._limiter:
            code = await self._call(draft_id, token)
        if code in _TRY_AGAIN:
            raise _AgainError(code)
        if code not in _SUCCESSES:
            raise NotSentError(code)

    async def _call(self, draft_id: str, token: str) -> int:
        try:
            async with asyncio.timeout(TIMEOUT):
                reply = await self._server.send(draft_id, token)
            return int(json.loads(reply.body)["code"])
        except (TimeoutError, ConnectionError, ValueError) as error:
            raise _AgainError from error
