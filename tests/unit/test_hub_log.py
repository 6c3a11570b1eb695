"""Events as log records."""

import asyncio
import logging
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from feishu_mail_async import FeishuMailClient, RateLimit
from feishu_mail_async.sandbox import Fault
from tests.helpers.scenes import scene

if TYPE_CHECKING:
    from feishu_mail_async.events import Event

pytestmark = pytest.mark.looptime(start=0)


async def test_the_log_is_useful_at_info_and_complete_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    limit = RateLimit(calls=1, per=60, spacing=0, margin=0)
    async with scene(drafts=2, rate_limit=limit) as (sandbox, client, ids):
        told: list[Event] = []
        client.subscribe(told.append)
        with caplog.at_level(logging.INFO, "feishu_mail_async"):
            await asyncio.gather(*(client.send_draft(draft_id) for draft_id in ids))
        records = [record for record in caplog.records if record.name.startswith("feishu_mail_async")]
        assert [record.getMessage() for record in records] == [
            f"draft {ids[0]}: sent after 0.1 s (0.0 s waiting, 1 call)",
            f"draft {ids[1]}: sent after 60.2 s (60.1 s waiting, 1 call)",
        ]
        second = vars(records[1])
        assert second["event"] == "draft_done"
        assert second["draft_id"] == ids[1]
        assert second["user"] == "alice"
        assert second["waited"] == pytest.approx(60.1, abs=0.01)
        assert (second["status"], second["attempts"], second["endpoint"]) == ("sent", 1, "send")
        assert second["message_id"]
        assert second["log_id"] == sandbox.ledger.sends[-1].log_id
        assert "time" not in second
        caplog.clear()
        told.clear()
        sandbox.script(ids[1], Fault.frequency(reset="5"), Fault.code("MailThrottled"))
        with caplog.at_level(logging.DEBUG, "feishu_mail_async"):
            await client.send_draft(ids[1])
        logged = [record for record in caplog.records if record.name == "feishu_mail_async.events"]
        assert [vars(record)["event"] for record in logged] == [event.name for event in told]
        assert [record.getMessage() for record in logged] == [str(event) for event in told]
        levels = {vars(record)["event"]: record.levelname for record in logged}
        assert levels["app_paused"] == "WARNING"
        assert levels["retry_planned"] == levels["user_cooled"] == levels["app_resumed"] == "INFO"
        assert levels["attempt_started"] == levels["turn_granted"] == "DEBUG"
        assert not any(token in caplog.text for token in sandbox.tokens.values())


@pytest.mark.parametrize(
    "event", ["draft_queued", "turn_granted", "attempt_started", "attempt_ended", "draft_done"]
)
async def test_a_log_filter_that_raises_holds_nothing_up(event: str) -> None:
    class Broken(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            if vars(record)["event"] == event:
                raise RuntimeError
            return False

    logger, broken = logging.getLogger("feishu_mail_async.events"), Broken()
    level = logger.level
    logger.addFilter(broken)
    logger.setLevel(logging.DEBUG)
    try:
        async with scene(drafts=2) as (_, client, ids):
            for draft_id in ids:
                assert (await client.send_draft(draft_id, deadline=60)).attempts == 1
            assert client.snapshot().in_flight == 0
    finally:
        logger.setLevel(level)
        logger.removeFilter(broken)


async def test_two_clients_of_an_app_log_an_event_once(caplog: pytest.LogCaptureFixture) -> None:
    async with scene(app="one") as (sandbox, client, [draft_id]):
        async with FeishuMailClient(sandbox.tokens, app="one", base_url=sandbox.base_url):
            with caplog.at_level(logging.INFO, "feishu_mail_async"):
                await client.send_draft(draft_id)
        assert len([record for record in caplog.records if record.name == "feishu_mail_async.events"]) == 1


def test_nothing_is_printed_unless_the_program_sets_up_logging() -> None:
    program = """
import asyncio
from feishu_mail_async import FeishuMailClient, FeishuMailError, RetryPolicy

async def main():
    async with FeishuMailClient("u-token", base_url="http://127.0.0.1:9", retry=RetryPolicy(outage=0)) as client:
        client.subscribe(lambda event: 1 / 0)
        try:
            await client.send_draft("d1")
        except FeishuMailError:
            print("refused")

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == ("refused\n", "")
