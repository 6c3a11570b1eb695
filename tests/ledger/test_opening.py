"""Tables, files and addresses: what can be a ledger, and what is said of what cannot."""

# ruff: noqa: ASYNC221, ASYNC240 - a look at a file of the test's own may block its loop

import asyncio
import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from feishu_mail_async import FeishuMailClient, LedgerError, OutcomeUnknown
from feishu_mail_async.ledger import check_url, open_ledger, schema
from feishu_mail_async.ledger.opening import open_stores
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.canary import holds
from tests.helpers.ledgers import APP, Process, ask, ledger_on, open_client, rows, until
from tests.helpers.postgres import DATABASE_PASSWORD
from tests.helpers.scenes import FREE

# --- the tables -------------------------------------------------------------------------------------------


async def test_two_make_the_tables_at_once(url: str) -> None:
    ledgers = [ledger_on(url) for _ in range(5)]
    assert await asyncio.gather(*(ledger.apps() for ledger in ledgers)) == [[]] * 5
    [row] = await rows(ledgers[0], schema.schema)
    assert row["version"] == schema.VERSION
    for ledger in ledgers:
        await ledger.close()


async def test_tables_of_a_newer_version_are_left_alone(url: str, sandbox: Sandbox) -> None:
    ledger = ledger_on(url)

    async def newer(connection: Any) -> None:
        await connection.execute(sa.update(schema.schema).values(version=schema.VERSION + 1))

    await ledger.database.transact(newer)
    await ledger.close()
    [draft] = sandbox.add_drafts("alice", 1)
    for _ in range(2):
        async with open_client(sandbox, url) as client:
            with pytest.raises(OutcomeUnknown, match="upgrade") as caught:
                await client.send_draft(draft, user="alice")
            assert not holds(caught.value, DATABASE_PASSWORD)
    async with open_client(sandbox, ledger) as client:  # the same ledger, opened again
        with pytest.raises(OutcomeUnknown, match="upgrade"):
            await client.send_draft(draft, user="alice")
    await ledger.close()
    assert sandbox.ledger.sends == []


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_the_file_is_for_its_owner_alone(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "mail.db"
    wanted = {"mail.db", "mail.db-wal", "mail.db-shm"}
    seen: dict[str, set[int]] = {}
    looking = True

    def look() -> None:
        while looking:
            time.sleep(0)
            for one in tmp_path.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    seen.setdefault(one.name, set()).add(stat.S_IMODE(one.stat().st_mode))

    before = os.umask(umask)
    watcher = asyncio.create_task(asyncio.to_thread(look))
    try:
        ledger = ledger_on(f"sqlite:///{path}")
        for _ in range(5):
            await Process(ledger, ledger.store("https://x", APP, FREE)).send(ask())
        await until(lambda: wanted <= seen.keys())
        await ledger.close()
    finally:
        os.umask(before)
        looking = False
        await watcher
    assert {(name, oct(mode)) for name, modes in seen.items() for mode in modes} == {
        (name, "0o600") for name in seen
    }


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
async def test_a_file_that_others_may_read_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "it's mail.db"
    keeper = ledger_on(f"sqlite:///{path}")
    await keeper.apps()  # keeps the files beside it there
    loose = Path(f"{path}{suffix}")
    loose.chmod(0o640)
    ledger = ledger_on(f"sqlite:///{path}")
    with pytest.raises(LedgerError) as caught:
        await ledger.apps()
    remedy = str(caught.value).rpartition(": ")[2]
    assert remedy.startswith("chmod 600 ")
    subprocess.run(remedy, shell=True, check=True)  # the advice works as it stands
    assert stat.S_IMODE(loose.stat().st_mode) == 0o600
    assert await ledger.apps() == []
    await ledger.close()
    await keeper.close()


async def test_a_file_that_others_may_read_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    with contextlib.closing(sqlite3.connect(path)) as notes:
        notes.execute("CREATE TABLE mine (x)")
    path.chmod(0o644)
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="others may read it"):
        await ledger_on(f"sqlite:///{path}").apps()
    assert path.read_bytes() == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


