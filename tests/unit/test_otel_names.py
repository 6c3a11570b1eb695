"""Names and attributes of spans, by the conventions."""

import asyncio
import contextlib
from importlib.metadata import version

import pytest

from feishu_mail_async import FeishuMailClient, Priority, RateLimit, RetryPolicy
from tests.helpers.raw_server import SENT, always, raw_server
from tests.helpers.scenes import FREE, scene
from tests.helpers.telemetry import DRAFTS, LIST, SEND, Telemetry, about, lasted, open_spans, parent_of

pytestmark = pytest.mark.looptime(start=0)


async def test_a_span_follows_the_conventions(seen: Telemetry) -> None:
    async with scene(drafts=2, rate_limit=RateLimit(spacing=5)) as (sandbox, client, ids):
        seen.instrument(client)
        port = int(sandbox.base_url.rpartition(":")[2])
        results = await asyncio.gather(*(client.send_draft(one, priority=Priority.INTERACTIVE) for one in ids))
        first, second = seen.spans(SEND)
        url = f"{sandbox.base_url}/open-apis/mail/v1/user_mailboxes/me/drafts/{ids[0]}/send"
        assert about(first) == {
            "http.request.method": "POST",
            "url.full": url,
            "url.template": f"{DRAFTS}/:draft_id/send",
            "server.address": "127.0.0.1",
            "server.port": port,
            "http.response.status_code": 200,
            "feishu_mail.user": "alice",
            "feishu_mail.draft_id": ids[0],
            "feishu_mail.mailbox": "me",
            "feishu_mail.code": "0",
            "feishu_mail.log_id": results[0].log_id,
            "feishu_mail.end": "answered",
            "feishu_mail.verdict": "done",
        }
        draft = seen.drafts()[ids[1]]
        assert draft.parent is None
        assert about(draft) == {
            "feishu_mail.user": "alice",
            "feishu_mail.draft_id": ids[1],
            "feishu_mail.mailbox": "me",
            "feishu_mail.priority": "interactive",
            "feishu_mail.outcome": "sent",
            "feishu_mail.attempts": 1,
            "feishu_mail.waited": pytest.approx(5, abs=0.01),
            "feishu_mail.log_id": results[1].log_id,
        }
        assert list(lasted(second)) == pytest.approx([5, 5.1], abs=0.01)
        assert list(lasted(draft)) == pytest.approx([0, 5.1], abs=0.01)
        (turn,) = draft.events
        assert turn.timestamp / 1e9 == pytest.approx(5, abs=0.1)
        assert dict(turn.attributes or {}) == {
            "feishu_mail.attempt": 1,
            "feishu_mail.waited": pytest.approx(5, abs=0.01),
            "feishu_mail.probe": False,
        }
        scope = draft.instrumentation_scope
        assert scope is not None
        assert (scope.name, scope.version) == ("feishu_mail_async", version("feishu-mail-async"))
        assert str(scope.schema_url).startswith("https://opentelemetry.io/schemas/1.")


async def test_a_listing_has_the_spans_of_its_calls_alone(seen: Telemetry) -> None:
    async with scene(drafts=150) as (sandbox, client, ids):
        seen.instrument(client)
        with seen.tracer.start_as_current_span("mine") as mine:
            assert [draft.draft_id async for draft in client.list_drafts()] == ids
        pages = seen.spans(LIST)
        assert [parent_of(span) for span in pages] == [mine.get_span_context().span_id] * 2
        targets = [about(span)["url.full"].removeprefix(sandbox.base_url) for span in pages]
        assert [target.partition("?")[0] for target in targets] == [DRAFTS.replace(":user_mailbox_id", "me")] * 2
        assert about(pages[0])["http.request.method"] == "GET"
        assert seen.spans("send draft") == []
        assert open_spans() == 0


async def test_a_path_of_the_host_is_part_of_the_template(seen: Telemetry) -> None:
    async with raw_server(always(SENT)) as server:
        async with FeishuMailClient("u-x", base_url=f"{server.base_url}/gate", rate_limit=FREE) as client:
            seen.instrument(client)
            await client.send_draft("a/b")
        span = seen.span(f"POST /gate{DRAFTS}/:draft_id/send")
        assert about(span)["url.full"] == server.base_url + server.requests[0].target
        assert about(span)["server.port"] == server.port


async def test_the_ordinary_port_is_named_too(seen: Telemetry) -> None:
    async with FeishuMailClient("u-x", base_url="https://mail.invalid", retry=RetryPolicy(outage=0)) as client:
        seen.instrument(client)
        with contextlib.suppress(Exception):
            await client.send_draft("a")
    assert (about(seen.span(SEND))["server.address"], about(seen.span(SEND))["server.port"]) == (
        "mail.invalid",
        443,
    )
