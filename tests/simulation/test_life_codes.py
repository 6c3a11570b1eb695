"""Each code at each endpoint but that of sending, over HTTP and mocked."""

import contextlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aioresponses import aioresponses

from feishu_mail_async import (
    ApiError,
    Draft,
    FeishuMailClient,
    FeishuMailError,
    OutcomeUnknown,
    RetryPolicy,
    SendResult,
)
from feishu_mail_async._api.base_url import FEISHU
from feishu_mail_async.codes import CODES, Code
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.answers import MockedResponse, answer
from tests.helpers.letters import letter

pytestmark = pytest.mark.looptime


async def _all(client: FeishuMailClient) -> list[Draft]:
    return [draft async for draft in client.list_drafts()]


CALLS: dict[str, Any] = {
    "create": lambda client, _: client.create_draft(letter()),
    "update": lambda client, sent: client.update_draft(sent.draft, letter()),
    "delete": lambda client, sent: client.delete_draft(sent.draft),
    "read": lambda client, sent: client.read_draft(sent.draft),
    "list": lambda client, _: _all(client),
    "cancel": lambda client, sent: client.cancel_scheduled(sent),
    "delivery": lambda client, sent: client.delivery(sent),
    "recall": lambda client, sent: client.recall_message(sent),
    "recall_progress": lambda client, sent: client.recall_progress(sent),
}


ONCE = RetryPolicy(attempts=1, refusals=0, initial=0.1)


@contextlib.asynccontextmanager
async def over_http(row: Code) -> AsyncIterator[FeishuMailClient]:
    """A client whose every call the sandbox answers with this code."""
    async with Sandbox(users=["alice"], latency=0.1) as sandbox:
        sandbox.on_call = lambda _: Fault.code(row.name)
        async with FeishuMailClient(sandbox.token("alice"), base_url=sandbox.base_url, retry=ONCE) as client:
            yield client


@contextlib.asynccontextmanager
async def mocked(row: Code) -> AsyncIterator[FeishuMailClient]:
    """The same with aioresponses: the real host's name, and no network."""
    said: dict[str, Any] = {
        "status": row.http_status,
        "body": json.dumps(answer(row)),
        "response_class": MockedResponse,
    }
    with aioresponses() as mock:
        for method in ("GET", "POST", "PUT", "DELETE"):
            mock.add(re.compile(f"{re.escape(FEISHU)}/open-apis/mail/.*"), method, repeat=True, **said)
        async with FeishuMailClient("u-token", retry=ONCE) as client:
            yield client


@pytest.mark.parametrize("stage", [over_http, mocked])
@pytest.mark.parametrize("endpoint", CALLS)
@pytest.mark.parametrize("row", [row for row in CODES.values() if row.number], ids=lambda row: row.name)
async def test_every_code_at_every_endpoint(row: Code, endpoint: str, stage: Any) -> None:
    sent = SendResult(Draft("d1"), "m1", None, already_sent=False, attempts=1, log_id=None)
    async with stage(row) as client:
        with pytest.raises(FeishuMailError) as failed:
            await CALLS[endpoint](client, sent)
    decided = failed.value if isinstance(failed.value, ApiError) else failed.value.__cause__
    assert isinstance(decided, ApiError)
    assert decided.code == row.number
    assert type(decided).__name__ == (row.error or "ApiError")
    # Only a write whose attempt settles nothing is in doubt.
    writes = endpoint in {"create", "update", "delete", "cancel", "recall"}
    assert isinstance(failed.value, OutcomeUnknown) == (writes and not row.conclusive)
