"""A secret that stands out, and looks at errors from every side for it."""

import logging
import pickle
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from feishu_mail_async import FeishuMailError

_TESTS: Final = Path(__file__).parents[1]

TOKEN: Final = "u-CANARYx7f1bcd13fc57d46bac21793a18e560"
"""A token that stands out wherever it should not stand."""


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and all its causes and contexts."""
    seen: set[int] = set()
    todo = [error]
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        todo += [one.__cause__, one.__context__]


def sides(error: BaseException) -> Iterator[tuple[str, str]]:
    """All that can be seen of an exception and of all that hangs on it: the name of a text, and the text."""
    for one in chain(error):
        seen = {
            "str": str(one),
            "repr": repr(one),
            "args": repr(one.args),
            "attributes": repr(vars(one)),
            "traceback": "".join(traceback.format_exception(one)),
        }
        if isinstance(one, FeishuMailError):
            seen["pickle"] = pickle.dumps(one).decode("latin-1")
        yield from ((f"{side} of {type(one).__name__}", text) for side, text in seen.items())


def holds(error: BaseException, secret: str) -> list[str]:
    """Where in an exception and in all that hangs on it a secret stands."""
    return [side for side, text in sides(error) if secret in text]


def frames_holding(error: BaseException, secrets: Iterable[str]) -> list[str]:
    """List the variables in the frames of an exception, and of all that hangs on it, that show a secret.

    As a tool shows them that prints the values of variables. The frames of the tests are left out: they know them.
    """
    found, wanted = [], [secret for secret in secrets if secret]
    for one in chain(error):
        for frame, line in traceback.walk_tb(one.__traceback__):
            if frame.f_code.co_filename.startswith(f"{_TESTS}/"):
                continue
            for name, value in frame.f_locals.items():
                try:
                    shown = repr(value)
                except Exception:  # noqa: BLE001 - of something that is only half made
                    continue
                if any(secret in shown for secret in wanted):
                    found.append(f"{frame.f_code.co_filename}:{line}: {name} of {frame.f_code.co_name}")
    return found


class Everything(logging.Handler):
    """Every record of every logger: as it came, and as it would be written."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts += [self.format(record), record.getMessage(), repr(record.args), repr(vars(record))]
        if record.exc_info and record.exc_info[1] is not None:
            self.texts.append("".join(traceback.format_exception(record.exc_info[1])))

    @property
    def text(self) -> str:
        return "\n".join(self.texts)
