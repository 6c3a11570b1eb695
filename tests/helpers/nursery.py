"""Programs that begin at once: forked from a process that has imported all they need.

Importing it takes a second of processor time; forking takes a hundredth.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Final

from tests.helpers import nursery_program

__all__ = ["Program", "close", "start"]

_PATIENCE: Final = 100.0
_ROOT: Final = Path(__file__).parents[2]


class Program:
    """A program that was forked; of what `subprocess.Popen` offers, what the tests need.

    Attributes:
        pid: its process id.
        returncode: its exit status, negative if a signal ended it; None while it is not known to have ended.
        stdin: where its input is written, if that is a pipe.
        stdout: where its output is read, if that is a pipe.
        stderr: as `stdout`.
    """

    def __init__(self, end: int, stdin: IO[str] | None, stdout: IO[str] | None, stderr: IO[str] | None) -> None:
        self._end = end
        self.returncode: int | None = None
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self.pid = self._told(_PATIENCE)

    def _told(self, timeout: float | None) -> int:
        if not select.select([self._end], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("program", timeout or 0.0)
        number = os.read(self._end, nursery_program.NUMBER.size)
        assert number, "the nursery has ended"
        return int(nursery_program.NUMBER.unpack(number)[0])

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; its exit status.

        Raises:
            subprocess.TimeoutExpired: it has not ended within so many seconds.
        """
        if self.returncode is None:
            self.returncode = self._told(timeout)
            os.close(self._end)
        return self.returncode

    def poll(self) -> int | None:
        """Its exit status, if it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def communicate(self, told: str | None = None, timeout: float | None = None) -> tuple[str, str]:
        """Write its input, read the rest of its output, and wait for its end."""
        with ThreadPoolExecutor(2) as pool:
            streams = [stream for stream in (self.stdout, self.stderr) if stream is not None and not stream.closed]
            texts = {id(stream): pool.submit(stream.read) for stream in streams}
            try:
                if self.stdin is not None:
                    with contextlib.suppress(BrokenPipeError), self.stdin:
                        self.stdin.write(told or "")
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
            out, err = (texts[id(one)].result() if id(one) in texts else "" for one in (self.stdout, self.stderr))
        for stream in streams:
            stream.close()
        return out, err

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it is still there."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Nursery:
    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", nursery_program.__name__, str(theirs.fileno())],
                cwd=_ROOT,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C in the terminal is for pytest
            )

    def fork(self, message: Mapping[str, object], streams: Sequence[int]) -> None:
        socket.send_fds(self._control, [json.dumps(message).encode()], streams)

    def close(self) -> None:
        self._control.close()
        self._process.wait(_PATIENCE)


_nurseries: Final[list[_Nursery]] = []
_one_at_a_time: Final = threading.Lock()  # of those who want the first program at once


def start(
    run: str,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    stdin: int | None = subprocess.DEVNULL,
    stdout: int | None = subprocess.PIPE,
    stderr: int | None = subprocess.PIPE,
) -> Program:
    """Start a program. It has no controlling terminal.

    Args:
        run: the function that it runs, as `module:name`.
        arguments: of the program.
        env: its environment; without it, that of this process.
        stdin: its input: `subprocess.PIPE`, `subprocess.DEVNULL`, a file descriptor, or None: it is closed.
        stdout: its output.
        stderr: its other output.
    """
    with _one_at_a_time:
        if not _nurseries:
            _nurseries.append(_Nursery())
    message = {
        "run": run,
        "arguments": arguments,
        "environment": dict(os.environ if env is None else env),
        "closed": [number for number, stream in enumerate((stdin, stdout, stderr)) if stream is None],
    }
    with contextlib.ExitStack() as theirs:
        ours: list[IO[str] | None] = []
        streams: list[int] = []
        for stream, mode in ((stdin, "r"), (stdout, "w"), (stderr, "w")):
            our_end, their_end = theirs.enter_context(_ends(stream, mode))
            ours.append(our_end)
            streams.append(their_end)
        end, telling = os.pipe()
        theirs.callback(os.close, telling)
        _nurseries[0].fork(message, [*streams, telling])
    return Program(end, *ours)


@contextlib.contextmanager
def _ends(stream: int | None, mode: str) -> Iterator[tuple[IO[str] | None, int]]:
    """Our end and theirs of a stream that they read ("r") or write ("w"); theirs is not needed afterwards."""
    if stream is None or stream == subprocess.DEVNULL:
        with Path(os.devnull).open(mode) as nothing:
            yield None, nothing.fileno()
    elif stream == subprocess.PIPE:
        reading, writing = os.pipe()
        theirs, ours = (reading, writing) if mode == "r" else (writing, reading)
        try:
            yield os.fdopen(ours, "w" if mode == "r" else "r"), theirs
        finally:
            os.close(theirs)
    else:
        yield None, stream


def close() -> None:
    """End the nursery, and what it has started."""
    while _nurseries:
        _nurseries.pop().close()
