"""Standard streams that fail no program: the work and its record do not depend on the screen.

Whatever is wrong with an output (closed, full, its reader gone) raises nothing in the midst of the work. It is
told once, at the end, and shows in the exit code if nothing else does. What an encoding lacks is escaped. A reader
that is slow is not waited for before the end: what it has not taken yet is kept.
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
"""Exit code: all is done, and not all that there was to say could be written."""

_PIECE: Final = 4096
"""Bytes that a pipe which takes any takes without waiting."""
_MOST_KEPT: Final = 16 * 1024 * 1024
"""Bytes that are kept for a slow reader; then it is waited for, as every program does."""


class _Outlet(io.BufferedIOBase):
    """The bytes' way to an output: it never raises, and waits for its reader only when told to.

    Args:
        file: the output as Python opened it; None: it is closed.

    Attributes:
        trouble: why it takes no more; None while it does.
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
        """Write what is kept: as much as is taken at once, or, if it is to `wait`, all of it."""
        while self._kept and self.trouble is None:
            try:
                if self._file is None:
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))  # noqa: TRY301 - as a write would
                if not _takes(self._file.fileno(), wait=wait):
                    return
                written = self._file.write(self._kept[:_PIECE])
            except OSError as error:
                self.trouble = error
                self._kept.clear()
            else:
                del self._kept[: written or 0]


def _takes(descriptor: int, *, wait: bool) -> bool:
    """Whether a write to this descriptor would not block; if it is to `wait`, once it would not."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(None if wait else 0))


class _Output(io.TextIOWrapper):
    """A standard output whose text goes to an outlet.

    Args:
        before: the stream that it stands for; None: it is closed.
        name: as people call it.
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
        """Why it takes no more; None while it does."""
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
    """Why standard output takes no more of what is printed; None while it does."""
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
            if out.trouble is not None and out.trouble.errno != errno.EPIPE:  # who has left has seen enough
                err.write(f"error: {out.called}: not all of it could be written ({out.trouble.strerror})\n")
            err.finish()
    except KeyboardInterrupt:
        code = INTERRUPTED
    finally:
        sys.stdout, sys.stderr = before
    sys.exit(code or (UNSAID if out.trouble or err.trouble else 0))  # type: ignore[arg-type]  # as it came


def _occupy() -> None:
    """Open nothing under the numbers of the standard streams that are closed: no file of ours may get them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
