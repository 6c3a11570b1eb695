"""The input file of a bulk run: CSV or JSON lines, read whole, with a sentence for each bad row.

The whole file is checked before the first draft is sent, so that a bad row stops nothing halfway. The reader is
tolerant of the format (encoding, delimiter, header's case) and strict about ids, because a damaged id may be that
of another draft. Rows written by `--out` are recognized by their columns and restored exactly.
"""

import csv
import io
import json
import os
import re
import select
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from feishu_mail_async._text import escape
from feishu_mail_async.model import Draft

from .cells import MARK, is_formula, restore
from .decoding import decode
from .ids import check_spelling, is_rounded, unwrap
from .problems import CannotStart, WrongUsage, unreadable
from .render.wording import count
from .results import COLUMNS

__all__ = ["STANDARD_INPUT", "Rows", "name_file", "read_rows"]

STANDARD_INPUT: Final = "-"

_ID: Final = "draft_id"
_KEYS: Final = (_ID, "mailbox", "user")
_JSON_NAMES: Final = frozenset({".jsonl", ".ndjson", ".json"})
# The last two are the full-width comma and semicolon, which Chinese input methods type.
_DELIMITERS: Final = (",", ";", "\t", "|", "\uff0c", "\uff1b")
_NAMES: Final = {"\t": "tabs"}
# A line like `sep=;` before the header tells Excel the delimiter; some programs write it.
_SEPARATOR: Final = re.compile(r'"?sep=([^\r\n"])"?[ ,;]*[\r\n]*', re.IGNORECASE)
_HEADER: Final = (
    "it has no header: the first line must name the columns, draft_id and if you like mailbox and user, "
    "such as: draft_id,mailbox,user"
)
_WRAPPED: Final = '="…" is read as what stands in its quotes'
_MOST_TOLD: Final = 50
_PIECE: Final = 64 * 1024

_Cells = dict[str, str]
_Line = tuple[int, _Cells | str]
"""A line's number, with its cells, or with a sentence about its error."""


