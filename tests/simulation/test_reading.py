"""Reading a draft's content."""

import json
from collections.abc import AsyncIterator
from email.message import EmailMessage
from typing import Any

import aiohttp
import pytest

from feishu_mail_async import (
    Address,
    Attachment,
    BadReply,
    Draft,
    DraftContent,
    DraftNotFound,
    FeishuMailClient,
    ScopeMissing,
    Suspended,
)
from feishu_mail_async._api.endpoints import LIST, SEND
from feishu_mail_async._api.payloads import read_content
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.letters import raw_of


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(users=["alice"], latency=0.0) as running:
        yield running


def letter() -> EmailMessage:
    message = EmailMessage()
    message["Subject"] = "七月账单 🧾"
    message["From"] = "财务部 <finance@example.com>"
    message["To"] = "李雷 <li@example.com>, han@example.com"
    message["Cc"] = "boss@example.com"
    message["Bcc"] = "archive@example.com"
    message.set_content("您好,\n账单见附件。\n")
    message.add_alternative("<p>您好</p>", subtype="html")
    message.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename="七月.pdf")
    return message


async def created(sandbox: Sandbox, message: EmailMessage) -> str:
    """Put a mail into alice's mailbox, as another program would."""
    raw = raw_of(message)
    headers = {"Authorization": f"Bearer {sandbox.token('alice')}"}
    async with (
        aiohttp.ClientSession(sandbox.base_url, headers=headers) as session,
        session.post(LIST.url(mailbox="me"), json={"raw": raw}) as answer,
    ):
        draft_id: str = (await answer.json())["data"]["draft"]["id"]
        return draft_id


def client_of(sandbox: Sandbox, token: str | None = None) -> FeishuMailClient:
    return FeishuMailClient(token or sandbox.token("alice"), base_url=sandbox.base_url)


async def test_a_draft_is_read_whole(sandbox: Sandbox) -> None:
    draft_id = await created(sandbox, letter())
    async with client_of(sandbox) as client:
        content = await client.read_draft(draft_id)
    assert content == DraftContent(
        subject="七月账单 🧾",
        sender=Address("finance@example.com", "财务部"),
        to=(Address("li@example.com", "李雷"), Address("han@example.com")),
        cc=(Address("boss@example.com"),),
        bcc=(Address("archive@example.com"),),
        html="<p>您好</p>\n",
        text="您好,\n账单见附件。\n",
        attachments=(Attachment("七月.pdf", "attachment1", inline=False),),
        message_id=sandbox.message_id(draft_id),
        smtp_message_id=f"<{sandbox.message_id(draft_id)}@sandbox>",
        dated=content.dated,
    )
    assert content.dated is not None
    assert abs(content.dated.timestamp() - sandbox.unix_time()) < 60


async def test_a_draft_without_anything(sandbox: Sandbox) -> None:
    async with client_of(sandbox) as client:
        content = await client.read_draft(Draft(draft_id := sandbox.add_draft("alice")))
    message_id = sandbox.message_id(draft_id)
    assert content == DraftContent(
        "", None, (), (), (), None, None, (), message_id, content.smtp_message_id, content.dated
    )


async def test_a_draft_that_is_not_there_any_more(sandbox: Sandbox) -> None:
    draft = Draft(sandbox.add_draft("alice"), tag="row 7")
    async with client_of(sandbox) as client:
        await client.send_draft(draft)
        with pytest.raises(DraftNotFound) as caught:
            await client.read_draft(draft)
    assert caught.value.draft is draft


async def test_a_token_that_may_not_read_still_sends(sandbox: Sandbox) -> None:
    draft_id = sandbox.add_draft("alice")
    async with client_of(sandbox, sandbox.renew_token("alice", scopes=[SEND.scope])) as client:
        with pytest.raises(ScopeMissing):
            await client.read_draft(draft_id)
        with pytest.raises(Suspended):  # the same scope
            await anext(client.list_drafts())
        await client.send_draft(draft_id)


async def test_many_reads_keep_their_own_limit(sandbox: Sandbox) -> None:
    ids = sandbox.add_drafts("alice", 25)
    async with client_of(sandbox) as client:
        for draft_id in ids:
            await client.read_draft(draft_id)
    assert len(sandbox.ledger.arrivals) == 25
    assert sandbox.ledger.sibling_refusals == 0


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"draft": None},
        {"draft": {"message": "text"}},
        {"draft": {"message": {"subject": 7}}},
        {"draft": {"message": {"to": ["li@example.com"]}}},
        {"draft": {"message": {"body_html": "***"}}},
        {"draft": {"message": {"attachments": [7]}}},
    ],
)
async def test_an_answer_of_another_form(sandbox: Sandbox, data: Any) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        read_content(data)
    reply = {"code": 0, "msg": "success", "data": data}

    async def answer(_: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.Response(text=json.dumps(reply), content_type="application/json")

    app = aiohttp.web.Application()
    app.router.add_get("/{tail:.*}", answer)
    runner = aiohttp.web.AppRunner(app)
    await runner.setup()
    site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        port = runner.addresses[0][1]
        async with FeishuMailClient("u-token", base_url=f"http://127.0.0.1:{port}") as client:
            with pytest.raises(BadReply, match="the content of a draft does not have the documented form"):
                await client.read_draft("d1")
    finally:
        await runner.cleanup()
