"""One budget for the process, whatever becomes of its loops: stopped, forked, with other clocks, ever new ones."""

import asyncio
import gc
import os
import signal
import time
import warnings
from collections.abc import Iterator
from typing import Final

import pytest

from feishu_mail_async import (
    FeishuMailClient,
    FeishuMailError,
    Priority,
    RateLimit,
    RetryPolicy,
)
from feishu_mail_async._api.protocol import Judgement
from feishu_mail_async._calls.retry import PolicyDelays
from feishu_mail_async._scheduling.memory import MemoryStore
from feishu_mail_async._scheduling.process import ProcessStore
from feishu_mail_async._scheduling.scheduler import Scheduler
from feishu_mail_async._scheduling.waiters import Turn, Waiter
from feishu_mail_async.codes import Verdict
from feishu_mail_async.ledger import Record
from feishu_mail_async.sandbox import Fault, Sandbox
from feishu_mail_async.testing import forget_calls
from tests.helpers.clock import run_virtual
from tests.helpers.loops import LoopThread, loops, send, server

NO_WARNINGS: Final = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)

# --- loops that end ----------------------------------------------------------------------------------------


@pytest.fixture
def litter() -> Iterator[None]:
    """What a loop leaves behind that was closed in the midst of its work is none of our warnings.

    A fixture, because what the test's own frame holds can be collected only when that is gone.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
        gc.collect()


@NO_WARNINGS
@pytest.mark.usefixtures("litter")
@pytest.mark.parametrize("close", [True, False])
def test_a_loop_that_stops_in_the_midst_of_a_call_keeps_nothing_for_ever(close: bool) -> None:
    quick = RateLimit(calls=2, per=1.0, spacing=0.0, grace=0.5)
    with server(limit=quick, lock_until_answered=False) as there, loops(1) as [stopped]:
        first, second, third = there.sandbox.add_drafts("alice", 3)
        there.sandbox.script(first, Fault.delay(0, 30))
        stopped.begin(send(there.client(rate_limit=quick, attempt_timeout=0.5), first))
        there.wait_for(1)
        waiting = LoopThread()
        try:
            run = waiting.begin(send(there.client(rate_limit=quick), second))
            stopped.stop()
            stopped_at = there.home.loop.time()
            if close:
                stopped.loop.close()
            run.result(60)
        finally:
            waiting.end()
        asyncio.run(send(there.client(rate_limit=quick), third))
        assert there.times()[1] - stopped_at >= quick.grace
        assert there.ledger.refusals == 0


@NO_WARNINGS
@pytest.mark.usefixtures("litter")
def test_a_client_whose_loop_has_ended_is_closed_in_another() -> None:
    """The garbage collector does so, too, when it ends a task whose loop is closed."""
    with server() as there, loops(1) as [stopped]:
        [draft] = there.sandbox.add_drafts("alice", 1)
        there.sandbox.script(draft, Fault.delay(0, 30))
        client = there.client()
        stopped.begin(send(client, draft))
        there.wait_for(1)
        stopped.stop()
        stopped.loop.close()
        asyncio.run(client.close())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_child_inherits_what_was_used_up_and_hears_of_no_call_under_way() -> None:
    with server("alice", "bob") as there, loops(1) as [busy]:
        drafts, slow = there.sandbox.add_drafts("alice", 7), there.sandbox.add_draft("bob")
        there.sandbox.script(slow, Fault.delay(0, 3))
        under_way = busy.begin(send(there.client(), slow, user="bob"))
        there.wait_for(1)
        asyncio.run(send(there.client(), *drafts[:4], user="alice"))
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            try:
                asyncio.run(send(there.client(), *drafts[4:], user="alice"))
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        under_way.result(60)
        there.check(8)


# --- other clocks, memory, and tests -----------------------------------------------------------------------


class Turns:
    """Takes turns of a scheduler, and gives them back at once."""

    def __init__(self, store: ProcessStore, limit: RateLimit) -> None:
        self.scheduler = Scheduler(MemoryStore(store, limit))

    async def take(self, *, written: bool = True) -> float:
        """Take a turn for a call that is answered at once; when that was, by the loop's clock."""
        loop = asyncio.get_running_loop()
        self.done = loop.create_future()
        self.scheduler.submit(Waiter("alice", "me/alice", Priority.NORMAL, self))
        await self.done
        if written:
            await self.scheduler.written()
        return loop.time()

    def granted(self, turn: Turn) -> None:
        self.scheduler.settle(turn, Judgement(Verdict.DONE), PolicyDelays(RetryPolicy()))
        self.done.set_result(None)

    def refused(self, error: FeishuMailError) -> None:
        self.done.set_exception(error)

    def recorded(self, record: Record) -> None:
        raise AssertionError(record)


def test_the_time_goes_on_from_one_virtual_clock_to_the_next() -> None:
    store, limit = ProcessStore(), RateLimit(calls=2, per=600.0, spacing=0.0, margin=0.0)
    took = [run_virtual(Turns(store, limit).take()) for _ in range(8)]
    assert took == pytest.approx([0, 0, 600, 0, 600, 0, 600, 0], abs=60)  # less than the process has lived since

    async def look() -> float | None:
        return Turns(store, limit).scheduler.snapshot().next_permit

    left = asyncio.run(look())
    assert left is not None
    assert 540 < left <= 600


@pytest.mark.parametrize("written", [True, False])
def test_what_a_virtual_clock_has_used_up_holds_an_ordinary_one_no_longer_than_its_window(
    *, written: bool
) -> None:
    store, limit = ProcessStore(), RateLimit(calls=1, per=0.2, spacing=0.0, margin=0.0)

    async def long_before() -> float:
        turns = Turns(store, limit)
        await turns.take()
        await asyncio.sleep(10_000)
        return await turns.take(written=written)

    run_virtual(long_before())
    began = time.monotonic()
    asyncio.run(Turns(store, limit).take())
    assert time.monotonic() - began < 60


def test_apps_that_come_and_go_leave_nothing_behind() -> None:
    async def idle(app: str) -> None:
        async with FeishuMailClient("u-1", app=app) as client:
            client.snapshot()

    async def several(run: int) -> None:
        for number in range(20):
            await idle(f"app{run}-{number}")

    def stores() -> int:
        gc.collect()
        return sum(isinstance(one, ProcessStore) for one in gc.get_objects())

    before = stores()  # other tests may have left some
    for run in range(20):
        asyncio.run(several(run))
    assert stores() - before < 10


def test_a_suite_with_a_faked_server_forgets_the_calls_of_the_test_before() -> None:
    once = RateLimit(calls=1, per=600.0)
    with server() as there:
        for draft in there.sandbox.add_drafts("alice", 3):
            asyncio.run(send(there.client(rate_limit=once), draft, deadline=60))
            forget_calls()
        there.check(3)


async def test_no_two_sandboxes_of_a_process_have_one_address() -> None:
    addresses = set()
    for _ in range(600):
        async with Sandbox() as sandbox:
            addresses.add(sandbox.base_url)
    assert len(addresses) == 600
