"""The life of a mail over real HTTP: created, updated, sent, scheduled, cancelled, followed up, recalled."""

import asyncio
from collections.abc import AsyncIterator
from email.message import EmailMessage
from typing import Any

import pytest

from feishu_mail_async import (
    Address,
    Delivery,
    DeliveryStatus,
    Draft,
    DraftNotFound,
    FeishuMailClient,
    MessageTooLarge,
    NotScheduled,
    NotSent,
    OutcomeUnknown,
    Recall,
    RecallStatus,
    RetryPolicy,
    SendResult,
)
from feishu_mail_async._api.bodies import json_body
from feishu_mail_async._api.endpoints import SEND
from feishu_mail_async.events import DraftMayBeLeft, Event
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.mishaps import LOST_KINDS, NOTHING_KINDS

pytestmark = pytest.mark.looptime


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(users=["alice", "bob"], latency=0.1) as running:
        yield running


@pytest.fixture
async def client(sandbox: Sandbox) -> AsyncIterator[FeishuMailClient]:
    async with FeishuMailClient(sandbox.token("alice"), base_url=sandbox.base_url) as running:
        yield running
    assert sandbox.ledger.conflicts == sandbox.ledger.refusals == sandbox.ledger.sibling_refusals == 0


def letter(subject: str = "七月账单 🧾", **headers: str) -> EmailMessage:
    message = EmailMessage()
    message["Subject"] = subject
    message["To"] = "李雷 <li@example.com>, han@example.com"
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    message.set_content("您好,\n账单见附件。\n")
    message.add_attachment(b"%PDF" * 1000, maintype="application", subtype="pdf", filename="七月.pdf")
    return message


def events_of(client: FeishuMailClient) -> list[Event]:
    seen: list[Event] = []
    client.subscribe(seen.append)
    return seen


async def drafts_of(client: FeishuMailClient) -> list[str]:
    return [draft.draft_id async for draft in client.list_drafts()]


async def schedule(client: FeishuMailClient, sandbox: Sandbox, draft: Draft, ahead: float = 600.0) -> None:
    """Schedule a draft, as another program would."""
    body = json_body({"send_time": str(int(sandbox.unix_time() + ahead) + 1)})
    account = client._binding.account(draft)
    await client._binding.call(SEND, account, mailbox="me", body=body, draft_id=draft.draft_id)


# --- creating ------------------------------------------------------------------------------------------------


async def test_a_draft_is_created_whole_and_sent(sandbox: Sandbox, client: FeishuMailClient) -> None:
    draft = await client.create_draft(letter())
    assert draft.link is not None
    assert list(sandbox.ledger.created) == [draft.draft_id]
    content = await client.read_draft(draft)
    assert (content.subject, content.text) == ("七月账单 🧾", "您好,\n账单见附件。\n")
    assert content.to == (Address("li@example.com", "李雷"), Address("han@example.com"))
    assert [one.filename for one in content.attachments] == ["七月.pdf"]
    assert (await client.send_draft(draft)).draft is draft
    assert sandbox.ledger.sent == {draft.draft_id: 1}


@pytest.mark.parametrize("shape", ["draft.id", "id", "draft_id", "message_id"])
async def test_each_shape_of_the_answer_that_was_seen(
    shape: Any, sandbox: Sandbox, client: FeishuMailClient
) -> None:
    sandbox.create_reply = shape
    draft = await client.create_draft(letter())
    (made,) = sandbox.ledger.created
    assert draft.draft_id == (made if shape != "message_id" else sandbox.message_id(made))


