"""Promises that are easily broken from afar: token sources, task factories, what is kept and for how long."""

import asyncio
import gc
import pickle
import sys
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from feishu_mail_async import (
    Draft,
    FeishuMailClient,
    InvalidToken,
    MailboxNotFound,
    NotSent,
    OutcomeStatus,
    RetryPolicy,
    Suspended,
    TransportError,
    UserDailyQuota,
)
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.clock import VirtualLoop

pytestmark = pytest.mark.looptime(start=0)


class Source:
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


@asynccontextmanager
async def scene(*users: str) -> AsyncIterator[Sandbox]:
    async with Sandbox(users=users or ("alice",), latency=0.1) as sandbox:
        yield sandbox


async def test_a_renewal_is_made_once_and_not_broken_off() -> None:
    async with scene() as sandbox:
        source = Source(sandbox)
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
    async with scene() as sandbox:
        source = Source(sandbox, failures=2)
        drafts = sandbox.add_drafts("alice", 6)
        async with FeishuMailClient(source, base_url=sandbox.base_url) as client:
            await client.send_draft(drafts[0])
            sandbox.expire_token("alice")
            outcomes = [outcome async for outcome in client.send_drafts(drafts[1:])]
        assert [outcome.status for outcome in outcomes] == [OutcomeStatus.SENT] * 5
        assert source.begun == 3


async def test_a_slow_token_holds_up_nobody_else() -> None:
    async with scene("alice", "bob") as sandbox:

        async def tokens(user: str | None) -> str:
            await asyncio.sleep(3000 if user == "alice" else 0)
            return sandbox.token(user or "")

        drafts = [Draft(sandbox.add_draft(user), user=user) for user in ("alice", "alice", "bob", "bob")]
        ends: dict[str | None, float] = {}
        async with FeishuMailClient(tokens, base_url=sandbox.base_url) as client:
            async for outcome in client.send_drafts(drafts):
                assert outcome.status is OutcomeStatus.SENT
                ends.setdefault(outcome.draft.user, asyncio.get_running_loop().time())
        assert ends["bob"] < 2
        assert ends["alice"] > 3000


async def test_a_user_closed_by_its_token_costs_a_run_one_question() -> None:
    async with scene("alice", "bob") as sandbox:
        asked: list[str | None] = []

        async def tokens(user: str | None) -> str:
            asked.append(user)
            await asyncio.sleep(1)
            return sandbox.token(user or "")

        async with FeishuMailClient(tokens, base_url=sandbox.base_url) as client:
            sandbox.expire_token("alice")
            with pytest.raises(InvalidToken):
                await client.send_draft(sandbox.add_draft("alice"), user="alice")
            asked.clear()
            drafts = [Draft(draft_id, user="alice") for draft_id in sandbox.add_drafts("alice", 100)]
            drafts.append(Draft(sandbox.add_draft("bob"), user="bob"))
            run = client.send_drafts(drafts)
            statuses = [outcome.status async for outcome in run]
        assert asked.count("alice") == 1
        assert statuses.count(OutcomeStatus.SKIPPED) == 100
        assert statuses.count(OutcomeStatus.SENT) == 1


async def test_two_sources_without_names_are_two_people() -> None:
    async with scene("alice", "bob") as sandbox:

        async def of_alice(_: str | None) -> str:
            return sandbox.token("alice")

        async def of_bob(_: str | None) -> str:
            return sandbox.token("bob")

        draft = sandbox.add_draft("alice")
        sandbox.script(draft, Fault.code("UserDailyQuota"))
        async with (
            FeishuMailClient(of_alice, base_url=sandbox.base_url) as first,
            FeishuMailClient(of_bob, base_url=sandbox.base_url) as second,
            FeishuMailClient(of_alice, base_url=sandbox.base_url) as third,
        ):
            with pytest.raises(UserDailyQuota):
                await first.send_draft(draft)
            await second.send_draft(sandbox.add_draft("bob"))
            with pytest.raises(Suspended):
                await third.send_draft(sandbox.add_draft("alice"))


async def test_what_listing_has_closed_is_seen_and_reopened() -> None:
    async with scene() as sandbox:
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


