"""The endpoints of an app share the locks of its users and the suspensions; each has a budget of its own."""

import asyncio
import contextlib
import functools
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from feishu_mail_async import (
    AppQuotaSpent,
    Draft,
    FeishuMailClient,
    InvalidToken,
    NotSent,
    Priority,
    RateLimit,
    RetryPolicy,
    ScopeMissing,
    Suspended,
)
from feishu_mail_async._api.bodies import message_body
from feishu_mail_async._api.endpoints import CREATE, LIST, SEND, Endpoint
from feishu_mail_async._api.protocol import Reply, judge
from feishu_mail_async._calls.retry import PolicyDelays
from feishu_mail_async._scheduling.memory import MemoryStore
from feishu_mail_async._scheduling.process import ProcessStore
from feishu_mail_async._scheduling.record import Record
from feishu_mail_async._scheduling.scheduler import Scheduler
from feishu_mail_async._scheduling.store import SchedulerStore
from feishu_mail_async._scheduling.waiters import Turn, Waiter, mailbox_key
from feishu_mail_async._secrecy import Hidden
from feishu_mail_async._transport import Transport
from feishu_mail_async.errors import FeishuMailError
from feishu_mail_async.sandbox import Fault, Sandbox, Window
from tests.helpers.clock import run_virtual
from tests.helpers.ledgers import Clock, Process, apps_of, ask, home_url, ledger_on, refused, timed_ledger
from tests.helpers.scenes import FREE

USERS: Final = tuple(f"user{number}" for number in range(12))
DELAYS: Final = PolicyDelays(RetryPolicy())
MESSAGE: Final = b"Subject: x\n\ny"


class Grant:
    """Waits for one turn."""

    def __init__(self) -> None:
        self.turn: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()

    def granted(self, turn: Turn) -> None:
        self.turn.set_result(turn)

    def refused(self, error: FeishuMailError) -> None:
        self.turn.set_exception(error)

    def recorded(self, record: Record) -> None:
        raise AssertionError(record)


class Callers:
    """Calls of three endpoints, each in a turn of its endpoint's scheduler, and a look at who writes at once.

    Args:
        sandbox: judges them.
        transport: makes them.
        stores: makes a store for an endpoint and its limit.
        limit: that of the sends.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        transport: Transport,
        stores: Callable[[RateLimit, Endpoint[Any]], SchedulerStore],
        limit: RateLimit,
    ) -> None:
        self.sandbox = sandbox
        self.transport = transport
        self.schedulers = {row.name: Scheduler(stores(row.limit, row)) for row in (CREATE, LIST)}
        self.schedulers[SEND.name] = Scheduler(stores(limit, SEND))
        self.done: Counter[str] = Counter()

    async def call(self, endpoint: Endpoint[Any], user: str, writing: set[str]) -> None:
        grant, scheduler = Grant(), self.schedulers[endpoint.name]
        scheduler.submit(Waiter(user, mailbox_key(user, "me"), Priority.NORMAL, grant))
        turn = await grant.turn
        if endpoint.writes:
            assert user not in writing
            writing.add(user)
        path, body = endpoint.url(mailbox="me", draft_id=""), None
        token = Hidden(self.sandbox.token(user))
        if endpoint is SEND:
            path = SEND.url(mailbox="me", draft_id=self.sandbox.add_draft(user))
        elif endpoint is CREATE:
            body = message_body(MESSAGE)
        reply = await self.transport.exchange(endpoint.method, path, token, body)
        assert isinstance(reply, Reply)
        judgement = judge(reply, endpoint)
        assert judgement.good, judgement
        writing.discard(user)
        settling = scheduler.settle(turn, judgement, DELAYS)
        if settling is not None:
            await settling
        self.done[endpoint.name] += 1

    async def written(self) -> None:
        for scheduler in self.schedulers.values():
            await scheduler.written()


@contextlib.asynccontextmanager
async def server(**settings: Any) -> AsyncIterator[tuple[Sandbox, Transport]]:
    async with (
        Sandbox(users=USERS, **settings) as sandbox,
        Transport(sandbox.base_url, 30.0, None) as transport,
    ):
        yield sandbox, transport


def nothing_refused(sandbox: Sandbox) -> None:
    log = sandbox.ledger
    assert (log.refusals, log.sibling_refusals, log.conflicts) == (0, 0, 0)


def at_random(draw: random.Random) -> Endpoint[Any]:
    endpoints: list[Endpoint[Any]] = [SEND, CREATE, LIST]
    return draw.choices(endpoints, [20, 60, 60])[0]


def hour(window: Window, *, minutes: int) -> None:
    """Sends, creations and lists of twelve users at random, on a virtual clock."""

    async def story() -> None:
        draw = random.Random(window.value)
        now = asyncio.get_running_loop().time
        async with server(window=window, latency=(0.02, 0.4), lock_until_answered=True) as (sandbox, transport):
            store, writing = ProcessStore(), set[str]()
            callers = Callers(
                sandbox, transport, lambda limit, row: MemoryStore(store, limit, row), RateLimit(20, 60.0)
            )
            ends, calls = now() + 60.0 * minutes, set[asyncio.Task[None]]()
            while now() < ends:
                calls.add(asyncio.create_task(callers.call(at_random(draw), draw.choice(USERS), writing)))
                await asyncio.sleep(draw.expovariate(1.5))
            await asyncio.gather(*calls)
            nothing_refused(sandbox)
            assert callers.done.total() == len(calls)

    run_virtual(story(), noop_cycles=8)


@pytest.mark.parametrize("window", list(Window))
def test_endpoints_that_share_users(window: Window) -> None:
    hour(window, minutes=4)


@pytest.mark.soak
@pytest.mark.parametrize("window", list(Window))
def test_endpoints_that_share_users_for_an_hour(window: Window) -> None:
    hour(window, minutes=60)


def test_no_endpoint_starves_another_of_a_user() -> None:
    """One user's drafts are created as fast as the limit lets them; a send waits for one creation, not for all."""

    async def story() -> None:
        async with server(latency=0.4) as (sandbox, transport):
            store, writing = ProcessStore(), set[str]()
            callers = Callers(
                sandbox, transport, lambda limit, row: MemoryStore(store, limit, row), RateLimit(20, 60.0)
            )
            creating = [asyncio.create_task(callers.call(CREATE, "user0", writing)) for _ in range(60)]
            await asyncio.sleep(2.0)
            before = callers.done["create"]
            await asyncio.gather(*(callers.call(SEND, "user0", writing) for _ in range(5)))
            assert callers.done["create"] - before <= 10
            await asyncio.gather(*creating)
            nothing_refused(sandbox)

    run_virtual(story(), noop_cycles=8)


