"""A plain aiohttp client that calls a sandbox by hand."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from feishu_mail_async import codes
from feishu_mail_async.sandbox import Sandbox

TOKEN_PATH = "/open-apis/authen/v2/oauth/token"


def number(name: str) -> int:
    return codes.named(name).number


@dataclass
class Answer:
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> int:
        return int(self.json["code"])

    @property
    def data(self) -> Any:
        return self.json["data"]


class Caller:
    """A client without any policy: one call, one answer."""

    def __init__(self, sandbox: Sandbox, session: aiohttp.ClientSession) -> None:
        self.sandbox = sandbox
        self.session = session

    async def call(
        self, method: str, path: str, user: str | None = "alice", patience: float = 600.0, **kwargs: Any
    ) -> Answer:
        headers = {} if user is None else {"Authorization": f"Bearer {self.sandbox.token(user)}"}
        headers |= kwargs.pop("headers", {})
        url = URL(self.sandbox.base_url + path, encoded=True)
        limit = aiohttp.ClientTimeout(patience)
        async with self.session.request(
            method, url, headers=headers, timeout=limit, allow_redirects=False, **kwargs
        ) as response:
            return Answer(response.status, response.headers, await response.read())

    async def mail(self, method: str, rest: str, mailbox: str = "me", **kwargs: Any) -> Answer:
        place = quote(mailbox, safe="")
        return await self.call(method, f"/open-apis/mail/v1/user_mailboxes/{place}/{rest}", **kwargs)

    async def send(self, draft_id: str, **kwargs: Any) -> Answer:
        return await self.mail("POST", f"drafts/{quote(draft_id, safe='')}/send", **kwargs)

    async def token(self, **form: str) -> Answer:
        app = {"client_id": self.sandbox.client_id, "client_secret": self.sandbox.client_secret}
        return await self.call("POST", TOKEN_PATH, user=None, json=app | form)


@asynccontextmanager
async def running(**kwargs: Any) -> AsyncIterator[tuple[Sandbox, Caller]]:
    kwargs = {"users": ("alice", "bob")} | kwargs
    async with Sandbox(**kwargs) as sandbox, aiohttp.ClientSession() as session:
        yield sandbox, Caller(sandbox, session)
