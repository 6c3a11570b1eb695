"""The process of the nursery: it imports all that the tests' programs need, and forks one for every message.

    python -m tests.helpers.nursery_program FD

A message at that socket says what to run. Beside it come the program's standard streams, and a pipe that is told
its process id and, at its end, its exit status.
"""

import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, Final

NUMBER: Final = struct.Struct("=i")
"""How a process id and an exit status are told."""

_IMPORTED: Final = (
    "feishu_mail_async.cli.app",
    "feishu_mail_async.ledger.sqlstore",
    "feishu_mail_async.ledger.sqltokens",
    "sqlalchemy.dialects.sqlite.aiosqlite",
    "sqlalchemy.dialects.postgresql.psycopg",
    "feishu_mail_async.fleet.worker",
    "tests.helpers.programs.ledger",
    "tests.helpers.programs.refresh",
)


def fork_programs(control: socket.socket) -> Callable[[], object]:
    """Fork a program for every message, until the other side has ended: then nobody wants those that are left.

    Returns:
        In each forked process, what it is to run.
    """
    ends: dict[int, int] = {}  # process id -> where its exit status is told
    woken, waking = socket.socketpair()
    waking.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waking.fileno())
    while True:
        ready, _, _ = select.select([control, woken], [], [])
        if woken in ready:
            woken.recv(4096)
            _tell_ends(ends)
        if control in ready:
            message, streams, _, _ = socket.recv_fds(control, 1 << 20, 4)
            if not message:
                break
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _close(control, woken, waking)
                for end in (*ends.values(), streams.pop()):
                    os.close(end)
                return _become(json.loads(message), streams)
            ends[pid] = streams.pop()
            os.write(ends[pid], NUMBER.pack(pid))
            for stream in streams:
                os.close(stream)
    for pid in ends:
        os.kill(pid, signal.SIGKILL)
    _close(control, woken, waking)
    sys.exit()


def _close(*sockets: socket.socket) -> None:
    for one in sockets:
        one.close()


def _tell_ends(ends: dict[int, int]) -> None:
    while ends:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        end = ends.pop(pid)
        os.write(end, NUMBER.pack(os.waitstatus_to_exitcode(status)))
        os.close(end)


def _become(message: dict[str, Any], streams: list[int]) -> Callable[[], object]:
    """Make of this process what a program finds when it starts."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    # As Python opens them: what goes to a terminal goes there line by line.
    encoding = message["environment"].get("PYTHONIOENCODING")
    opened = {
        "stdin": open(0, encoding=encoding, closefd=False),  # noqa: SIM115 - a number is no path, and it stays open
        "stdout": open(1, "w", 1 if os.isatty(1) else -1, encoding, closefd=False),  # noqa: SIM115
        "stderr": open(2, "w", 1, encoding, "backslashreplace", closefd=False),  # noqa: SIM115
    }
    for number, (name, file) in enumerate(opened.items()):
        if number in message["closed"]:
            os.close(number)
            setattr(sys, name, None)
            continue
        setattr(sys, name, file)
        setattr(sys, f"__{name}__", file)
    os.environ.clear()
    os.environ.update(message["environment"])
    sys.argv[1:] = message["arguments"]
    module, _, function = message["run"].partition(":")
    run: Callable[[], object] = getattr(importlib.import_module(module), function)
    return run


if __name__ == "__main__":
    for name in _IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what a child does not look at, it need not copy
    fork_programs(socket.socket(fileno=int(sys.argv[1])))()
