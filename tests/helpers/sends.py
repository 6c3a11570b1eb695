"""Single sends, and the order in which they arrive."""

import asyncio
from typing import Any

import pytest

from feishu_mail_async import Draft, FeishuMailClient, SendResult
from feishu_mail_async.sandbox import Sandbox

# A round trip of the sandboxes here takes 2 s, one each way, so that there is a time "in flight".
SLOW = 2.0


def at(seconds: float) -> Any:
    return pytest.approx(seconds, abs=0.01)


def send(client: FeishuMailClient, draft: str | Draft, **how: Any) -> asyncio.Task[SendResult]:
    return asyncio.create_task(client.send_draft(draft, **how))


def order(sandbox: Sandbox) -> list[str | None]:
    return [arrival.draft_id for arrival in sandbox.ledger.arrivals]
