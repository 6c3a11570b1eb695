"""Many mails followed up: asked for within the limit, told when they change, left alone when they are final."""

import asyncio
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from feishu_mail_async import (
    ClientClosed,
    Delivery,
    DeliveryStatus,
    Draft,
    DraftNotFound,
    FeishuMailClient,
    OutcomeStatus,
    RateLimit,
    RetryPolicy,
    SendResult,
)
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.letters import letter

pytestmark = pytest.mark.looptime

ADDRESSES = ("han@example.com", "li@example.com")


@pytest.fixture
async def sandbox(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sandbox]:
    async with Sandbox(users=["alice"], latency=0.1, calls=100_000) as running:
        monkeypatch.setattr("feishu_mail_async._client.arguments.wall_clock", running.unix_time)
        yield running


@pytest.fixture
async def client(sandbox: Sandbox) -> AsyncIterator[FeishuMailClient]:
    settings: dict[str, Any] = {"rate_limit": RateLimit(100_000, 60.0, 0.0), "retry": RetryPolicy(outage=5.0)}
    async with FeishuMailClient(sandbox.token("alice"), base_url=sandbox.base_url, **settings) as running:
        yield running
    assert sandbox.ledger.refusals == sandbox.ledger.sibling_refusals == 0


async def sent(sandbox: Sandbox, client: FeishuMailClient, number: int, **how: Any) -> list[SendResult]:
    ids = [sandbox.add_draft("alice", message=letter(To=", ".join(ADDRESSES))) for _ in range(number)]
    async with client.send_drafts(ids, **how) as run:
        return [outcome.result async for outcome in run if outcome.result is not None]


def asked(sandbox: Sandbox) -> Counter[str | None]:
    return Counter(arrival.message_id for arrival in sandbox.ledger.arrivals if arrival.endpoint == "delivery")


async def test_many_mails_are_followed_to_their_end(sandbox: Sandbox, client: FeishuMailClient) -> None:
    draw = random.Random(7)
    results = await sent(sandbox, client, 300)
    loop = asyncio.get_running_loop()
    finals = {}
    for result in results:
        for address in ADDRESSES:
            sandbox.set_delivery(result.draft.draft_id, address, 1)
            finals[result.draft.draft_id, address] = status = draw.choice([3, 4, 4, 4, 6])
            at = draw.uniform(0, 3600)
            loop.call_later(at / 2, sandbox.set_delivery, result.draft.draft_id, address, draw.choice([1, 2, 5]))
            loop.call_later(at, sandbox.set_delivery, result.draft.draft_id, address, status)
    began, told = loop.time(), defaultdict[str, list[Delivery]](list)
    async for delivery in client.track(results):
        told[delivery.message_id].append(delivery)
    assert loop.time() - began < 3600 + 2 * 300
    for result in results:
        assert result.message_id is not None
        *before, last = told[result.message_id]
        assert last.final
        assert not any(one.final for one in before)
        assert all(one != other for one, other in itertools.pairwise([*before, last]))
        for one in last.recipients:
            wanted = finals[result.draft.draft_id, one.recipient.address]
            assert one.status is list(DeliveryStatus)[wanted]
    # Each is asked for soon after a change, and then more and more rarely.
    assert max(asked(sandbox).values()) < 60


async def test_a_send_in_between_waits_for_nothing(sandbox: Sandbox, client: FeishuMailClient) -> None:
    results = await sent(sandbox, client, 100)
    for result in results:
        sandbox.set_delivery(result.draft.draft_id, "li@example.com", 1)

    async def follow() -> None:
        async for _ in client.track(results):
            pass

    following = asyncio.create_task(follow())
    await asyncio.sleep(3)
    began = asyncio.get_running_loop().time()
    await client.send_draft(sandbox.add_draft("alice"))
    await client.delivery(results[0])  # and a single question goes before the many
    assert asyncio.get_running_loop().time() - began < 2
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_what_is_not_told_ends_its_mail_alone(sandbox: Sandbox, client: FeishuMailClient) -> None:
    [result] = await sent(sandbox, client, 1)
    told = {one.message_id: one async for one in client.track([result, "nobody-knows-it"])}
    assert isinstance(told["nobody-knows-it"].error, DraftNotFound)
    assert told["nobody-knows-it"].final
    assert told[result.message_id or ""].error is None
    assert told[result.message_id or ""].final


async def test_failures_that_pass_are_waited_out(sandbox: Sandbox, client: FeishuMailClient) -> None:
    [result] = await sent(sandbox, client, 1)
    faults = [Fault.gateway(), Fault.reset_before(), Fault.code("InternalError"), Fault.bare_429()]
    sandbox.script_calls("delivery", *faults * 5)
    last = [one async for one in client.track([result])][-1]
    assert (last.final, last.error) == (True, None)


async def test_until(sandbox: Sandbox, client: FeishuMailClient) -> None:
    results = await sent(sandbox, client, 3)
    for result in results:
        sandbox.set_delivery(result.draft.draft_id, "li@example.com", 1)
    loop, at = asyncio.get_running_loop(), datetime.fromtimestamp(sandbox.unix_time() + 1000, UTC)
    began = loop.time()
    assert len({one.message_id async for one in client.track(results, until=at)}) == 3
    assert 999 < loop.time() - began < 1001
    assert [one async for one in client.track(results, until=at - timedelta(hours=1))] == []


async def test_what_is_scheduled_is_asked_for_from_its_time_on(sandbox: Sandbox, client: FeishuMailClient) -> None:
    at = datetime.fromtimestamp(int(sandbox.unix_time()) + 3600, UTC)
    [result] = await sent(sandbox, client, 1, at=at)
    assert result.status is OutcomeStatus.SCHEDULED
    for ask in (client.delivery, client.recall_message, client.recall_progress):
        with pytest.raises(ValueError, match=r"^mail: it is scheduled for .* and not sent yet"):
            await ask(result)
    assert not asked(sandbox)
    last = [one async for one in client.track([result])][-1]
    assert last.final
    assert max(asked(sandbox).values()) < 10
    assert (await client.delivery(result)).final


async def test_closing_the_client_ends_it(sandbox: Sandbox, client: FeishuMailClient) -> None:
    results = await sent(sandbox, client, 2)
    for result in results:
        sandbox.set_delivery(result.draft.draft_id, "li@example.com", 1)

    async def follow() -> None:
        async for _ in client.track(results):
            await client.close()

    with pytest.raises(ClientClosed):
        await follow()


async def test_bad_input_costs_no_call(sandbox: Sandbox, client: FeishuMailClient) -> None:
    for mails, until, message in (
        ([Draft("d1")], None, "^mail: "),
        (["m1"], datetime(2030, 1, 1), "^until: it names no time zone"),  # noqa: DTZ001 - that is what is wrong
        (["m1"], 5, "^until: give a datetime"),
        ([""], None, "^mail: "),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            await anext(client.track(mails, until=until))  # type: ignore[arg-type]
    assert [one async for one in client.track([])] == []
    assert not sandbox.ledger.arrivals
