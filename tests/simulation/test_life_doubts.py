"""Calls whose replies are lost, and what comes in between while it is looked for what they have done."""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from feishu_mail_async import (
    Draft,
    FeishuMailClient,
    NotScheduled,
    NotSent,
    OutcomeUnknown,
    RetryPolicy,
    SendResult,
)
from feishu_mail_async._api.bodies import json_body
from feishu_mail_async._api.endpoints import SEND
from feishu_mail_async.events import DraftMayBeLeft, Event
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.clock import now
from tests.helpers.letters import letter
from tests.helpers.tasks import our_tasks, settle

pytestmark = pytest.mark.looptime(start=0)

TWICE = RetryPolicy(attempts=2, initial=0.1)


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(users=["alice", "bob"], latency=0.1) as running:
        yield running


@pytest.fixture
async def client(sandbox: Sandbox) -> AsyncIterator[FeishuMailClient]:
    async with FeishuMailClient(sandbox.token("alice"), base_url=sandbox.base_url, retry=TWICE) as running:
        yield running
    assert our_tasks() == []
    assert (sandbox.ledger.conflicts, sandbox.ledger.refusals, sandbox.ledger.sibling_refusals) == (0, 0, 0)


def calls(sandbox: Sandbox, endpoint: str) -> int:
    return len([one for one in sandbox.ledger.arrivals if one.endpoint == endpoint])


async def scheduled(client: FeishuMailClient, sandbox: Sandbox, ahead: float = 600.0) -> SendResult:
    """A draft that is created and scheduled."""
    draft = await client.create_draft(letter())
    body = json_body({"send_time": str(int(sandbox.unix_time() + ahead) + 1)})
    await client._binding.call(
        SEND, client._binding.account(draft), mailbox="me", body=body, draft_id=draft.draft_id
    )
    return SendResult(draft, sandbox.message_id(draft.draft_id), None, False, 1, None)


# --- what was lost is looked for, with care ------------------------------------------------------------------


async def test_an_answer_that_does_not_say_which_draft_it_made(sandbox: Sandbox, client: FeishuMailClient) -> None:
    sandbox.script_calls("create", Fault.code("Success", accepted=True))
    draft = await client.create_draft(letter())
    assert list(sandbox.ledger.created) == [draft.draft_id]


async def test_an_answer_that_does_not_say_whether_it_recalls(sandbox: Sandbox, client: FeishuMailClient) -> None:
    sent = await client.send_draft(await client.create_draft(letter()))
    await asyncio.sleep(60)
    sandbox.script_calls("recall", Fault.code("Success", accepted=True))
    assert (await client.recall_message(sent)).accepted


async def test_one_message_created_twice_at_once(sandbox: Sandbox, client: FeishuMailClient) -> None:
    """The draft that is found may be the other one's, whose answer is still on its way."""
    message = letter(Message_ID="<july@example.com>")
    sandbox.script_calls("create", Fault.reset_after(), Fault.delay(0.1, 20.0))
    sandbox.script_calls("list", Fault.delay(1.0))
    sandbox.script_calls("read", Fault.delay(1.0))  # of the one that is looked for: the other one's is read first
    drafts = await asyncio.gather(*(client.create_draft(message) for _ in range(2)))
    assert {*sandbox.ledger.created} == {draft.draft_id for draft in drafts}
    assert len(sandbox.ledger.created) == 2


async def test_one_message_created_twice_at_once_and_both_lost(sandbox: Sandbox, client: FeishuMailClient) -> None:
    message = letter(Message_ID="<july@example.com>")
    sandbox.script_calls("create", Fault.reset_after(), Fault.reset_after())
    drafts = await asyncio.gather(*(client.create_draft(message) for _ in range(2)))
    assert {*sandbox.ledger.created} == {draft.draft_id for draft in drafts}
    assert len(sandbox.ledger.created) == 2


async def test_one_message_in_two_mailboxes_does_not_wait(sandbox: Sandbox) -> None:
    message = letter(Message_ID="<july@example.com>")
    sandbox.script_calls("create", Fault.delay(10.0, 10.0))
    async with FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url) as client:
        first = asyncio.create_task(client.create_draft(message, user="alice"))
        await asyncio.sleep(1)
        await client.create_draft(message, user="bob")
        assert now() < 2
        with pytest.raises(NotSent, match="not created: the deadline of 1 s passed"):
            await client.create_draft(message, user="alice", deadline=1.0)
        await first


