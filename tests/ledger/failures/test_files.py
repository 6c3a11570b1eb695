"""Files that break under a ledger: full disks, locks, garbage, rights."""

# ruff: noqa: ASYNC240 - a look at a file of the test's own may block its loop

import asyncio
import contextlib
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from feishu_mail_async import LedgerError, OutcomeUnknown, Priority, RateLimit
from feishu_mail_async.ledger import schema
from feishu_mail_async.sandbox import Arrival, Fault, Sandbox
from tests.helpers.ledger_clients import USERS, drafts_of, open_client, outcomes, refused_at_once, sent_once
from tests.helpers.ledgers import apps_of, ledger_on, locked, nothing_held, until


@contextlib.contextmanager
def witnessed(sandbox: Sandbox, url: str) -> Iterator[list[str]]:
    """Looks into the tables whenever a call arrives, and notes the draft if its intent is not on record."""
    without: list[str] = []
    question = "SELECT state FROM feishu_mail_draft WHERE draft_id = "
    if url.startswith("sqlite"):
        connection: Any = sqlite3.connect(url.removeprefix("sqlite:///"), timeout=30, isolation_level=None)
        question += "?"
    else:
        import psycopg  # noqa: PLC0415

        connection = psycopg.connect(url, autocommit=True)
        question += "%s"

    def look(arrival: Arrival) -> Fault | None:
        found = connection.execute(question, (arrival.draft_id,)).fetchall()
        if [state for (state,) in found] != ["in_flight"]:
            without.append(f"{arrival.draft_id} {found}")
        return None

    sandbox.on_call = look
    try:
        yield without
    finally:
        sandbox.on_call = None
        connection.close()


