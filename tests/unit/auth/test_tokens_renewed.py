"""Tokens that are refused, and sources that have another."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from feishu_mail_async import Draft, FeishuMailClient, InvalidToken, NotSent, Suspended, TokenSource
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.support import begins_with, chain, holds, scene, settle

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
        # The new token opens the user again, with no `reopen`.
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
