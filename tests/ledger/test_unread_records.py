"""No record read is not the same as no record: an earlier call may have sent the draft."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from feishu_mail_async import (
    BulkRun,
    ClientClosed,
    Draft,
    FeishuMailClient,
    LedgerError,
    NotSent,
    Outcome,
    OutcomeUnknown,
)
from feishu_mail_async.cli.render import wording as words
from feishu_mail_async.errors import FeishuMailError
from feishu_mail_async.events import DraftDone, Event
from feishu_mail_async.ledger.sql import SqlLedger
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.ledgers import client_of, ledger_on, locked
from tests.helpers.scenes import FREE

USER: Final = "alice"


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(users=[USER], latency=0, calls=100_000) as one:
        yield one


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[SqlLedger]:
    one = ledger_on(f"sqlite:///{tmp_path / 'mail.db'}", patience=30)
    yield one
    await one.close()


@pytest.fixture
async def drafts(sandbox: Sandbox, ledger: SqlLedger) -> list[Draft]:
    """Three drafts; the ledger has it that the first was sent."""
    made = [Draft(draft_id, user=USER) for draft_id in sandbox.add_drafts(USER, 3)]
    async with open_client(sandbox, ledger) as client:
        await client.send_draft(made[0])
    return made


def open_client(sandbox: Sandbox, ledger: SqlLedger) -> FeishuMailClient:
    return client_of(sandbox, ledger, rate_limit=FREE)


def ends_of(client: FeishuMailClient) -> list[DraftDone]:
    """What subscribers are told from now on of drafts that have ended."""
    told: list[DraftDone] = []

    def hear(event: Event) -> None:
        if isinstance(event, DraftDone):
            told.append(event)

    client.subscribe(hear)
    return told


def claims_nothing(error: BaseException | None, cause: type[FeishuMailError]) -> bool:
    """Whether an error says that the draft may have been sent, why no more is known, and what to do."""
    return (
        isinstance(error, OutcomeUnknown)
        and type(error.__cause__) is cause
        and error.attempts == 0
        and error.draft is not None
        and str(error).startswith("an earlier call may have sent it, and this one made none: ")
        and "Sending it again is safe" in str(error)
        and words.say(error, words.Width.LINE).startswith("an earlier call may have sent it. This one made none: ")
        and words.say(error).startswith("an earlier call may have sent it; this one: ")
        and "not sent" not in words.say(error)
    )


@pytest.mark.parametrize("deadline", [-1, 0, 0.3])
async def test_a_deadline(deadline: float, sandbox: Sandbox, ledger: SqlLedger, drafts: list[Draft]) -> None:
    async with open_client(sandbox, ledger) as client:
        told = ends_of(client)
        async with locked(ledger.where):
            for draft in drafts:
                with pytest.raises(OutcomeUnknown) as caught:
                    await client.send_draft(draft, deadline=deadline)
                assert claims_nothing(caught.value, NotSent), caught.value
                assert f"the deadline of {deadline:g} s passed" in str(caught.value)
        assert [end.status for end in told] == ["unknown"] * 3
        assert (await client.send_draft(drafts[0])).already_sent
    assert sandbox.ledger.sent == {drafts[0].draft_id: 1}


async def test_a_deadline_without_a_ledger(sandbox: Sandbox) -> None:
    """Memory has no records: there is nothing that could be known."""
    async with client_of(sandbox, None) as client:
        with pytest.raises(NotSent, match="the deadline of 0 s passed"):
            await client.send_draft("d1", user=USER, deadline=0)


async def test_a_caller_that_is_cancelled(sandbox: Sandbox, ledger: SqlLedger, drafts: list[Draft]) -> None:
    async with open_client(sandbox, ledger) as client:
        told = ends_of(client)
        async with locked(ledger.where):
            task = asyncio.create_task(client.send_draft(drafts[0]))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert [end.status for end in told] == ["unknown"]
    assert claims_nothing(told[0].error, NotSent)


async def test_a_ledger_that_fails(sandbox: Sandbox, ledger: SqlLedger, drafts: list[Draft]) -> None:
    impatient = ledger_on(f"sqlite:///{ledger.where}", patience=0.2)
    async with open_client(sandbox, impatient) as client:
        told = ends_of(client)
        async with locked(ledger.where):
            with pytest.raises(OutcomeUnknown) as caught:
                await client.send_draft(drafts[0])
            run = client.send_drafts(drafts)
            outcomes = [outcome async for outcome in run]
        assert claims_nothing(caught.value, LedgerError)
        assert "another program keeps it locked" in str(caught.value)
        assert all(claims_nothing(outcome.error, LedgerError) for outcome in outcomes)
        assert run.summary.statuses == {"unknown": 3}
        assert run.summary.errors == {"LedgerError": 3}
        assert [end.status for end in told] == ["unknown"] * 4
    await impatient.close()


@pytest.mark.parametrize("seconds", [0, 0.2])
@pytest.mark.parametrize("own", [False, True])
async def test_a_client_that_is_closed(
    own: bool, seconds: float, sandbox: Sandbox, ledger: SqlLedger, drafts: list[Draft]
) -> None:
    """The caller hears of that, and not of a cancellation, which is nobody's."""
    client = client_of(sandbox, f"sqlite:///{ledger.where}" if own else ledger, rate_limit=FREE)
    async with locked(ledger.where):
        send = asyncio.create_task(client.send_draft(drafts[0]))
        run = client.send_drafts(drafts)
        reading = asyncio.create_task(all_of(run))
        await asyncio.sleep(0.05)
        await client.close(seconds)
        if not own:
            await ledger.close()
        with pytest.raises(OutcomeUnknown) as caught:
            await send
        outcomes = await reading
    assert claims_nothing(caught.value, LedgerError) or claims_nothing(caught.value, ClientClosed)
    assert len(outcomes) == 3
    assert all(claims_nothing(outcome.error, NotSent) for outcome in outcomes)


