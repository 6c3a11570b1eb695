"""What a SQLite ledger trusts: its file, whose it is, and the host's clock in a container."""

# ruff: noqa: ASYNC240 - a look at a file of the test's own may block its loop

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from feishu_mail_async import Draft, LedgerError, OutcomeStatus, OutcomeUnknown, RateLimit
from feishu_mail_async._scheduling.waiters import CallLock, Turn
from feishu_mail_async.ledger.clock import HostClock
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.ledgers import SENT, Process, apps_of, ask, client_of, ledger_on, nothing_held

LIMIT = RateLimit(calls=4, per=60, spacing=0)
SOMEBODY = 65_534


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mail.db"


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(users=["alice"], latency=0) as one:
        yield one


def process(file: Path, clock: HostClock | None = None) -> Process:
    ledger = ledger_on(f"sqlite:///{file}", clock=clock)
    return Process(ledger, ledger.store("https://x", "app", LIMIT))


async def calls(one: Process, most: int) -> int:
    """Make calls until no more may be made, and count them."""
    made = 0
    while made < most and (taken := await one.take(ask(user=f"user{made}", mailbox=f"{made}@x"))).granted:
        given, grant = taken.granted
        await one.settle(Turn(CallLock(given.user), CallLock(given.mailbox), given, grant), SENT)
        made += 1
    return made


# --- the file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["deleted", "all deleted", "replaced", "moved"])
async def test_a_file_that_is_taken_away_while_it_is_in_use(
    file: Path, how: str, sandbox: Sandbox, tmp_path: Path
) -> None:
    """No call is made without the record of those before; nobody begins with an empty one."""
    drafts = [Draft(one, user="alice") for one in sandbox.add_drafts("alice", 12)]
    ledger = ledger_on(f"sqlite:///{file}")
    async with client_of(sandbox, ledger, rate_limit=RateLimit(calls=100, per=60, spacing=0)) as client:
        for draft in drafts[:3]:
            await client.send_draft(draft)
        if how == "replaced":
            shutil.copy(file, tmp_path / "copy.db")
            (tmp_path / "copy.db").replace(file)
        elif how == "moved":
            file.rename(tmp_path / "elsewhere.db")
        else:
            for name in tmp_path.glob("mail.db*") if how == "all deleted" else [file]:
                name.unlink()
        with pytest.raises(
            OutcomeUnknown, match=r"mail.db: it was (taken away|replaced by another) while it was in use"
        ):
            await asyncio.wait_for(client.send_draft(drafts[3]), 30)
        rest = {one.status async for one in client.send_drafts(drafts[4:])}
        assert rest == {OutcomeStatus.UNKNOWN}
        if how == "deleted":  # what lies beside it tells that there was one
            with pytest.raises(LedgerError, match=r"it was taken away, and .*mail.db-(wal|shm) is left"):
                await ledger_on(f"sqlite:///{file}").apps()
            assert not file.exists()
    await ledger.close()
    with pytest.raises(LedgerError, match="while it was in use"):  # closed and opened again, it is still the same
        await ledger.apps()
    assert len(sandbox.ledger.sends) == 3


async def test_a_file_that_is_put_back(file: Path, sandbox: Sandbox, tmp_path: Path) -> None:
    one, two = (Draft(draft, user="alice") for draft in sandbox.add_drafts("alice", 2))
    ledger = ledger_on(f"sqlite:///{file}")
    async with client_of(sandbox, ledger) as client:
        await client.send_draft(one)
        file.rename(tmp_path / "elsewhere.db")
        with pytest.raises(OutcomeUnknown, match="it was taken away"):
            await client.send_draft(two)
        (tmp_path / "elsewhere.db").rename(file)
        assert not (await client.send_draft(two)).already_sent
    await nothing_held(ledger)
    await ledger.close()


# --- its owner --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["mail.db", "mail.db-wal", "mail.db-shm", ""])
async def test_files_of_somebody_else(
    file: Path, tmp_path: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = ledger_on(f"sqlite:///{file}")
    await ledger.apps()
    for name in ("mail.db-wal", "mail.db-shm"):
        assert (tmp_path / name).exists()
    theirs = tmp_path / which
    real = Path.stat

    def stat(path: Path, **how: bool) -> os.stat_result:
        found = real(path, **how)
        values = list(found)
        values[4] = SOMEBODY if path == theirs else found.st_uid
        return os.stat_result(values, {"st_ino": found.st_ino})

    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(LedgerError, match=f"it belongs to another user \\({SOMEBODY}\\).*: give a path") as caught:
        await ledger_on(f"sqlite:///{file}").apps()
    assert f"ledger: {theirs}: " in str(caught.value)
    assert f"chown {os.geteuid()} {theirs}" in str(caught.value)
    monkeypatch.undo()
    await ledger.close()
    assert await apps_of(f"sqlite:///{file}") == []


# --- its clock --------------------------------------------------------------------------------------------


async def test_processes_in_several_time_namespaces(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their clocks differ by what the kernel says, and they count the same window."""
    here = process(file)
    assert await calls(here, 10) == LIMIT.calls
    for offset, nanoseconds in ((1000, 500_000_000), (-700, 0), (90, 1)):
        namespace = tmp_path / "timens_offsets"
        namespace.write_text(f"monotonic  {offset:10} {nanoseconds:9}\nboottime {offset + 5:10} 0\n")
        monkeypatch.setattr("feishu_mail_async.ledger.clock._OFFSETS", namespace)

        def moved(offset: float = offset + nanoseconds / 1e9) -> float:
            return time.monotonic() + offset

        there = process(file, HostClock(moved))
        assert await calls(there, 10) == 0
        assert await calls(here, 10) == 0
        overview = await there.ledger.overview("https://x", "app")
        assert overview is not None
        assert 55 < overview.next_permit <= 65
        await there.ledger.close()
    await here.ledger.close()


async def test_a_time_namespace_that_cannot_be_read(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for content in (None, "", "monotonic", "monotonic x y"):
        namespace = tmp_path / "timens_offsets"
        if content is not None:
            namespace.write_text(content)
        monkeypatch.setattr("feishu_mail_async.ledger.clock._OFFSETS", namespace)
        assert abs(HostClock().first().monotonic - time.monotonic()) < 60