@pytest.mark.looptime(start=0)
async def test_reads_of_a_user_do_not_wait_for_each_other() -> None:
    scheduler = Scheduler(MemoryStore(ProcessStore(), LIST.limit, LIST))
    grants = [Grant() for _ in range(3)]
    for grant, mailbox in zip(grants, ("a@x", "b@x", "a@x"), strict=True):
        scheduler.submit(Waiter("user0", mailbox, Priority.NORMAL, grant))
    turns = await asyncio.gather(*(grant.turn for grant in grants))  # none of them has been settled
    for turn in turns:
        scheduler.give_back(turn)


# --- on a ledger ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("home", ["sqlite", "postgresql"])
async def test_endpoints_of_several_processes(home: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    request.param = home
    url, limit = home_url(request, tmp_path), RateLimit(20, 1.0, spacing=0.0)
    draw, writing = random.Random(7), set[str]()
    ledgers = [ledger_on(url) for _ in range(3)]
    async with server(per=1.0, latency=(0.0, 0.02)) as (sandbox, transport):
        processes = [
            Callers(
                sandbox,
                transport,
                functools.partial(ledger.store, "http://x", "app"),
                limit,
            )
            for ledger in ledgers
        ]
        await asyncio.gather(
            *(
                process.call(at_random(draw), draw.choice(USERS), writing)
                for _ in range(25)
                for process in processes
            )
        )
        nothing_refused(sandbox)
        assert sum(process.done.total() for process in processes) == 75
        for process, ledger in zip(processes, ledgers, strict=True):
            await process.written()
            await ledger.close()
    assert await apps_of(url) == [("http://x", "app")]


async def test_three_processes_that_list_thousands_of_drafts(tmp_path: Path) -> None:
    async with Sandbox(users=USERS, latency=0.01) as sandbox:
        sandbox.add_drafts("user0", 1_300)
        token, ledgers = sandbox.token("user0"), [ledger_on(f"sqlite:///{tmp_path / 'mail.db'}") for _ in range(3)]
        clients = [
            FeishuMailClient(token, app="app", base_url=sandbox.base_url, ledger=ledger) for ledger in ledgers
        ]

        async def count(client: FeishuMailClient) -> int:
            async with client:
                return len([draft async for draft in client.list_drafts()])

        assert await asyncio.gather(*map(count, clients)) == [1_300] * 3
        nothing_refused(sandbox)
        assert len(sandbox.ledger.arrivals) == 3 * 13
        for ledger in ledgers:
            await ledger.close()


# --- how far a suspension reaches, and a pause ------------------------------------------------------------


@pytest.fixture(params=["memory", "sqlite"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    return {} if request.param == "memory" else {"app": "app", "ledger": f"sqlite:///{tmp_path / 'mail.db'}"}


async def test_a_token_that_listing_was_refused_stops_sends(kept: dict[str, Any]) -> None:
    async with Sandbox(users=USERS) as sandbox:
        draft_id, token = sandbox.add_draft("user0"), sandbox.token("user0")
        sandbox.expire_token("user0")
        async with FeishuMailClient(token, base_url=sandbox.base_url, **kept) as client:
            with pytest.raises(InvalidToken):
                await anext(client.list_drafts())
            with pytest.raises(Suspended):
                await client.send_draft(draft_id)
            [suspension] = client.snapshot().suspended
            assert suspension.reach == ""
        assert sandbox.ledger.sends == []


async def test_a_scope_that_listing_lacks_does_not_stop_sends(kept: dict[str, Any]) -> None:
    async with Sandbox(users=USERS) as sandbox:
        draft_id = sandbox.add_draft("user0")
        token = sandbox.renew_token("user0", scopes=[SEND.scope])
        async with FeishuMailClient(token, base_url=sandbox.base_url, **kept) as client:
            for error in (ScopeMissing, Suspended):
                with pytest.raises(error):
                    await anext(client.list_drafts())
            [suspension] = client.snapshot().suspended
            assert (suspension.subject.partition(":")[0], suspension.reach) == ("user", LIST.scope)
            await client.send_draft(draft_id)
            client.resume(suspension.subject)
            assert client.snapshot().suspended == ()


async def test_a_pause_of_listing_does_not_pause_sends(kept: dict[str, Any]) -> None:
    async with Sandbox(users=USERS, latency=0.0) as sandbox:
        draft_id = sandbox.add_draft("user0")
        async with (
            aiohttp.ClientSession() as stranger,
            FeishuMailClient(sandbox.token("user0"), base_url=sandbox.base_url, **kept) as client,
        ):
            listing = sandbox.base_url + LIST.url(mailbox="me") + "?page_size=1"
            while sandbox.ledger.sibling_refusals == 0:
                async with stranger.get(listing, headers={"Authorization": f"Bearer {sandbox.token('user0')}"}):
                    pass
            waits = asyncio.create_task(collected(client.list_drafts()))
            while sandbox.ledger.sibling_refusals < 2:  # noqa: ASYNC110 - nothing tells when it has been refused
                await asyncio.sleep(0.001)
            result = await client.send_draft(draft_id)
            assert result.attempts == 1
            assert client.snapshot().paused is None
            waits.cancel()
            with contextlib.suppress(asyncio.CancelledError, NotSent):
                await waits


async def collected(drafts: AsyncIterator[Any]) -> list[Any]:
    return [draft async for draft in drafts]


@pytest.mark.looptime(start=0)
async def test_the_first_call_of_each_endpoint_probes_when_an_hour_has_passed(tmp_path: Path) -> None:
    async with Sandbox(users=USERS, latency=0.1) as sandbox:
        drafts = [Draft(draft_id, user=user) for user in USERS for draft_id in sandbox.add_drafts(user, 1)]
        sandbox.script(drafts[0].draft_id, Fault.code("AppQuotaSpent"))
        async with FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url) as client:
            with pytest.raises(AppQuotaSpent):
                await client.send_draft(drafts[0])
            with pytest.raises(Suspended):
                await client.read_draft(drafts[1])
            await asyncio.sleep(3601)
            before = len(sandbox.ledger.arrivals)
            sandbox.script_calls("send", *[Fault.code("AppQuotaSpent")] * 9)
            await client.read_draft(drafts[1])  # it has found out for reading; sends have their own probe
            done = await asyncio.gather(*(client.send_draft(one) for one in drafts[1:]), return_exceptions=True)
            assert {type(one) for one in done} == {AppQuotaSpent, Suspended}
            assert [arrival.endpoint for arrival in sandbox.ledger.arrivals[before:]] == ["read", "send"]


@pytest.mark.parametrize("home", ["sqlite", "postgresql"])
async def test_the_first_call_of_each_endpoint_probes_on_a_ledger(
    home: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    request.param = home
    clock = Clock()
    ledger = timed_ledger(home_url(request, tmp_path), clock)
    sends, lists = (Process(ledger, ledger.store("http://x", "app", FREE, row)) for row in (SEND, LIST))
    await lists.send(ask(user="z"))
    await sends.send(ask(user="a"), judgement=refused("AppQuotaSpent"))
    assert (await lists.take(ask(user="b"))).granted is None
    clock.now += 3600.5
    assert (await lists.turn(ask(user="b"))).permit.probe
    assert (await sends.turn(ask(user="c"))).permit.probe
    assert (await sends.take(ask(user="d"))).granted is None
    await ledger.close()
