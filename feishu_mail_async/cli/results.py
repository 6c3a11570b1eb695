"""`--out`: a row for each draft, written as it ends, so that nothing is lost with the program."""

import csv
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Final

from feishu_mail_async._text import escape
from feishu_mail_async.bulk import Outcome
from feishu_mail_async.errors import ApiError, decisive

from .cells import protect
from .problems import CannotStart, WrongUsage
from .words import advise, brief, log_id

__all__ = ["COLUMNS", "Results", "make_row"]

COLUMNS: Final = (
    "draft_id",
    "mailbox",
    "user",
    "status",
    "message_id",
    "thread_id",
    "attempts",
    "code",
    "error",
    "advice",
    "log_id",
)

_OPTION: Final = "--out"


def make_row(outcome: Outcome) -> dict[str, Any]:
    """What `--out` says of an outcome: the columns and their values."""
    draft, result, error = outcome.draft, outcome.result, outcome.error
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {
        "draft_id": draft.draft_id,
        "mailbox": draft.mailbox,
        "user": draft.user,
        "status": outcome.status.value,
    }
    if result is not None:
        row |= {"message_id": result.message_id, "thread_id": result.thread_id}
        row |= {"attempts": result.attempts, "log_id": result.log_id}
    if error is not None:
        decided = decisive(error)
        row |= {"attempts": error.attempts, "log_id": log_id(error), "error": brief(error)}
        row |= {"advice": advise(error) or None, "code": decided.code if isinstance(decided, ApiError) else None}
    return row


class Results:
    """A file of results; CSV or JSON lines, as its name says.

    Args:
        path: where. It is written only after `open`.

    Raises:
        WrongUsage: the name ends in neither .csv nor .jsonl, or the file has something in it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._csv = Path(path).suffix.lower() == ".csv"
        if not self._csv and Path(path).suffix.lower() != ".jsonl":
            raise WrongUsage(_OPTION, f"give a name that ends in .csv or .jsonl, not {path!r}")
        try:
            filled = Path(path).stat().st_size > 0
        except (OSError, ValueError):
            filled = False  # `open` says what is wrong, if anything is
        if filled:
            raise WrongUsage(
                _OPTION, f"{escape(path)} exists, and results are not written over; give another name"
            )
        if not Path(path).parent.is_dir():
            raise WrongUsage(_OPTION, f"there is no directory {str(Path(path).parent)!r}")

    def open(self) -> None:
        """Create the file.

        Raises:
            CannotStart: that is not possible.
        """
        try:
            # Without a buffer of ours: what was written stays, however the program ends.
            self._file = Path(self.path).open("ab", buffering=0)  # noqa: SIM115 - `close` closes it
            if self._csv:
                self._write(_csv_line(COLUMNS))
        except (OSError, ValueError) as error:
            said = error.strerror if isinstance(error, OSError) else error
            raise CannotStart(f"{_OPTION} {escape(self.path)}: it cannot be written ({said})") from None

    def write(self, outcome: Outcome) -> None:
        """Add a row; OSError if that is not possible."""
        row = make_row(outcome)
        if self._csv:
            self._write(_csv_line(row[column] for column in COLUMNS))
        else:
            self._write(json.dumps(row, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _write(self, text: str) -> None:
        assert self._file is not None
        left = text.encode("utf-8", errors="replace")
        while left:
            left = left[os.write(self._file.fileno(), left) :]


def _csv_line(cells: Iterable[Any]) -> str:
    line = io.StringIO()
    # In quotes, where blanks at a text's ends are its own.
    writer = csv.writer(line, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(protect(cell) if isinstance(cell, str) else cell for cell in cells)
    return line.getvalue()
