"""Mails that have gone out: their list, their delivery, and their recall."""

import asyncio
from typing import Any

import pytest

from tests.helpers.callers import Answer, Caller, number, running
from tests.helpers.letters import letter

pytestmark = pytest.mark.looptime

DAY = 86_400
PEOPLE = letter(To="Bob <bob@example.com>", Cc="gone@bounce.example", Bcc="BOB@example.com, eve@example.com")


async def delivery(caller: Caller, message_id: str, **kwargs: Any) -> Answer:
    return await caller.mail("GET", f"messages/{message_id}/send_status", **kwargs)


async def recall(caller: Caller, message_id: str, **kwargs: Any) -> Answer:
    return await caller.mail("POST", f"messages/{message_id}/recall", **kwargs)


async def progress(caller: Caller, message_id: str, **kwargs: Any) -> Answer:
    return await caller.mail("GET", f"messages/{message_id}/recall", **kwargs)


async def states(caller: Caller, message_id: str) -> dict[str, int]:
    answer = await delivery(caller, message_id)
    assert (answer.code, answer.data["message_id"]) == (0, message_id)
    return {item["recipient"]["mail_address"]: item["status"] for item in answer.data["details"]}


# --- the list -------------------------------------------------------------------------------------------


async def test_mails_are_listed_in_pages_of_twenty_at_most() -> None:
    async with running(calls=100, latency=0.0) as (sandbox, caller):
        drafts = sandbox.add_drafts("alice", 45)
        for draft in drafts[:25]:
            await caller.send(draft)
        found: list[str] = []
        token = ""
        while True:
            page = (await caller.mail("GET", f"messages?page_size=20&folder_id=SENT{token}")).data
            found += page["items"]
            if not page["has_more"]:
                break
            token = f"&page_token={page['page_token']}"
        assert found == [sandbox.message_id(draft) for draft in drafts[:25]]
        assert len((await caller.mail("GET", "messages?folder_id=DRAFT")).data["items"]) == 20
        for wrong in (
            "page_size=21&folder_id=SENT",
            "folder_id=TRASH",
            "page_size=20",
            "folder_id=SENT&page_token=x",
        ):
            assert (await caller.mail("GET", f"messages?{wrong}")).code == number("InvalidRequest")


# --- delivery -------------------------------------------------------------------------------------------


async def test_a_mail_is_delivered_after_a_while_or_bounces() -> None:
    async with running(latency=0.0) as (sandbox, caller):
        draft = sandbox.add_draft("alice", message=PEOPLE)
        mail = sandbox.message_id(draft)
        people = {"bob@example.com", "gone@bounce.example", "eve@example.com"}
        assert await states(caller, mail) == dict.fromkeys(people, 0)
        sent = (await caller.send(draft)).data["message_id"]
        assert sent == mail
        assert await states(caller, mail) == dict.fromkeys(people, 1)
        went_out = int(sandbox.unix_time())
        await asyncio.sleep(sandbox.delivery_seconds)
        assert await states(caller, mail) == {
            "bob@example.com": 4,
            "gone@bounce.example": 3,
            "eve@example.com": 4,
        }
        details = (await delivery(caller, mail)).data["details"]
        assert {item["last_updated_time"] for item in details} == {went_out + 5}
        assert details[0]["recipient"] == {"mail_address": "bob@example.com", "name": "Bob"}
        sandbox.set_delivery(draft, "EVE@example.com", 6)
        assert (await states(caller, mail))["eve@example.com"] == 6
        with pytest.raises(ValueError, match="status"):
            sandbox.set_delivery(draft, "eve@example.com", 7)
        with pytest.raises(ValueError, match="draft_id"):
            sandbox.set_delivery("none", "eve@example.com", 4)


async def test_a_scheduled_mail_waits() -> None:
    async with running(latency=0.0) as (sandbox, caller):
        draft = sandbox.add_draft("alice", message=PEOPLE)
        mail = sandbox.message_id(draft)
        sandbox.set_delivery(draft, "bob@example.com", 2)
        await caller.send(draft, json={"send_time": str(int(sandbox.unix_time()) + 500)})
        assert set((await states(caller, mail)).values()) == {0}
        await asyncio.sleep(501)
        assert (await states(caller, mail))["bob@example.com"] == 2


async def test_what_is_not_there_has_no_status() -> None:
    async with running(latency=0.0) as (sandbox, caller):
        draft, deleted = sandbox.add_drafts("alice", 2)
        await caller.mail("DELETE", f"drafts/{deleted}")
        for unknown in ("none", draft, sandbox.message_id(deleted)):
            for call in (delivery, recall, progress):
                assert (await call(caller, unknown)).code == number("DraftNotFound")
        assert (await delivery(caller, sandbox.message_id(draft), user="bob")).code == number("DraftNotFound")
        assert sandbox.ledger.deleted == {deleted: 1}


# --- recall ---------------------------------------------------------------------------------------------