async def test_the_tables_live_beside_others(url: str, tmp_path: Path) -> None:
    """The database may hold other things, which stay."""
    ledger = ledger_on(url)

    async def mine(connection: Any) -> None:
        await connection.exec_driver_sql("CREATE TABLE app (x integer)")
        await connection.exec_driver_sql("INSERT INTO app VALUES (5)")

    async def still(connection: Any) -> Any:
        return (await connection.exec_driver_sql("SELECT x FROM app")).scalar_one()

    await ledger.database.transact(mine)
    process = Process(ledger, ledger.store("https://x", APP, FREE))
    await process.send(ask())
    assert await ledger.database.transact(still) == 5
    await ledger.close()


# --- addresses, packages ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("", "sqlite:///PATH"),
        ("mail.db", "sqlite:///PATH"),
        ("/var/lib/mail.db", "sqlite:///PATH"),
        ("redis://localhost", "not redis://"),
        ("mysql+aiomysql://h/db", "not mysql+aiomysql://"),
        ("sqlite+aiosqlite:///mail.db", "not sqlite+aiosqlite://"),
        ("postgresql+psycopg://h/db", "not postgresql+psycopg://"),
        ("sqlite://", "slashes"),
        ("sqlite:///", "needs a path"),
        ("sqlite:////", "needs a path"),
        ("sqlite://mail.db", "three slashes"),
        ("sqlite:///:memory:", "memory"),
        ("sqlite:///mail.db?mode=ro", ""),
        ("postgresql://u:pass@word@h/db", "%40"),
        ("postgresql://u:pw@h:port/db", "%40"),
        ("postgresql://u:pw:5433/db", ""),
        (f"mongodb://u:{DATABASE_PASSWORD}@h/db", "not mongodb://"),
        (f"postgresql://u:x@{DATABASE_PASSWORD}@h/db", "%40"),
        (f"postgresql://u:{DATABASE_PASSWORD}:h/db", ""),
        (f"postgresql://u:{DATABASE_PASSWORD}@h:{DATABASE_PASSWORD}/db", "%40"),
    ],
)
async def test_a_wrong_address_gets_a_sentence(wrong: str, says: str, tmp_path: Path) -> None:
    for attempt in (
        lambda: check_url(wrong),
        lambda: open_ledger(wrong),
        lambda: FeishuMailClient("u-x", app=APP, ledger=wrong),
    ):
        with pytest.raises(ValueError, match=r"^ledger: ") as caught:
            attempt()
        assert says in str(caught.value)
        assert not holds(caught.value, DATABASE_PASSWORD)
        assert "pass" not in str(caught.value).replace("password", "")


@pytest.mark.parametrize("right", ["sqlite:///mail.db", "sqlite:////var/mail.db", "postgresql://h/db"])
def test_a_right_address(right: str) -> None:
    assert check_url(right) == right.partition(":")[0]


def test_a_ledger_wants_the_app() -> None:
    with pytest.raises(ValueError, match=r"^app: "):
        FeishuMailClient("u-x", ledger="sqlite:///mail.db")
    with pytest.raises(TypeError, match=r"^ledger: "):
        FeishuMailClient("u-x", app=APP, ledger=5)  # type: ignore[arg-type]


def test_a_missing_package_names_its_extra(tmp_path: Path) -> None:
    script = """
        import sys
        from feishu_mail_async import FeishuMailClient, LedgerError, open_ledger
        FeishuMailClient("u-x")  # needs none of it
        needed = {"sqlite:///mail.db": ("sqlalchemy", "aiosqlite"), "postgresql://h/db": ("sqlalchemy", "psycopg")}
        for url, packages in needed.items():
            for package in packages:
                sys.modules[package] = None
                try:
                    open_ledger(url)
                except LedgerError as error:
                    print(error)
                del sys.modules[package]
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    advice = "ledger: {} is missing; install it with: pip install 'feishu-mail-async[{}]'"
    wanted = [("sqlalchemy", "ledger"), ("aiosqlite", "ledger"), ("sqlalchemy", "fleet"), ("psycopg", "fleet")]
    assert done.stdout.splitlines() == [advice.format(*pair) for pair in wanted]
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_opened_before_it_is_used(tmp_path: Path) -> None:
    ledger = open_stores(f"sqlite:///{tmp_path / 'no' / 'mail.db'}")
    ledger.store("https://x", APP, FREE)
    FeishuMailClient("u-x", app=APP, ledger=f"sqlite:///{tmp_path / 'no' / 'mail.db'}")
    assert "CANARY" not in repr(
        open_ledger(f"postgresql://u:{DATABASE_PASSWORD}@h/db?password={DATABASE_PASSWORD}")
    )