async def test_a_closure_keeps_nothing_of_its_callers_alive() -> None:
    class Payload:
        pass

    async with scene() as sandbox:
        sandbox.close_mailbox(sandbox.users["alice"])
        async with FeishuMailClient(sandbox.token("alice"), base_url=sandbox.base_url) as client:

            async def handler() -> "weakref.ref[Payload]":
                payload = Payload()
                with pytest.raises(MailboxNotFound):
                    await client.send_draft("d")
                return weakref.ref(payload)

            payload = await handler()
            gc.collect()
            assert payload() is None
            with pytest.raises(Suspended) as caught:
                await client.send_draft("d")
            assert isinstance(caught.value.__cause__, MailboxNotFound)
            assert caught.value.__cause__.__traceback__ is None


async def test_a_connection_error_made_by_hand_is_one_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: Any, **__: Any) -> Any:
        raise aiohttp.ClientConnectorError(None, OSError("refused"))  # type: ignore[arg-type]  # as mocks do

    monkeypatch.setattr(aiohttp.ClientSession, "_request", refuse)
    async with FeishuMailClient("u-x", retry=RetryPolicy(outage=0)) as client:
        with pytest.raises(TransportError):
            await client.send_draft("d")
        assert client.snapshot().permits == 20


async def test_a_deadline_in_the_very_step_of_the_turn_claims_no_call() -> None:
    async with scene() as sandbox, FeishuMailClient(sandbox.token("alice"), base_url=sandbox.base_url) as client:
        first = asyncio.create_task(client.send_draft(sandbox.add_draft("alice")))
        await asyncio.sleep(0)
        second = sandbox.add_draft("alice")
        _, error = await asyncio.gather(
            first, client.send_draft(second, deadline=0.2 + 1e-12), return_exceptions=True
        )
        await asyncio.sleep(5)
        # Either its call was made, and then it may have been sent; or it was not, and then it was not.
        assert isinstance(error, NotSent) != bool(sandbox.ledger.calls(second))


@pytest.mark.parametrize("deadline", [0, -3, 0.0])
async def test_a_deadline_that_has_passed_sends_nothing(deadline: float) -> None:
    async with scene() as sandbox:
        async with FeishuMailClient(sandbox.token("alice"), base_url=sandbox.base_url) as client:
            with pytest.raises(NotSent):
                await client.send_draft(sandbox.add_draft("alice"), deadline=deadline)
            await asyncio.sleep(100)
        assert sandbox.ledger.sends == []


async def test_an_hour_that_is_over_is_not_shown_as_closed() -> None:
    async with scene() as sandbox:
        draft = sandbox.add_draft("alice")
        sandbox.script(draft, Fault.code("UserDailyQuota"))
        async with FeishuMailClient(sandbox.token("alice"), base_url=sandbox.base_url) as client:
            with pytest.raises(UserDailyQuota):
                await client.send_draft(draft)
            assert len(client.snapshot().suspended) == 1
            await asyncio.sleep(3601)
            assert client.snapshot().suspended == ()


def test_an_error_pickles_whatever_the_tag() -> None:
    error = NotSent("not sent", draft=Draft("d", tag=lambda: None))
    again = pickle.loads(pickle.dumps(error))
    assert again.draft == Draft("d")
    assert again.draft.tag is None
    kept = pickle.loads(pickle.dumps(NotSent("not sent", draft=Draft("d", tag=("row", 7)))))
    assert kept.draft.tag == ("row", 7)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.11 has no eager tasks")
def test_an_eager_task_factory_changes_nothing() -> None:
    async def story() -> None:
        asyncio.get_running_loop().set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009
        async with scene() as sandbox:
            drafts = sandbox.add_drafts("alice", 6)
            async with FeishuMailClient(sandbox.token("alice"), base_url=sandbox.base_url) as client:
                for draft_id in drafts[:2]:
                    await client.send_draft(draft_id)
                outcomes = [outcome async for outcome in client.send_drafts(drafts[2:])]
                assert [outcome.status for outcome in outcomes] == [OutcomeStatus.SENT] * 4
            assert sandbox.ledger.conflicts == 0

    loop = VirtualLoop(start=0)
    try:
        loop.run_until_complete(asyncio.wait_for(story(), 600))
    finally:
        loop.close()
