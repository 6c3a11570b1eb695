"""Clients and loops that share a ledger, of which one closes or ends."""

import asyncio
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from feishu_mail_async import Draft, Priority, RateLimit, SendResult
from feishu_mail_async.ledger import schema
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.ledger_clients import USERS, drafts_of, open_client, outcomes, sent_once, workers
from tests.helpers.ledgers import APP, Process, ask, ledger_on, rows, until


async def test_two_clients_share_a_ledger_and_the_last_one_closes_it(file: Path, sandbox: Sandbox) -> None:
    url = f"sqlite:///{file}"
    one, two, three = drafts_of(sandbox, 1)[:3]
    first = open_client(sandbox, url)
    second = open_client(sandbox, url)
    await asyncio.gather(first.send_draft(one), second.send_draft(one))
    assert len(workers()) == 1
    assert len(sandbox.ledger.sends) == 1
    await first.close()
    await second.send_draft(two)
    assert len(workers()) == 1
    await second.close()
    await until(lambda: not workers())
    third = open_client(sandbox, url)  # and opens again
    await third.send_draft(three)
    await third.close()
    sent_once(sandbox, [one, two, three])


async def test_a_ledger_of_the_callers_is_left_open(file: Path, sandbox: Sandbox) -> None:
    ledger = ledger_on(f"sqlite:///{file}")
    for draft in drafts_of(sandbox, 1)[:2]:
        async with open_client(sandbox, ledger) as client:
            await client.send_draft(draft)
        assert len(workers()) == 1
    await ledger.close()
    await ledger.close()
    await until(lambda: not workers())


async def test_closing_one_client_does_not_wait_for_another(url: str, sandbox: Sandbox) -> None:
    drafts = drafts_of(sandbox, 8)
    ledger = ledger_on(url)
    async with open_client(sandbox, ledger) as busy:
        idle = open_client(sandbox, ledger)
        await idle.send_draft(drafts[0])
        async with busy.send_drafts(drafts[1:]) as run:
            await anext(run)
            rest = asyncio.create_task(outcomes(run))
            await asyncio.wait_for(idle.close(), 60)
            left = len(drafts) - sandbox.ledger.sent.total()
            await rest
    await ledger.close()
    assert left > 8
    sent_once(sandbox, drafts)


def test_one_ledger_in_several_loops(url: str) -> None:
    """Closed at the end of the one, it serves the next."""
    ledger = ledger_on(url)
    sent: list[SendResult] = []

    async def one_loop() -> None:
        async with Sandbox(users=USERS, latency=0, port=0) as sandbox:
            draft = sandbox.add_draft(USERS[0])
            looks = [ledger.apps() for _ in range(4)]
            async with open_client(sandbox, ledger) as client, open_client(sandbox, ledger, app="other") as second:
                await asyncio.gather(*looks, second.records([Draft("x", user=USERS[0])]))
                sent.append(await client.send_draft(Draft(draft, user=USERS[0])))
        await ledger.close()

    async def in_thread() -> None:
        await asyncio.to_thread(asyncio.run, one_loop())

    asyncio.run(in_thread())
    asyncio.run(in_thread())
    assert [one.already_sent for one in sent] == [False, False]


async def test_many_that_are_stopped_at_once_do_not_hold_the_others_up(url: str, sandbox: Sandbox) -> None:
    """What became of thousands is written in pieces: in between, other processes have their turn."""
    ledger, other = ledger_on(url), ledger_on(url)
    drafts = [Draft(f"d{n}", user=USERS[0]) for n in range(1500)]
    there = Process(other, other.store(sandbox.base_url, APP, RateLimit(calls=1, per=600)))
    sizes: list[int] = []

    def begun(_: sa.Connection) -> None:
        sizes.append(0)

    def count(_: Any, __: Any, statement: str, parameters: Any, ___: Any, many: bool) -> None:
        if sizes and statement.startswith("INSERT INTO feishu_mail_draft"):
            sizes[-1] += len(parameters) if many else 1

    async with open_client(sandbox, ledger, rate_limit=RateLimit(calls=1, per=600)) as client:
        await there.send(ask())
        async with client.send_drafts(drafts) as run:
            await until(lambda: client.snapshot().waiting[Priority.BULK] == len(drafts), 120)
            sa.event.listen(sa.Engine, "begin", begun)
            sa.event.listen(sa.Engine, "before_cursor_execute", count)
            try:
                run.stop()
                found = await outcomes(run)
                await client.close()
            finally:
                sa.event.remove(sa.Engine, "begin", begun)
                sa.event.remove(sa.Engine, "before_cursor_execute", count)
    assert set(found.values()) == {"skipped"}
    assert len(await rows(other, schema.draft)) == len(drafts) + 1
    assert 0 < max(sizes) <= 500
    await ledger.close()
    await other.close()
