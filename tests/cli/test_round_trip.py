"""What the command line writes, it reads: every draft of a file of its own is the draft that it wrote down."""

import contextlib
import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from feishu_mail_async import Draft, FeishuMailError, Outcome, OutcomeStatus
from feishu_mail_async.cli.cells import is_formula, protect, restore
from feishu_mail_async.cli.ids import check_spelling
from feishu_mail_async.cli.results import COLUMNS, Results, make_row
from feishu_mail_async.cli.rows import Rows, read_rows
from tests.helpers.cli import Feishu, run_here

pytestmark = pytest.mark.usefixtures("own_state")

FORMULAS = [
    "=1+1",
    "+Qm9vay0x",
    "-1",
    "@sum",
    " =1",
    "\u00a0=1",
    "\u3000+1",
    "\u200b=1",
    "\uff1d1",
    "\uff0b1",
    "\uff0d1",
    "\uff20a",
    "\ufe661",
    "\u22121",
    "=cmd|' /C calc'!A0",
    "\t=1",
    "\r=1",
    "\na",
    "\ta",
]
PLAIN = ["a=1", "x,y", 'a"b', "a", "", "é", "草稿", "7620", "'", "a'b"]
ODD = [*FORMULAS, *PLAIN, "'=1", "''+1", "'a", '"', '",', "a;b", "a b", "#", "\\n", "null", "1.0", "NaN"]

ALPHABET = st.sampled_from("=+-@\uff1d\uff0b\uff0d\uff20'\",; \u00a0\u3000\\aé草1")
TEXTS = st.one_of(
    st.sampled_from(ODD), st.text(ALPHABET, min_size=1, max_size=12), st.text(min_size=1, max_size=20)
)


@st.composite
def drafts(draw: st.DrawFn) -> Draft:
    """Drafts that the command line takes."""
    while True:
        with contextlib.suppress(ValueError):
            draft = Draft(draw(TEXTS), draw(TEXTS | st.just("me")), draw(st.none() | TEXTS))
            check_spelling("draft_id", draft.draft_id)
            check_spelling("mailbox", draft.mailbox)
            return draft


def write(path: Path, written: list[Draft]) -> None:
    results = Results(str(path))
    results.open()
    for draft in written:
        results.write(Outcome(draft, OutcomeStatus.SKIPPED, None, FeishuMailError(f"-@{draft.draft_id}\n=1")))
    results.close()


def read(path: Path) -> Rows:
    return read_rows(str(path), "me", lambda user: user)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl"])
@given(written=st.lists(drafts(), min_size=1, max_size=5))
@example(written=[Draft("+Qm9vay0x"), Draft("'+Qm9vay0x"), Draft("''"), Draft("'=x", "=m", "@u")])
def test_every_draft_comes_back_from_results(place: Path, name: str, written: list[Draft]) -> None:
    path = place / name
    path.unlink(missing_ok=True)
    write(path, written)
    found = read(path)
    assert (found.wrong, found.drafts) == ([], written)


@given(drafts())
def test_every_draft_comes_back_from_json_lines(place: Path, draft: Draft) -> None:
    path = place / "told.jsonl"
    told = make_row(Outcome(draft, OutcomeStatus.SKIPPED, None, FeishuMailError("no")))
    path.write_text(json.dumps(told) + "\n")
    found = read(path)
    assert (found.wrong, found.drafts) == ([], [draft])


@given(TEXTS)
def test_a_cell_is_restored_and_no_formula(text: str) -> None:
    assert restore(protect(text)) == text
    assert not is_formula(protect(text))


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas(text: str) -> None:
    assert protect(text) == f"'{text}"


@pytest.mark.parametrize("text", PLAIN)
def test_plain_texts(text: str) -> None:
    assert not is_formula(text)


def test_a_file_that_a_spreadsheet_saved_again(place: Path) -> None:
    """Its columns moved, one more, quotes only where needed, other separators and line ends."""
    path = place / "ours.csv"
    path.unlink(missing_ok=True)
    write(path, [Draft("+a", "m@example.com", "=u"), Draft("'b")])
    rows = [row | {"note": "x"} for row in csv.DictReader(io.StringIO(path.read_text(), newline=""))]
    saved = io.StringIO()
    writer = csv.DictWriter(saved, ["note", *reversed(COLUMNS)], delimiter=";")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(saved.getvalue(), newline="")
    assert read(path).drafts == [Draft("+a", "m@example.com", "=u"), Draft("'b")]


def test_a_mark_in_a_file_that_may_not_be_ours_is_no_guess(place: Path) -> None:
    path = place / "cut.csv"
    path.write_text("draft_id,user\n'+Qm9,\n+Qm9,\n'Qm9,\nQm9,'=u\n")
    found = read(path)
    assert found.drafts == [Draft("+Qm9"), Draft("'Qm9")]
    assert [told.partition(",")[0] for told in found.wrong] == [
        "line 2: draft_id: it begins with '+",
        "line 5: user: it begins with '=",
    ]


def test_the_server_is_called_for_the_same_draft_again(capfd: pytest.CaptureFixture[str], feishu: Feishu) -> None:
    ids = ["+Qm9vay0x", "=x", "'=x"]
    first = feishu.write("ids.jsonl", *map(json.dumps, ids))
    options = ["--yes", "--no-ledger", "--user", "alice", *feishu.options()]
    for path, out in ((first, feishu.out), (str(feishu.out), feishu.directory / "again.csv")):
        assert run_here(capfd, ["bulk", path, "--out", str(out), *options], []).code == 1  # there are none such
    called = feishu.do(lambda sandbox: [call.draft_id for call in sandbox.ledger.sends])
    assert sorted(map(str, called)) == sorted(ids * 2)
