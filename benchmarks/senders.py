"""Who gets a day's drafts: our client, and what is used today. See mixed_day.py."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from plain import TIMEOUT, Plain
from wire import Server, ours

from feishu_mail_async import Draft, FeishuMailError, OutcomeStatus, Priority, RateLimit
from feishu_mail_async.sandbox.faults import RESET_HEADER


@dataclass(frozen=True)
class Letter:
    """A draft to be sent, and whose it is."""

    draft_id: str
    user: str
    token: str

    def draft(self) -> Draft:
        return Draft(self.draft_id, user=self.user)


class Sender(Protocol):
    """Whoever gets a day's drafts."""

    starts: int
    """How often a person had to start something."""

    async def send_all(self, letters: Sequence[Letter]) -> int:
        """Send all these, and return of how many it says that they were sent."""

    async def send_urgent(self, letter: Letter) -> bool:
        """Send this one now, and say whether it was sent."""

    async def close(self) -> None:
        """End it."""


class Ours:
    """Our client."""

    def __init__(self, server: Server, tokens: Mapping[str, str], limit: RateLimit) -> None:
        self.starts = 0
        self._client = ours(server, tokens, rate_limit=limit)

    async def send_all(self, letters: Sequence[Letter]) -> int:
        async with self._client.send_drafts([letter.draft() for letter in letters]) as run:
            async for _ in run:
                pass
        return sum(run.summary.statuses[status] for status in (OutcomeStatus.SENT, OutcomeStatus.ALREADY_SENT))

    async def send_urgent(self, letter: Letter) -> bool:
        try:
            await self._client.send_draft(letter.draft(), priority=Priority.INTERACTIVE)
        except FeishuMailError:
            return False
        return True

    async def close(self) -> None:
        await self._client.close()


class PlainSender:
    """Gather, tenacity and AsyncLimiter."""

    def __init__(self, server: Server) -> None:
        self.starts = 0
        self._plain = Plain(server)

    async def send_all(self, letters: Sequence[Letter]) -> int:
        return sum(await asyncio.gather(*map(self.send_urgent, letters)))

    async def send_urgent(self, letter: Letter) -> bool:
        try:
            await self._plain.send(letter.draft_id, letter.token)
        except Exception:  # noqa: BLE001 - whatever it was, the caller is told that it was not sent
            return False
        return True

    async def close(self) -> None:
        pass


class Batch:
    """The official command line's batch, and the person who starts it again.

    Args:
        server: where to.
        obedient: the person waits as long as the server asked.
    """

    MOST: Final = 50
    START: Final = 1.0
    """Seconds that a start takes."""

    STOPS: Final = frozenset({None, 99991400, 1236010})
    """Codes that end a batch; None: there was no readable answer."""

    DONE: Final = frozenset({0, 1236005})

    def __init__(self, server: Server, *, obedient: bool) -> None:
        self.starts = 0
        self._server = server
        self._obedient = obedient

    async def send_all(self, letters: Sequence[Letter]) -> int:
        by_user: dict[str, list[Letter]] = {}
        for letter in letters:
            by_user.setdefault(letter.user, []).append(letter)
        for mine in by_user.values():
            await self._send(mine)
        return len(letters)

    async def send_urgent(self, letter: Letter) -> bool:
        await self._send([letter])
        return True

    async def close(self) -> None:
        pass

    async def _send(self, left: list[Letter]) -> None:
        """Start batches until nothing is left."""
        while left:
            self.starts += 1
            await asyncio.sleep(self.START)
            batch = left[: self.MOST]
            done, asked = await self._batch(batch)
            left[: self.MOST] = [letter for letter in batch if letter not in done]
            if self._obedient:
                await asyncio.sleep(asked)

    async def _batch(self, letters: Sequence[Letter]) -> tuple[set[Letter], float]:
        """One run of the command: what it sent, and how many seconds the server asked to wait at its end."""
        done: set[Letter] = set()
        for letter in letters:
            code, asked = await self._call(letter)
            if code in self.DONE:
                done.add(letter)
            elif code in self.STOPS:
                return done, asked
        return done, 0.0

    async def _call(self, letter: Letter) -> tuple[int | None, float]:
        try:
            async with asyncio.timeout(TIMEOUT):
                reply = await self._server.send(letter.draft_id, letter.token)
            code = int(json.loads(reply.body)["code"])
        except (TimeoutError, ConnectionError, ValueError):
            return None, 0.0
        return code, float(dict(reply.headers).get(RESET_HEADER, 0))
