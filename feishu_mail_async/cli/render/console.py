"""The consoles, and all that is printed on them: lines, notes, outcomes, tables and JSON."""

import json
import sys
import textwrap
from collections.abc import Iterable
from typing import Final

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from feishu_mail_async._text import escape
from feishu_mail_async.model import OutcomeStatus
from feishu_mail_async.outcomes import Outcome

from .wording import detail, name_draft, name_status

__all__ = [
    "STYLES",
    "WIDEST_ID",
    "console",
    "living_place",
    "print_hanging",
    "print_json",
    "print_line",
    "print_note",
    "print_outcome",
    "print_rows",
    "status_head",
]

STYLES: Final = {
    OutcomeStatus.SENT: "green",
    OutcomeStatus.SCHEDULED: "green",
    OutcomeStatus.ALREADY_SENT: "green",
    OutcomeStatus.FAILED: "red",
    OutcomeStatus.UNKNOWN: "yellow",
    OutcomeStatus.SKIPPED: "yellow",
}

WIDEST_ID: Final = 44
"""The width of the drafts' column at the most, in characters."""

_NARROW: Final = 20
_INSET: Final = 6
_STATUS_WIDTH: Final = max(len(name_status(status)) for status in OutcomeStatus) + 2


def console(*, stderr: bool = False) -> Console:
    """Make a console that prints text as it is, without markup or highlighting, and wraps only on a terminal.

    Args:
        stderr: True for standard error, False for standard output.
    """
    place = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    place.soft_wrap = not place.is_terminal
    return place


def living_place(*places: Console) -> Console | None:
    """Return the first console on which a live line disturbs no other output; None if there is none.

    Args:
        *places: the consoles, standard output first.
    """
    for place in places:
        # If standard output goes to the same terminal, a live line on standard error would get mixed into it.
        mixed = place is not places[0] and places[0].is_terminal
        if place.is_terminal and not place.is_dumb_terminal and not mixed:
            return place
    return None


def print_json(value: object) -> None:
    """Print a value on standard output, as a line of JSON.

    Args:
        value: the value.
    """
    # Flushed, because the program that reads the pipe may act on each line.
    print(json.dumps(value), flush=True)  # noqa: T201 - the purpose of the option


def print_line(place: Console, text: str = "", style: str = "", *, wrap: bool = False) -> None:
    """Print a line, escaped.

    Args:
        place: the console.
        text: the line.
        style: its style.
        wrap: True for a sentence, which a terminal wraps between words; other lines can be copied in one piece.
    """
    place.print(Text(escape(text), style=style), soft_wrap=None if wrap else True)
    place.file.flush()


def print_note(text: str) -> None:
    """Print a remark on standard error.

    Args:
        text: the remark.
    """
    print_line(console(stderr=True), f"note: {text}", "dim")


def status_head(word: str, style: str, name: str, id_width: int = 0) -> Text:
    """Return the head of a line: a status and what has it, in columns.

    Args:
        word: the status.
        style: the status's style.
        name: the draft, user or mailbox that has it.
        id_width: the width of the name's column, in characters.
    """
    return Text(word.ljust(_STATUS_WIDTH), style=style).append(name.ljust(id_width), style="default")


def print_outcome(place: Console, outcome: Outcome, id_width: int, told: str | None = None) -> None:
    """Print the outcome of a draft.

    Args:
        place: the console.
        outcome: the outcome.
        id_width: the width of the drafts' column, in characters.
        told: the text beside it; None for all details.
    """
    status = outcome.status
    head = status_head(name_status(status), STYLES[status], name_draft(outcome.draft), id_width)
    print_hanging(place, head, detail(outcome) if told is None else told)


def print_hanging(place: Console, head: Text, told: str) -> None:
    """Print a head and a text beside it, or on a terminal below it if there is no room.

    Args:
        place: the console.
        head: the head.
        told: the text; may be empty.
    """
    width = head.cell_len + 2 + len(told)
    if not place.is_terminal or width <= place.width:
        place.print(head + Text(f"  {told}" if told else ""), soft_wrap=True)
    else:
        place.print(head, soft_wrap=True)
        place.print(Padding(Text(told), (0, 0, 0, _STATUS_WIDTH)))
    place.file.flush()


def print_rows(place: Console, rows: Iterable[tuple[Text, str]]) -> None:
    """Print rows of a name and a text in aligned columns; on a terminal, texts wrap within their column.

    On a terminal without room for that column, the texts stand below the names.

    Args:
        place: the console.
        rows: (name, text) pairs.
    """
    listed = list(rows)
    width = max((name.cell_len for name, _ in listed), default=0) + 4
    room = place.width - width if place.is_terminal else sys.maxsize
    below = room < _NARROW and any(len(told) > room for _, told in listed)
    if below:
        width, room = _INSET, place.width - _INSET
    for name, told in listed:
        # An indented text begins with a number like "3: ". Its further lines are aligned with the text after it.
        inset = " " * (len(told) - len(told.lstrip()) + 3) if told.startswith(" ") else ""
        lines = textwrap.wrap(told, max(room, _NARROW), subsequent_indent=inset) or [""]
        if below and name.plain and told:
            lines.insert(0, "")
        for number, line in enumerate(lines):
            head = Text("  ") + (name if number == 0 else Text())
            head.pad_right(width - head.cell_len)
            head.append(line)
            head.rstrip()
            place.print(head, soft_wrap=True)
