"""Callers, runs and clients that end in the midst of what a ledger does."""

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from feishu_mail_async import ClientClosed, Draft, NotSent, OutcomeUnknown, SendResult
from feishu_mail_async.ledger import DraftState, schema
from feishu_mail_async.ledger.database import Database
from feishu_mail_async.ledger.sql import SqlLedger
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.ledger_clients import drafts_of, open_client, sent_once
from tests.helpers.ledgers import home_url, nothing_held, rows, until
from tests.helpers.tasks import cancel_all


class Holding(Database):
    """A database on which one transaction can be held up: before it begins, or after it is committed.

    Attributes:
        held: set while one is held up.
        release: set it to let that one go on.
    """

    def __init__(self, url: str, **settings: Any) -> None:
        super().__init__(url, **settings)
        self._wanted: tuple[int, str] | None = None
        self.held = asyncio.Event()
        self.release = asyncio.Event()

    def hold_up(self, number: int, place: str) -> None:
        """Hold up one of the next transactions, `before` or `after` it."""
        self._wanted = number, place

    async def _transact(self, *arguments: Any) -> Any:
        number, place = self._wanted or (0, "")
        self._wanted = None if number <= 1 else (number - 1, place)
        if number == 1 and place == "before":
            await self._held_up()
        done = await super()._transact(*arguments)
        if number == 1 and place == "after":
            await self._held_up()
        return done

    async def _held_up(self) -> None:
        self.held.set()
        await self.release.wait()


class Held(SqlLedger):
    """A ledger on such a database."""

    database: Holding

    def __init__(self, url: str, **settings: Any) -> None:
        super().__init__(Holding(url, **settings))


PHASES = [(number, place) for number in (1, 2, 3) for place in ("before", "after")]
"""Of the look-up, the take and the settlement."""


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.soak)])
async def held(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Held]:
    ledger = Held(home_url(request, tmp_path))
    await ledger.apps()
    yield ledger
    ledger.database.release.set()
    await ledger.close()


async def all_is_well(ledger: SqlLedger, sandbox: Sandbox, draft: Draft) -> None:
    """Nothing is held for good, and the draft goes out, once."""
    async with open_client(sandbox, ledger) as client:
        result = await asyncio.wait_for(client.send_draft(draft), 60)
    assert len(sandbox.ledger.calls(draft.draft_id)) <= 1 + result.already_sent
    sent_once(sandbox, [draft])
    await nothing_held(ledger)


@pytest.mark.parametrize("phase", PHASES, ids=str)
async def test_a_caller_that_is_cancelled(held: Held, phase: tuple[int, str], sandbox: Sandbox) -> None:
    [draft] = drafts_of(sandbox, 1)[:1]
    async with open_client(sandbox, held) as client:
        held.database.hold_up(*phase)
        task = asyncio.create_task(client.send_draft(draft))
        await held.database.held.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 30)
        held.database.release.set()
    called = len(sandbox.ledger.calls(draft.draft_id))
    assert called == (1 if phase[0] == 3 else 0)
    await nothing_held(held)
    await all_is_well(held, sandbox, draft)
    assert len(sandbox.ledger.calls(draft.draft_id)) == 1


@pytest.mark.parametrize("phase", PHASES, ids=str)
async def test_a_deadline_that_passes(held: Held, phase: tuple[int, str], sandbox: Sandbox) -> None:
    [draft] = drafts_of(sandbox, 1)[:1]
    async with open_client(sandbox, held) as client:
        held.database.hold_up(*phase)
        with pytest.raises(NotSent if phase[0] == 2 else OutcomeUnknown):
            await asyncio.wait_for(client.send_draft(draft, deadline=0.4), 30)
        held.database.release.set()
    assert len(sandbox.ledger.calls(draft.draft_id)) == (1 if phase[0] == 3 else 0)
    await all_is_well(held, sandbox, draft)


@pytest.mark.parametrize("phase", PHASES, ids=str)
async def test_a_client_that_is_closed_at_once(held: Held, phase: tuple[int, str], sandbox: Sandbox) -> None:
    """Though the database does not answer, it closes; a call whose end is known is told."""
    [draft] = drafts_of(sandbox, 1)[:1]
    client = open_client(sandbox, held)
    held.database.hold_up(*phase)
    task = asyncio.create_task(client.send_draft(draft))
    await held.database.held.wait()
    await asyncio.wait_for(client.close(timeout=0), 30)
    if phase[0] == 3:
        assert isinstance(await asyncio.wait_for(task, 30), SendResult)
    elif phase[0] == 2:
        with pytest.raises(ClientClosed):
            await asyncio.wait_for(task, 30)
    else:
        # Its record could not be read, so an earlier call may have sent it.
        with pytest.raises(OutcomeUnknown) as caught:
            await asyncio.wait_for(task, 30)
        assert isinstance(caught.value.__cause__, ClientClosed)
        held.database.release.set()
    await asyncio.wait_for(held.close(), 30)
    await all_is_well(held, sandbox, draft)


