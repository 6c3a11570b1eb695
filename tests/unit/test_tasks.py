"""Background tasks that outlive their callers, whatever the loop makes tasks of."""

import asyncio
import sys

import pytest

from feishu_mail_async import FeishuMailClient, OutcomeStatus
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.clock import VirtualLoop


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.11 has no eager tasks")
def test_an_eager_task_factory_changes_nothing() -> None:
    async def story() -> None:
        asyncio.get_running_loop().set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009
        async with Sandbox(users=["alice"], latency=0.1) as sandbox:
            drafts = sandbox.add_drafts("alice", 6)
            async with FeishuMailClient(sandbox.token("alice"), base_url=sandbox.base_url) as client:
                for draft_id in drafts[:2]:
                    await client.send_draft(draft_id)
                outcomes = [outcome async for outcome in client.send_drafts(drafts[2:])]
                assert [outcome.status for outcome in outcomes] == [OutcomeStatus.SENT] * 4
            assert sandbox.ledger.conflicts == 0

    loop = VirtualLoop(start=0)
    try:
        loop.run_until_complete(asyncio.wait_for(story(), 600))
    finally:
        loop.close()