async def test_a_draft_that_cannot_be_read_does_not_hide_the_one_looked_for(
    sandbox: Sandbox, client: FeishuMailClient
) -> None:
    old = sandbox.add_drafts("alice", 5)
    sandbox.on_call = lambda arrival: Fault.code("InternalError") if arrival.draft_id == old[2] else None
    sandbox.script_calls("create", Fault.reset_after())
    draft = await client.create_draft(letter())
    assert list(sandbox.ledger.created) == [draft.draft_id]


async def test_a_look_that_fails_leaves_no_call_behind(sandbox: Sandbox, client: FeishuMailClient) -> None:
    old = sandbox.add_drafts("alice", 9)
    sandbox.keeps_message_ids = False
    sandbox.on_call = lambda arrival: Fault.code("PermissionDenied") if arrival.draft_id == old[2] else None
    sandbox.script_calls("create", Fault.reset_after())
    sandbox.script_calls("read", Fault.delay(5.0), Fault.delay(5.0))
    with pytest.raises(OutcomeUnknown):
        await client.create_draft(letter())
    await settle()
    assert client.snapshot().in_flight == 0
    before = calls(sandbox, "read")
    await asyncio.sleep(60)
    assert calls(sandbox, "read") == before


async def test_a_mailbox_with_old_drafts_is_read_once(sandbox: Sandbox, client: FeishuMailClient) -> None:
    sandbox.add_drafts("alice", 300)
    for _ in range(2):
        sandbox.script_calls("create", Fault.reset_before())
        await client.create_draft(letter())
    assert calls(sandbox, "read") == 300


async def test_what_is_lost_and_not_found_is_not_certain_later(sandbox: Sandbox, client: FeishuMailClient) -> None:
    """The second attempt is refused; the first one may have made a draft all the same, and here it has."""
    sandbox.keeps_message_ids = False
    sandbox.script_calls("create", Fault.reset_after(), Fault.code("ContentRisk"))
    with pytest.raises(OutcomeUnknown, match="it may have been created"):
        await client.create_draft(letter())
    assert len(sandbox.ledger.created) == 1


@pytest.mark.parametrize("refused", ["UserScopeMissing", "PermissionDenied"])
async def test_a_recall_is_not_repeated_if_its_progress_cannot_be_seen(
    refused: str, sandbox: Sandbox, client: FeishuMailClient
) -> None:
    sent = await client.send_draft(await client.create_draft(letter()))
    await asyncio.sleep(60)
    sandbox.script_calls("recall", Fault.reset_after())
    sandbox.script_calls("recall_progress", Fault.code(refused))
    with pytest.raises(OutcomeUnknown, match="it may have been recalled"):
        await client.recall_message(sent)
    assert calls(sandbox, "recall") == 1


async def test_a_cancellation_in_doubt_whose_draft_cannot_be_read(
    sandbox: Sandbox, client: FeishuMailClient
) -> None:
    mail = await scheduled(client, sandbox)
    sandbox.script_calls("cancel", Fault.reset_after())
    sandbox.script_calls("read", Fault.code("PermissionDenied"))
    with pytest.raises(OutcomeUnknown, match="it may have been cancelled"):
        await client.cancel_scheduled(mail)


async def test_a_mail_that_went_out_before_two_callers_could_cancel_it(
    sandbox: Sandbox, client: FeishuMailClient
) -> None:
    mail = await scheduled(client, sandbox, ahead=305.0)
    await asyncio.sleep(300)
    sandbox.script_calls("cancel", Fault.reset_before())
    done = await asyncio.gather(*(client.cancel_scheduled(mail) for _ in range(2)), return_exceptions=True)
    assert [type(one) for one in done] == [NotScheduled] * 2
    assert done[0] is not done[1]
    assert all(isinstance(one, NotScheduled) and one.draft == mail.draft for one in done)


async def test_a_look_is_never_older_than_the_wish(sandbox: Sandbox, client: FeishuMailClient) -> None:
    """An answer on its way to somebody else may be from before what the caller knows of."""
    draft = await client.create_draft(letter("before"))
    sandbox.script_calls("list", Fault.delay(0.1, 9.0))
    sandbox.script_calls("read", Fault.delay(0.1, 9.0))

    async def listed() -> list[str]:
        return [one.draft_id async for one in client.list_drafts()]

    early = [asyncio.create_task(listed()), asyncio.create_task(client.read_draft(draft))]
    await asyncio.sleep(1)
    another = await client.create_draft(letter())
    await client.update_draft(draft, letter("after"))
    assert await listed() == [draft.draft_id, another.draft_id]
    assert (await client.read_draft(draft)).subject == "after"
    await asyncio.gather(*early)


