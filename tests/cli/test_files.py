"""Files of drafts as the programs of this world write them: read, or named for what they are."""

import codecs
import gzip
import io
import zipfile
from pathlib import Path

import pytest

from feishu_mail_async import Draft
from feishu_mail_async.cli.problems import Problem
from tests.helpers.cli import Feishu, run_here
from tests.helpers.rows import read

pytestmark = pytest.mark.usefixtures("own_state")


WANTED = [Draft("a", "m@example.com", "张三"), Draft("b", "me", "李四")]
TABLE = "draft_id,mailbox,user,备注\na,m@example.com,张三,你好\nb,,李四,“再见”\n"
JSON = '{"draft_id": "a", "mailbox": "m@example.com", "user": "张三"}\n{"draft_id": "b", "user": "李四"}\n'


@pytest.mark.parametrize("text", [TABLE, JSON])
@pytest.mark.parametrize(
    ("mark", "encoding", "said"),
    [
        (b"", "utf-8", []),
        (codecs.BOM_UTF8, "utf-8", []),
        (codecs.BOM_UTF8 * 2, "utf-8", []),
        (b"", "gbk", ["read as GB18030"]),
        (b"", "gb18030", ["read as GB18030"]),
        (codecs.BOM_UTF16_LE, "utf-16-le", ["read as UTF-16"]),
        (codecs.BOM_UTF16_BE, "utf-16-be", ["read as UTF-16"]),
        (codecs.BOM_UTF32_LE, "utf-32-le", ["read as UTF-32"]),
        (b"", "utf-16-le", ["read as UTF-16-LE"]),
        (b"", "utf-16-be", ["read as UTF-16-BE"]),
    ],
)
def test_encodings(tmp_path: Path, text: str, mark: bytes, encoding: str, said: list[str]) -> None:
    found = read(tmp_path, mark + text.encode(encoding))
    assert (found.wrong, found.drafts, found.notes) == ([], WANTED, said)


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_line_ends_and_blank_rows(tmp_path: Path, ends: str) -> None:
    lines = ["", "draft_id,user", "a,bob", "", " , ", ",,,", "x\x07,bob", "", "b,"]
    found = read(tmp_path, ends.join(lines))
    assert found.drafts == [Draft("a", user="bob"), Draft("b")]
    assert [told.partition(":")[0] for told in found.wrong] == ["line 7"]


@pytest.mark.parametrize(
    ("delimiter", "name"), [(";", ";"), ("\t", "tabs"), ("|", "|"), ("\uff0c", "\uff0c"), ("\uff1b", "\uff1b")]
)
def test_separators(tmp_path: Path, delimiter: str, name: str) -> None:
    found = read(tmp_path, "draft_id,user\na,bob\n".replace(",", delimiter))
    assert (found.wrong, found.drafts) == ([], [Draft("a", user="bob")])
    assert found.notes == [f"read with {name} between the columns"]


@pytest.mark.parametrize("told", ["sep=;", "SEP=;", '"sep=;"', "sep=;;;", "\ufeffsep=;", "\n\nsep=;"])
def test_a_line_that_names_the_separator(tmp_path: Path, told: str) -> None:
    found = read(tmp_path, f"{told}\r\ndraft_id;a,b,c;user\r\na;;bob\r\nx\x07;;\r\n")
    assert found.drafts == [Draft("a", user="bob")]
    # The lines are numbered as an editor has them.
    assert [sentence.partition(":")[0] for sentence in found.wrong] == [f"line {4 + told.count(chr(10))}"]
    assert found.notes == ["read with ; between the columns"]


def test_cells_left_out_at_the_end_of_a_row(tmp_path: Path) -> None:
    found = read(tmp_path, "draft_id,mailbox,user\nd-1,me,bob\nd-2,me\nd-3\nd-4,,,,\nd-5,,,more\n")
    assert found.drafts == [Draft("d-1", user="bob"), Draft("d-2"), Draft("d-3"), Draft("d-4")]
    assert found.wrong == ["line 6: it has 4 columns, and the header has 3"]


def test_a_row_of_results_that_is_cut_off_is_no_row(tmp_path: Path) -> None:
    columns = "draft_id,mailbox,user,status,message_id,thread_id,attempts,code,error_type,error,advice,log_id,"
    columns += "scheduled_for"
    found = read(tmp_path, f"{columns}\n{'d-1,me' + ',' * 11}\nd-")
    assert (found.drafts, found.wrong) == ([Draft("d-1")], ["line 3: it has 1 column, and the header has 13"])


def test_a_bad_byte_does_not_turn_utf_8_into_something_else(tmp_path: Path) -> None:
    content = "draft_id,user\na,张三\nb,李四\n".encode() + b"c,\xd5\xc5\nd,\xff\n"
    found = read(tmp_path, content)
    assert found.drafts == [Draft("a", user="张三"), Draft("b", user="李四")]
    assert found.wrong == [f"line {line}: user: it holds bytes that are no UTF-8" for line in (4, 5)]


def test_what_could_not_be_read_before_is_no_id(tmp_path: Path) -> None:
    found = read(tmp_path, "draft_id\na\ufffd\n".encode("utf-16"))
    assert found.wrong == ["line 2: draft_id: it holds U+FFFD, which stands for something that could not be read"]


def test_nuls(tmp_path: Path) -> None:
    found = read(tmp_path, "draft_id,note\na,x\0y\nb\0,\n")
    assert found.drafts == [Draft("a")]
    assert found.wrong == ["line 3: draft_id: character 1 is the control character U+0000; take it out"]


def workbook() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
    return packed.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (workbook(), 'it is a workbook (.xlsx, .ods), no CSV: open it in the spreadsheet, save it as "CSV UTF-8"'),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512), "it is a workbook (.xls), no CSV"),
        (gzip.compress(TABLE.encode()), "it is compressed: unpack it first"),
        (b"%PDF-1.7\n", "it is a PDF"),
        ("name,id\nx,y\n", "it has no header"),
    ],
)
def test_what_is_no_such_file_is_named(tmp_path: Path, content: str | bytes, said: str) -> None:
    with pytest.raises(Problem) as caught:
        read(tmp_path, content)
    assert (caught.value.exit_code, "\n" in str(caught.value)) == (2, False)
    assert str(caught.value).startswith(f"{tmp_path / 'drafts.csv'}: {said}")


def test_what_was_assumed_is_said_in_one_line(capfd: pytest.CaptureFixture[str], feishu: Feishu) -> None:
    drafts = feishu.drafts("alice", 2)
    path = feishu.directory / "d.csv"
    path.write_bytes(
        "\r\n".join(["sep=;", "draft_id;备注;user", *[f"{one};你好;alice" for one in drafts]]).encode("gbk")
    )
    ended = run_here(capfd, ["bulk", str(path), "--yes", *feishu.options()], [])
    assert (ended.code, feishu.sent) == (0, dict.fromkeys(drafts, 1))
    notes = [line for line in ended.err.splitlines() if line.startswith(f"note: {path}: ")]
    assert notes == [
        f"note: {path}: read as GB18030 and with ; between the columns",
        f"note: {path}: not used: 备注",
    ]
