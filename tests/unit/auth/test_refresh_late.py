"""Tokens that come when their lease has lapsed: whose are alive, and which are kept, in memory or a database."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from feishu_mail_async import LoginRequired, open_ledger
from feishu_mail_async._auth.store import MemoryTokens, StoredToken, TokenStore
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.clock import now
from tests.helpers.login_scene import HOUR, USERS, LoginScene


class Halting:
    """The store as a process sees it that stands still when it is about to save.

    Args:
        store: the store.
        lapsing: the lease it is given has lapsed at once.
    """

    def __init__(self, store: TokenStore, *, lapsing: bool = False) -> None:
        self.store = store
        self.lapsing = lapsing
        self.saving, self.go_on = asyncio.Event(), asyncio.Event()
        self.users, self.load, self.release, self.delete = store.users, store.load, store.release, store.delete

    async def lease(self, user: str, seconds: float) -> str | None:
        lapsing, self.lapsing = self.lapsing, False
        return await self.store.lease(user, 0.0 if lapsing else seconds)

    async def save(self, user: str, token: StoredToken, lease: str | None = None) -> bool:
        self.saving.set()
        await self.go_on.wait()
        return await self.store.save(user, token, lease)


class Late(LoginScene):
    """Alice's tokens have ended; `late` has refreshed them, and its lease has lapsed before it could save them."""

    def __init__(self, sandbox: Sandbox, store: TokenStore) -> None:
        super().__init__(sandbox)
        self.store = store
        self.halting = Halting(store, lapsing=True)
        self.late, self.other = self.another(store=self.halting), self.another()
        self.asked: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def begin(self) -> None:
        await self.store.save("alice", replace(await self.log_in(), expires=now() - 1))
        self.asked = asyncio.ensure_future(self.late.token("alice"))
        await self.halting.saving.wait()
        assert self.refreshes == {"alice": 1}

    async def close(self) -> None:
        self.halting.go_on.set()
        await self.late.close()
        await self.other.close()
        await asyncio.gather(self.asked, return_exceptions=True)


@pytest.fixture(params=["memory", "sqlite"])
async def late(request: pytest.FixtureRequest) -> AsyncIterator[Late]:
    async with Sandbox(users=USERS, latency=0, expires_in=HOUR) as sandbox:
        ledger = None
        store: TokenStore = MemoryTokens()
        if request.param == "sqlite":
            ledger = open_ledger(f"sqlite:///{request.getfixturevalue('tmp_path') / 'ledger.db'}")
            store = ledger.tokens(sandbox.base_url, sandbox.client_id)
        scene = Late(sandbox, store)
        yield scene
        await scene.close()
        await scene.tokens.close()
        if ledger is not None:
            await ledger.close()


@pytest.mark.parametrize("whole", [True, False])
async def test_another_process_has_refreshed_in_vain(late: Late, whole: bool) -> None:
    if not whole:
        late.sandbox.script_token(Fault.odd_grant(lambda granted: granted | {"access_token": ""}))
    await late.begin()
    with pytest.raises(LoginRequired, match="20073"):
        await late.other.token("alice")
    late.halting.go_on.set()
    if whole:
        assert await late.works(await late.asked)
    await asyncio.wait([late.asked])
    assert await late.works(await late.other.token("alice"))  # none but these tokens were alive
    assert late.refreshes == {"alice": 1 if whole else 2}


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("first", ["late", "other"])
async def test_another_process_is_refreshing_in_vain(late: Late, whole: bool, first: str) -> None:
    if not whole:
        late.sandbox.script_token(Fault.odd_grant(lambda granted: granted | {"access_token": ""}))
    await late.begin()
    halting = Halting(late.store)
    other = late.another(store=halting)
    others = asyncio.ensure_future(other.token("alice"))
    await halting.saving.wait()
    (late.halting if first == "late" else halting).go_on.set()
    if first == "other":
        await asyncio.wait([others])
    late.halting.go_on.set()
    halting.go_on.set()
    await asyncio.wait([late.asked, others])
    assert await late.works(await other.token("alice"))
    assert late.refreshes == {"alice": 1 if whole else 2}
    await other.close()


async def test_a_login_that_came_meanwhile_is_kept(late: Late) -> None:
    await late.begin()
    login = await late.log_in()
    late.halting.go_on.set()
    assert await late.asked == login.access_token
    assert await late.store.load("alice") == login


async def test_whoever_has_logged_out_meanwhile_stays_so(late: Late) -> None:
    await late.begin()
    assert await late.store.delete("alice")
    late.halting.go_on.set()
    with pytest.raises(LoginRequired, match="has not logged in"):
        await late.asked
    assert await late.store.users() == []
