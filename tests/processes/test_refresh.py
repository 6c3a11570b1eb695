"""One login, shared by real processes on real databases, and killed in the midst of its renewal."""

import asyncio
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from feishu_mail_async import LoginRequired, RefreshingTokens, open_ledger
from feishu_mail_async._auth.store import StoredToken
from tests.helpers import nursery
from tests.helpers.cli import Feishu
from tests.helpers.clock import SEEDED


class Login:
    """A sandbox in which alice has logged in, and a ledger that keeps her tokens."""

    def __init__(self, feishu: Feishu, ledger: str) -> None:
        self.feishu = feishu
        self.ledger = ledger
        sandbox = feishu.sandbox
        self.app = sandbox.client_id, sandbox.client_secret
        self.environment = os.environ | {
            "LEDGER": ledger,
            "BASE_URL": sandbox.base_url,
            "APP_ID": self.app[0],
            "APP_SECRET": self.app[1],
        }

    def log_in(self, *, expired: bool) -> StoredToken:
        issued = self.feishu.do(lambda sandbox: sandbox.issue_tokens("alice"))
        lifetime = float(issued["expires_in"])
        expires = time.time() + (-1.0 if expired else lifetime)
        token = StoredToken(issued["access_token"], expires, lifetime, issued["refresh_token"])

        async def save() -> None:
            ledger = open_ledger(self.ledger)
            await ledger.tokens(self.feishu.sandbox.base_url, self.app[0]).save("alice", token)
            await ledger.close()

        asyncio.run(save())
        return token

    def kept(self) -> StoredToken:
        async def load() -> StoredToken | None:
            ledger = open_ledger(self.ledger)
            token = await ledger.tokens(self.feishu.sandbox.base_url, self.app[0]).load("alice")
            await ledger.close()
            return token

        token = asyncio.run(load())
        assert token is not None
        return token

    def refresh(self, refused: str) -> str | None:
        """Refresh in a process that comes after; None if the user has to log in again."""

        async def refresh() -> str | None:
            ledger = open_ledger(self.ledger)
            store = ledger.tokens(self.feishu.sandbox.base_url, self.app[0])
            async with RefreshingTokens(*self.app, store, base_url=self.feishu.sandbox.base_url) as tokens:
                await tokens.refused("alice", refused)
                try:
                    return await tokens.token("alice")
                except LoginRequired:
                    return None
                finally:
                    await ledger.close()

        return asyncio.run(refresh())

    def start(self, *arguments: str) -> nursery.Program:
        streams = {"stdin": subprocess.PIPE, "stderr": 2}
        return nursery.start("tests.helpers.programs.refresh:main", *arguments, env=self.environment, **streams)

    @property
    def refreshes(self) -> int:
        return self.feishu.do(lambda sandbox: sandbox.ledger.refreshes["alice"])


@pytest.fixture(params=["sqlite", "postgresql"])
def login(request: pytest.FixtureRequest, feishu: Feishu, tmp_path: Path) -> Login:
    if request.param == "sqlite":
        return Login(feishu, f"sqlite:///{tmp_path / 'ledger.db'}")
    return Login(feishu, request.getfixturevalue("postgres_url"))


def test_three_processes_refresh_once_and_go_on_with_one_token(login: Login) -> None:
    old = login.log_in(expired=True)
    processes = [login.start("ask", "20") for _ in range(3)]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        found = {process.communicate(timeout=120)[0] for process in processes}
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert login.refreshes == 1
    (token,) = found
    assert token.split() == [login.kept().access_token]
    assert token.strip() != old.access_token


def killed_rounds(login: Login, rounds: int, seed: int) -> tuple[int, int]:
    """Kill a process that refreshes, at random moments; how many logins survived it, and how many did not."""
    draw = random.Random(seed)
    alive = lost = 0
    login.log_in(expired=True)
    process = login.start("rounds")
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for _ in range(rounds):
            before = login.refreshes
            process.stdin.write("round\n")
            process.stdin.flush()
            child = int(process.stdout.readline())
            end = time.monotonic() + 60
            while login.refreshes == before and time.monotonic() < end:
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.05))
            os.kill(child, signal.SIGKILL)
            assert process.stdout.readline() == "killed\n"
            login.feishu.wait(asyncio.sleep(0.05))  # what was on its way arrives
            kept, made = login.kept(), login.refreshes
            clear_lease(login)
            fresh = login.refresh(kept.access_token)
            if fresh is not None:
                # What was saved is what the server knows: it refreshed once more.
                assert login.refreshes == made + 1
                alive += 1
            else:
                # The server had rotated it, and the process was killed before it was saved: that ends cleanly.
                assert login.refreshes == made
                assert login.kept().refresh_token is None
                lost += 1
                login.log_in(expired=False)
    finally:
        process.kill()
        process.communicate()
    return alive, lost


def clear_lease(login: Login) -> None:
    """A dead process's lease lapses in its time, a minute and a half; the test does not wait for it."""

    async def clear() -> None:
        ledger = open_ledger(login.ledger)
        store = ledger.tokens(login.feishu.sandbox.base_url, login.app[0])
        token = await store.load("alice")
        assert token is not None
        await store.save("alice", token)
        await ledger.close()

    asyncio.run(clear())


def test_a_login_survives_a_kill_unless_its_renewal_was_not_saved(login: Login) -> None:
    alive, lost = killed_rounds(login, 3, seed=1)
    assert alive + lost == 3


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_two_hundred_kills(login: Login, capsys: pytest.CaptureFixture[str]) -> None:
    alive, lost = killed_rounds(login, 100, seed=7 if SEEDED else time.time_ns())
    with capsys.disabled():
        print(f"\nkilled while refreshing: {alive} logins alive, {lost} lost between the rotation and its saving")
    assert alive + lost == 100
    # How many depends on how fast this machine writes: they are killed right after the server's rotation.
    assert alive > 0
