"""Drafts: what the sandbox takes as a message, what it refuses, and what it shows of it."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from email.message import EmailMessage
from typing import Any

import pytest

from feishu_mail_async.sandbox import Sandbox
from feishu_mail_async.sandbox.messages import LARGEST
from tests.helpers.callers import Answer, Caller, number, running
from tests.helpers.letters import PNG, encoded, letter, raw_of


async def create(caller: Caller, message: EmailMessage | bytes, **kwargs: Any) -> Answer:
    return await caller.mail("POST", "drafts", json={"raw": raw_of(message)}, **kwargs)


async def update(caller: Caller, draft: str, message: EmailMessage | bytes, **kwargs: Any) -> Answer:
    return await caller.mail("PUT", f"drafts/{draft}", json={"raw": raw_of(message)}, **kwargs)


async def read(caller: Caller, draft: str) -> Any:
    return (await caller.mail("GET", f"drafts/{draft}")).data["draft"]["message"]


def attached(name: str, count: int = 1) -> EmailMessage:
    message = letter()
    for _ in range(count):
        message.add_attachment(b"x", maintype="application", subtype="octet-stream", filename=name)
    return message


def pictured(content: bytes, subtype: str = "png", maintype: str = "image") -> EmailMessage:
    message = letter()
    message.add_alternative('<p><img src="cid:one"></p>', subtype="html")
    _, html = message.iter_parts()
    assert isinstance(html, EmailMessage)
    html.add_related(content, maintype, subtype, cid="<one>", filename="one.bin1")
    return message


# --- what is shown --------------------------------------------------------------------------------------


@pytest.mark.looptime
async def test_everything_of_a_mail_is_shown() -> None:
    async with running() as (sandbox, caller):
        message = letter("七月账单 🧾", "您好", From="财务部 <finance@example.com>", Cc="Boss <boss@example.com>")
        message["Bcc"], message["Message-ID"] = "archive@example.com", "<ours@example.com>"
        message.add_alternative('<img src="cid:pic">', subtype="html")
        _, html = message.iter_parts()
        assert isinstance(html, EmailMessage)
        html.add_related(PNG, "image", "png", cid="<pic>", filename="图.png")
        message.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename="七月.pdf")
        draft = (await create(caller, message)).data["draft"]["id"]
        shown = await read(caller, draft)
        assert shown.pop("internal_date") == pytest.approx(sandbox.unix_time() * 1000, abs=1000)
        assert shown == {
            "message_state": 3,
            "message_id": sandbox.message_id(draft),
            "smtp_message_id": "<ours@example.com>",
            "subject": "七月账单 🧾",
            "head_from": {"mail_address": "finance@example.com", "name": "财务部"},
            "to": [{"mail_address": "bob@example.com", "name": ""}],
            "cc": [{"mail_address": "boss@example.com", "name": "Boss"}],
            "bcc": [{"mail_address": "archive@example.com", "name": ""}],
            "body_plain_text": base64.urlsafe_b64encode("您好\n".encode()).decode(),
            "body_html": base64.urlsafe_b64encode(b'<img src="cid:pic">\n').decode(),
            "attachments": [
                {"id": "attachment1", "filename": "图.png", "attachment_type": 1, "is_inline": True, "cid": "pic"},
                {"id": "attachment2", "filename": "七月.pdf", "attachment_type": 1, "is_inline": False, "cid": ""},
            ],
        }
        assert (await caller.mail("GET", f"drafts/{draft}?format=x")).code == number("InvalidRequest")
        assert sandbox.ledger.created == {draft: "<ours@example.com>"}


@pytest.mark.looptime
async def test_a_server_may_give_every_mail_its_own_message_id() -> None:
    async with running() as (sandbox, caller):
        sandbox.keeps_message_ids = False
        draft = (await create(caller, letter(Message_ID="<ours@example.com>"))).data["draft"]["id"]
        assert (await read(caller, draft))["smtp_message_id"] == f"<{sandbox.message_id(draft)}@sandbox>"
        assert sandbox.ledger.created == {draft: "<ours@example.com>"}


@pytest.mark.looptime
async def test_the_reply_to_a_create_has_been_seen_in_four_shapes() -> None:
    async with running() as (sandbox, caller):
        whole = (await create(caller, letter())).data
        draft = whole["draft"]["id"]
        assert whole == {
            "draft": {"id": draft, "message": {}},
            "reference": f"https://mail.example.com/draft/{draft}",
        }
        for place in ("id", "draft_id", "message_id"):
            sandbox.create_reply = place
            data = (await create(caller, letter())).data
            created = list(sandbox.ledger.created)[-1]
            assert data == {place: sandbox.message_id(created) if place == "message_id" else created}
        with pytest.raises(ValueError, match=r"draft\.id, id"):
            sandbox.create_reply = "data"


@pytest.mark.looptime
async def test_an_update_replaces_all_and_keeps_the_ids() -> None:
    async with running(calls=100) as (sandbox, caller):
        draft = (await create(caller, attached("a.pdf"))).data["draft"]["id"]
        before = await read(caller, draft)
        answer = await update(caller, draft, letter("New", To=None, Message_ID="<new@example.com>"))
        assert answer.data["draft"] == {"id": draft, "message": {}}
        after = await read(caller, draft)
        assert (after["message_id"], after["internal_date"]) == (before["message_id"], before["internal_date"])
        assert (after["subject"], after["to"], after["attachments"]) == ("New", [], [])
        assert after["smtp_message_id"] == "<new@example.com>"
        assert (await update(caller, draft, b"nothing")).code == number("MessageMalformed")
        assert (await read(caller, draft))["subject"] == "New"
        await caller.send(draft)
        assert (await update(caller, draft, letter())).code == number("DraftNotFound")
        assert (await update(caller, "none", letter())).code == number("DraftNotFound")
        assert (await caller.mail("PUT", f"drafts/{draft}")).code == number("DraftNotFound")
        sandbox.add_draft("alice", "here")
        assert (await caller.mail("PUT", "drafts/here", json={})).code == number("InvalidRequest")
        assert sandbox.ledger.updated == {draft: 1}


@pytest.mark.looptime
async def test_a_forwarded_message_is_one_attachment() -> None:
    async with running() as (_, caller):
        message = letter("Fwd")
        message.add_attachment(attached("run.exe"), filename="forwarded.eml")
        draft = (await create(caller, message)).data["draft"]["id"]
        assert [item["filename"] for item in (await read(caller, draft))["attachments"]] == ["forwarded.eml"]


# --- what is refused ------------------------------------------------------------------------------------

PLAIN = "Subject: x\nTo: a@example.com\n"

REFUSED: dict[str, tuple[EmailMessage | bytes, str]] = {
    "CRLF": (encoded(letter()).replace(b"\n", b"\r\n"), "MessageMalformed"),
    "no header": (b"Hello", "MessageMalformed"),
    "nothing": (b"", "MessageMalformed"),
    "a folded header": (b"Subject: a\n b\nTo: a@example.com\n\nHi\n", "MessageMalformed"),
    "a folded parameter": (
        f"{PLAIN}Content-Type: text/plain;\n charset=utf-8\n\nHi\n".encode(),
        "MessageMalformed",
    ),
    "a raw header": ("Subject: Grüße\n\nHi\n".encode(), "MessageMalformed"),
    "a raw body": (f"{PLAIN}\nGrüße\n".encode(), "MessageMalformed"),
    "8bit": (f"{PLAIN}Content-Transfer-Encoding: 8bit\n\nGrüße\n".encode(), "MessageMalformed"),
    "quoted-printable": (
        f"{PLAIN}Content-Transfer-Encoding: quoted-printable\n\nGr=C3=BC=C3=9Fe\n".encode(),
        "MessageMalformed",
    ),
    "broken base64": (f"{PLAIN}Content-Transfer-Encoding: base64\n\n***\n".encode(), "MessageMalformed"),
    "no boundary": (f"{PLAIN}Content-Type: multipart/mixed\n\nHi\n".encode(), "MessageMalformed"),
    "no such charset": (f"{PLAIN}Content-Type: text/plain; charset=x-y\n\nHi\n".encode(), "MessageMalformed"),
    "501 recipients": (
        letter(To=", ".join(f"a{n}@example.com" for n in range(300)), Bcc=", ".join(["b@example.com"] * 201)),
        "TooManyRecipients",
    ),
    "251 attachments": (attached("a.txt", 251), "TooManyAttachments"),
    "a program": (attached("run.EXE"), "AttachmentBlocked"),
    "a program in disguise": (attached("run.py. "), "AttachmentBlocked"),
    "a program in Chinese": (attached("程序.bat"), "AttachmentBlocked"),
    "a TIFF": (pictured(b"II*\0", "tiff"), "InlineImageRejected"),
    "a PNG by name alone": (pictured(b"GIF89a"), "InlineImageRejected"),
    "a WebP by half": (pictured(b"RIFF1234WAVE", "webp"), "InlineImageRejected"),
    "no image": (pictured(PNG, "octet-stream", "application"), "InlineImageRejected"),
}

TAKEN = {
    "500 recipients": letter(To=", ".join(f"Grüße {n} <a{n}@example.com>" for n in range(500))),
    "250 attachments": attached("a.txt", 250),
    "a page": attached("page.html"),
    "a name like a program's": attached("exe"),
    "a picture": pictured(PNG),
    "a photo": pictured(b"\xff\xd8\xff\xe0", "jpeg"),
    "a film": pictured(b"GIF89a", "gif"),
    "a WebP": pictured(b"RIFF1234WEBP", "webp"),
    "words": letter("Grüße", "Grüße"),
}


@pytest.mark.looptime
@pytest.mark.parametrize("name", REFUSED)
async def test_a_message_is_refused(name: str) -> None:
    message, code = REFUSED[name]
    async with running() as (sandbox, caller):
        sandbox.add_draft("alice", "here")
        for answer in (await create(caller, message), await update(caller, "here", message)):
            assert (answer.status, answer.code) == (400, number(code))
        assert (sandbox.ledger.created, sandbox.ledger.updated) == ({}, {})


@pytest.mark.looptime
@pytest.mark.parametrize("name", TAKEN)
async def test_a_message_is_taken(name: str) -> None:
    async with running() as (_, caller):
        assert (await create(caller, TAKEN[name])).code == 0


# --- large messages -------------------------------------------------------------------------------------


@pytest.fixture
async def large() -> AsyncIterator[tuple[Sandbox, Caller]]:
    async with running(latency=0.0) as found:
        yield found


def sized(size: int) -> bytes:
    head = f"{PLAIN}\n".encode()
    return head + b"x" * (size - len(head))


def body(message: EmailMessage | bytes) -> io.BytesIO:
    return io.BytesIO(json.dumps({"raw": raw_of(message)}).encode())


async def test_a_message_may_be_as_large_as_is_documented_and_no_larger(large: tuple[Sandbox, Caller]) -> None:
    _, caller = large
    assert (await caller.mail("POST", "drafts", data=body(sized(LARGEST)))).code == 0
    assert (await caller.mail("POST", "drafts", data=body(sized(LARGEST + 1)))).code == number("MessageTooLarge")


async def test_a_message_may_come_in_chunks(large: tuple[Sandbox, Caller]) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        stream = body(sized(3_000_000))
        while chunk := stream.read(100_000):
            yield chunk

    sandbox, caller = large
    assert (await caller.mail("POST", "drafts", data=chunks())).code == 0
    assert len(sandbox.ledger.created) == 1


async def test_a_large_message_holds_the_locks_and_not_the_loop(large: tuple[Sandbox, Caller]) -> None:
    sandbox, caller = large
    draft, steps = sandbox.add_draft("alice"), 0
    message = letter()
    message.add_attachment(bytes(20_000_000), maintype="application", subtype="pdf", filename="a.pdf")
    creating = asyncio.create_task(caller.mail("POST", "drafts", data=body(message)))
    while not vars(sandbox._judge)["_locks"]:
        assert not creating.done()
        await asyncio.sleep(0.001)
    # It has arrived and holds the locks of alice; others go on.
    conflict = await caller.send(draft)
    assert (await caller.send(sandbox.add_draft("bob"), user="bob")).code == 0
    while not creating.done():
        await asyncio.sleep(0.005)
        steps += 1
    assert conflict.code == number("ConcurrentWrite")
    assert (await creating).code == 0
    assert steps > 10, "the loop stood still"
    # Recorded in the order of arrival all the same.
    assert [(call.endpoint, call.user) for call in sandbox.ledger.arrivals] == [
        ("create", "alice"),
        ("send", "alice"),
        ("send", "bob"),
    ]
    assert sandbox.ledger.conflicts_by_endpoint == {"send": 1}
