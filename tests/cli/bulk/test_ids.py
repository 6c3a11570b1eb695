"""Ids in files and arguments that cannot be ids, or were rewritten on their way: told with their rows."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
