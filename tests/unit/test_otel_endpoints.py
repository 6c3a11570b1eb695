"""Spans of the calls of any endpoint: what they are called stands in the endpoint's row."""

from typing import Any

import pytest

from feishu_mail_async import Draft, FeishuMailClient, Priority
from feishu_mail_async._api.endpoints import ENDPOINTS, LIST, Endpoint, LostReply
from feishu_mail_async._auth.tokens import tokens_of
from feishu_mail_async._calls.call import Call
from feishu_mail_async._calls.caller import request
from feishu_mail_async._scheduling.record import DraftKey
from tests.helpers.raw_server import SENT, always, raw_server
from tests.helpers.scenes import FREE
from tests.helpers.telemetry import DRAFTS, Telemetry, about, id_of, open_spans, parent_of, seen

__all__ = ["seen"]

PART: Endpoint[dict[str, Any]] = Endpoint(
    "part",
    "GET",
    LIST.path + "/{draft_id}/parts/{part}",
    LIST.scope,
    FREE,
    writes=False,
    lost_reply=LostReply.SAFE,
    what="a part of a draft",
    did="read",
    read=dict,
    source="获取草稿",
)


@pytest.mark.looptime
async def test_a_row_is_all_that_a_new_endpoint_needs(seen: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENDPOINTS, PART.name, PART)
    async with raw_server(always(SENT)) as server, FeishuMailClient("u-x", base_url=server.base_url) as client:
        seen.instrument(client)
        path = PART.url(mailbox="me", draft_id="a", part="b")
        account = tokens_of("u-x").account(None)
        call = Call(PART, path, DraftKey(account.key, "x", path), account, Draft("a"))
        await request(client._binding.intake(PART), call, Priority.NORMAL)
    draft, exchange = seen.span("part draft"), seen.span(f"GET {DRAFTS}/:draft_id/parts/:part")
    assert parent_of(exchange) == id_of(draft)
    assert about(exchange)["url.full"] == server.base_url + path
    assert about(exchange)["url.template"] == f"{DRAFTS}/:draft_id/parts/:part"
    (measured,) = seen.points("http.client.request.duration")
    assert measured.attributes["url.template"] == f"{DRAFTS}/:draft_id/parts/:part"
    assert open_spans() == 0
