"""What `--sandbox` needs: a made-up Feishu for the program to work on, and somebody who uses a web service."""

import contextlib
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from feishu_mail_async.sandbox import Fault, Sandbox

__all__ = ["report", "sandbox", "visit"]


@contextlib.asynccontextmanager
async def sandbox(*users: str) -> AsyncIterator[Sandbox]:
    """Run a made-up Feishu, and have the environment say that it is to be used instead of the real one."""
    async with Sandbox(users=users or ("alice", "bob")) as feishu:
        for name in [name for name in os.environ if name.startswith("FEISHU_")]:
            del os.environ[name]
        os.environ["FEISHU_BASE_URL"] = feishu.base_url
        os.environ["FEISHU_APP_ID"] = feishu.client_id
        os.environ["FEISHU_USER_ACCESS_TOKEN"] = json.dumps(feishu.tokens)
        print("A made-up Feishu on this machine takes the calls. Nobody gets mail.\n")
        yield feishu


def report(feishu: Sandbox) -> None:
    """Print what the made-up Feishu saw."""
    ledger = feishu.ledger
    twice = sum(times > 1 for times in ledger.sent.values())
    print(f"\nThe server's own record: calls {len(ledger.sends)}, mails {len(ledger.sent)}, sent twice {twice}.")


async def visit(address: str, feishu: Sandbox) -> None:
    """Make requests of a web service that has the routes of these examples, and print its answers.

    Args:
        address: of the service, such as http://127.0.0.1:8080.
        feishu: what the service works on.
    """
    for draft_id in ("invitation", "offer", "invoice", "reminder"):
        feishu.add_draft("alice", draft_id)
    feishu.script("offer", Fault.code("ContentRisk"))
    feishu.script("invoice", Fault.gateway(502, accepted=True), Fault.gateway(502))
    async with aiohttp.ClientSession(address) as session:
        await _post(session, "A draft", draft_id="invitation", user="alice")
        await _post(session, "The same draft again", draft_id="invitation", user="alice")
        await _post(session, "A request without a draft", user="alice")
        await _post(session, "A draft that Feishu refuses", draft_id="offer", user="alice")
        await _post(session, "A mail goes out, its answer is lost", draft_id="invoice", user="alice", deadline=1)
        await _post(session, "The caller asks again", draft_id="invoice", user="alice")
        feishu.limit_now(30)
        await _post(session, "Another program used up the limit", draft_id="reminder", user="alice", deadline=2)
        async with session.get("/health") as response:
            await _show("How things stand", "GET /health", response)
    report(feishu)


async def _post(session: aiohttp.ClientSession, what: str, **body: Any) -> None:
    async with session.post("/send", json=body) as response:
        await _show(what, f"POST /send {json.dumps(body)}", response)


async def _show(what: str, request: str, response: aiohttp.ClientResponse) -> None:
    print(f"{what}:\n  {request}\n  {response.status} {response.reason}")
    retry_after = response.headers.get("Retry-After")
    told = ({"Retry-After": retry_after} if retry_after else {}) | await response.json()
    for name, value in told.items():
        print(f"      {name}: {value}")
