"""The client's own: its parameters, its and the caller's hooks."""

import asyncio
import contextvars
import math
from typing import Any

import aiohttp
import pytest

from feishu_mail_async import ConcurrentWrite, Draft, FeishuMailClient, OutcomeUnknown, Priority, RateLimit
from feishu_mail_async.sandbox import Fault
from tests.helpers.canary import TOKEN
from tests.helpers.scenes import ONCE, scene
from tests.helpers.sends import order, send
from tests.helpers.tasks import our_tasks
from tests.helpers.wrong import begins_with

pytestmark = pytest.mark.looptime(start=0)


# -- what the caller's own hooks see -----------------------------------------------------------------------

who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


async def test_the_callers_context_reaches_the_callers_hooks() -> None:
    seen: list[str] = []

    async def hook(*_: Any) -> None:
        seen.append(who.get())

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(hook)
    async with (
        scene(drafts=3) as (sandbox, _, ids),
        aiohttp.ClientSession(trace_configs=[trace]) as session,
        FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url, session=session) as client,
    ):
        sandbox.script(ids[1], Fault.code("InternalError"))
        sends = []
        for name, draft_id in zip(("ann", "ben", "cid"), ids, strict=True):
            who.set(name)
            sends.append(send(client, draft_id))
        who.set("later")
        await asyncio.gather(*sends)
    # Also in a retry, which is made long after.
    assert sorted(seen) == ["ann", "ben", "ben", "cid"]


async def test_a_hook_that_raises_may_have_sent() -> None:
    async def hook(*_: Any) -> None:
        raise ZeroDivisionError(TOKEN)

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(hook)
    async with (
        scene() as (sandbox, _, (one,)),
        aiohttp.ClientSession(trace_configs=[trace]) as session,
        FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url, session=session, retry=ONCE) as client,
    ):
        with pytest.raises(OutcomeUnknown):
            await client.send_draft(one)
        assert client.snapshot().in_flight == 0


# -- wrong parameters --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("app", "", ValueError),
        ("app", "a\n", ValueError),
        ("app", 7, TypeError),
        ("rate_limit", 20, TypeError),
        ("rate_limit", None, TypeError),
        ("rate_limit", RateLimit, TypeError),
        ("retry", 3, TypeError),
        ("retry", None, TypeError),
        ("attempt_timeout", 0, ValueError),
        ("attempt_timeout", -1, ValueError),
        ("attempt_timeout", math.nan, ValueError),
        ("attempt_timeout", math.inf, ValueError),
        ("attempt_timeout", True, TypeError),
        ("attempt_timeout", "30", TypeError),
        ("attempt_timeout", None, TypeError),
    ],
)
async def test_wrong_parameters_of_the_client(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=begins_with(name)):
        FeishuMailClient(TOKEN, **{name: value})
    assert our_tasks() == []


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("draft", "", ValueError),
        ("draft", "  ", ValueError),
        ("draft", "a\n", ValueError),
        ("draft", "x" * 513, ValueError),
        ("draft", None, TypeError),
        ("draft", b"d1", TypeError),
        ("draft", ["d1"], TypeError),
        ("mailbox", "", ValueError),
        ("mailbox", "a\0", ValueError),
        ("mailbox", None, TypeError),
        ("user", "", ValueError),
        ("user", "a\x7f", ValueError),
        ("user", 7, TypeError),
        ("priority", 0, TypeError),
        ("priority", 2, TypeError),
        ("priority", "INTERACTIVE", TypeError),
        ("priority", None, TypeError),
        ("priority", Priority, TypeError),
        ("deadline", math.nan, ValueError),
        ("deadline", math.inf, ValueError),
        ("deadline", True, TypeError),
        ("deadline", "5", TypeError),
    ],
)
async def test_wrong_parameters_of_a_send(name: str, value: Any, error: type[Exception]) -> None:
    async with scene() as (sandbox, client, (one,)):
        given = {"draft": one, name: value}
        with pytest.raises(error, match=begins_with(name)):
            await client.send_draft(**given)
        assert order(sandbox) == []
        assert sum(client.snapshot().waiting.values()) == 0


async def test_a_draft_brings_its_own_mailbox_and_user() -> None:
    async with scene("alice", "bob") as (sandbox, client, (one,)):
        draft = Draft(one, "alice@example.com", "alice")
        for given in (draft, Draft(one)):
            with pytest.raises(ValueError, match=r"^mailbox, user\b"):
                await client.send_draft(given, mailbox="bob@example.com")
            with pytest.raises(ValueError, match=r"^mailbox, user\b"):
                await client.send_draft(given, user="bob")
        assert order(sandbox) == []
        await client.send_draft(draft, mailbox="alice@example.com", user="alice")


@pytest.mark.parametrize("limit", [20, None, "20/60"])
async def test_a_limit_is_a_rate_limit(limit: Any) -> None:
    async with FeishuMailClient(TOKEN) as client:
        with pytest.raises(TypeError, match=begins_with("rate_limit")):
            client.set_rate_limit(limit)
        assert client.snapshot().limit == RateLimit()


async def test_a_refusal_until_the_end_says_whose_it_is() -> None:
    async with scene(retry=ONCE) as (sandbox, client, (one,)):
        sandbox.script(one, Fault.code("ConcurrentWrite"))
        with pytest.raises(ConcurrentWrite) as caught:
            await client.send_draft(Draft(one, tag=7))
        assert caught.value.draft is not None
        assert caught.value.draft.tag == 7
