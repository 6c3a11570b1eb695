"""Tokens that are refused, and sources that have another."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from feishu_mail_async import Draft, FeishuMailClient, InvalidToken, NotSent, OutcomeStatus, Suspended, TokenSource
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.canary import chain, holds
from tests.helpers.scenes import scene
from tests.helpers.tasks import settle
from tests.helpers.wrong import begins_with

pytestmark = pytest.mark.looptime(start=0)


async def test_a_mapping_that_loses_a_token_while_a_draft_waits() -> None:
    async with scene(drafts=2) as (sandbox, _, ids):
        tokens = {"alice": sandbox.token("alice")}
        async with FeishuMailClient(tokens, base_url=sandbox.base_url) as client:
            first = asyncio.create_task(client.send_draft(ids[0]))
            second = asyncio.create_task(client.send_draft(ids[1]))
            await settle()
            del tokens["alice"]
            await first
            with pytest.raises(NotSent, match=begins_with("tokens")) as caught:
                await second
            assert caught.value.draft == Draft(ids[1])
            assert client.snapshot().in_flight == 0
        assert len(sandbox.ledger.arrivals) == 1


async def test_a_refused_token_closes_its_user_until_it_changes() -> None:
    async with scene("alice", "bob", drafts=3) as (sandbox, _, ids):
        tokens = dict(sandbox.tokens)
        sandbox.expire_token("alice")
        async with FeishuMailClient(tokens, base_url=sandbox.base_url) as client:
            with pytest.raises(InvalidToken):
                await client.send_draft(ids[0], user="alice")
            with pytest.raises(Suspended) as caught:
                await client.send_draft(ids[1], user="alice")
            assert (caught.value.subject, caught.value.until) == ("user:alice", None)
            assert isinstance(caught.value.__cause__, InvalidToken)
            assert len(sandbox.ledger.arrivals) == 1
            await client.send_draft(sandbox.add_draft("bob"), user="bob")
            tokens["alice"] = sandbox.renew_token("alice")
            await client.send_draft(ids[2], user="alice")


class Source:
    """A source that renews a token when it is told that it was refused."""

    def __init__(self, sandbox: Sandbox, *, renews: bool = True) -> None:
        self.sandbox = sandbox
        self.renews = renews
        self.asked: list[str | None] = []
        self.told: list[tuple[str | None, str]] = []
        self.fails: Exception | None = None

    async def token(self, user: str | None) -> str:
        self.asked.append(user)
        await asyncio.sleep(0.5)
        return self.sandbox.token(user or "alice")

    async def refused(self, user: str | None, token: str) -> None:
        self.told.append((user, token))
        await asyncio.sleep(0.5)
        if self.fails is not None:
            raise self.fails
        if self.renews:
            self.sandbox.renew_token(user or "alice")


@asynccontextmanager
async def with_source(drafts: int, **settings: Any) -> AsyncIterator[tuple[Source, FeishuMailClient, list[str]]]:
    async with scene("alice", "bob", drafts=drafts) as (sandbox, _, ids):
        source = Source(sandbox, **settings)
        assert isinstance(source, TokenSource)
        async with FeishuMailClient(source, base_url=sandbox.base_url) as client:
            yield source, client, ids


async def test_a_source_is_told_once_of_a_refused_token() -> None:
    async with with_source(10) as (source, client, ids):
        old = source.sandbox.token("alice")
        source.sandbox.expire_token("alice")
        results = await asyncio.gather(*(client.send_draft(draft_id) for draft_id in ids))
        assert source.told == [(None, old)]
        assert [result.attempts for result in results] == [2, *[1] * 9]
        ledger = source.sandbox.ledger
        assert ledger.sent == dict.fromkeys(ids, 1)
        assert len(ledger.arrivals) == 11


async def test_others_go_on_while_a_token_is_renewed() -> None:
    async with with_source(1) as (source, client, ids):
        b1 = source.sandbox.add_draft("bob")
        source.sandbox.expire_token("alice")
        await asyncio.gather(client.send_draft(ids[0], user="alice"), client.send_draft(b1, user="bob"))
        assert source.told[0][0] == "alice"
        users = [arrival.user for arrival in source.sandbox.ledger.arrivals]
        assert users == [None, "bob", "alice"]


async def test_a_source_that_has_no_other_token() -> None:
    async with with_source(3, renews=False) as (source, client, ids):
        source.sandbox.expire_token("alice")
        with pytest.raises(InvalidToken) as caught:
            await client.send_draft(ids[0], user="alice")
        assert caught.value.attempts == 1
        with pytest.raises(Suspended):
            await client.send_draft(ids[1], user="alice")
        assert len(source.told) == 1
        # The new token opens the user again, with no `resume`.
        source.sandbox.renew_token("alice")
        await client.send_draft(ids[1], user="alice")


async def test_a_second_refusal_is_not_renewed_again() -> None:
    async with with_source(1) as (source, client, ids):
        source.sandbox.script(ids[0], *[Fault.code("TokenExpired")] * 5)
        with pytest.raises(InvalidToken) as caught:
            await client.send_draft(ids[0])
        assert caught.value.attempts == 2
        assert len(source.told) == 1


async def test_a_source_that_fails_to_renew() -> None:
    async with with_source(2) as (source, client, ids):
        source.sandbox.expire_token("alice")
        source.fails = RuntimeError("the login has ended")
        with pytest.raises(InvalidToken) as caught:
            await client.send_draft(ids[0], user="alice")
        assert isinstance(caught.value.__cause__, NotSent)
        assert source.fails in chain(caught.value)
        assert "RuntimeError" in str(caught.value.__cause__)
        assert holds(caught.value, source.sandbox.token("alice")) == []


async def test_cancelling_while_a_token_is_renewed() -> None:
    async with with_source(2) as (source, client, ids):
        source.sandbox.expire_token("alice")
        send = asyncio.create_task(client.send_draft(ids[0]))
        await asyncio.sleep(0.9)  # fetched at 0.5, refused at 0.6, renewed at 1.1
        assert source.told
        send.cancel()
        with pytest.raises(asyncio.CancelledError):
            await send
        await client.send_draft(ids[1])
        assert source.sandbox.ledger.sent == {ids[1]: 1}


class Renewing:
    """A token source like one that refreshes: slow, and it must not be broken off or run twice at once."""

    def __init__(self, sandbox: Sandbox, seconds: float = 5.0, failures: int = 0) -> None:
        self.sandbox = sandbox
        self.seconds = seconds
        self.failures = failures
        self.begun = self.ended = self.at_once = 0

    async def token(self, user: str | None) -> str:
        return self.sandbox.token(user or "alice")

    async def refused(self, user: str | None, token: str) -> None:
        self.begun += 1
        self.at_once = max(self.at_once, self.begun - self.ended)
        await asyncio.sleep(self.seconds)
        self.ended += 1
        if self.ended <= self.failures:
            raise OSError("no answer")
        self.sandbox.renew_token(user or "alice")


async def test_a_renewal_is_made_once_and_not_broken_off() -> None:
    async with Sandbox(users=["alice"], latency=0.1) as sandbox:
        source = Renewing(sandbox)
        draft_id = sandbox.add_draft("alice")
        async with FeishuMailClient(source, base_url=sandbox.base_url) as client:
            await client.send_draft(sandbox.add_draft("alice"))
            sandbox.expire_token("alice")

            async def listing() -> None:
                assert [draft.draft_id async for draft in client.list_drafts()] == [draft_id]

            with pytest.raises(NotSent):
                await asyncio.gather(client.send_draft(draft_id, deadline=1.0), asyncio.create_task(listing()))
            await asyncio.sleep(10)
            assert (source.begun, source.ended, source.at_once) == (1, 1, 1)
            assert (await client.send_draft(draft_id)).attempts == 1


async def test_one_failure_of_the_source_does_not_close_the_user() -> None:
    async with Sandbox(users=["alice"], latency=0.1) as sandbox:
        source = Renewing(sandbox, failures=2)
        drafts = sandbox.add_drafts("alice", 6)
        async with FeishuMailClient(source, base_url=sandbox.base_url) as client:
            await client.send_draft(drafts[0])
            sandbox.expire_token("alice")
            outcomes = [outcome async for outcome in client.send_drafts(drafts[1:])]
        assert [outcome.status for outcome in outcomes] == [OutcomeStatus.SENT] * 5
        assert source.begun == 3
