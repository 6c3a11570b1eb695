"""What is suspended stays so until it is resumed, and whoever waits behind it is told at once."""

import asyncio
from typing import Any

import pytest

from feishu_mail_async import (
    Draft,
    FeishuMailClient,
    FeishuMailError,
    MailboxNotFound,
    SendResult,
    Suspended,
    UserDailyQuota,
)
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.canary import TOKEN
from tests.helpers.clock import now
from tests.helpers.scenes import scene
from tests.helpers.wrong import begins_with

pytestmark = pytest.mark.looptime(start=0)


@pytest.mark.parametrize("scope", ["app", "user:alice", "user:a:b", "mailbox:box@example.com", "mailbox:me/alice"])
async def test_what_is_not_closed_stays_as_it_is(scope: str) -> None:
    async with FeishuMailClient(TOKEN) as client:
        client.resume(scope)
        assert client.snapshot().suspended == ()


@pytest.mark.parametrize(
    ("scope", "error"),
    [
        ("", ValueError),
        ("App", ValueError),
        ("app:", ValueError),
        ("app:cli_1", ValueError),
        ("user", ValueError),
        ("user:", ValueError),
        ("mailbox:", ValueError),
        ("users:alice", ValueError),
        ("draft:d1", ValueError),
        ("alice", ValueError),
        ("user:a\n", ValueError),
        (None, TypeError),
        (7, TypeError),
    ],
)
async def test_what_is_no_scope(scope: Any, error: type[Exception]) -> None:
    async with FeishuMailClient(TOKEN) as client:
        with pytest.raises(error, match=begins_with("subject")):
            client.resume(scope)


@pytest.mark.parametrize("user", ["alice", "Alice", "Alice@Example.com", "ÄLICE", "straße@example.com"])
@pytest.mark.parametrize("box", ["me", "Shared@Example.COM"])
async def test_reopening_as_the_error_says(user: str, box: str) -> None:
    async with Sandbox(users=(user,), latency=0.1) as sandbox:
        sandbox.share_mailbox("Shared@Example.COM", user)
        one, two = (sandbox.add_draft(user, mailbox=box) for _ in range(2))
        sandbox.script(one, Fault.code("MailboxNotFound"))
        async with FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url) as client:
            with pytest.raises(MailboxNotFound):
                await client.send_draft(one, mailbox=box)
            with pytest.raises(Suspended) as caught:
                await client.send_draft(two, mailbox=box)
            assert client.snapshot().suspended[0].subject == caught.value.subject
            client.resume(caught.value.subject)
            assert client.snapshot().suspended == ()
            await client.send_draft(two, mailbox=box)


@pytest.mark.parametrize("unnamed", [True, False])
async def test_reopening_a_user_as_the_error_says(unnamed: bool) -> None:
    async with scene(drafts=2) as (sandbox, _, (one, two)):
        sandbox.script(one, Fault.code("UserScopeMissing"))
        tokens = sandbox.token("alice") if unnamed else sandbox.tokens
        async with FeishuMailClient(tokens, base_url=sandbox.base_url) as client:
            with pytest.raises(FeishuMailError):
                await client.send_draft(one)
            with pytest.raises(Suspended) as caught:
                await client.send_draft(two)
            assert caught.value.subject.startswith("user:")
            assert sandbox.token("alice") not in caught.value.subject
            client.resume(caught.value.subject)
            await client.send_draft(two)


async def test_what_waits_behind_a_closure_is_told_at_once() -> None:
    async with scene("alice", "bob", drafts=3) as (sandbox, client, ids):
        sandbox.script(ids[0], Fault.code("UserDailyQuota"))
        ends = await asyncio.gather(
            *(client.send_draft(Draft(draft_id, user="alice", tag=draft_id)) for draft_id in ids),
            client.send_draft(sandbox.add_draft("bob"), user="bob"),
            return_exceptions=True,
        )
        assert isinstance(ends[0], UserDailyQuota)
        for draft_id, end in zip(ids[1:], ends[1:3], strict=True):
            assert isinstance(end, Suspended)
            assert end.draft is not None
            assert end.draft.tag == draft_id
            assert end.__cause__ is not None
        assert isinstance(ends[3], SendResult)
        assert now() < 1


async def test_what_listing_has_closed_is_seen_and_reopened() -> None:
    async with Sandbox(users=["alice"], latency=0.1) as sandbox:
        address = sandbox.users["alice"]
        draft_id = sandbox.add_draft("alice")
        sandbox.close_mailbox(address)
        async with FeishuMailClient(sandbox.token("alice"), base_url=sandbox.base_url) as client:
            with pytest.raises(MailboxNotFound):
                await anext(client.list_drafts())
            assert [scope.seconds for scope in client.snapshot().suspended] == [None]
            sandbox.open_mailbox(address)
            with pytest.raises(Suspended):
                await anext(client.list_drafts())
            client.resume("mailbox:me")
            assert (await anext(client.list_drafts())).draft_id == draft_id
            assert client.snapshot().suspended == ()