async def test_a_recall_takes_a_while_and_may_fail_for_some() -> None:
    async with running(latency=0.0) as (sandbox, caller):
        draft = sandbox.add_draft("alice", message=PEOPLE)
        mail = sandbox.message_id(draft)
        sandbox.set_recall(draft, "Eve@example.com", "message_has_been_read")
        await caller.send(draft)
        await asyncio.sleep(sandbox.delivery_seconds)
        assert (await progress(caller, mail)).code == number("InvalidRequest")
        assert (await recall(caller, mail)).data == {"recall_status": "available"}
        data = (await progress(caller, mail)).data
        assert (data["recall_status"], data["recall_result"]) == ("in_progress", "processing")
        assert (data["success_count"], data["failure_count"], data["processing_count"]) == (0, 0, 3)
        await asyncio.sleep(sandbox.recall_seconds)
        data = (await progress(caller, mail)).data
        assert (data["recall_status"], data["recall_result"]) == ("done", "some_fail")
        assert (data["success_count"], data["failure_count"], data["processing_count"]) == (1, 2, 0)
        found = {item["recipient_address"]: (item["status"], item.get("fail_reason")) for item in data["items"]}
        assert found == {
            "bob@example.com": ("success", None),
            "eve@example.com": ("fail", "message_has_been_read"),
            "gone@bounce.example": ("fail", "invalid_address"),
        }
        assert data["items"][0]["recipient_name"] == "Bob"
        sandbox.set_recall(draft, "eve@example.com", None)
        assert (await progress(caller, mail)).data["failure_count"] == 1
        assert (await recall(caller, mail)).data["recall_restriction_reason"] == "already_recalled"
        assert sandbox.ledger.recalled == {draft: 1}


@pytest.mark.parametrize(
    ("address", "result"), [("bob@example.com", "all_success"), ("eve@example.com", "all_fail")]
)
async def test_a_recall_may_go_well_or_fail_for_all(address: str, result: str) -> None:
    async with running(latency=0.0) as (sandbox, caller):
        draft = sandbox.add_draft("alice", message=letter(To=address))
        sandbox.set_recall(draft, "eve@example.com", "not_using_lark_mail")
        await caller.send(draft)
        await asyncio.sleep(10)
        await recall(caller, sandbox.message_id(draft))
        await asyncio.sleep(10)
        assert (await progress(caller, sandbox.message_id(draft))).data["recall_result"] == result


async def test_what_cannot_be_recalled_is_told_with_code_zero() -> None:
    async with running(latency=0.0) as (sandbox, caller):
        plain, waiting, bounced, old = (
            sandbox.add_draft("alice", message=message)
            for message in (letter(), letter(), letter(To="x@bounce.example"), letter())
        )
        for draft in (bounced, old):
            await caller.send(draft)
        await caller.send(waiting, json={"send_time": str(int(sandbox.unix_time()) + 2 * DAY)})

        async def reason(draft: str) -> str:
            answer = await recall(caller, sandbox.message_id(draft))
            assert (answer.status, answer.code, answer.data["recall_status"]) == (200, 0, "unavailable")
            return str(answer.data["recall_restriction_reason"])

        assert await reason(old) == "not_delivered", "it is on its way"
        await asyncio.sleep(6)
        for draft in (plain, waiting, bounced):
            assert await reason(draft) == "not_delivered"
        await asyncio.sleep(DAY)
        assert await reason(old) == "exceeded_time_limit"
        assert sandbox.ledger.recalled == {}


# --- limits, scopes, locks ------------------------------------------------------------------------------


LIMITS = {
    "read": ("GET", "drafts/x", 10, 1),
    "update": ("PUT", "drafts/x", 5, 1),
    "delete": ("DELETE", "drafts/x", 5, 1),
    "create": ("POST", "drafts", 5, 1),
    "cancel": ("POST", "messages/x/cancel_scheduled_send", 5, 1),
    "mails": ("GET", "messages?folder_id=SENT", 10, 1),
    "delivery": ("GET", "messages/x/send_status", 10, 1),
    "recall": ("POST", "messages/x/recall", 10, 1),
    "recall_progress": ("GET", "messages/x/recall", 20, 60),
}


@pytest.mark.parametrize("endpoint", LIMITS)
async def test_every_endpoint_has_a_limit_of_its_own(endpoint: str) -> None:
    method, path, calls, per = LIMITS[endpoint]
    async with running(latency=0.0) as (sandbox, caller):
        refused = number("FrequencyLimited")
        for _ in range(2):
            codes = [(await caller.mail(method, path)).code for _ in range(calls + 1)]
            assert [code == refused for code in codes] == [False] * calls + [True]
            await asyncio.sleep(per)
        assert sandbox.ledger.refusals_by_endpoint == {endpoint: 2}
        assert {call.endpoint for call in sandbox.ledger.arrivals} == {endpoint}


SCOPES = {
    "mail:user_mailbox.message:readonly": ["read", "mails", "delivery", "recall_progress"],
    "mail:user_mailbox.message:modify": ["update", "delete", "create", "recall"],
    "mail:user_mailbox.message:send": ["cancel"],
}


@pytest.mark.parametrize("scope", SCOPES)
async def test_every_endpoint_wants_a_scope(scope: str) -> None:
    async with running(latency=0.0) as (sandbox, caller):
        sandbox.add_user("carol", scopes=[scope])
        for endpoint, (method, path, _, _) in LIMITS.items():
            refused = (await caller.mail(method, path, user="carol")).code == number("UserScopeMissing")
            assert refused == (endpoint not in SCOPES[scope])


@pytest.mark.parametrize("endpoint", LIMITS)
async def test_writes_take_the_locks(endpoint: str) -> None:
    method, path, _, _ = LIMITS[endpoint]
    writes = endpoint in {"update", "delete", "create", "cancel", "recall"}
    async with running(latency=1.0) as (sandbox, caller):
        draft = sandbox.add_draft("alice")
        other, sent = await asyncio.gather(caller.mail(method, path), caller.send(draft))
        conflict = number("ConcurrentWrite")
        assert [other.code, sent.code].count(conflict) == (1 if writes else 0)
        assert sum(sandbox.ledger.conflicts_by_endpoint.values()) == sandbox.ledger.conflicts == int(writes)
