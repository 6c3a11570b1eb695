"""Where tokens are kept: in memory and on both databases, with a lease for whoever refreshes them."""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Final

import pytest

from feishu_mail_async import open_ledger
from feishu_mail_async._auth.store import MemoryTokens, StoredToken, TokenStore
from tests.helpers.canary import TOKEN

HOST: Final = "https://open.feishu.cn"
FIRST: Final = StoredToken(
    TOKEN, 7200.5, 7200.0, f"r-{TOKEN}", 604800.25, "mail:user_mailbox.message:send offline_access"
)
SECOND: Final = replace(FIRST, access_token="u-2", refresh_token="r-2", expires=14400.0)


def database(request: pytest.FixtureRequest, kind: str) -> str:
    if kind == "sqlite":
        return f"sqlite:///{request.getfixturevalue('tmp_path') / 'ledger.db'}"
    found: str = request.getfixturevalue("postgres_url")
    return found


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    return database(request, request.param)


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def home(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "memory" else database(request, request.param)


@pytest.fixture
async def store(home: str | None) -> AsyncIterator[TokenStore]:
    if home is None:
        yield MemoryTokens()
        return
    ledger = open_ledger(home)
    yield ledger.tokens(HOST, "cli_a")
    await ledger.close()


async def test_what_was_saved_is_loaded(store: TokenStore) -> None:
    assert await store.load("alice") is None
    assert await store.users() == []
    assert await store.save("bob", SECOND)
    assert await store.save("alice", FIRST)
    assert await store.load("alice") == FIRST
    assert await store.users() == ["alice", "bob"]


async def test_a_token_without_a_refresh_token(store: TokenStore) -> None:
    token = StoredToken("u-1", 60.0, 7200.0)
    await store.save("alice", token)
    assert await store.load("alice") == token


async def test_one_has_the_lease_until_it_saves(store: TokenStore) -> None:
    await store.save("alice", FIRST)
    await store.save("bob", FIRST)
    lease = await store.lease("alice", 60.0)
    assert lease is not None
    assert await store.lease("alice", 60.0) is None
    assert await store.lease("bob", 60.0) is not None
    assert await store.save("alice", SECOND, lease)
    assert await store.load("alice") == SECOND
    assert await store.lease("alice", 60.0) is not None


async def test_a_released_lease_can_be_taken(store: TokenStore) -> None:
    await store.save("alice", FIRST)
    lease = await store.lease("alice", 60.0)
    assert lease is not None
    await store.release("alice", "somebody else's")
    assert await store.lease("alice", 60.0) is None
    await store.release("alice", lease)
    assert await store.lease("alice", 60.0) is not None
    assert await store.load("alice") == FIRST


async def test_a_lease_whose_holder_died_lapses_and_its_tokens_come_too_late(store: TokenStore) -> None:
    await store.save("alice", FIRST)
    late = await store.lease("alice", 0.05)
    assert late is not None
    while (lease := await store.lease("alice", 60.0)) is None:  # noqa: ASYNC110 - that it lapses is no event
        await asyncio.sleep(0.01)
    assert await store.save("alice", SECOND, lease)
    assert not await store.save("alice", replace(FIRST, access_token="u-late"), late)
    assert await store.load("alice") == SECOND


async def test_a_login_is_kept_whoever_has_the_lease(store: TokenStore) -> None:
    await store.save("alice", FIRST)
    lease = await store.lease("alice", 60.0)
    assert lease is not None
    await store.save("alice", SECOND)
    assert not await store.save("alice", replace(FIRST, access_token="u-late"), lease)
    assert await store.load("alice") == SECOND


async def test_without_tokens_there_is_nothing_to_refresh(store: TokenStore) -> None:
    assert await store.lease("alice", 60.0) is None


async def test_what_was_deleted_is_gone_and_stays_so(store: TokenStore) -> None:
    await store.save("alice", FIRST)
    lease = await store.lease("alice", 60.0)
    assert await store.delete("alice")
    assert not await store.delete("alice")
    assert await store.load("alice") is None
    assert not await store.save("alice", SECOND, lease)
    assert await store.users() == []


async def test_many_at_once_get_one_lease(store: TokenStore) -> None:
    await store.save("alice", FIRST)
    leases = await asyncio.gather(*(store.lease("alice", 60.0) for _ in range(20)))
    assert sum(lease is not None for lease in leases) == 1


async def test_two_processes_share_one_login(url: str) -> None:
    one, other = open_ledger(url), open_ledger(url)
    try:
        await one.tokens(HOST, "cli_a").save("alice", FIRST)
        assert await other.tokens(HOST, "cli_a").load("alice") == FIRST
        leases = await asyncio.gather(
            *(ledger.tokens(HOST, "cli_a").lease("alice", 60.0) for ledger in (one, other) * 5)
        )
        assert sum(lease is not None for lease in leases) == 1
    finally:
        await one.close()
        await other.close()


@pytest.mark.parametrize(("host", "app"), [(HOST, "cli_b"), ("https://open.larksuite.com", "cli_a")])
async def test_apps_and_hosts_share_nothing(url: str, host: str, app: str) -> None:
    ledger = open_ledger(url)
    await ledger.tokens(HOST, "cli_a").save("alice", FIRST)
    assert await ledger.tokens(host, app).load("alice") is None
    assert await ledger.tokens(host, app).users() == []
    await ledger.close()


async def test_no_token_is_logged_whoever_logs(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """aiosqlite's own logger quotes every statement with its values."""
    caplog.set_level(logging.DEBUG)
    ledger = open_ledger(url)
    store = ledger.tokens(HOST, "cli_a")
    await store.save("alice", FIRST)
    lease = await store.lease("alice", 60.0)
    assert await store.save("alice", SECOND, lease)
    await store.save("alice", FIRST)
    assert await store.load("alice") == FIRST
    await ledger.close()
    assert TOKEN not in caplog.text
    if url.startswith("sqlite"):
        assert "feishu_mail_app" in caplog.text  # it does speak


def test_no_token_is_in_a_repr() -> None:
    assert TOKEN not in repr(FIRST)
    assert "7200.5" in repr(FIRST)