@pytest.mark.parametrize("fault", LOST_KINDS, ids=repr)
@pytest.mark.parametrize("own", [False, True])
async def test_a_lost_answer_is_looked_for(
    fault: Fault, own: bool, sandbox: Sandbox, client: FeishuMailClient
) -> None:
    told = events_of(client)
    message = letter(Message_ID="<july@example.com>") if own else letter()
    others = [await client.create_draft(message) for _ in range(3)]
    sandbox.script_calls("create", fault)
    draft = await client.create_draft(message)
    assert len(sandbox.ledger.created) == 4
    assert {*sandbox.ledger.created} == {draft.draft_id, *(one.draft_id for one in others)}
    assert not [one for one in told if isinstance(one, DraftMayBeLeft)]


@pytest.mark.parametrize("fault", [LOST_KINDS[0], NOTHING_KINDS[0]], ids=repr)
async def test_an_older_draft_with_the_same_message_id_is_another_one(
    fault: Fault, sandbox: Sandbox, client: FeishuMailClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feishu_mail_async._client.drafts.wall_clock", sandbox.unix_time)
    message = letter(Message_ID="<weekly@example.com>")
    async with FeishuMailClient(sandbox.token("alice"), base_url=sandbox.base_url) as earlier_run:
        before = await earlier_run.create_draft(message)
    await asyncio.sleep(7 * 86_400)
    sandbox.script_calls("create", fault)
    draft = await client.create_draft(message)
    assert {*sandbox.ledger.created} == {before.draft_id, draft.draft_id}
    assert before.draft_id != draft.draft_id


@pytest.mark.parametrize("fault", NOTHING_KINDS, ids=repr)
async def test_a_call_that_did_nothing_is_repeated_once_that_is_known(
    fault: Fault, sandbox: Sandbox, client: FeishuMailClient
) -> None:
    told = events_of(client)
    sandbox.script_calls("create", fault)
    draft = await client.create_draft(letter())
    assert list(sandbox.ledger.created) == [draft.draft_id]
    # Nobody can know that the first call did nothing and will not do it later.
    (left,) = [one for one in told if isinstance(one, DraftMayBeLeft)]
    assert left.message_id in str(left)


async def test_a_server_that_keeps_no_message_ids_leaves_one_draft_that_is_told(
    sandbox: Sandbox, client: FeishuMailClient
) -> None:
    sandbox.keeps_message_ids = False
    told = events_of(client)
    sandbox.script_calls("create", Fault.reset_after())
    draft = await client.create_draft(letter())
    assert len(sandbox.ledger.created) == 2
    assert draft.draft_id in sandbox.ledger.created
    assert len([one for one in told if isinstance(one, DraftMayBeLeft)]) == 1


async def test_a_look_that_is_not_answered_leaves_it_in_doubt(sandbox: Sandbox) -> None:
    retry = RetryPolicy(attempts=2, initial=0.1)
    async with FeishuMailClient(sandbox.token("alice"), base_url=sandbox.base_url, retry=retry) as client:
        sandbox.script_calls("create", Fault.reset_after())
        sandbox.script_calls("list", *[Fault.gateway()] * 2)
        with pytest.raises(OutcomeUnknown, match=r"it may have been created.*Look whether it was created"):
            await client.create_draft(letter())
    assert len(sandbox.ledger.created) == 1


async def test_creating_ends_when_its_attempts_are_used_up(sandbox: Sandbox) -> None:
    retry = RetryPolicy(attempts=2, initial=0.1)
    async with FeishuMailClient(sandbox.token("alice"), base_url=sandbox.base_url, retry=retry) as client:
        sandbox.script_calls("create", *[Fault.reset_before()] * 2)
        with pytest.raises(OutcomeUnknown, match="it may have been created"):
            await client.create_draft(letter())
    assert not sandbox.ledger.created
    assert len([one for one in sandbox.ledger.arrivals if one.endpoint == "create"]) == 2


async def test_a_deadline_holds_for_looking_too(sandbox: Sandbox, client: FeishuMailClient) -> None:
    sandbox.script_calls("create", Fault.reset_after())
    began = asyncio.get_running_loop().time()
    with pytest.raises(OutcomeUnknown):
        await client.create_draft(letter(), deadline=5.0)
    assert asyncio.get_running_loop().time() - began <= 5.0
    with pytest.raises(NotSent, match="not created"):
        await client.create_draft(letter(), deadline=0)


async def test_what_the_server_would_not_take_costs_no_call(sandbox: Sandbox, client: FeishuMailClient) -> None:
    empty = EmailMessage()
    for wrong in (empty, b"", "text"):
        with pytest.raises((TypeError, ValueError), match=r"^message: "):
            await client.create_draft(wrong)  # type: ignore[arg-type]
        with pytest.raises((TypeError, ValueError), match=r"^message: "):
            await client.update_draft("d1", wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^priority: "):
        await client.create_draft(letter(), priority=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^mailbox: "):
        await client.create_draft(letter(), mailbox="")
    assert not sandbox.ledger.arrivals


async def test_a_large_message_leaves_the_loop_to_others(sandbox: Sandbox, client: FeishuMailClient) -> None:
    message = letter()
    message.add_attachment(bytes(8_000_000), maintype="application", subtype="zip", filename="big.zip")
    draft = await client.create_draft(message)
    content = await client.read_draft(draft)
    assert [one.filename for one in content.attachments] == ["七月.pdf", "big.zip"]
    sandbox.script_calls("create", Fault.code("MessageTooLarge"))
    with pytest.raises(MessageTooLarge):
        await client.create_draft(message)


# --- changing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [None, *LOST_KINDS, *NOTHING_KINDS], ids=repr)
async def test_an_update(fault: Fault | None, sandbox: Sandbox, client: FeishuMailClient) -> None:
    draft = await client.create_draft(letter("before"))
    sandbox.script_calls("update", *[fault] if fault else ())
    await client.update_draft(draft, letter("after"))
    assert (await client.read_draft(draft)).subject == "after"
    assert await drafts_of(client) == [draft.draft_id]


async def test_updates_of_one_draft_at_once_are_all_made(sandbox: Sandbox, client: FeishuMailClient) -> None:
    draft = await client.create_draft(letter())
    await asyncio.gather(*(client.update_draft(draft, letter(f"number {number}")) for number in range(3)))
    assert sandbox.ledger.updated == {draft.draft_id: 3}


@pytest.mark.parametrize("fault", [None, *LOST_KINDS, *NOTHING_KINDS], ids=repr)
async def test_a_deletion(fault: Fault | None, sandbox: Sandbox, client: FeishuMailClient) -> None:
    draft = await client.create_draft(letter())
    sandbox.script_calls("delete", *[fault] if fault else ())
    await client.delete_draft(draft)
    assert sandbox.ledger.deleted == {draft.draft_id: 1}
    with pytest.raises(DraftNotFound) as gone:
        await client.delete_draft(draft)  # that one was not in doubt
    assert gone.value.draft == draft


# --- scheduled -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [None, *LOST_KINDS, *NOTHING_KINDS], ids=repr)
@pytest.mark.parametrize("by", ["id", "result"])
async def test_a_scheduled_mail_is_cancelled(
    by: str, fault: Fault | None, sandbox: Sandbox, client: FeishuMailClient
) -> None:
    draft = await client.create_draft(letter())
    await schedule(client, sandbox, draft)
    assert await drafts_of(client) == []
    message_id = sandbox.message_id(draft.draft_id)
    result = SendResult(draft, message_id, None, already_sent=False, attempts=1, log_id=None)
    sandbox.script_calls("cancel", *[fault] if fault else ())
    if by == "id" and fault in LOST_KINDS:
        # Without the draft nobody can tell a mail that was cancelled from one that went out.
        with pytest.raises(OutcomeUnknown, match="it may have been cancelled"):
            await client.cancel_scheduled(message_id)
    else:
        await client.cancel_scheduled(result if by == "result" else message_id)
    assert sandbox.ledger.cancelled == {draft.draft_id: 1}
    assert await drafts_of(client) == [draft.draft_id]
    await asyncio.sleep(1000)
    assert not sandbox.ledger.sent


async def test_a_mail_that_went_out_before_its_cancellation_was_repeated(
    sandbox: Sandbox, client: FeishuMailClient
) -> None:
    draft = await client.create_draft(letter())
    await schedule(client, sandbox, draft, ahead=305.0)
    result = SendResult(
        draft, sandbox.message_id(draft.draft_id), None, already_sent=False, attempts=1, log_id=None
    )
    await asyncio.sleep(300)
    sandbox.script_calls("cancel", Fault.reset_before())
    with pytest.raises(NotScheduled):
        await client.cancel_scheduled(result)
    assert sandbox.ledger.sent == {draft.draft_id: 1}


async def test_what_is_not_scheduled_is_not_cancelled(sandbox: Sandbox, client: FeishuMailClient) -> None:
    draft = await client.create_draft(letter())
    for mail in (draft, sandbox.message_id(draft.draft_id)):
        with pytest.raises(NotScheduled, match="nothing to cancel"):
            await client.cancel_scheduled(mail)
    with pytest.raises(DraftNotFound):
        await client.cancel_scheduled("nobody-knows-it")


# --- followed up, recalled -----------------------------------------------------------------------------------


async def test_a_delivery_is_followed_up(sandbox: Sandbox, client: FeishuMailClient) -> None:
    draft = await client.create_draft(letter())
    sent = await client.send_draft(draft)
    sandbox.set_delivery(draft.draft_id, "han@example.com", 3)
    first = await client.delivery(sent)
    assert not first.final
    await asyncio.sleep(60)
    last = await client.delivery(sent)
    assert last.final
    assert {one.recipient.address: one.status for one in last.recipients} == {
        "li@example.com": DeliveryStatus.DELIVERED,
        "han@example.com": DeliveryStatus.BOUNCED,
    }
    assert last == Delivery(sent.message_id or "", last.recipients)


@pytest.mark.parametrize("fault", [None, *LOST_KINDS, *NOTHING_KINDS], ids=repr)
async def test_a_recall(fault: Fault | None, sandbox: Sandbox, client: FeishuMailClient) -> None:
    sent = await client.send_draft(await client.create_draft(letter()))
    await asyncio.sleep(60)
    sandbox.set_recall(sent.draft.draft_id, "li@example.com", "message_has_been_read")
    sandbox.script_calls("recall", *[fault] if fault else ())
    assert await client.recall_message(sent) == Recall(accepted=True, reason=None)
    assert sandbox.ledger.recalled == {sent.draft.draft_id: 1}
    await asyncio.sleep(600)
    progress = await client.recall_progress(sent)
    assert progress.done
    assert {one.recipient.address: one.status for one in progress.recipients} == {
        "li@example.com": RecallStatus.FAILED,
        "han@example.com": RecallStatus.RECALLED,
    }
    assert await client.recall_message(sent) == Recall(accepted=False, reason="already_recalled")


async def test_a_recall_too_late(sandbox: Sandbox, client: FeishuMailClient) -> None:
    sent = await client.send_draft(await client.create_draft(letter()))
    await asyncio.sleep(25 * 3600)
    assert await client.recall_message(sent) == Recall(accepted=False, reason="exceeded_time_limit")


async def test_a_result_without_an_id(sandbox: Sandbox, client: FeishuMailClient) -> None:
    nameless = SendResult(Draft("d1"), None, None, already_sent=True, attempts=1, log_id=None)
    for ask in (client.delivery, client.recall_message, client.recall_progress):
        with pytest.raises(ValueError, match=r"^mail: the server gave no message_id"):
            await ask(nameless)
        with pytest.raises(TypeError, match=r"^mail: "):
            await ask(Draft("d1"))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"^mailbox, user: "):
            await ask(SendResult(Draft("d1"), "m1", None, False, 1, None), user="bob")
    assert not sandbox.ledger.arrivals