# --- the disk ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(pages: int) -> Iterator[None]:
    """SQLite's own bound: what would need more room gets SQLITE_FULL, as from a disk without any."""

    def bound(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA max_page_count={pages}")
        cursor.close()

    sa.event.listen(sa.pool.Pool, "connect", bound)
    try:
        yield
    finally:
        sa.event.remove(sa.pool.Pool, "connect", bound)


async def test_a_full_disk(file: Path, sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    url = f"sqlite:///{file}"
    drafts = drafts_of(sandbox, 8)
    async with open_client(sandbox, url) as client:
        await client.records(drafts[:1])
    with contextlib.closing(sqlite3.connect(file)) as look:
        [pages] = look.execute("PRAGMA page_count").fetchone()
    ledger = ledger_on(url, patience=0.5)  # there may be room again in a moment
    with small_disk(pages + 1), witnessed(sandbox, url) as without:
        async with open_client(sandbox, ledger) as client:
            first = await outcomes(client.send_drafts(drafts))
            with pytest.raises(LedgerError, match="disk is full: free some space"):
                await client.send_draft(next(one for one in drafts if first[one.draft_id] == "skipped"))
        await ledger.close()
    assert without == []
    assert first.keys() == {one.draft_id for one in drafts}
    arrived = {one.draft_id for one in sandbox.ledger.sends}
    for draft_id, status in first.items():
        assert (status in {"sent", "already_sent"}) == (draft_id in arrived)
    assert set(first.values()) == {"sent", "skipped"}
    async with open_client(sandbox, url) as client:  # there is room again
        second = await outcomes(client.send_drafts(drafts))
    assert set(second.values()) <= {"sent", "already_sent"}
    sent_once(sandbox, drafts)
    assert not [one for one in caplog.records if "Traceback" in one.getMessage()]


# --- a file that is locked --------------------------------------------------------------------------------


async def test_a_file_that_is_locked_for_a_while(file: Path, sandbox: Sandbox) -> None:
    drafts = drafts_of(sandbox, 4)
    async with open_client(sandbox, f"sqlite:///{file}") as client:
        await client.records(drafts[:1])
        with witnessed(sandbox, f"sqlite:///{file}") as without:
            async with client.send_drafts(drafts) as run:
                await anext(run)
                async with locked(file):
                    before = len(sandbox.ledger.sends)
                    await asyncio.sleep(1.0)
                    assert len(sandbox.ledger.sends) <= before + len(USERS)
                rest = await outcomes(run)
        assert set(rest.values()) == {"sent"}
        assert without == []
        assert client.snapshot().in_flight == 0
    sent_once(sandbox, drafts)
    ledger = ledger_on(f"sqlite:///{file}")
    await nothing_held(ledger)
    await ledger.close()


async def test_a_file_that_stays_locked(file: Path, sandbox: Sandbox) -> None:
    drafts = drafts_of(sandbox, 2)
    url = f"sqlite:///{file}"
    await apps_of(url)
    ledger = ledger_on(url, patience=0.5)
    async with open_client(sandbox, ledger) as client:
        async with locked(file):
            with pytest.raises(
                OutcomeUnknown, match="another program keeps it locked: end that, then run it again"
            ) as it:
                await client.send_draft(drafts[0])
            assert it.value.draft == drafts[0]
            found = await outcomes(client.send_drafts(drafts))
            assert set(found.values()) == {"unknown"}
            assert sandbox.ledger.sends == []
        assert set((await outcomes(client.send_drafts(drafts))).values()) == {"sent"}
    await nothing_held(ledger)
    await ledger.close()
    sent_once(sandbox, drafts)


async def test_a_success_is_told_though_it_cannot_be_written(
    file: Path, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """And the rest goes on once it can: the lease of the call that was not written lapses."""
    url = f"sqlite:///{file}"
    ledger = ledger_on(url, patience=0.3)
    one, two = drafts_of(sandbox, 1)[:2]
    sandbox.script(one.draft_id, Fault.delay(0.4))
    limit = RateLimit(calls=1, per=0.3, spacing=0, margin=0, grace=0.1)
    async with open_client(sandbox, ledger, rate_limit=limit, attempt_timeout=1.0) as client:
        first = asyncio.create_task(client.send_draft(one))
        second = asyncio.create_task(client.send_draft(two))
        await until(lambda: client.snapshot().in_flight == 1)
        await until(lambda: client.snapshot().waiting[Priority.NORMAL] == 1)
        async with locked(file):
            result = await first
        assert not result.already_sent
        assert (await asyncio.wait_for(second, 30)).attempts == 1
        assert "not on record" in caplog.text
        await until(lambda: client.snapshot().waiting[Priority.NORMAL] == 0)
        assert (await client.send_draft(one)).already_sent  # asked for again: the server knows
    await nothing_held(ledger)
    await ledger.close()
    sent_once(sandbox, [one, two])


async def test_the_end_of_a_read_that_cannot_be_written_names_no_draft(
    file: Path, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = ledger_on(f"sqlite:///{file}", patience=0.3)
    draft = drafts_of(sandbox, 1)[0]
    called = asyncio.Event()

    def slow(_: random.Random) -> tuple[float, float]:
        called.set()
        return 0.4, 0.0

    async with open_client(sandbox, ledger) as client:
        expected = await client.read_draft(draft)
        sandbox.latency = slow
        reading = asyncio.create_task(client.read_draft(draft))
        await called.wait()
        async with locked(file):
            assert await reading == expected
    [told] = [one for one in caplog.messages if "not on record" in one]
    assert told.endswith("; the end of a call is not on record")
    assert "None" not in told
    await ledger.close()


async def test_a_file_of_garbage(file: Path, sandbox: Sandbox) -> None:
    file.write_bytes(b"This is no database, by any means.\n" * 1000)
    file.chmod(0o600)
    await refused_at_once(sandbox, f"sqlite:///{file}", "no SQLite file, or a damaged one: give another path")
    assert file.read_bytes().startswith(b"This is no database")


async def test_a_file_that_was_cut_off(file: Path, sandbox: Sandbox) -> None:
    async with open_client(sandbox, f"sqlite:///{file}") as client:
        await outcomes(client.send_drafts(drafts_of(sandbox, 4)))
    sandbox.ledger.sends.clear()
    with file.open("r+b") as damaged:
        damaged.truncate(file.stat().st_size // 2)
    await refused_at_once(sandbox, f"sqlite:///{file}", "damaged")


async def test_an_empty_file_is_a_new_ledger(file: Path, sandbox: Sandbox) -> None:
    file.touch(0o600)
    drafts = drafts_of(sandbox, 1)
    async with open_client(sandbox, f"sqlite:///{file}") as client:
        assert set((await outcomes(client.send_drafts(drafts))).values()) == {"sent"}


async def test_paths_that_cannot_be_opened(tmp_path: Path, sandbox: Sandbox) -> None:
    (tmp_path / "plain").touch()
    for path in (tmp_path / "no" / "mail.db", tmp_path, tmp_path / "plain" / "mail.db"):
        await refused_at_once(sandbox, f"sqlite:///{path}", "it cannot be opened .*: check its path")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["plain"]


async def test_a_file_that_cannot_be_written(file: Path, sandbox: Sandbox) -> None:
    """SQLite's word for it, as it comes where rights count (for root they do not)."""
    await apps_of(f"sqlite:///{file}")

    def only_read(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA query_only=ON")
        cursor.close()

    sa.event.listen(sa.pool.Pool, "connect", only_read)
    try:
        await refused_at_once(sandbox, f"sqlite:///{file}", "it cannot be written: check the rights of the file")
    finally:
        sa.event.remove(sa.pool.Pool, "connect", only_read)


async def test_tables_that_are_not_what_they_should_be(url: str, sandbox: Sandbox) -> None:
    """Somebody meddled with them: it is said, and nothing waits for ever."""
    ledger = ledger_on(url)

    async def meddle(connection: AsyncConnection) -> None:
        await connection.execute(sa.delete(schema.schema))

    await ledger.database.transact(meddle)
    await ledger.close()
    await refused_at_once(sandbox, url, ": ledger: ")
