"""No secret is seen in what a server repeats of a request, or in what asyncio shows of tasks."""

import asyncio
import json
import logging
from typing import Any, Final

import pytest

from feishu_mail_async import FeishuMailClient, NotSent, RefreshingTokens
from feishu_mail_async._api.bodies import secret_body
from feishu_mail_async._auth.store import MemoryTokens, StoredToken
from feishu_mail_async._secrecy import Hidden
from feishu_mail_async._transport import Transport
from feishu_mail_async.oauth import TOKEN_PATH, Login
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.canary import TOKEN
from tests.helpers.login_scene import HOUR, USERS, LoginScene
from tests.helpers.raw_server import always, http, raw_server

pytestmark = pytest.mark.looptime(start=0)

CODE: Final = "code-CANARY-4f5a1c"


# --- what a server repeats --------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["error", "error_description"])
@pytest.mark.parametrize("logs_in", [False, True])
async def test_a_secret_that_the_token_endpoint_repeats(
    field: str, logs_in: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    login = Login("http://127.0.0.1:8765/callback")
    sent = [CODE, login.verifier] if logs_in else [f"r-{TOKEN}"]
    secrets = [*sent, TOKEN, "the-secret", "device-code-0123456789abcdef", "eyJhbGciOiJFUzI1NiJ9.e30.c2ln"]
    said = f"{'x' * 150} invalid: {' '.join(secrets)}"
    body = json.dumps({"code": 99, "error": "invalid_grant", field: said}).encode()
    async with raw_server(always(http(400, body, ("Content-Type", "application/json")))) as server:
        store = MemoryTokens()
        await store.save("alice", StoredToken(TOKEN, 0.0, 0.0, f"r-{TOKEN}"))
        async with RefreshingTokens("cli_a", "the-secret", store, base_url=server.base_url) as tokens:
            with pytest.raises(NotSent, match="99: ") as caught:
                await (tokens.log_in("alice", CODE, login) if logs_in else tokens.token("alice"))
    for secret in secrets:
        assert secret[:9] not in f"{caught.value}{caplog.text}"


async def test_a_secret_that_a_hook_repeats() -> None:
    """A program's own trace hook sees the request, and may raise what it saw."""
    async with Transport("http://127.0.0.1:1", 1.0, None) as wire:
        session = wire._open()

        def say(*_: Any, data: Any, headers: Any, **__: Any) -> Any:
            raise RuntimeError(f"{list(data._value.pieces())} {headers}")

        session.request = say  # type: ignore[method-assign,assignment]
        answer = await wire.exchange(
            "POST", TOKEN_PATH, Hidden(TOKEN), secret_body(Hidden({"refresh_token": CODE}))
        )
    assert TOKEN not in repr(answer)
    assert CODE not in repr(answer)


def test_a_secret_that_the_authorization_page_repeats() -> None:
    login = Login("http://127.0.0.1:8765/callback")
    with pytest.raises(ValueError, match="the page answered") as caught:
        login.read_answer(f"error=bad+{CODE}+{login.state}+{login.verifier}&code={CODE}&state={login.state}")
    for secret in (CODE, login.state, login.verifier):
        assert secret not in str(caught.value)


# --- what asyncio tells -----------------------------------------------------------------------------------


async def test_no_task_shows_its_result() -> None:
    """In debug mode asyncio logs a task that took long, with its result."""
    async with Sandbox(users=USERS, latency=0.1, expires_in=HOUR) as sandbox:
        scene = LoginScene(sandbox)
        tasks: set[asyncio.Task[Any]] = set()
        await scene.log_in()
        (draft_id,) = scene.sandbox.add_drafts("alice", 1)
        await asyncio.sleep(HOUR)

        async def watch() -> None:
            while True:
                tasks.update(asyncio.all_tasks())
                await asyncio.sleep(0.01)

        watching = asyncio.ensure_future(watch())
        async with FeishuMailClient(scene.tokens, base_url=scene.sandbox.base_url) as client:
            await client.send_draft(draft_id, user="alice")
        watching.cancel()
        oauth = sandbox._oauth
        secrets = [*oauth._access, *oauth._refresh, sandbox.client_secret]
        names = {task.get_name() for task in tasks}
        assert {"feishu-mail-token", "feishu-mail-refresh", "feishu-mail-call"} <= names
        for task in tasks:
            if task.done() and not task.cancelled():
                shown = f"{task!r} {task.result()!r}"
                assert not any(secret[:12] in shown for secret in secrets)
        await scene.tokens.close()
