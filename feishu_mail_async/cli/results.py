"""The file of `--out`: a row for each draft, written as the draft ends, so that a crash loses no results."""

import contextlib
import csv
import io
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from feishu_mail_async._causes import root_cause
from feishu_mail_async._text import escape
from feishu_mail_async.errors import ApiError
from feishu_mail_async.outcomes import Outcome

from .cells import protect
from .problems import CannotStart, WrongUsage
from .render.wording import advise, log_id, say

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
    "error_type",
    "error",
    "advice",
    "log_id",
    "scheduled_for",
)

_OPTION: Final = "--out"
_NEW: Final = (
    os.O_WRONLY
    | os.O_CREAT
    | os.O_APPEND
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


def make_row(outcome: Outcome) -> dict[str, Any]:
    """Return the row of an outcome, the same in every JSON and CSV: column -> value.

    Args:
        outcome: the outcome. If its error has no code, log id or advice of its own, those of its cause are given.
    """
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
        if result.scheduled_for is not None:
            row["scheduled_for"] = result.scheduled_for.isoformat()
    if error is not None:
        decided = root_cause(error)
        row |= {"attempts": error.attempts, "log_id": log_id(error), "advice": advise(error) or None}
        row |= {"error": say(error), "error_type": type(error).__name__}
        row |= {"code": decided.code if isinstance(decided, ApiError) else None}
    return row


class Results:
    """A file of results, CSV or JSON lines by its name. It has only whole rows, and only its owner may read it.

    Args:
        path: the file's path. Nothing is written before `open`.

    Attributes:
        missing: the number of rows that could not be written.
        trouble: the reason of the latest failure.

    Raises:
        WrongUsage: the name ends in neither .csv nor .jsonl, its directory does not exist, or the file is not
            empty.
        CannotStart: the path names something other than a file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.missing = 0
        self.trouble = ""
        self._file: int | None = None
        self._csv = Path(path).suffix.lower() == ".csv"
        if not self._csv and Path(path).suffix.lower() != ".jsonl":
            raise WrongUsage(_OPTION, f"give a name that ends in .csv or .jsonl, not {path!r}")
        with contextlib.suppress(OSError, ValueError):  # `open` reports the error, if there is one
            self._check(Path(path).stat())
        if not Path(path).parent.is_dir():
            raise WrongUsage(_OPTION, f"there is no directory {str(Path(path).parent)!r}")

    def _check(self, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            raise CannotStart(f"{_OPTION} {escape(self.path)}: it is no ordinary file; give the name of a new one")
        if found.st_size:
            raise WrongUsage(
                _OPTION, f"{escape(self.path)} exists, and results are not written over; give another name"
            )

    def open(self) -> None:
        """Create the file.

        Raises:
            WrongUsage: the file is not empty.
            CannotStart: the file cannot be created.
        """
        try:
            # Opened without blocking: if the path has become a pipe meanwhile, open would wait for a reader.
            self._file = os.open(self.path, _NEW, 0o600)
            self._check(os.fstat(self._file))
            if self._csv:
                self._write(_csv_line(COLUMNS))
        except (OSError, ValueError) as error:
            said = error.strerror if isinstance(error, OSError) else error
            raise CannotStart(f"{_OPTION} {escape(self.path)}: it cannot be written ({said})") from None

    def write(self, outcome: Outcome) -> bool:
        """Add a row, and return whether it was written. After a failure, the next row may succeed.

        Args:
            outcome: the outcome.
        """
        row = make_row(outcome)
        line = _csv_line(row[column] for column in COLUMNS) if self._csv else json.dumps(row, ensure_ascii=False)
        try:
            self._write(line if self._csv else f"{line}\n")
        except OSError as error:
            self.missing += 1
            self.trouble = error.strerror or str(error)
            return False
        return True

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, text: str) -> None:
        """Write a whole row or nothing, unbuffered, so that rows survive any end of the program."""
        assert self._file is not None
        begin = os.fstat(self._file).st_size
        left = text.encode("utf-8", errors="replace")
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, begin)
            raise


def _csv_line(cells: Iterable[Any]) -> str:
    line = io.StringIO()
    # All texts are quoted, so that blanks at their ends are kept.
    writer = csv.writer(line, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(protect(cell) if isinstance(cell, str) else cell for cell in cells)
    return line.getvalue()
