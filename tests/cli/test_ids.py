"""Ids that cannot be ids: told before anything is sent, in the library and in the files of the command line."""

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feishu_mail_async import BadReply, Draft, FeishuMailClient
from tests.helpers.support import raw_server

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


# --- in files ---------------------------------------------------------------------------------------------

Read = Callable[..., Any]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    pytest.importorskip("typer")
    from feishu_mail_async.cli.rows import read_rows  # noqa: PLC0415 - it needs the extra

    def read(*cells: str, name: str = "d.csv") -> Any:
        path = tmp_path / name
        path.write_text("\n".join(["draft_id", *cells]) if name.endswith("csv") else "\n".join(cells))
        return read_rows(str(path), "me", lambda user: user)

    return read


LOST = "a spreadsheet has made"


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("d-1\u200b", "character 3 is U+200B (ZERO WIDTH SPACE), which cannot be seen; take it out"),
        ("\ufeffd-1", "character 0 is U+FEFF"),
        ("d\u00a01", "character 1 is U+00A0 (NO-BREAK SPACE)"),
        ("\u201cd-1\u201d", "character 0 is U+201C (LEFT DOUBLE QUOTATION MARK)"),
        ("\u2018d-1\u2019", "character 0 is U+2018"),
        ("d\u20131", "character 1 is U+2013 (EN DASH), which looks like another one"),
        ("d\u22121", "character 1 is U+2212"),
        ("\uff44-1", "character 0 is U+FF44 (FULLWIDTH LATIN SMALL LETTER D)"),
        ("7.62E+18", f"{LOST} 7.62E+18 of it, and its last digits are lost: make the column text"),
        ('"7,62E+18"', LOST),
        ("7.620003644728921e+18", LOST),
        ("7E+18", LOST),
        ("7620003644728921345.0", LOST),
        ("7620003644728921345.00", LOST),
        ('"7,620,003,644,728,921,345"', LOST),
        ("7 620 003 644 728 921 345", LOST),
        ("7.620.003.644", LOST),
        ("#N/A", LOST),
        ("#######", LOST),
    ],
)
def test_what_was_rewritten_is_told_with_its_row(read: Read, cell: str, said: str) -> None:
    found = read("d-1", cell)
    assert [draft.draft_id for draft in found.drafts] == ["d-1"]
    (told,) = found.wrong
    assert told.startswith(f"line 3: draft_id: {said}")


@pytest.mark.parametrize(
    "cell", ["7620003644728921345", "268e11", "1e10", "1.2.3", "12,34", "a-b", "d'1", "7e+", "1,234"]
)
def test_what_was_not_rewritten(read: Read, cell: str) -> None:
    assert [draft.draft_id for draft in read(f'"{cell}"').drafts] == [cell]


def test_a_text_that_a_spreadsheet_was_made_to_keep(read: Read) -> None:
    found = read('="7620003644728921345"', '"=""a-1"""', '=""')
    assert [draft.draft_id for draft in found.drafts] == ["7620003644728921345", "a-1"]
    assert found.wrong == ["line 4: draft_id: it is empty; give its value"]
    assert found.notes == ['="…" is read as what stands in its quotes']


def test_numbers_that_may_have_been_rounded(read: Read) -> None:
    found = read("7620003644728920000", "7620003644728921000", "1000", "762000364472892")
    assert len(found.drafts) == 4
    (note,) = found.notes
    assert note.startswith("1 draft_id ends in zeros behind the fifteenth digit: ")


def test_two_that_look_alike_are_not_two_without_a_word(read: Read) -> None:
    found = read("caf\u00e9", "x", "cafe\u0301", "caf\u00e9")
    assert [draft.draft_id for draft in found.drafts] == ["caf\u00e9", "x", "caf\u00e9"]
    assert found.wrong == ["line 4: draft_id: it looks like that of line 2, and is made of other characters"]


def test_json_lines_are_looked_at_too(read: Read) -> None:
    found = read(
        '{"draft_id": " d"}',
        '{"draft_id": "d-1\\u200b"}',
        '{"draft_id": "d", "mailbox": "a\uff20example.com"}',
        name="d.jsonl",
    )
    assert [re.sub(" is .*", "", told) for told in found.wrong] == [
        "line 1: draft_id: it begins or ends with a blank; take that out",
        "line 2: draft_id: character 3",
        "line 3: mailbox: character 1",
    ]


def test_arguments_are_looked_at_too(capfd: pytest.CaptureFixture[str], own_state: Path) -> None:
    pytest.importorskip("typer")
    from tests.helpers.cli import run_here  # noqa: PLC0415 - it needs the extra

    for arguments, said in (
        (["send", "d-1\u200b"], "DRAFT_ID: character 3 is U+200B"),
        (["send", "\u201cd-1\u201d"], "DRAFT_ID: character 0 is U+201C"),
        (["list", "--mailbox", "a\uff20b.com"], "--mailbox: character 1 is U+FF20"),
    ):
        ended = run_here(capfd, arguments, [])
        assert (ended.code, ended.out) == (2, "")
        assert ended.err.startswith(f"error: {said}")
    assert not own_state.exists()