async def test_a_client_that_is_closed_without_haste(
    sandbox: Sandbox, ledger: SqlLedger, drafts: list[Draft]
) -> None:
    """It waits for the record, and then says what that says."""
    client = open_client(sandbox, ledger)
    async with locked(ledger.where):
        sends = [asyncio.create_task(client.send_draft(draft)) for draft in drafts[:2]]
        reading = asyncio.create_task(all_of(client.send_drafts(drafts)))
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(client.close())
        await asyncio.sleep(0.05)
    await closing
    assert (await sends[0]).already_sent
    with pytest.raises(ClientClosed):
        await sends[1]
    assert [outcome.status for outcome in await reading] == ["already_sent", "skipped", "skipped"]


@pytest.mark.parametrize("read_ahead", [1, 2, 1000])
async def test_a_run_that_is_stopped(
    read_ahead: int, sandbox: Sandbox, ledger: SqlLedger, drafts: list[Draft]
) -> None:
    """What is on record as sent is told so, and the rest is skipped: also what had not been read by then."""
    sent, *others = drafts
    wanted = [*others, *(Draft(f"more{n}", user=USER) for n in range(500)), sent]
    async with open_client(sandbox, ledger) as client:
        run = client.send_drafts(wanted, read_ahead=read_ahead)
        async with locked(ledger.where):
            reading = asyncio.create_task(all_of(run))
            await asyncio.sleep(0.05)
            run.stop()
            await asyncio.sleep(0.05)
            assert not reading.done()
        statuses = {outcome.draft.draft_id: outcome.status for outcome in await reading}
    assert statuses == dict.fromkeys((draft.draft_id for draft in wanted), "skipped") | {
        sent.draft_id: "already_sent"
    }
    assert sandbox.ledger.sent == {sent.draft_id: 1}


async def test_a_run_that_is_stopped_while_the_ledger_fails(
    sandbox: Sandbox, ledger: SqlLedger, drafts: list[Draft]
) -> None:
    """It is not waited for again and again."""
    impatient = ledger_on(f"sqlite:///{ledger.where}", patience=1.0)
    wanted = [*drafts, *(Draft(f"more{n}", user=USER) for n in range(2000))]
    async with open_client(sandbox, impatient) as client, locked(ledger.where):
        run = client.send_drafts(wanted, read_ahead=10)
        reading = asyncio.create_task(all_of(run))
        await asyncio.sleep(0.05)
        run.stop()
        async with asyncio.timeout(20):
            outcomes = await reading
    assert [outcome.status for outcome in outcomes] == ["unknown"] * len(wanted)
    await impatient.close()


async def test_a_run_that_is_left(sandbox: Sandbox, ledger: SqlLedger, drafts: list[Draft]) -> None:
    async with open_client(sandbox, ledger) as client, locked(ledger.where):
        told = ends_of(client)
        async with client.send_drafts(drafts):
            await asyncio.sleep(0.05)
        assert [end.status for end in told] == ["unknown"] * 3
        assert all(claims_nothing(end.error, NotSent) for end in told)


async def test_what_was_read_is_still_certain(sandbox: Sandbox, ledger: SqlLedger, drafts: list[Draft]) -> None:
    """With its record read, a draft that no call was made for is certainly not sent."""

    async def no_token(_: str | None) -> str:
        raise RuntimeError

    async with client_of(sandbox, ledger, tokens=no_token, rate_limit=FREE) as client:
        with pytest.raises(NotSent, match="tokens: there is none"):
            await client.send_draft(drafts[1])
        assert (await client.send_draft(drafts[0])).already_sent
        run = client.send_drafts(drafts)
        assert {outcome.draft.draft_id: outcome.status for outcome in await all_of(run)} == {
            drafts[0].draft_id: "already_sent",
            drafts[1].draft_id: "skipped",
            drafts[2].draft_id: "skipped",
        }


async def all_of(run: BulkRun) -> list[Outcome]:
    return [outcome async for outcome in run]
