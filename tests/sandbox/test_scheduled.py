"""Scheduled sends: when they are due, where they are meanwhile, and how they are cancelled."""

import asyncio
from typing import Any

import pytest

from feishu_mail_async.sandbox import Sandbox
from tests.helpers.callers import Answer, Caller, number, running
from tests.helpers.letters import letter

pytestmark = pytest.mark.looptime


async def schedule(sandbox: Sandbox, caller: Caller, draft: str, ahead: float = 1000) -> Answer:
    return await caller.send(draft, json={"send_time": str(int(sandbox.unix_time() + ahead) + 1)})


async def cancel(caller: Caller, message_id: str, **kwargs: Any) -> Answer:
    return await caller.mail("POST", f"messages/{message_id}/cancel_scheduled_send", **kwargs)


async def folder(caller: Caller, name: str) -> list[str]:
    answer = await caller.mail("GET", f"messages?page_size=20&folder_id={name}")
    assert answer.code == 0
    return list(answer.data["items"])


async def test_a_scheduled_mail_is_no_draft_until_it_is_cancelled() -> None:
    async with running(calls=100) as (sandbox, caller):
        later, never = sandbox.add_drafts("alice", 2)
        for draft in (later, never):
            answer = await schedule(sandbox, caller, draft)
            assert (answer.code, answer.data) == (0, {})
        assert (await caller.mail("GET", "drafts")).data["items"] == []
        assert await folder(caller, "SCHEDULED") == [sandbox.message_id(later), sandbox.message_id(never)]
        assert await folder(caller, "DRAFT") == await folder(caller, "SENT") == []
        for method in ("GET", "DELETE"):
            assert (await caller.mail(method, f"drafts/{never}")).code == number("DraftNotFound")
        assert (await caller.send(never)).code == number("AlreadySent")
        assert (await schedule(sandbox, caller, never)).code == number("AlreadySent")

        assert (await cancel(caller, sandbox.message_id(never))).json["data"] == {}
        assert (await cancel(caller, sandbox.message_id(never))).code == number("NotScheduled")
        assert [item["id"] for item in (await caller.mail("GET", "drafts")).data["items"]] == [never]
        assert await folder(caller, "DRAFT") == [sandbox.message_id(never)]
        await asyncio.sleep(1002)
        assert sandbox.ledger.sent == {later: 1}
        assert await folder(caller, "SENT") == [sandbox.message_id(later)]
        assert await folder(caller, "SCHEDULED") == []
        # A draft again, it may be sent, or scheduled once more.
        assert (await schedule(sandbox, caller, never)).code == 0
        await asyncio.sleep(1002)
        assert sandbox.ledger.sent == {later: 1, never: 1}
        assert (sandbox.ledger.scheduled, sandbox.ledger.cancelled) == ({later: 1, never: 2}, {never: 1})


async def test_what_cannot_be_cancelled() -> None:
    async with running() as (sandbox, caller):
        draft, sent = sandbox.add_drafts("alice", 2)
        await schedule(sandbox, caller, draft)
        await caller.send(sent)

        async def refused(message_id: str, **kwargs: Any) -> tuple[int, int]:
            answer = await cancel(caller, message_id, **kwargs)
            await asyncio.sleep(1)
            return answer.status, answer.code

        assert await refused(draft) == (400, number("NotScheduled")), "a draft's id where a mail's belongs"
        assert await refused(sandbox.message_id(sent)) == (400, number("NotScheduled"))
        assert await refused("none") == (404, number("DraftNotFound"))
        assert await refused(sandbox.message_id(draft), user="bob") == (404, number("DraftNotFound"))
        sandbox.add_user("carol", scopes=["mail:user_mailbox.message:modify"])
        assert (await refused(sandbox.message_id(draft), user="carol"))[1] == number("UserScopeMissing")
        await asyncio.sleep(1002)
        assert sandbox.ledger.sent == {sent: 1, draft: 1}


@pytest.mark.parametrize(
    "time",
    [
        lambda now: str(int(now) + 290),
        lambda now: int(now) + 1000,
        lambda now: f"{now + 1000}",
        lambda now: f"+{int(now) + 1000}",
        lambda _: "",
        lambda _: "tomorrow",
        lambda _: {},
    ],
    ids=["too early", "a number", "a fraction", "a sign", "empty", "words", "an object"],
)
async def test_a_time_is_a_text_of_seconds_five_minutes_ahead(time: Any) -> None:
    async with running() as (sandbox, caller):
        draft = sandbox.add_draft("alice")
        answer = await caller.send(draft, json={"send_time": time(sandbox.unix_time())})
        assert (answer.status, answer.code) == (400, number("InvalidRequest"))
        assert (await caller.send(draft, data=b"[]")).code == number("InvalidRequest")
        assert (await caller.send(draft, json={"send_time": None})).code == 0


async def test_an_invitation_cannot_be_scheduled() -> None:
    async with running() as (sandbox, caller):
        message = letter()
        message.add_alternative("BEGIN:VCALENDAR\nEND:VCALENDAR\n", subtype="calendar")
        draft = sandbox.add_draft("alice", message=message)
        assert (await schedule(sandbox, caller, draft)).code == number("InvalidRequest")
        assert (await caller.send(draft)).code == 0


async def test_nothing_goes_out_whose_cancelling_has_been_answered() -> None:
    async with running(processing=10.0, latency=0.0) as (sandbox, caller):
        draft = sandbox.add_draft("alice")
        due = int(sandbox.unix_time()) + 1000
        await caller.send(draft, json={"send_time": str(due)})
        await asyncio.sleep(due - sandbox.unix_time() - 5)
        # It arrives before the mail is due, and is done with after that.
        assert (await cancel(caller, sandbox.message_id(draft))).code == 0
        await asyncio.sleep(100)
        assert sandbox.ledger.sent == {}
        assert [item["id"] for item in (await caller.mail("GET", "drafts")).data["items"]] == [draft]
