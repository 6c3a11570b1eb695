"""Who may call a sandbox: programs, and no page that a browser shows; its own endpoints take a token."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from feishu_mail_async.sandbox import Sandbox

pytestmark = pytest.mark.looptime

TOKEN = "X-Sandbox-Token"
LIST = "/open-apis/mail/v1/user_mailboxes/me/drafts"
AUTHORIZE = "/open-apis/authen/v1/authorize"
REFRESH = "/open-apis/authen/v2/oauth/token"


class Visitor:
    def __init__(self, sandbox: Sandbox, session: aiohttp.ClientSession) -> None:
        self.sandbox = sandbox
        self.port = int(sandbox.base_url.rpartition(":")[2])
        self.session = session

    async def visit(self, method: str, path: str, headers: dict[str, str], **body: Any) -> tuple[int, Any]:
        told = {name: value.format(port=self.port) for name, value in headers.items()}
        async with self.session.request(
            method, f"http://127.0.0.1:{self.port}{path}", headers=told, allow_redirects=False, **body
        ) as response:
            text = await response.text()
            return response.status, json.loads(text) if text.startswith("{") else text

    async def list(self, **headers: str) -> int:
        token = f"Bearer {self.sandbox.token('alice')}"
        return (await self.visit("GET", LIST, {"Authorization": token, **headers}))[0]

    async def control(self, **headers: str) -> int:
        token = {TOKEN: self.sandbox.control_token}
        return (await self.visit("GET", "/_sandbox/ledger", token | headers))[0]


@pytest_asyncio.fixture(params=["127.0.0.1", "0.0.0.0"])
async def visitor(request: pytest.FixtureRequest) -> AsyncIterator[Visitor]:
    async with (
        Sandbox(users=("alice",), latency=0, host=request.param, auto_approve=True) as sandbox,
        aiohttp.ClientSession() as session,
    ):
        yield Visitor(sandbox, session)


GOOD_HOSTS = ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST:{port}", "127.1.2.3:{port}", "[::1]:{port}"]
BAD_HOSTS = [
    "evil.example",
    "evil.example:{port}",
    "localhost.evil.example:{port}",
    "127.0.0.1.evil.example:{port}",
    "localhost",
    "127.0.0.1:1",
    "192.0.2.1:{port}",
    "",
]
BAD_ORIGINS = [
    "http://evil.example",
    "null",
    "https://127.0.0.1:{port}",
    "http://127.0.0.1:1",
    "http://127.0.0.1",
    "",
]


@pytest.mark.parametrize("host", GOOD_HOSTS)
async def test_the_names_of_this_machine_are_served(visitor: Visitor, host: str) -> None:
    for headers in ({"Host": host}, {"Host": host, "Origin": f"http://{host}"}):
        assert await visitor.list(**headers) == 200
        assert await visitor.control(**headers) == 200


@pytest.mark.parametrize("host", BAD_HOSTS)
async def test_a_name_that_was_made_to_point_here_is_refused(visitor: Visitor, host: str) -> None:
    """DNS rebinding. Who listens beyond this machine is called by names that nobody here can know."""
    everywhere = visitor.sandbox.base_url.startswith("http://0.0.0.0")
    assert await visitor.control(Host=host) == 403
    if host:
        assert await visitor.list(Host=host) == (200 if everywhere else 403)


@pytest.mark.parametrize("origin", BAD_ORIGINS)
async def test_a_page_of_another_server_is_refused_everywhere(visitor: Visitor, origin: str) -> None:
    sandbox = visitor.sandbox
    draft = sandbox.add_draft("alice")
    token = {"Authorization": f"Bearer {sandbox.token('alice')}", "Origin": origin}
    control = {TOKEN: sandbox.control_token, "Origin": origin}
    form = {"grant_type": "refresh_token", "refresh_token": sandbox.issue_tokens("alice")["refresh_token"]}
    app = {"client_id": sandbox.client_id, "client_secret": sandbox.client_secret}
    asked = f"client_id={sandbox.client_id}&response_type=code&redirect_uri=http://127.0.0.1:9/"
    for status, _ in [
        await visitor.visit("POST", f"{LIST}/{draft}/send", token),
        await visitor.visit("POST", "/_sandbox/users", control, json={"name": "carol"}),
        await visitor.visit("POST", REFRESH, {"Origin": origin}, json=app | form),
        await visitor.visit("GET", f"{AUTHORIZE}?{asked}", {"Origin": origin}),
        await visitor.visit("GET", "/nowhere", {"Origin": origin}),
    ]:
        assert status == 403
    assert (len(sandbox.ledger.sends), sandbox.ledger.refreshes.total(), list(sandbox.users)) == (0, 0, ["alice"])


async def test_its_own_endpoints_take_its_own_token(visitor: Visitor) -> None:
    async with Sandbox() as other:
        for token in ({}, {TOKEN: ""}, {TOKEN: other.control_token}, {TOKEN: "ü"}, {"Authorization": "Bearer x"}):
            for method, path in (("GET", "ledger"), ("POST", "users"), ("POST", "script"), ("POST", "drafts")):
                status, told = await visitor.visit(method, f"/_sandbox/{path}", token, data=b'{"name": "carol"}')
                assert status == 403
                assert TOKEN in told["error"]
    assert list(visitor.sandbox.users) == ["alice"]
    right = {TOKEN: visitor.sandbox.control_token}
    status, told = await visitor.visit("POST", "/_sandbox/users", right, json={"name": "carol"})
    assert (status, told["token"]) == (200, visitor.sandbox.token("carol"))
    assert visitor.sandbox.control_token not in repr(visitor.sandbox) + repr(vars(visitor.sandbox)["_guard"])


def test_a_process_of_its_own_tells_the_token() -> None:
    command = [sys.executable, "-m", "feishu_mail_async.sandbox", "--latency", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        process.terminate()
    assert len(told["control_token"]) >= 32