# --- a deadline at any moment --------------------------------------------------------------------------------


@pytest.mark.parametrize("deadline", [0.05, 0.3, 5.0, 10.4, 10.55, 11.0, 12.0, 20.0])
@pytest.mark.parametrize("look", ["list", "read"])
async def test_a_creation_ends_with_its_deadline(
    look: str, deadline: float, sandbox: Sandbox, client: FeishuMailClient
) -> None:
    sandbox.script_calls("create", Fault.reset_after())
    sandbox.script_calls(look, *[Fault.delay(20.0)] * 3)
    with pytest.raises(OutcomeUnknown):
        await client.create_draft(letter(), deadline=deadline)
    assert now() <= deadline + 0.01
    await asyncio.sleep(100)


@pytest.mark.parametrize("deadline", [0.05, 5.0, 10.5])
async def test_an_update_and_a_deletion_end_with_their_deadlines(
    deadline: float, sandbox: Sandbox, client: FeishuMailClient
) -> None:
    draft = await client.create_draft(letter())
    for endpoint in ("update", "delete"):
        sandbox.script_calls(endpoint, Fault.reset_after(), Fault.delay(20.0))
        began = now()
        with pytest.raises(OutcomeUnknown):
            await (
                client.delete_draft(draft, deadline=deadline)
                if endpoint == "delete"
                else client.update_draft(draft, letter(), deadline=deadline)
            )
        assert now() - began <= deadline + 0.01
        await asyncio.sleep(100)


@pytest.mark.parametrize("deadline", [0.05, 5.0, 10.5, 15.0, 20.0])
async def test_a_cancellation_ends_with_its_deadline(
    deadline: float, sandbox: Sandbox, client: FeishuMailClient
) -> None:
    mail = await scheduled(client, sandbox)
    began = now()
    sandbox.script_calls("cancel", Fault.reset_after())
    sandbox.script_calls("read", Fault.delay(20.0), Fault.delay(20.0))
    with pytest.raises(OutcomeUnknown):
        await client.cancel_scheduled(mail, deadline=deadline)
    assert now() - began <= deadline + 0.01
    await asyncio.sleep(100)


@pytest.mark.parametrize("deadline", [0.05, 5.0, 10.5, 15.0, 20.0])
async def test_a_recall_ends_with_its_deadline(
    deadline: float, sandbox: Sandbox, client: FeishuMailClient
) -> None:
    sent = await client.send_draft(await client.create_draft(letter()))
    await asyncio.sleep(60)
    began = now()
    sandbox.script_calls("recall", Fault.reset_after())
    sandbox.script_calls("recall_progress", Fault.delay(20.0), Fault.delay(20.0))
    with pytest.raises(OutcomeUnknown):
        await client.recall_message(sent, deadline=deadline)
    assert now() - began <= deadline + 0.01
    await asyncio.sleep(100)


# --- cancelled, closed, and subscribers that raise -----------------------------------------------------------

MOMENTS = [0.05, 0.15, 1.0, 10.25, 10.35, 10.45, 10.55]
"""Before a call arrives, before its answer, waiting for grace, listing, reading."""


@pytest.fixture
def unraised() -> Iterator[list[dict[str, Any]]]:
    """What the loop says of errors that nobody has looked at."""
    said: list[dict[str, Any]] = []
    yield said
    gc.collect()
    assert said == []