async def test_what_has_ended_is_on_record_though_the_client_closes_at_once(
    held: Held, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a moment for it; longer if the database is slow than if it is not there."""
    monkeypatch.setattr("feishu_mail_async._binding._LEAST_WRITING", 30.0)
    [draft] = drafts_of(sandbox, 1)[:1]
    client = open_client(sandbox, held)
    held.database.hold_up(3, "before")
    task = asyncio.create_task(client.send_draft(draft))
    await held.database.held.wait()
    closing = asyncio.create_task(client.close(timeout=0))
    assert not (await asyncio.wait_for(task, 30)).already_sent
    held.database.release.set()
    await asyncio.wait_for(closing, 30)
    [row] = await rows(held, schema.draft)
    assert (row["state"], row["in_doubt"]) == ("sent", False)
    await nothing_held(held)


# A connection that is cancelled while it opens is left to the garbage collector by aiosqlite.
@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
@pytest.mark.parametrize("passes", [1, 5, 40])
async def test_all_tasks_are_cancelled(passes: int, url: str, sandbox: Sandbox) -> None:
    """The ledger's own too; what was in flight is free again when its lease lapses."""
    drafts = drafts_of(sandbox, 2)
    async with open_client(sandbox, url) as client:
        first = asyncio.ensure_future(anext(client.send_drafts(drafts[5:])))
        callers = [*(asyncio.ensure_future(client.send_draft(draft)) for draft in drafts[:5]), first]
        await cancel_all(callers, passes)
        await asyncio.wait_for(asyncio.gather(*map(client.send_draft, drafts)), 60)
    assert sandbox.ledger.sent == {draft.draft_id: 1 for draft in drafts}
    assert sandbox.ledger.conflicts == 0
    gc.collect()


@pytest.mark.parametrize("phase", PHASES, ids=str)
async def test_a_run_that_is_left(held: Held, phase: tuple[int, str], sandbox: Sandbox) -> None:
    [draft] = drafts_of(sandbox, 1)[:1]
    async with open_client(sandbox, held) as client:
        held.database.hold_up(*phase)
        run = client.send_drafts([draft])
        async with run:
            await held.database.held.wait()
            asyncio.get_running_loop().call_later(0.1, held.database.release.set)
    await nothing_held(held)
    await all_is_well(held, sandbox, draft)


async def test_a_call_in_flight_whose_caller_goes(url: str, sandbox: Sandbox) -> None:
    [draft] = drafts_of(sandbox, 1)[:1]
    sandbox.script(draft.draft_id, Fault.delay(0, 1))
    async with open_client(sandbox, url) as client:
        task = asyncio.create_task(client.send_draft(draft))
        await until(lambda: sandbox.ledger.calls(draft.draft_id))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    async with open_client(sandbox, url) as client:
        [record] = await client.records([draft])
        assert record is not None
        assert (record.state, record.in_doubt) == (DraftState.SENT, False)
    sent_once(sandbox, [draft])


async def test_a_call_in_flight_that_is_broken_off(
    url: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feishu_mail_async._binding._LEAST_WRITING", 30.0)
    [draft] = drafts_of(sandbox, 1)[:1]
    sandbox.script(draft.draft_id, Fault.hang_after())
    client = open_client(sandbox, url)
    task = asyncio.create_task(client.send_draft(draft))
    await until(lambda: sandbox.ledger.calls(draft.draft_id))
    await client.close(timeout=0)
    with pytest.raises(OutcomeUnknown):
        await task
    async with open_client(sandbox, url) as client:
        [record] = await client.records([draft])
        assert record is not None
        assert (record.state, record.in_doubt, record.calls) == (DraftState.UNKNOWN, True, 1)
        assert (await client.send_draft(draft)).already_sent


async def test_a_slow_settlement_is_waited_for(held: Held, sandbox: Sandbox) -> None:
    [draft] = drafts_of(sandbox, 1)[:1]
    async with open_client(sandbox, held) as client:
        held.database.hold_up(3, "before")
        task = asyncio.create_task(client.send_draft(draft))
        await held.database.held.wait()
        await asyncio.sleep(0.3)
        assert not task.done()
        held.database.release.set()
        assert not (await task).already_sent


async def test_a_token_that_is_refused_as_the_client_closes(held: Held, sandbox: Sandbox) -> None:
    """A source that takes its time does not keep a client from closing."""
    [draft] = drafts_of(sandbox, 1)[:1]
    asked = 0

    async def source(_: str | None) -> str:
        nonlocal asked
        asked += 1
        if asked > 1:
            await asyncio.get_running_loop().create_future()
        return "u-of-yesterday"

    client = open_client(sandbox, held, tokens=source)
    held.database.hold_up(3, "before")
    task = asyncio.create_task(client.send_draft(draft))
    await held.database.held.wait()
    closing = asyncio.create_task(client.close(timeout=0))
    await asyncio.sleep(0.05)
    held.database.release.set()
    await asyncio.wait_for(closing, 30)
    with pytest.raises(NotSent):
        await task
