"""How to test your own bot: with the fixture `feishu_sandbox`, a Feishu on this machine that is strict.

    python -m pytest examples/test_my_bot.py

The fixture comes with the package; all it needs is pytest-asyncio (pip install pytest pytest-asyncio). The tests
make real calls over HTTP, and what they judge by is the server's own record, `feishu_sandbox.ledger`: not what
your program says it did. `feishu_sandbox` has one user, "alice", and the real limit of 20 calls a minute. There is
nothing here to take to the real Feishu but `answer`, which stands for your own program.
"""

import pytest

from feishu_mail_async import ApiError, FeishuMailClient, NotSent, OutcomeUnknown
from feishu_mail_async.sandbox import Fault, Sandbox

pytestmark = pytest.mark.asyncio


async def answer(client: FeishuMailClient, draft_id: str, *, patience: float = 30.0) -> str:
    """Your bot: send a draft, and tell the person who asked for it what became of it."""
    try:
        result = await client.send_draft(draft_id, deadline=patience)
    except ApiError as error:
        return f"Not sent. {error.advice}"
    except NotSent:
        return "Not sent: too much is going on. Try again in a minute."
    except OutcomeUnknown:
        return "I cannot tell yet. Ask me again: it will not be sent twice."
    return "It had been sent already." if result.already_sent else "Sent."


def client_of(sandbox: Sandbox) -> FeishuMailClient:
    return FeishuMailClient(sandbox.token("alice"), base_url=sandbox.base_url)


async def test_a_draft_is_sent(feishu_sandbox: Sandbox) -> None:
    draft_id = feishu_sandbox.add_draft("alice")
    async with client_of(feishu_sandbox) as client:
        assert await answer(client, draft_id) == "Sent."
        assert await answer(client, draft_id) == "It had been sent already."
    assert feishu_sandbox.ledger.sent[draft_id] == 1


async def test_a_refusal_says_what_to_mend(feishu_sandbox: Sandbox) -> None:
    draft_id = feishu_sandbox.add_draft("alice")
    feishu_sandbox.script(draft_id, Fault.code("TooManyRecipients"))
    async with client_of(feishu_sandbox) as client:
        assert "recipients" in await answer(client, draft_id)
    assert not feishu_sandbox.ledger.sent


async def test_a_reply_that_gets_lost_is_asked_for_again(feishu_sandbox: Sandbox) -> None:
    draft_id = feishu_sandbox.add_draft("alice")
    feishu_sandbox.script(draft_id, Fault.gateway(502, accepted=True))  # it goes out, and nobody is told
    async with client_of(feishu_sandbox) as client:
        assert await answer(client, draft_id) == "It had been sent already."
    assert feishu_sandbox.ledger.sent[draft_id] == 1
    assert len(feishu_sandbox.ledger.calls(draft_id)) == 2


async def test_a_person_in_a_hurry_may_ask_again(feishu_sandbox: Sandbox) -> None:
    draft_id = feishu_sandbox.add_draft("alice")
    feishu_sandbox.script(draft_id, Fault.gateway(502, accepted=True), Fault.gateway(502))
    async with client_of(feishu_sandbox) as client:
        assert "Ask me again" in await answer(client, draft_id, patience=1.0)
        assert await answer(client, draft_id) == "It had been sent already."
    assert feishu_sandbox.ledger.sent[draft_id] == 1


async def test_the_limit_is_waited_for(feishu_sandbox: Sandbox) -> None:
    draft_id = feishu_sandbox.add_draft("alice")
    feishu_sandbox.limit_now(1)  # as if another program had used it up, for a second
    async with client_of(feishu_sandbox) as client:
        assert await answer(client, draft_id) == "Sent."
    first, second = feishu_sandbox.ledger.calls(draft_id)
    assert second.time - first.time >= 1


async def test_nobody_waits_too_long_for_the_limit(feishu_sandbox: Sandbox) -> None:
    draft_id = feishu_sandbox.add_draft("alice")
    feishu_sandbox.limit_now(60)
    async with client_of(feishu_sandbox) as client:
        assert "Try again in a minute" in await answer(client, draft_id, patience=2.0)
    assert not feishu_sandbox.ledger.sent
