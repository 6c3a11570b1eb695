"""A fork: the child is told that what it has inherited is not its own, and the parent goes on unharmed."""

import asyncio
import functools
import gc
import json
import os
import warnings
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import pytest

from feishu_mail_async import (
    ClientClosed,
    Draft,
    FeishuMailClient,
    Ledger,
    LedgerError,
    OutcomeUnknown,
    RateLimit,
    RefreshingTokens,
    open_ledger,
)
from feishu_mail_async.events import AttemptEnded
from tests.helpers.cli import PATIENCE, Feishu

pytestmark = pytest.mark.skipif(os.name != "posix", reason="it forks")

FREE: Final = RateLimit(calls=1000, per=1.0, spacing=0)
HOMES: Final = ["sqlite", "postgresql"]


@pytest.fixture(params=HOMES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'mail.db'}"
    found: str = request.getfixturevalue("postgres_url")
    return found


def in_child(work: Callable[[], object]) -> Any:
    """What a function returns, or the name and text of what it raises, in a forked process that then ends."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the sandbox's thread is of no use to the child
        pid = os.fork()
    if not pid:
        try:
            try:
                told = work()
            except BaseException as error:  # noqa: BLE001 - it is told
                told = [type(error).__name__, str(error)]
            gc.collect()  # what is dropped must not be closed for the parent
            os.write(writing, json.dumps(told).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        return json.loads(answer.read())


def bounded(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, PATIENCE))


def bounded_call(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return bounded(work())


def new_client(feishu: Feishu, ledger: str | Ledger | None) -> FeishuMailClient:
    sandbox = feishu.sandbox
    app = None if ledger is None else "a"
    return FeishuMailClient(
        {"alice": sandbox.token("alice")}, app=app, base_url=sandbox.base_url, ledger=ledger, rate_limit=FREE
    )


async def send(client: FeishuMailClient, *ids: str) -> list[str]:
    async with client:
        return [(await client.send_draft(one)).status.value for one in ids]


def test_a_child_is_told_that_an_open_client_is_not_its_own(feishu: Feishu, url: str) -> None:
    first, second, third = feishu.drafts("alice", 3)

    async def parent() -> None:
        async with new_client(feishu, url) as client:
            await client.send_draft(first)
            run = client.send_drafts([third])

            async def rest() -> list[str]:
                return [outcome.status.value async for outcome in run]

            for work in (
                lambda: client.send_draft(second),
                lambda: client.records([first]),
                rest,
                lambda: send(client, second),
            ):
                kind, text = in_child(functools.partial(bounded_call, work))
                assert kind == ClientClosed.__name__
                assert "forked" in text
                assert "open a new client" in text
            assert in_child(lambda: bounded(client.close())) is None
            assert (await client.send_draft(second)).attempts == 1
            assert await rest() == ["sent"]

    bounded(parent())
    assert feishu.sent == {first: 1, second: 1, third: 1}


def test_a_child_is_told_that_an_open_ledger_is_not_its_own(feishu: Feishu, url: str) -> None:
    first, second = feishu.drafts("alice", 2)

    async def parent() -> None:
        home = open_ledger(url)
        async with new_client(feishu, home) as client:
            await client.send_draft(first)
            for work, error in (
                (home.apps, LedgerError),
                (lambda: send(new_client(feishu, home), second), OutcomeUnknown),
            ):
                kind, text = in_child(functools.partial(bounded_call, work))
                assert kind == error.__name__
                assert "forked" in text
                assert "open_ledger" in text
            assert in_child(lambda: bounded(home.close())) is None
            assert (await client.send_draft(second)).attempts == 1
        await home.close()

    bounded(parent())
    assert feishu.sent == {first: 1, second: 1}


@pytest.mark.parametrize("ledger", [True, False])
def test_a_child_opens_a_client_of_its_own(feishu: Feishu, url: str, ledger: bool) -> None:
    first, second, third = feishu.drafts("alice", 3)
    where = url if ledger else None
    never_opened = new_client(feishu, where)

    async def parent() -> None:
        async with new_client(feishu, where) as client:
            await client.send_draft(first)
            assert in_child(lambda: bounded(send(new_client(feishu, where), second))) == ["sent"]
            assert in_child(lambda: bounded(send(never_opened, third))) == ["sent"]
            # The records of the child are the parent's, too.
            again = await client.send_draft(second)
            assert (again.already_sent, again.attempts) == (True, 0 if ledger else 1)

    bounded(parent())
    assert feishu.sent == {first: 1, second: 1, third: 1}


def test_a_loop_that_goes_on_in_the_child(feishu: Feishu, url: str) -> None:
    """Forked between two runs of one loop: client, tasks and connections seem to be there."""
    first, second, third = feishu.drafts("alice", 3)
    loop = asyncio.new_event_loop()
    client = new_client(feishu, url)

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        return loop.run_until_complete(asyncio.wait_for(work, PATIENCE))

    async def send_one(draft: str) -> str:
        return (await client.send_draft(draft)).status.value

    try:
        assert run(send_one(first)) == "sent"
        kind, _ = in_child(lambda: run(send_one(second)))
        assert kind == ClientClosed.__name__
        assert in_child(lambda: run(client.close())) is None
        assert in_child(lambda: run(send(new_client(feishu, url), second))) == ["sent"]
        assert run(send_one(third)) == "sent"
        run(client.close())
    finally:
        loop.close()
    assert feishu.sent == {first: 1, second: 1, third: 1}


def test_what_waits_in_the_parent_is_not_sent_by_the_child(feishu: Feishu) -> None:
    drafts = feishu.drafts("alice", 3)
    loop = asyncio.new_event_loop()
    client = new_client(feishu, None)

    tried = asyncio.Event()

    async def queue() -> asyncio.Future[Any]:
        await client.send_draft(drafts[0])
        client.subscribe(lambda event: tried.set() if isinstance(event, AttemptEnded) else None)
        return asyncio.gather(*[client.send_draft(one) for one in drafts[1:]])

    try:
        waiting = loop.run_until_complete(queue())
        assert in_child(lambda: loop.run_until_complete(tried.wait()))
        assert feishu.sent == {drafts[0]: 1}
        loop.run_until_complete(asyncio.wait_for(waiting, PATIENCE))
        loop.run_until_complete(client.close())
    finally:
        loop.close()
    assert feishu.sent == dict.fromkeys(drafts, 1)


def test_tokens_that_are_renewed_belong_to_their_process(feishu: Feishu) -> None:
    sandbox = feishu.sandbox
    tokens = RefreshingTokens(sandbox.client_id, sandbox.client_secret, base_url=sandbox.base_url)

    async def parent() -> None:
        with pytest.raises(Exception, match="log in"):
            await tokens.token("alice")
        kind, text = in_child(lambda: bounded(tokens.token("alice")))
        assert (kind, "forked" in text) == (ClientClosed.__name__, True)
        assert in_child(lambda: bounded(tokens.close())) is None
        await tokens.close()

    bounded(parent())


def test_events_end_in_a_child(feishu: Feishu) -> None:
    async def parent() -> None:
        async with new_client(feishu, None) as client:
            await client.records([Draft("d")])
            events = client.events()

            async def read() -> list[str]:
                return [str(event) async for event in events]

            assert in_child(lambda: bounded(read())) == []

    bounded(parent())
