"""Judgements on sends: once for each draft, one at a time, and by whom it may be."""

import asyncio
import json
from typing import Any
from urllib.parse import quote

import pytest

from tests.helpers.callers import number, running

pytestmark = pytest.mark.looptime


async def test_every_answer_has_a_log_id_of_its_own() -> None:
    async with running(latency=0.0) as (sandbox, caller):
        draft = sandbox.add_draft("alice")
        answers = [await caller.send(draft) for _ in range(3)]
        answers.append(await caller.call("GET", "/nowhere"))
        assert len({answer.headers["X-Tt-Logid"] for answer in answers}) == 4
        assert [a.log_id for a in sandbox.ledger.calls(draft)] == [
            answer.headers["X-Tt-Logid"] for answer in answers[:3]
        ]


async def test_no_token_is_told() -> None:
    async with running() as (sandbox, caller):
        draft = sandbox.add_draft("alice")
        await caller.send(draft)
        pair = sandbox.issue_tokens("alice")
        told = [repr(sandbox), repr(vars(sandbox)["_oauth"]), json.dumps(sandbox.ledger.as_json())]
        for secret in (sandbox.token("alice"), pair["access_token"], pair["refresh_token"], sandbox.client_secret):
            assert not any(secret in text for text in told)


# --- sending ---------------------------------------------------------------------------------------------


async def test_a_draft_is_sent_once() -> None:
    async with running() as (sandbox, caller):
        draft, other = sandbox.add_drafts("alice", 2)
        first, second = await caller.send(draft), await caller.send(draft)
        assert (first.status, first.code) == (200, 0)
        assert first.data["message_id"] == sandbox.message_id(draft)
        assert first.data["thread_id"]
        assert first.data["recall_status"] == "available"
        assert (second.status, second.code) == (409, number("AlreadySent"))
        assert sandbox.ledger.sent == {draft: 1}
        assert (await caller.mail("GET", "drafts")).data["items"] == [{"id": other}]


async def test_what_a_send_may_be_refused_for() -> None:
    async with running(calls=100) as (sandbox, caller):
        draft = sandbox.add_draft("alice")

        async def refused(**kwargs: Any) -> tuple[int, int]:
            answer = await caller.send(kwargs.pop("draft", draft), **kwargs)
            return answer.status, answer.code

        assert await refused(draft="no such draft") == (404, number("DraftNotFound"))
        assert await refused(user="bob") == (404, number("DraftNotFound"))
        assert await refused(mailbox="bob@example.com") == (403, number("PermissionDenied"))
        assert await refused(mailbox="nobody@example.com") == (404, number("MailboxNotFound"))
        assert await refused(draft="x" * 600) == (400, number("InvalidRequest"))
        assert await refused(draft="a\nb") == (400, number("InvalidRequest"))
        sandbox.close_mailbox("Alice@example.com")
        assert await refused() == (404, number("MailboxNotFound"))
        assert sandbox.ledger.sends[-1].mailbox == "alice@example.com"
        assert sandbox.ledger.sent.total() == 0


async def test_what_a_token_may_be_refused_for() -> None:
    async with running(calls=100) as (sandbox, caller):
        draft = sandbox.add_draft("alice")
        sandbox.add_user("carol", scopes=["mail:user_mailbox.message:readonly"])
        sandbox.add_user("dave", expires_in=10.0)

        async def refused(authorization: str) -> int:
            return (await caller.send(draft, user=None, headers={"Authorization": authorization})).code

        assert (await caller.send(draft, user=None)).code == number("TokenMissing")
        assert await refused("Basic abc") == number("TokenMissing")
        assert await refused("Bearer abc") == number("TokenMalformed")
        assert await refused("Bearer u-abc") == number("TokenInvalid")
        assert (await caller.send(draft, user="carol")).code == number("UserScopeMissing")
        await asyncio.sleep(10.0)
        assert (await caller.send(draft, user="dave")).code == number("TokenExpired")
        sandbox.expire_token("alice")
        assert (await caller.send(draft)).code == number("TokenExpired")
        sandbox.renew_token("alice")
        sandbox.revoke("alice")
        assert (await caller.send(draft)).code == number("UserTokenInvalid")
        sandbox.renew_token("alice")
        assert (await caller.send(draft)).code == 0
        assert sandbox.tokens["alice"] == sandbox.token("alice")


async def test_a_long_token_is_fine() -> None:
    async with running() as (sandbox, caller):
        sandbox.add_user("carol", token="eyJ" + "x" * 4093)
        assert (await caller.send(sandbox.add_draft("carol"), user="carol")).code == 0


