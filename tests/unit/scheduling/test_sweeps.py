"""Ending many drafts at once is done a few in each pass of the loop, each of them once."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final
from unittest import mock

import pytest
import sqlalchemy.exc

from feishu_mail_async import (
    ClientClosed,
    FeishuMailClient,
    LedgerError,
    Misconfigured,
    NotSent,
    Outcome,
    Priority,
    RateLimit,
    RetryPolicy,
    Suspended,
    TransportError,
)
from feishu_mail_async import client as client_module
from feishu_mail_async._api.protocol import CallEnd, Reply
from feishu_mail_async._calls.bulk import BulkRun
from feishu_mail_async._scheduling.sweeps import SLICE
from feishu_mail_async._transport import NOT_MADE, Failure, Transport
from feishu_mail_async.events import DraftDone, Event, TurnGranted
from feishu_mail_async.ledger import turns
from tests.helpers.clock import run_virtual
from tests.helpers.scenes import FREE
from tests.helpers.tasks import our_tasks

MANY: Final = 10_000
FEW: Final = 500
MOST: Final = 2 * (SLICE + 1)
"""Drafts that end from one look to the next one, a pass of the loop later.

It may come before or after those of that pass, and one more may have a task of its own, which ends a pass later.
"""

ONE_CALL: Final = RateLimit(calls=1, per=60.0, spacing=0, margin=0)

APP: Final = 1236013
USER: Final = 1236007


def told(code: int) -> Reply:
    return Reply(400, json.dumps({"code": code, "msg": "no"}).encode())


SENT: Final = Reply(200, b'{"code":0,"msg":"success","data":{"message_id":"m","thread_id":"t"}}')
UNREACHABLE: Final = Failure(CallEnd.NEVER_LEFT, "nobody is there")
HOPELESS: Final = Failure(CallEnd.NEVER_LEFT, "the certificate is wrong", lasting=True)


class Wire(Transport):
    """Answers the first call when it is told to, and all later ones at once."""

    first: "asyncio.Future[Reply | Failure]"
    calls: int

    async def exchange(self, *_: object, may_go: Callable[[], bool] = lambda: True) -> Reply | Failure:
        if not may_go():
            return NOT_MADE
        self.calls += 1
        return await asyncio.shield(self.first) if self.calls == 1 else SENT


class Waiting:
    """A client whose first call is under way, and the drafts that wait behind it."""

    def __init__(self, client: FeishuMailClient, wire: Wire) -> None:
        self.client = client
        self.wire = wire
        self.run: BulkRun | None = None
        self.outcomes: list[Outcome] = []
        self.done: list[DraftDone] = []
        self.granted = 0
        self.most = 0
        self.number = 0
        self._ended = 0
        self._looking = False
        client.subscribe(self._hear)

    def _hear(self, event: Event) -> None:
        if isinstance(event, DraftDone):
            self.done.append(event)
            self._ended += event.draft is not None and event.draft.draft_id not in {"d0", "new"}
            if not self._looking:
                self._looking = True
                asyncio.get_running_loop().call_soon(self._look)
        self.granted += isinstance(event, TurnGranted)

    def _look(self) -> None:
        """See how many have ended since the last look."""
        self.most, self._ended, self._looking = max(self.most, self._ended), 0, False

    async def given(self, number: int) -> BulkRun:
        """Give so many drafts, and wait until they wait."""
        self.number = number
        self.run = self.client.send_drafts([f"d{one}" for one in range(number)], read_ahead=number)
        await self.run.__aenter__()
        while self.run.waiting < number or not self.wire.calls:  # noqa: ASYNC110 - nothing tells when all have come
            await asyncio.sleep(0.001)
        return self.run

    async def fetch(self) -> None:
        assert self.run is not None
        self.outcomes += [outcome async for outcome in self.run]

    def once(self, number: int) -> None:
        """Each of so many drafts has ended, once, and a few in each pass of the loop; nothing is left of them."""
        ended = Counter(done.draft for done in self.done)
        assert len(ended) == number
        assert set(ended.values()) == {1}
        assert 0 < self.most <= MOST
        self.nothing_left()

    def nothing_left(self) -> None:
        with contextlib.suppress(ClientClosed):
            shot = self.client.snapshot()
            assert set(shot.waiting.values()) == {0}
            assert shot.in_flight == 0


@contextlib.asynccontextmanager
async def scene(**settings: Any) -> AsyncIterator[Waiting]:
    with mock.patch.object(client_module, "Transport", Wire):
        client = FeishuMailClient("u-token", **{"rate_limit": ONE_CALL, **settings})
    wire: Any = client._binding._transport
    wire.first, wire.calls = asyncio.get_running_loop().create_future(), 0
    async with client:
        try:
            yield Waiting(client, wire)
        finally:
            if not wire.first.done():
                wire.first.set_result(SENT)
    assert not our_tasks()


Answer = Reply | Failure


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (told(APP), Suspended),
        (told(USER), Suspended),
        (UNREACHABLE, TransportError),
        (HOPELESS, Misconfigured),
    ],
)
def test_an_answer_that_ends_all_others(answer: Answer, error: type[Exception]) -> None:
    async def story() -> None:
        async with scene(retry=RetryPolicy(outage=0.0)) as here:
            run = await here.given(MANY)
            here.wire.first.set_result(answer)
            await here.fetch()
            assert len(here.outcomes) == MANY
            assert {type(outcome.error) for outcome in here.outcomes if outcome.error} >= {error}
            assert sum(type(outcome.error) is error for outcome in here.outcomes) >= MANY - 1
            skipped = [
                outcome.draft.draft_id for outcome in here.outcomes[:MANY] if outcome.draft.draft_id != "d0"
            ]
            assert skipped == [f"d{number}" for number in range(1, MANY)]
            assert here.granted == 1
            here.once(MANY)
            await run.leave()

    run_virtual(story(), noop_cycles=2)


async def stopped(here: Waiting) -> None:
    assert here.run is not None
    here.run.stop()
    here.wire.first.set_result(SENT)
    await here.fetch()
    assert len(here.outcomes) == MANY


async def left(here: Waiting) -> None:
    assert here.run is not None
    leaving = asyncio.ensure_future(here.run.leave())
    await asyncio.sleep(1.0)
    here.wire.first.set_result(SENT)
    await leaving


async def closed(here: Waiting) -> None:
    closing = asyncio.ensure_future(here.client.close())
    await asyncio.sleep(1.0)
    here.wire.first.set_result(SENT)
    await closing


async def closed_at_once(here: Waiting) -> None:
    await here.client.close(0.0)


async def closed_as_it_stops(here: Waiting) -> None:
    assert here.run is not None
    here.run.stop()
    await here.client.close(0.0)
    await here.fetch()
    assert len(here.outcomes) == MANY


async def closed_as_the_app_is(here: Waiting) -> None:
    here.wire.first.set_result(told(APP))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await here.client.close()


async def left_as_it_stops(here: Waiting) -> None:
    assert here.run is not None
    here.run.stop()
    here.wire.first.set_result(SENT)
    await here.run.leave()


WAYS: Final = [stopped, left, closed, closed_at_once, closed_as_it_stops, closed_as_the_app_is, left_as_it_stops]


@pytest.mark.parametrize("end", WAYS)
def test_a_run_that_is_ended(end: Callable[[Waiting], Any]) -> None:
    async def story() -> None:
        async with scene() as here:
            await here.given(MANY)
            await end(here)
            assert here.granted == 1
            here.once(MANY)

    run_virtual(story(), noop_cycles=2)


def test_single_sends_of_a_client_that_closes() -> None:
    async def story() -> None:
        async with scene() as here:
            sends = [asyncio.ensure_future(here.client.send_draft(f"d{number}")) for number in range(MANY)]
            while here.client.snapshot().waiting[Priority.NORMAL] < MANY - 1:  # noqa: ASYNC110 - as in `given`
                await asyncio.sleep(0.001)
            here.number = MANY
            await here.client.close(0.0)
            ended = await asyncio.gather(*sends, return_exceptions=True)
            assert sum(isinstance(error, ClientClosed) for error in ended) == MANY - 1
            here.once(MANY)

    run_virtual(story(), noop_cycles=2)


@pytest.mark.parametrize("stop", [False, True])
def test_a_run_whose_token_does_not_come(*, stop: bool) -> None:
    asked: list[asyncio.Future[str]] = []

    async def story() -> None:
        async def source(_: str | None) -> str:
            asked.append(asyncio.get_running_loop().create_future())
            return await asked[-1]

        with mock.patch.object(client_module, "Transport", Wire):
            client = FeishuMailClient(source, rate_limit=ONE_CALL, retry=RetryPolicy(attempts=1))
        wire: Any = client._binding._transport
        wire.first, wire.calls = asyncio.get_running_loop().create_future(), 1
        async with client:
            here = Waiting(client, wire)
            await here.given(MANY)
            if stop:
                here.run.stop()  # type: ignore[union-attr]
            asked[0].set_exception(RuntimeError("no"))
            await here.fetch()
            assert len(here.outcomes) == MANY
            assert here.granted == 0
            here.once(MANY)

    run_virtual(story(), noop_cycles=2)


# --- in the midst of it --------------------------------------------------------------------------------------


async def in_the_midst(here: Waiting, code: int = APP) -> None:
    """Let the app or the user be suspended; most still have to be told of it."""
    here.wire.first.set_result(told(code))
    while not any(done.attempts == 0 for done in here.done):  # noqa: ASYNC110 - in every pass of the loop
        await asyncio.sleep(0)
    assert len(here.done) < MANY / 2


@pytest.mark.parametrize("code", [APP, USER])
def test_what_is_reopened_in_the_midst_lets_only_new_drafts_go(code: int) -> None:
    async def story() -> None:
        async with scene(rate_limit=FREE) as here:
            await here.given(MANY)
            await in_the_midst(here, code)
            with pytest.raises(Suspended):
                await here.client.send_draft("new")
            for suspension in here.client.snapshot().suspended:
                here.client.resume(suspension.subject)
            assert not here.client.snapshot().suspended
            # A new one, and one that is about to be told: it was ended by the suspension, and begins anew.
            last = f"d{MANY - 1}"
            results = await asyncio.gather(here.client.send_draft("newer"), here.client.send_draft(last))
            assert [result.already_sent for result in results] == [False, False]
            await here.fetch()
            skipped = [outcome for outcome in here.outcomes if isinstance(outcome.error, Suspended)]
            assert len(skipped) == MANY - 1
            assert here.wire.calls == 3
            assert here.most <= MOST
            here.nothing_left()

    run_virtual(story(), noop_cycles=2)


def test_a_draft_of_a_run_that_stops_is_sent_for_who_joins_in_the_midst() -> None:
    async def story() -> None:
        async with scene(rate_limit=FREE) as here:
            run = await here.given(MANY)
            run.stop()
            joined = asyncio.ensure_future(here.client.send_draft(f"d{MANY - 1}"))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert len(here.done) < MANY / 2
            here.wire.first.set_result(SENT)
            assert (await joined).message_id == "m"
            await here.fetch()
            assert len(here.outcomes) == MANY
            assert sum(isinstance(outcome.error, NotSent) for outcome in here.outcomes) == MANY - 2
            assert here.wire.calls == 2
            here.nothing_left()

    run_virtual(story(), noop_cycles=2)


# --- with a ledger -------------------------------------------------------------------------------------------


def ledger_of(tmp_path: Path) -> dict[str, Any]:
    return {"ledger": f"sqlite:///{tmp_path / 'ledger.db'}", "app": "cli_a"}


async def test_an_app_that_is_suspended_with_a_ledger(tmp_path: Path) -> None:
    async with scene(**ledger_of(tmp_path)) as here:
        await here.given(MANY)
        here.wire.first.set_result(told(APP))
        await here.fetch()
        assert sum(isinstance(outcome.error, Suspended) for outcome in here.outcomes) == MANY - 1
        assert here.granted == 1
        here.once(MANY)


async def test_a_ledger_that_fails_as_a_turn_is_taken(tmp_path: Path) -> None:
    async with scene(rate_limit=FREE, **ledger_of(tmp_path)) as here:
        await here.given(FEW)

        async def fail(*_: object, **__: object) -> None:
            raise LedgerError("ledger: it is away") from sqlalchemy.exc.InterfaceError("", (), Exception())

        with mock.patch.object(turns, "take", fail):
            here.wire.first.set_result(SENT)
            await here.fetch()
        assert sum(isinstance(outcome.error, LedgerError) for outcome in here.outcomes) == FEW - 1
        assert here.granted == 1
        here.once(FEW)
