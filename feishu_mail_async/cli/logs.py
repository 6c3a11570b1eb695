"""What `--verbose` adds: the log and tracebacks on standard error, neither with a token in it."""

import logging
import sys
import traceback
from typing import Any, Final

from feishu_mail_async._text import escape, escape_lines

__all__ = ["Verbose", "hide", "print_traceback"]

_SECRETS: Final[set[str]] = set()


def hide(secret: str) -> None:
    """Never print this, whatever it stands in."""
    if secret:
        _SECRETS.add(secret)


def print_traceback(error: BaseException) -> None:
    """Print where an error came from. Values of variables are not shown."""
    sys.stderr.write(escape_lines(_scrub("".join(traceback.format_exception(error)))))
    sys.stderr.flush()


def _scrub(text: str) -> str:
    for secret in _SECRETS:
        text = text.replace(secret, "***")
    return text


class _Scrubbed(logging.Formatter):
    """One line for each record, whoever's words are in it; only tracebacks have several."""

    def format(self, record: logging.LogRecord) -> str:
        return _scrub(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return escape(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        return escape_lines(super().formatException(ei))


class Verbose:
    """Tells more than a person needs, if it is on."""

    def __init__(self, *, on: bool) -> None:
        self.on = on
        if on:
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(_Scrubbed("%(asctime)s %(levelname)s %(name)s: %(message)s"))
            logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
            logging.getLogger("feishu_mail_async").setLevel(logging.DEBUG)

    def traceback(self, error: BaseException) -> None:
        """Print where an error came from; nothing unless verbose."""
        if self.on:
            print_traceback(error)