@pytest.mark.parametrize("draft", ["a/b", "..", ".", "%2F", "#", "?x=1", "ü 漢", "a%252Fb", "+", ";", "a b"])
async def test_an_id_is_decoded_exactly_once(draft: str) -> None:
    async with running() as (sandbox, caller):
        sandbox.add_draft("alice", draft)
        path = quote(draft, safe="").replace(".", "%2E")
        assert (await caller.mail("POST", f"drafts/{path}/send")).code == 0
        assert sandbox.ledger.sent == {draft: 1}


async def test_a_mailbox_may_be_shared_and_is_compared_without_case() -> None:
    async with running() as (sandbox, caller):
        sandbox.share_mailbox("großteam@example.com", "alice", "bob")
        draft = sandbox.add_draft("alice", mailbox="Großteam@Example.com")
        answer = await caller.send(draft, user="bob", mailbox="GROSSTEAM@example.com")
        assert answer.code == 0
        assert sandbox.ledger.sends[0].mailbox == "großteam@example.com"
        assert (await caller.send(sandbox.add_draft("alice"), mailbox="ALICE@example.com")).code == 0


async def test_a_mailbox_may_block_automation() -> None:
    async with running() as (sandbox, caller):
        draft = sandbox.add_draft("alice")
        sandbox.disable_automation("alice@example.com", "policy", "https://example.com/d")
        answer = await caller.send(draft)
        assert answer.code == 0
        assert answer.data == {
            "automation_send_disable": {"reason": "policy", "reference": "https://example.com/d"}
        }
        assert sandbox.ledger.sent.total() == 0
        sandbox.open_mailbox("alice@example.com")
        assert (await caller.send(draft)).code == 0


async def test_a_daily_quota_comes_back_after_a_day() -> None:
    async with running(daily_quota=2) as (sandbox, caller):
        drafts = sandbox.add_drafts("alice", 4)
        found = [(await caller.send(draft)).code for draft in drafts[:3]]
        assert found == [0, 0, number("UserDailyQuota")]
        assert (await caller.send(sandbox.add_draft("bob"), user="bob")).code == 0
        await asyncio.sleep(86_400.0)
        assert (await caller.send(drafts[2])).code == 0
        sandbox.set_quota("alice", 0)
        assert (await caller.send(drafts[3])).code == number("UserDailyQuota")
        sandbox.set_quota("alice", None)
        assert (await caller.send(drafts[3])).code == 0


# --- locks -----------------------------------------------------------------------------------------------


async def test_a_user_may_make_one_call_at_a_time() -> None:
    async with running() as (sandbox, caller):
        drafts = sandbox.add_drafts("alice", 2)
        answers = await asyncio.gather(
            *map(caller.send, drafts), caller.send(sandbox.add_draft("bob"), user="bob")
        )
        assert sorted(answer.code for answer in answers) == [0, 0, number("ConcurrentWrite")]
        assert sandbox.ledger.conflicts == 1
        # One after another never conflicts, however fast.
        sandbox.latency = 0.0
        for draft in sandbox.add_drafts("alice", 10):
            assert (await caller.send(draft)).code == 0
        assert sandbox.ledger.conflicts == 1


async def test_a_mailbox_takes_one_call_at_a_time() -> None:
    async with running() as (sandbox, caller):
        sandbox.share_mailbox("team@example.com", "alice", "bob")
        first, second = sandbox.add_drafts("alice", 2, mailbox="team@example.com")
        answers = await asyncio.gather(
            caller.send(first, mailbox="team@example.com"),
            caller.send(second, mailbox="TEAM@example.com", user="bob"),
        )
        assert sorted(answer.code for answer in answers) == [0, number("ConcurrentWrite")]


@pytest.mark.parametrize(("strict", "conflicts"), [(True, 1), (False, 0)])
async def test_locks_are_held_to_the_end_of_the_way_back_or_of_the_processing(
    strict: bool, conflicts: int
) -> None:
    ways = lambda _: (0.0, 10.0)  # noqa: E731
    async with running(latency=ways, processing=2.0, lock_until_answered=strict) as (sandbox, caller):
        first, second, third = sandbox.add_drafts("alice", 3)
        async with asyncio.TaskGroup() as group:
            group.create_task(caller.send(first))
            await asyncio.sleep(1.0)
            # Within the processing both readings agree.
            group.create_task(caller.send(second))
            await asyncio.sleep(4.0)
            group.create_task(caller.send(third))
        assert sandbox.ledger.conflicts == 1 + conflicts


async def test_other_writes_take_the_locks_and_reads_do_not() -> None:
    async with running() as (sandbox, caller):
        sandbox.latency = 1.0
        first, second = sandbox.add_drafts("alice", 2)
        answers = await asyncio.gather(
            caller.send(first), caller.mail("DELETE", f"drafts/{second}"), caller.mail("GET", "drafts")
        )
        assert sorted(answer.code for answer in answers) == [0, 0, number("ConcurrentWrite")]
