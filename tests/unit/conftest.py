"""What the tests of single modules are given."""

from collections.abc import AsyncIterator

import pytest

from feishu_mail_async.sandbox import Sandbox
from tests.helpers.login_scene import HOUR, USERS, LoginScene
from tests.helpers.telemetry import seen

__all__ = ["scene", "seen"]


@pytest.fixture
async def scene() -> AsyncIterator[LoginScene]:
    async with Sandbox(users=USERS, calls=1000, latency=0.1, expires_in=HOUR) as sandbox:
        scene = LoginScene(sandbox)
        yield scene
        await scene.tokens.close()


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine's own environment says."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