def doomed(client: FeishuMailClient, sandbox: Sandbox, mail: SendResult) -> dict[str, Any]:
    """Calls whose first answer is lost, by their endpoints."""
    for endpoint in ("create", "update", "delete", "cancel", "recall"):
        sandbox.script_calls(endpoint, Fault.reset_after())
    return {
        "create": lambda: client.create_draft(letter()),
        "update": lambda: client.update_draft(mail.draft, letter()),
        "delete": lambda: client.delete_draft(mail.draft),
        "cancel": lambda: client.cancel_scheduled(mail),
        "recall": lambda: client.recall_message(mail),
    }


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("endpoint", ["create", "update", "delete", "cancel", "recall"])
@pytest.mark.parametrize("how", ["cancelled", "closed", "closed at once"])
async def test_callers_that_give_up_at_any_moment(
    how: str, endpoint: str, moment: float, sandbox: Sandbox, unraised: list[dict[str, Any]]
) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda _, said: unraised.append(said))
    async with FeishuMailClient(sandbox.token("alice"), base_url=sandbox.base_url) as client:
        sandbox.add_drafts("alice", 30)
        mail = await client.send_draft(await client.create_draft(letter())) if endpoint == "recall" else None
        mail = mail or (await scheduled(client, sandbox) if endpoint == "cancel" else None)
        mail = mail or SendResult(await client.create_draft(letter()), "m1", None, False, 1, None)
        await asyncio.sleep(60)
        task = asyncio.create_task(doomed(client, sandbox, mail)[endpoint]())
        await asyncio.sleep(moment)
        began = now()
        if task.done():
            return
        if how == "cancelled":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert now() == began
        else:
            await client.close(timeout=0 if how == "closed at once" else None)
            ended: object = (await asyncio.gather(task, return_exceptions=True))[0]
            assert now() - began <= 1, "it goes on when its client is closed"
            # What was in flight may have found it.
            assert isinstance(ended, OutcomeUnknown) or (how == "closed" and moment > 10)
    await settle()
    assert our_tasks() == []
    assert (sandbox.ledger.conflicts, sandbox.ledger.sibling_refusals) == (0, 0)


async def test_a_subscriber_that_raises_is_no_matter(sandbox: Sandbox, client: FeishuMailClient) -> None:
    told: list[Event] = []

    def broken(event: Event) -> None:
        told.append(event)
        raise RuntimeError("a mistake of the program's")

    client.subscribe(broken)
    sandbox.script_calls("create", Fault.reset_before())
    draft = await client.create_draft(letter())
    assert list(sandbox.ledger.created) == [draft.draft_id]
    assert [event for event in told if isinstance(event, DraftMayBeLeft)]


async def test_a_message_that_is_changed_meanwhile(sandbox: Sandbox, client: FeishuMailClient) -> None:
    message = letter("before")
    sandbox.script_calls("create", Fault.reset_before())
    creating = asyncio.create_task(client.create_draft(message))
    await asyncio.sleep(1)
    message.replace_header("Subject", "after")
    message["Message-ID"] = "<another@example.com>"
    assert (await client.read_draft(await creating)).subject == "before"


async def test_two_clients_of_one_user(sandbox: Sandbox, client: FeishuMailClient) -> None:
    async with FeishuMailClient(sandbox.token("alice"), base_url=sandbox.base_url, retry=TWICE) as other:
        sandbox.script_calls("create", *[Fault.reset_after()] * 2)
        drafts = await asyncio.gather(*(one.create_draft(letter()) for one in (client, other)))
    assert {*sandbox.ledger.created} == {draft.draft_id for draft in drafts}


@pytest.mark.parametrize("mail", ["draft", Draft("draft")])
async def test_a_draft_that_is_deleted_by_two_at_once(
    mail: str | Draft, sandbox: Sandbox, client: FeishuMailClient
) -> None:
    sandbox.add_draft("alice", "draft")
    sandbox.script_calls("delete", Fault.reset_after())
    await asyncio.gather(*(client.delete_draft(mail) for _ in range(2)))
    assert sandbox.ledger.deleted == {"draft": 1}


# --- what looking costs --------------------------------------------------------------------------------------


async def test_many_that_are_lost_at_once_read_a_mailbox_once(sandbox: Sandbox) -> None:
    sandbox.add_drafts("alice", 300)
    sandbox.on_call = lambda arrival: Fault.gateway() if arrival.endpoint == "create" and now() < 20 else None
    async with FeishuMailClient(sandbox.token("alice"), base_url=sandbox.base_url) as client:
        await asyncio.gather(*(client.create_draft(letter()) for _ in range(100)))
    assert len(sandbox.ledger.created) == 100
    lost = calls(sandbox, "create") - 100
    assert lost > 20
    assert calls(sandbox, "read") == 300
    assert calls(sandbox, "list") < 4 * lost / 2


async def test_drafts_of_its_own_are_not_read(sandbox: Sandbox, client: FeishuMailClient) -> None:
    await asyncio.gather(*(client.create_draft(letter()) for _ in range(50)))
    sandbox.script_calls("create", Fault.reset_before())
    await client.create_draft(letter())
    assert calls(sandbox, "read") == 0


async def test_what_is_new_is_read_first(sandbox: Sandbox, client: FeishuMailClient) -> None:
    sandbox.add_drafts("alice", 300)
    sandbox.script_calls("create", Fault.reset_after())
    await client.create_draft(letter())
    assert len(sandbox.ledger.created) == 1
    assert calls(sandbox, "read") <= 10
