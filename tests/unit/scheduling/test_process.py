"""One budget for the process: loops one after another, and loops in threads at once, as the server sees them."""

import asyncio
import threading
import time
from typing import Any

import pytest

from feishu_mail_async import (
    FeishuMailClient,
    NotSent,
    RateLimit,
    RetryPolicy,
    Suspended,
    TransportError,
    UserDailyQuota,
)
from feishu_mail_async.sandbox import Fault
from tests.helpers.loops import LIMIT, WIDE, loops, send, server

# --- one after another ------------------------------------------------------------------------------------


@pytest.mark.parametrize("app", [None, "cli_a"])
def test_loops_one_after_another_share_the_limit(app: str | None) -> None:
    with server() as there:
        for draft in there.sandbox.add_drafts("alice", 12):
            asyncio.run(send(there.client(app=app), draft))
        there.check(12)


def test_so_do_clients_of_one_token_that_nobody_closes() -> None:
    async def hasty(draft: str) -> None:
        async with there.unclosed(there.sandbox.token("alice")) as client:
            await client.send_draft(draft)

    with server() as there:
        for draft in there.sandbox.add_drafts("alice", 12):
            asyncio.run(hasty(draft))
        there.check(12)


def test_the_spacing_holds_from_loop_to_loop() -> None:
    spaced = RateLimit(calls=100, per=1.0, spacing=0.4)
    with server(limit=spaced, latency=0.0) as there:
        for draft in there.sandbox.add_drafts("alice", 4):
            asyncio.run(send(there.client(rate_limit=spaced), draft))
        first, *_, last = there.times()
        assert last - first >= 3 * 0.4 - 0.1


def test_a_pause_holds_in_the_next_loop() -> None:
    with server() as there:
        first, second = there.sandbox.add_drafts("alice", 2)
        there.do(lambda: there.sandbox.limit_now(1.5))
        for draft in (first, second, first):
            with pytest.raises(NotSent):
                asyncio.run(send(there.client(), draft, deadline=0.3))
        assert there.ledger.paused_refusals == len(there.ledger.sends) == 1
        asyncio.run(send(there.client(), first, second))
        assert there.ledger.paused_refusals == 1
        there.check(2)


def test_what_is_suspended_in_one_loop_is_suspended_in_the_next() -> None:
    async def resume() -> None:
        async with there.client() as client:
            [closed] = client.snapshot().suspended
            assert closed.subject == "user:alice"
            client.resume(closed.subject)

    with server() as there:
        first, second = there.sandbox.add_drafts("alice", 2)
        there.sandbox.script(first, Fault.code("UserDailyQuota"))
        with pytest.raises(UserDailyQuota):
            asyncio.run(send(there.client(), first))
        with pytest.raises(Suspended):
            asyncio.run(send(there.client(), second))
        assert len(there.ledger.sends) == 1
        asyncio.run(resume())
        asyncio.run(send(there.client(), second))
        there.check(1)


def test_a_user_cools_down_in_the_next_loop_too() -> None:
    slow = RetryPolicy(initial=1.0, maximum=1.0)
    with server() as there:
        first, second = there.sandbox.add_drafts("alice", 2)
        there.sandbox.script(first, Fault.code("ConcurrentWrite"))
        with pytest.raises(NotSent):
            asyncio.run(send(there.client(retry=slow), first, deadline=0.2))
        with pytest.raises(NotSent, match="alice"):
            asyncio.run(send(there.client(retry=slow), second, deadline=0.1))
        assert len(there.ledger.sends) == 1


def test_another_limit_is_refused_while_a_client_is_open_in_any_loop_and_taken_after_it() -> None:
    other = RateLimit(calls=2, per=1.0, spacing=0.0, grace=0.5)

    async def enter(**settings: Any) -> FeishuMailClient:
        return await there.client(**settings).__aenter__()

    with server() as there, loops(1) as [elsewhere]:
        client = elsewhere.do(enter())
        with pytest.raises(ValueError, match="rate_limit"):
            asyncio.run(enter(rate_limit=other))
        elsewhere.do(client.close())
        drafts = there.sandbox.add_drafts("alice", 4)
        asyncio.run(send(there.client(rate_limit=other), *drafts))
        assert there.times()[2] - there.times()[0] >= other.per


def test_apps_and_addresses_keep_budgets_of_their_own() -> None:
    few, both = RateLimit(calls=2, per=60.0, spacing=0.0), RateLimit(calls=4, per=60.0)
    with server(limit=both) as one, server(limit=both) as two:
        began = time.monotonic()
        for there, app in (one, "cli_a"), (two, "cli_a"), (two, "cli_b"):
            asyncio.run(send(there.client(app=app, rate_limit=few), *there.sandbox.add_drafts("alice", 2)))
        assert time.monotonic() - began < 50
        one.check(2)
        two.check(4)


# --- at once -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("users", [("alice",), ("alice", "bob", "carol")])
def test_threads_share_the_limit_and_the_locks(users: tuple[str, ...]) -> None:
    with server(*users) as there, loops(3) as threads:
        runs = [
            thread.begin(send(there.client(), *there.sandbox.add_drafts(user, 5), user=user))
            for thread, user in zip(threads, 3 * users, strict=False)
        ]
        for run in runs:
            assert [result.already_sent for result in run.result(60)] == 5 * [False]
        there.check(15)
        assert there.ledger.busiest_window() <= LIMIT.calls


def test_threads_lock_a_user_and_a_shared_mailbox_and_nothing_more() -> None:
    """None waits for a timer: whoever is let go is told."""
    with server("alice", "bob", limit=WIDE, latency=0.01) as there, loops(3) as threads:
        there.sandbox.share_mailbox("team@example.com", "alice", "bob")
        boxes = [
            ("alice", "me"), ("alice", "team@example.com"), ("bob", "team@example.com")
        ]  # fmt: skip
        began = time.monotonic()
        runs = []
        for thread, (user, mailbox) in zip(threads, boxes, strict=True):
            drafts = there.sandbox.add_drafts(user, 20, mailbox=mailbox)
            client = there.client(rate_limit=WIDE)
            runs.append(thread.begin(send(client, *drafts, user=user, mailbox=mailbox)))
        for run in runs:
            run.result(60)
        there.check(60)
        assert time.monotonic() - began < 20


def test_a_suspension_ends_what_waits_in_other_threads() -> None:
    with server(latency=0.6) as there, loops(2) as [here, elsewhere]:
        first, *rest = there.sandbox.add_drafts("alice", 4)
        there.sandbox.script(first, Fault.code("UserDailyQuota"))
        running = here.begin(send(there.client(), first))
        there.wait_for(1)  # now it holds the user
        waiting = [elsewhere.begin(send(there.client(), draft)) for draft in rest]
        with pytest.raises(UserDailyQuota):
            running.result(60)
        for one in waiting:
            with pytest.raises(Suspended):
                one.result(60)
        assert len(there.ledger.sends) == 1


def test_an_outage_ends_what_waits_in_other_threads() -> None:
    policy = RetryPolicy(initial=0.1, maximum=0.2, outage=1.0)

    async def out() -> None:
        async with there.sandbox.outage():
            began.set()
            await over.wait()

    async def end() -> None:
        over.set()

    with server() as there, loops(2) as threads:
        over, began = asyncio.Event(), threading.Event()
        outage = there.home.begin(out())
        assert began.wait(60)
        runs = [
            thread.begin(send(there.client(retry=policy), there.sandbox.add_draft("alice"))) for thread in threads
        ]
        for run in runs:
            with pytest.raises(TransportError):
                run.result(60)
        there.home.do(end())
        outage.result(60)
