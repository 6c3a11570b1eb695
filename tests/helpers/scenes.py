"""A scene: a sandbox, drafts that lie there, and clients of its users."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from feishu_mail_async import BulkRun, Draft, FeishuMailClient, Outcome, RateLimit, RetryPolicy, SendResult
from feishu_mail_async.sandbox import Fault, Sandbox
from feishu_mail_async.sandbox.server import Latency
from tests.models.bulk_model import check_true

ONCE: Final = RetryPolicy(attempts=1, refusals=0, outage=0)
"""No second attempt, whatever goes wrong."""

FREE: Final = RateLimit(calls=100_000, per=1.0, spacing=0, margin=0)
"""No limit that a test would notice."""


@dataclass
class Scene:
    """A sandbox, drafts of its users, and the clients of one app.

    Attributes:
        sandbox: the server.
        drafts: what a test sends unless it says otherwise.
        clients: those that were opened.
        tokens: what the client opened last goes by: a change is a change of its user's token.
    """

    sandbox: Sandbox
    drafts: list[Draft] = field(default_factory=list)
    clients: list[FeishuMailClient] = field(default_factory=list)
    tokens: dict[str, str] = field(default_factory=dict)

    def open(self, **settings: Any) -> FeishuMailClient:
        """Another client of all users."""
        self.tokens = self.sandbox.tokens
        client = FeishuMailClient(self.tokens, base_url=self.sandbox.base_url, **settings)
        self.clients.append(client)
        return client

    @property
    def client(self) -> FeishuMailClient:
        """The client that was opened first."""
        return self.clients[0]

    async def close(self) -> None:
        """Close all clients."""
        await asyncio.gather(*(client.close() for client in self.clients))

    def more(self, count: int, user: str = "alice") -> list[Draft]:
        """More drafts, each with a tag of its own."""
        return [Draft(draft_id, user=user, tag=object()) for draft_id in self.sandbox.add_drafts(user, count)]

    def of(self, user: str) -> list[Draft]:
        """The drafts of a user."""
        return [draft for draft in self.drafts if draft.user == user]

    def ids(self, user: str | None = None) -> list[str]:
        """The ids of the drafts of a user, or of all."""
        return [draft.draft_id for draft in self.drafts if user in {None, draft.user}]

    def send(self, user: str, number: int = 0) -> "asyncio.Task[SendResult]":
        """Begin to send one of a user's drafts."""
        return asyncio.create_task(self.client.send_draft(self.of(user)[number]))

    def send_all(self, *users: str) -> list["asyncio.Task[SendResult]"]:
        """Begin to send everything of these users (of all, if none is named), in turns."""
        lanes = [self.of(user) for user in users or self.sandbox.users]
        turns = [draft for turn in itertools.zip_longest(*lanes) for draft in turn if draft is not None]
        return [asyncio.create_task(self.client.send_draft(draft)) for draft in turns]

    def script_calls(self, *faults: Fault) -> None:
        """Let these happen to the next sends, whichever drafts they are for."""
        self.sandbox.script_calls("send", *faults)

    @property
    def calls(self) -> int:
        """Sends that have arrived."""
        return len(self.sandbox.ledger.sends)

    def calls_of(self, draft: Draft) -> int:
        """Sends of a draft that have arrived."""
        return len(self.sandbox.ledger.calls(draft.draft_id))

    def order(self) -> list[str | None]:
        """Whose sends arrived, one after another."""
        return [send.user for send in self.sandbox.ledger.sends]

    def times(self, user: str | None = None) -> list[float]:
        """When the sends of a user, or all of them, arrived."""
        return [send.time for send in self.sandbox.ledger.sends if user in {None, send.user}]

    async def in_flight(self, calls: int = 1) -> None:
        """Wait until so many calls are under way; no less than that many users must have drafts."""
        while self.client.snapshot().in_flight < calls:  # noqa: ASYNC110 - nothing tells when a call has gone out
            await asyncio.sleep(0.01)

    def true(self, outcomes: Sequence[Outcome], given: Sequence[Draft] | None = None) -> None:
        """See that the outcomes of what was given are what the sandbox saw."""
        check_true(self.drafts if given is None else given, outcomes, self.sandbox.ledger)

    def check(self) -> None:
        """See what holds whatever happened: nothing refused that nobody had scripted, nothing sent twice."""
        ledger = self.sandbox.ledger
        assert (ledger.refusals, ledger.conflicts) == (0, 0)
        assert max(ledger.sent.values(), default=0) <= 1


async def drain(run: BulkRun) -> list[Outcome]:
    """Consume a run to its end."""
    async with run:
        return [outcome async for outcome in run]


ROUND_TRIP: Final = 0.1
ONE_WAY: Final = ROUND_TRIP / 2
WINDOW: Final = 60.0 + 0.1 + ROUND_TRIP
"""Seconds after which a permit is back: `per`, `margin`, and the round trip it was away."""

HAIR: Final = 1e-3


async def play(
    sizes: dict[str, int], act: Callable[[Scene], Awaitable[None]], latency: Latency = ROUND_TRIP
) -> None:
    """Set a scene, let a test act on it, and see that nothing was refused that nobody had scripted."""
    async with Sandbox(users=list(sizes), latency=latency) as sandbox:
        scene = Scene(sandbox)
        for user, size in sizes.items():
            scene.drafts += scene.more(size, user)
        try:
            await act(scene)
        finally:
            await scene.close()
        scene.check()


@contextlib.asynccontextmanager
async def scene(
    *users: str, drafts: int = 1, app: str | None = None, **settings: Any
) -> AsyncIterator[tuple[Sandbox, FeishuMailClient, list[str]]]:
    """A sandbox with users ("alice" if none is named), a client of all of them, and drafts of the first."""
    users = users or ("alice",)
    async with Sandbox(users=users, latency=0.1) as sandbox:
        ids = sandbox.add_drafts(users[0], drafts)
        async with FeishuMailClient(sandbox.tokens, app=app, base_url=sandbox.base_url, **settings) as client:
            yield sandbox, client, ids
