"""Standard streams whose failures do not stop a program: the work and its record do not depend on the screen.

An output that is closed, full, or without a reader raises nothing in the middle of the work. The failure is
reported once, at the end, and shows in the exit code if no other error does. Characters that an encoding lacks are
escaped. A slow reader is not waited for before the end: unread output is kept in memory.
"""

import errno
import io
import os
import select
import sys
from collections.abc import Callable
from typing import Final, NoReturn, TextIO

from ._signals import INTERRUPTED

__all__ = ["UNSAID", "output_trouble", "run_program"]

UNSAID: Final = 4
"""Exit code: all work is done, but not all output could be written."""

_PIECE: Final = 4096
"""Bytes that a pipe which takes any takes without blocking."""
_MOST_KEPT: Final = 16 * 1024 * 1024
"""Bytes kept for a slow reader; beyond that it is waited for, as in every program."""


class _Outlet(io.BufferedIOBase):
    """The byte stream of an output: it never raises, and blocks on its reader only on request.

    Args:
        file: the output as Python opened it; None: it is closed.

    Attributes:
        trouble: the error that ended it; None while it works.
    """

    def __init__(self, file: io.RawIOBase | None) -> None:
        self._file = file
        self._kept = bytearray()
        self.trouble: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return super().fileno() if self._file is None else self._file.fileno()

    def isatty(self) -> bool:
        return self._file is not None and self._file.isatty()

    def write(self, data: bytes, /) -> int:  # type: ignore[override]  # narrower: a text stream gives bytes
        if self.trouble is None:
            self._kept += data
            self.drain(wait=len(self._kept) > _MOST_KEPT)
        return len(data)

    def flush(self) -> None:
        self.drain(wait=False)

    def drain(self, *, wait: bool) -> None:
        """Write the kept bytes: as many as are taken at once, or all of them if it is to `wait`."""
        while self._kept and self.trouble is None:
            try:
                if self._file is None:
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))  # noqa: TRY301 - like a write would
                if not _takes(self._file.fileno(), wait=wait):
                    return
                written = self._file.write(self._kept[:_PIECE])
            except OSError as error:
                self.trouble = error
                self._kept.clear()
            else:
                del self._kept[: written or 0]


def _takes(descriptor: int, *, wait: bool) -> bool:
    """Return whether a write to this descriptor would not block; if it is to `wait`, once it would not."""
    if not hasattr(select, "poll"):  # Windows: a write blocks there if it must
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(None if wait else 0))


class _Output(io.TextIOWrapper):
    """A standard output whose text goes to an outlet.

    Args:
        before: the stream that it replaces; None: that is closed.
        name: its name in messages.
    """

    def __init__(self, before: TextIO | None, name: str) -> None:
        self.outlet: Final = _Outlet(None if before is None else _raw(before))
        self.called = name
        encoding = "utf-8" if before is None else before.encoding
        super().__init__(
            self.outlet,  # type: ignore[arg-type]  # its name is never asked for
            encoding,
            "backslashreplace",
            line_buffering=self.outlet.isatty(),
        )

    @property
    def trouble(self) -> OSError | None:
        """The error that ended it; None while it works."""
        return self.outlet.trouble

    def finish(self) -> None:
        """Write all that is left, however long its reader takes."""
        self.flush()
        self.outlet.drain(wait=True)


def _raw(stream: TextIO) -> io.RawIOBase | None:
    stream.flush()
    raw = getattr(stream.buffer, "raw", stream.buffer)
    assert isinstance(raw, io.RawIOBase)
    return raw


def output_trouble() -> OSError | None:
    """Return the error that ended standard output; None while it works."""
    return sys.stdout.trouble if isinstance(sys.stdout, _Output) else None


def run_program(program: Callable[[], int]) -> NoReturn:
    """Run a program with such streams, and exit.

    Args:
        program: returns its exit code, or raises SystemExit.
    """
    _occupy()
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - a descriptor, which stays open
    elif isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    before = sys.stdout, sys.stderr
    out, err = _Output(sys.stdout, "standard output"), _Output(sys.stderr, "standard error")
    sys.stdout, sys.stderr = out, err
    try:
        try:
            code: object = program()
        except SystemExit as end:
            code = end.code
        finally:
            out.finish()
            # A reader that closed the pipe (`| head`) has seen enough: that is no error.
            if out.trouble is not None and out.trouble.errno != errno.EPIPE:
                err.write(f"error: {out.called}: not all of it could be written ({out.trouble.strerror})\n")
            err.finish()
    except KeyboardInterrupt:
        code = INTERRUPTED
    finally:
        sys.stdout, sys.stderr = before
    sys.exit(code or (UNSAID if out.trouble or err.trouble else 0))  # type: ignore[arg-type]  # as it came


def _occupy() -> None:
    """Open the null device under the closed standard descriptors: no file opened later may get their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
