"""The official client at work on a sandbox: it prints, as one JSON object, what lark-oapi made of each answer.

Run by tests/sandbox/test_lark_oapi.py with the Python of an environment of its own, which has lark-oapi and not
pytest. It is given JSON on standard input: where the sandbox is, tokens, and drafts that lie there.
"""

import asyncio
import base64
import json
import sys
from collections.abc import Callable
from email.message import EmailMessage
from typing import Any

import lark_oapi as lark
from lark_oapi.api.mail.v1 import (
    CreateUserMailboxDraftRequest,
    CreateUserMailboxDraftRequestBody,
    DeleteUserMailboxDraftRequest,
    GetUserMailboxDraftRequest,
    ListUserMailboxDraftRequest,
    SendUserMailboxDraftRequest,
    SendUserMailboxDraftRequestBody,
)


def told(response: Any) -> dict[str, Any]:
    """What every response object of lark-oapi says."""
    return {
        "success": response.success(),
        "code": response.code,
        "msg": response.msg,
        "http_status": response.raw.status_code,
        "log_id": response.get_log_id(),
        "headers": {name.lower(): value for name, value in response.raw.headers.items()},
    }


def sent(response: Any) -> dict[str, Any]:
    """What a response to a send says."""
    data = response.data
    disabled = data.automation_send_disable if data is not None else None
    return told(response) | {
        "message_id": getattr(data, "message_id", None),
        "thread_id": getattr(data, "thread_id", None),
        "disabled": disabled and {"reason": disabled.reason, "reference": disabled.reference},
    }


def request(builder: Callable[[], Any], draft_id: str | None = None, body: Any = None) -> Any:
    building = builder().user_mailbox_id("me")
    if draft_id is not None:
        building = building.draft_id(draft_id)
    if body is not None:
        building = building.request_body(body)
    return building.build()


class Official:
    """lark-oapi's own calls for the drafts of one user's mailbox."""

    def __init__(self, base_url: str, token: str) -> None:
        client = lark.Client.builder().domain(base_url).enable_set_token(True).build()
        self._drafts = client.mail.v1.user_mailbox_draft
        self._token = token

    @property
    def _option(self) -> Any:
        return lark.RequestOption.builder().user_access_token(self._token).build()

    async def send(self, draft_id: str, send_time: str | None = None) -> dict[str, Any]:
        body = send_time and SendUserMailboxDraftRequestBody.builder().send_time(send_time).build()
        wanted = request(SendUserMailboxDraftRequest.builder, draft_id, body)
        return sent(await self._drafts.asend(wanted, self._option))

    def send_blocking(self, draft_id: str) -> dict[str, Any]:
        wanted = request(SendUserMailboxDraftRequest.builder, draft_id)
        return sent(self._drafts.send(wanted, self._option))

    async def create(self, message: EmailMessage) -> str:
        raw = base64.urlsafe_b64encode(message.as_bytes()).decode()
        body = CreateUserMailboxDraftRequestBody.builder().raw(raw).build()
        response = await self._drafts.acreate(
            request(CreateUserMailboxDraftRequest.builder, body=body), self._option
        )
        return str(response.data.draft.id)

    async def subject(self, draft_id: str) -> str:
        wanted = request(GetUserMailboxDraftRequest.builder, draft_id)
        response = await self._drafts.aget(wanted, self._option)
        return str(response.data.draft.message.subject)

    async def delete(self, draft_id: str) -> dict[str, Any]:
        wanted = request(DeleteUserMailboxDraftRequest.builder, draft_id)
        return told(await self._drafts.adelete(wanted, self._option))

    async def pages(self, size: int) -> list[list[str]]:
        pages: list[list[str]] = []
        page_token = None
        while True:
            building = ListUserMailboxDraftRequest.builder().user_mailbox_id("me").page_size(size)
            if page_token is not None:
                building = building.page_token(page_token)
            response = await self._drafts.alist(building.build(), self._option)
            pages.append([draft.id for draft in response.data.items])
            if not response.data.has_more:
                return pages
            page_token = response.data.page_token


async def work(base_url: str, tokens: dict[str, str], drafts: dict[str, str], send_time: str) -> dict[str, Any]:
    alice = Official(base_url, tokens["alice"])
    message = EmailMessage()
    message["Subject"], message["To"] = "Grüße", "bob@example.com"
    message.set_content("Made and sent by the official client.")
    pages = await alice.pages(2)
    created = await alice.create(message)
    return {
        "pages": pages,
        "created": created,
        "subject": await alice.subject(created),
        "sent": await alice.send(created),
        "again": await alice.send(created),
        "blocking": alice.send_blocking(drafts["blocking"]),
        "blocking again": alice.send_blocking(drafts["blocking"]),
        "no such draft": await alice.send("no such draft"),
        "risky": await alice.send(drafts["risky"]),
        "scheduled": await alice.send(drafts["scheduled"], send_time),
        "deleted": await alice.delete(drafts["deleted"]),
        "disabled": await Official(base_url, tokens["bob"]).send(drafts["disabled"]),
        "bad token": await Official(base_url, "u-nobody").send(drafts["last"]),
        "limited": await alice.send(drafts["last"]),
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(work(**json.load(sys.stdin)))))