@dataclass(slots=True)
class Rows:
    """The content of a file.

    Attributes:
        drafts: the draft of each good row, in the file's order.
        wrong: a sentence for each bad row, with its line number.
        ignored: the columns or keys that are not used (a dict as an ordered set).
        notes: sentences about assumptions made in reading.
    """

    drafts: list[Draft] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    ignored: dict[str, None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def check(self, name: str, advice: str) -> None:
        """Raise an error unless the file has rows and all of them are good.

        Args:
            name: the file's name, for the message.
            advice: a last line of the message that helps with bad rows; empty for none.

        Raises:
            WrongUsage: there are bad rows, which the message lists, or no rows at all.
        """
        if not self.wrong and not self.drafts:
            raise WrongUsage(name, "there is no row in it, so there is nothing to send")
        if not self.wrong:
            return
        told = [f"  {escape(sentence)}" for sentence in self.wrong[:_MOST_TOLD]]
        if len(self.wrong) > _MOST_TOLD:
            told.append(f"  and {len(self.wrong) - _MOST_TOLD} more")
        of = count(len(self.drafts) + len(self.wrong), "row")
        verb = "is" if len(self.wrong) == 1 else "are"
        first = f"{len(self.wrong)} of {of} {verb} wrong, and nothing was sent:"
        raise WrongUsage(name, "\n".join([first, *told, *([advice] if advice else [])]))


def read_rows(path: str, mailbox: str, user_of: Callable[[str | None], str | None]) -> Rows:
    """Read a whole file.

    It is JSON lines if its first line begins with "{", if its name is one for JSON lines, or if its first line is
    a JSON string other than draft_id and its name is not one for CSV. Otherwise it is CSV. Assumptions about the
    encoding and the delimiter are in the notes.

    Args:
        path: the file's path; "-" for standard input.
        mailbox: the mailbox of drafts that name none.
        user_of: a function from the user that a row names (None for none) to the user that sends; it raises
            ValueError if there is no token.

    Raises:
        CannotStart: the file cannot be read.
        WrongUsage: it is neither CSV with a header nor JSON lines.
    """
    rows, looks, rounded = Rows(), _Looks(), 0
    try:
        text, encoding = decode(_read(path))
    except ValueError as error:
        raise WrongUsage(name_file(path), error) from None
    assumed = [f"as {encoding}"] if encoding else []
    if _is_json(text, path):
        lines = _json_lines(text, rows)
    else:
        table = _Table(text)
        if table.delimiter != _DELIMITERS[0]:
            assumed.append(f"with {_NAMES.get(table.delimiter, table.delimiter)} between the columns")
        lines = _csv_lines(table, path, rows)
    if assumed:
        rows.notes.append(f"read {' and '.join(assumed)}")
    for number, cells in lines:
        try:
            draft = _draft(cells, mailbox, user_of)
            looks.check(number, draft)
        except ValueError as error:
            rows.wrong.append(f"line {number}: {error}")
        else:
            rows.drafts.append(draft)
            rounded += is_rounded(draft.draft_id)
    if rounded:
        verb = "ends" if rounded == 1 else "end"
        rows.notes.append(
            f"{count(rounded, 'draft_id')} {verb} in zeros behind the fifteenth digit: if a spreadsheet has done "
            "that, make the column text, and put the ids in anew"
        )
    return rows


class _Looks:
    """A check that no two different ids of a file look the same, as one of them is probably a typing error."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, str]] = {}

    def check(self, number: int, draft: Draft) -> None:
        """Raise ValueError if the draft's id looks like an earlier one but differs."""
        text = draft.draft_id
        if text.isascii():
            return
        line, known = self._known.setdefault(unicodedata.normalize("NFKC", text), (number, text))
        if text != known:
            raise ValueError(f"draft_id: it looks like that of line {line}, and is made of other characters")


def _read(path: str) -> bytes:
    try:
        return _read_input() if path == STANDARD_INPUT else Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise CannotStart(f"{name_file(path)}: {unreadable(error)}") from None


def name_file(path: str) -> str:
    """Return the file's name for a sentence.

    Args:
        path: the file's path; "-" for standard input.
    """
    return "standard input" if path == STANDARD_INPUT else escape(path)


def _read_input() -> bytes:
    """Read all of standard input, even if it is non-blocking: Python's own read would take a pause for the end."""
    source, pieces = sys.stdin.fileno(), [b""]
    while not pieces[1:] or pieces[-1]:
        if os.name == "posix":
            select.select([source], [], [])
        pieces.append(os.read(source, _PIECE))
    return b"".join(pieces)


def _draft(cells: _Cells | str, mailbox: str, user_of: Callable[[str | None], str | None]) -> Draft:
    if isinstance(cells, str):
        raise ValueError(cells)  # noqa: TRY004 - `cells` is the message here
    for key, value in cells.items():
        if not value.isascii() and any("\udc80" <= character <= "\udcff" for character in value):
            raise ValueError(f"{key}: it holds bytes that are no UTF-8")
        if "\ufffd" in value:
            raise ValueError(f"{key}: it holds U+FFFD, which stands for something that could not be read")
    for key in (_ID, "mailbox"):
        check_spelling(key, cells.get(key, ""))
    named = Draft(cells.get(_ID, ""), cells.get("mailbox") or mailbox, cells.get("user") or None)
    return Draft(named.draft_id, named.mailbox, user_of(named.user))


# -- CSV ---------------------------------------------------------------------------------------------------


class _Table:
    """A text as CSV.

    Attributes:
        text: the text, without a leading line like `sep=;`.
        delimiter: the delimiter: that of a line like `sep=;`, or else the one that occurs most in the header.
        skipped: the number of lines removed before the text.
    """

    def __init__(self, text: str) -> None:
        first = next((line for line in io.StringIO(text, newline="") if line.strip()), "")
        told = _SEPARATOR.fullmatch(first)
        start = text.index(first) + len(first) if told else 0
        self.text = text[start:]
        self.delimiter = told[1] if told else max(_DELIMITERS, key=first.count)
        self.skipped = sum(1 for _ in io.StringIO(text[:start], newline=""))


def _csv_lines(table: _Table, path: str, rows: Rows) -> Iterator[_Line]:
    records = _records(table)
    header = next((cells for _, cells in records if not isinstance(cells, str)), None)
    if header is None:
        return
    names = [_normal(name) for name in header]
    if _ID not in names:
        raise WrongUsage(name_file(path), _HEADER)
    for name in _KEYS:
        if names.count(name) > 1:
            raise WrongUsage(name_file(path), f"its header has {name} {names.count(name)} times; keep one of them")
    rows.ignored.update(
        dict.fromkeys(
            escape(name.strip()) for name, known in zip(header, names, strict=True) if known and known not in _KEYS
        )
    )
    ours = set(COLUMNS).issubset(names)
    for number, cells in records:
        if isinstance(cells, str):
            yield number, cells
        elif (ours and len(cells) < len(names)) or any(cell.strip() for cell in cells[len(names) :]):
            yield number, f"it has {count(len(cells), 'column')}, and the header has {len(names)}"
        else:
            # Rows of other programs may be short: many leave out empty cells at the end. Ours are never short,
            # so a short one is damaged (refused above).
            named = {name: cell for name, cell in zip(names, cells, strict=False) if name in _KEYS}
            yield number, _restored(named) if ours else _typed(named, rows)


def _restored(cells: _Cells) -> _Cells:
    """Return the texts of cells that `--out` wrote."""
    return {name: restore(cell) for name, cell in cells.items()}


def _typed(cells: _Cells, rows: Rows) -> _Cells | str:
    """Return the texts of cells from other programs, without surrounding blanks, or a sentence about an error."""
    bare = {name: cell.strip() for name, cell in cells.items()}
    for name, cell in bare.items():
        wrapped = unwrap(cell)
        if wrapped is not None:
            bare[name] = wrapped
            if _WRAPPED not in rows.notes:
                rows.notes.append(_WRAPPED)
        if cell.startswith(MARK) and is_formula(restore(cell)):
            return (
                f"{name}: it begins with {cell[:2]}, as --out writes {restore(cell)[:1]}, and other columns of "
                "--out are missing: take the ' out, or give the row as JSON"
            )
    return bare


def _records(table: _Table) -> Iterator[tuple[int, Sequence[str] | str]]:
    """Yield the records that are not blank, each with the number of its first line."""
    lines = io.StringIO(table.text, newline="")
    reader = csv.reader(lines, delimiter=table.delimiter, skipinitialspace=True, strict=True)
    while True:
        number = table.skipped + reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, _told(error)
            continue
        if any(cell.strip() for cell in cells):
            yield number, cells


def _told(error: csv.Error) -> str:
    if "unexpected end" in str(error):
        return "a quote opens here and is never closed"
    return f"it is no CSV ({error})"


def _normal(name: str) -> str:
    # Invisible format characters (a zero-width space, say) come with headers copied from web pages.
    seen = "".join(character for character in name if unicodedata.category(character) != "Cf")
    return seen.strip().lower().replace(" ", "_")


# -- JSON lines --------------------------------------------------------------------------------------------


def _is_json(text: str, path: str) -> bool:
    first = next((line.strip() for line in io.StringIO(text, newline="") if line.strip()), "")
    name = "" if path == STANDARD_INPUT else Path(path).suffix.lower()
    if first.startswith("["):
        raise WrongUsage(
            name_file(path), 'a JSON array is no JSON lines: give one object a line, such as {"draft_id": "…"}'
        )
    if first.startswith("{") or name in _JSON_NAMES:
        return True
    if not first.startswith('"') or name in {".csv", ".tsv"}:
        return False
    try:
        return isinstance(value := json.loads(first), str) and _normal(value) != _ID
    except ValueError:
        return False


def _json_lines(text: str, rows: Rows) -> Iterator[_Line]:
    for number, line in enumerate(io.StringIO(text, newline=""), 1):
        if line.strip():
            yield number, _json_cells(line, rows)


def _json_cells(line: str, rows: Rows) -> _Cells | str:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        where = f" at column {error.colno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else ""
        return f"it is no JSON{where}"
    if isinstance(value, str):
        return {_ID: value}
    if not isinstance(value, Mapping):
        return 'it is neither an object, such as {"draft_id": "…"}, nor a text'
    if _ID not in value:
        return "draft_id is missing"
    rows.ignored.update(dict.fromkeys(escape(key) for key in value if key not in _KEYS))
    cells = {}
    for key in _KEYS:
        cell = value.get(key)
        if cell is not None and not isinstance(cell, str):
            return f"{key}: give a text, not {json.dumps(cell)[:40]}"
        cells[key] = cell or ""
    return cells
