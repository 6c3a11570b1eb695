"""Ids that cannot be ids: told before anything is sent."""

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feishu_mail_async import BadReply, Draft, FeishuMailClient
from tests.helpers.raw_server import raw_server

UNSEEN = [
    "\u200b",
    "\ufeff",
    "\u00ad",
    "\u2060",
    "\u200d",
    "\u202e",
    "\u2066",
    "\u00a0",
    "\u3000",
    "\u2009",
    "\u202f",
    "\ufe0f",
    "\u034f",
    "\u3164",
    "\u2800",
    "\U000e0041",
]


@pytest.mark.parametrize("name", ["draft_id", "mailbox"])
@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("character", UNSEEN)
def test_what_cannot_be_seen(name: str, place: int, character: str) -> None:
    text = f"{'d-1'[:place]}{character}{'d-1'[place:]}"
    with pytest.raises(ValueError, match=rf"^{name}: character {place} is U\+{ord(character):04X} \(") as caught:
        Draft(**{"draft_id": "a", name: text})
    assert unicodedata.name(character) in str(caught.value)
    assert str(caught.value).isascii()


@pytest.mark.parametrize(
    "text", ["268dce11-85f7-427d-8756-6be3abc850fd", "7620003644728921345", "a+/b==", "草稿 1"]
)
def test_what_can_be_an_id(text: str) -> None:
    assert Draft(text).draft_id == text


def test_a_users_name_is_its_callers() -> None:
    assert Draft("d", user="\u0645\u06cc\u200c\u062e\u0648").user == "\u0645\u06cc\u200c\u062e\u0648"


@given(st.text(min_size=1, max_size=8))
def test_what_is_taken_is_seen(text: str) -> None:
    try:
        taken = Draft(text).draft_id
    except ValueError:
        return
    assert taken == text
    assert not {unicodedata.category(character) for character in text} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


async def test_a_call_is_not_made_for_it() -> None:
    async with FeishuMailClient("u-abc", base_url="http://127.0.0.1:1") as client:
        for attempt in (client.send_draft("d\u200b"), client.send_draft("d", mailbox="me\ufeff")):
            with pytest.raises(ValueError, match="cannot be seen"):
                await attempt
        with pytest.raises(ValueError, match="cannot be seen"):
            [draft async for draft in client.list_drafts(mailbox="me\u00a0")]


async def test_a_server_that_lists_such_an_id() -> None:
    async def reply(_request: Any, _reader: Any, writer: Any) -> None:
        body = rb'{"code":0,"data":{"items":[{"id":"d\u200b"}]}}'
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async with raw_server(reply) as server, FeishuMailClient("u-abc", base_url=server.base_url) as client:
        with pytest.raises(BadReply, match=r"U\+200B"):
            [draft async for draft in client.list_drafts()]
