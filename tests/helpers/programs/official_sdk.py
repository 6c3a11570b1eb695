"""The official client at work on a sandbox: it prints, as one JSON object, what lark-oapi made of each answer.

Run by tests/sandbox/test_lark_oapi.py with the Python of an environment of its own, which has lark-oapi and not
pytest. It is given JSON on standard input: where the sandbox is, tokens, and drafts that lie there.
"""

import asyncio
import base64
import email.policy
import json
import sys
from collections.abc import Callable
from email.message import EmailMessage
from typing import Any

import lark_oapi as lark
from lark_oapi.api.mail.v1 import (
    CancelScheduledSendUserMailboxDraftRequest,
    CreateUserMailboxDraftRequest,
    CreateUserMailboxDraftRequestBody,
    DeleteUserMailboxDraftRequest,
    GetRecallDetailUserMailboxSentMessageRequest,
    GetUserMailboxDraftRequest,
    ListUserMailboxDraftRequest,
    ListUserMailboxMessageRequest,
    RecallUserMailboxSentMessageRequest,
    SendStatusUserMailboxMessageRequest,
    SendUserMailboxDraftRequest,
    SendUserMailboxDraftRequestBody,
    UpdateUserMailboxDraftRequest,
    UpdateUserMailboxDraftRequestBody,
)

POLICY = email.policy.default.clone(linesep="\n", max_line_length=0)
"""The form in which the platform reads messages."""


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
        "recall_status": getattr(data, "recall_status", None),
        "disabled": disabled and {"reason": disabled.reason, "reference": disabled.reference},
    }


def request(builder: Callable[[], Any], draft_id: str | None = None, body: Any = None) -> Any:
    building = builder().user_mailbox_id("me")
    if draft_id is not None:
        building = building.draft_id(draft_id)
    if body is not None:
        building = building.request_body(body)
    return building.build()


def about_mail(builder: Callable[[], Any], message_id: str) -> Any:
    return builder().user_mailbox_id("me").message_id(message_id).build()


def raw(message: EmailMessage) -> str:
    return base64.urlsafe_b64encode(message.as_bytes(policy=POLICY)).decode()


class Official:
    """lark-oapi's own calls for the drafts and mails of one user's mailbox."""

    def __init__(self, base_url: str, token: str) -> None:
        client = lark.Client.builder().domain(base_url).enable_set_token(True).build()
        self._drafts = client.mail.v1.user_mailbox_draft
        self._mails = client.mail.v1.user_mailbox_message
        self._sent = client.mail.v1.user_mailbox_sent_message
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
        body = CreateUserMailboxDraftRequestBody.builder().raw(raw(message)).build()
        response = await self._drafts.acreate(
            request(CreateUserMailboxDraftRequest.builder, body=body), self._option
        )
        return str(response.data.draft.id)

    async def update(self, draft_id: str, message: EmailMessage) -> dict[str, Any]:
        body = UpdateUserMailboxDraftRequestBody.builder().raw(raw(message)).build()
        response = await self._drafts.aupdate(
            request(UpdateUserMailboxDraftRequest.builder, draft_id, body), self._option
        )
        return told(response) | {"id": response.data.draft.id, "reference": response.data.reference}

    async def read(self, draft_id: str) -> dict[str, Any]:
        wanted = request(GetUserMailboxDraftRequest.builder, draft_id)
        response = await self._drafts.aget(wanted, self._option)
        message = response.data.draft.message
        return {
            "subject": message.subject,
            "message_id": message.message_id,
            "smtp_message_id": message.smtp_message_id,
            "to": [party.mail_address for party in message.to or ()],
            "state": message.message_state,
        }

    async def folder(self, name: str) -> list[str]:
        wanted = (
            ListUserMailboxMessageRequest.builder().user_mailbox_id("me").page_size(20).folder_id(name).build()
        )
        response = await self._mails.alist(wanted, self._option)
        return list(response.data.items)

    async def cancel(self, message_id: str) -> dict[str, Any]:
        wanted = about_mail(CancelScheduledSendUserMailboxDraftRequest.builder, message_id)
        return told(await self._drafts.acancel_scheduled_send(wanted, self._option))

    async def delivery(self, message_id: str) -> dict[str, int]:
        wanted = about_mail(SendStatusUserMailboxMessageRequest.builder, message_id)
        response = await self._mails.asend_status(wanted, self._option)
        return {item.recipient.mail_address: item.status for item in response.data.details}

    async def recall(self, message_id: str) -> dict[str, Any]:
        wanted = about_mail(RecallUserMailboxSentMessageRequest.builder, message_id)
        data = (await self._sent.arecall(wanted, self._option)).data
        return {"status": data.recall_status, "reason": data.recall_restriction_reason}

    async def progress(self, message_id: str) -> dict[str, Any]:
        wanted = about_mail(GetRecallDetailUserMailboxSentMessageRequest.builder, message_id)
        data = (await self._sent.aget_recall_detail(wanted, self._option)).data
        return {
            "status": data.recall_status,
            "people": {item.recipient_address: item.status for item in data.items},
        }

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
    first, message = EmailMessage(), EmailMessage()
    first["Subject"] = "Entwurf"
    first.set_content("Noch nichts.")
    message["Subject"], message["To"] = "Grüße", "bob@example.com"
    message.set_content("Hergestellt für das offizielle Programm.", cte="base64")
    pages = await alice.pages(2)
    created = await alice.create(first)
    updated = await alice.update(created, message)
    read = await alice.read(created)
    mail = read["message_id"]
    scheduled = (await alice.read(drafts["scheduled"]))["message_id"]
    return {
        "pages": pages,
        "created": created,
        "updated": updated,
        "read": read,
        "sent": await alice.send(created),
        "again": await alice.send(created),
        "blocking": alice.send_blocking(drafts["blocking"]),
        "blocking again": alice.send_blocking(drafts["blocking"]),
        "no such draft": await alice.send("no such draft"),
        "risky": await alice.send(drafts["risky"]),
        "scheduled": await alice.send(drafts["scheduled"], send_time),
        "waiting": (await alice.folder("SCHEDULED"), scheduled),
        "draft's id": await alice.cancel(drafts["scheduled"]),
        "cancelled": await alice.cancel(scheduled),
        "waiting no more": await alice.folder("SCHEDULED"),
        "delivery": await alice.delivery(mail),
        "recall": await alice.recall(mail),
        "recalled again": await alice.recall(mail),
        "progress": await alice.progress(mail),
        "deleted": await alice.delete(drafts["deleted"]),
        "disabled": await Official(base_url, tokens["bob"]).send(drafts["disabled"]),
        "bad token": await Official(base_url, "u-nobody").send(drafts["last"]),
        "limited": await alice.send(drafts["last"]),
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(work(**json.load(sys.stdin)))))
