"""The output of `--verbose`: log and tracebacks on standard error, without any token."""

import logging
import sys
import traceback
from typing import Any, Final

from feishu_mail_async._text import escape, escape_lines

__all__ = ["Verbose", "hide", "print_traceback"]

_FRAMES: Final = 10
_SECRETS: Final[set[str]] = set()


def hide(secret: str) -> None:
    """Register a secret to be replaced in all logs and tracebacks.

    Args:
        secret: the secret; empty is ignored.
    """
    if secret:
        _SECRETS.add(secret)


def print_traceback(error: BaseException) -> None:
    """Print an error's traceback, without the values of variables.

    Args:
        error: the error. If it was never raised, the caller's innermost frames stand in for its traceback.
    """
    told = traceback.TracebackException.from_exception(error)
    if error.__traceback__ is None:
        told.stack = traceback.extract_stack(limit=_FRAMES)
    sys.stderr.write(escape_lines(_scrub("".join(told.format()))))
    sys.stderr.flush()


def _scrub(text: str) -> str:
    for secret in _SECRETS:
        text = text.replace(secret, "***")
    return text


class _Scrubbed(logging.Formatter):
    """A formatter that removes secrets and escapes control characters: one line a record, except tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        return _scrub(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return escape(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        return escape_lines(super().formatException(ei))


class Verbose:
    """The switch of verbose output. Constructing it with `on` configures logging.

    Args:
        on: True with `--verbose`.
    """

    def __init__(self, *, on: bool) -> None:
        self.on = on
        if on:
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(_Scrubbed("%(asctime)s %(levelname)s %(name)s: %(message)s"))
            logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
            logging.getLogger("feishu_mail_async").setLevel(logging.DEBUG)

    def traceback(self, error: BaseException) -> None:
        """Print an error's traceback if verbose output is on.

        Args:
            error: the error.
        """
        if self.on:
            print_traceback(error)
