"""Programs that hang in every way there is, to be stopped: one function each, for the nursery."""

import asyncio
import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable

from feishu_mail_async._signals import heard
from feishu_mail_async.cli.interrupts import Interrupts, stop_seconds
from feishu_mail_async.cli.loop import run_loop

__all__ = [
    "blocked_printing",
    "deaf_loop",
    "deaf_main_thread",
    "executor_thread",
    "stubborn_task",
    "thread_at_exit",
]

_LONG = 1000.0


def _said() -> None:
    os.write(1, b"ready\n")


def _hang(what: Callable[[], object]) -> None:
    with heard(stop_seconds()):
        while True:
            try:
                what()
            except KeyboardInterrupt:
                continue  # it came before anything hung


def stubborn_task() -> None:
    """It does not let itself be cancelled, as what shields its end from that does."""

    async def run() -> None:
        end = time.monotonic() + _LONG
        _said()
        while time.monotonic() < end:
            try:
                await asyncio.sleep(_LONG)
            except asyncio.CancelledError:
                continue

    _hang(lambda: run_loop(run()))


def executor_thread() -> None:
    """A look-up of a name that is not answered: the loop waits for the thread it is in."""

    async def run() -> None:
        looking = asyncio.get_running_loop().run_in_executor(None, time.sleep, _LONG)
        _said()
        await looking

    _hang(lambda: run_loop(run()))


def thread_at_exit() -> None:
    """A database file on a disk that does not answer: the interpreter waits for the thread it is in."""
    with heard(stop_seconds()), contextlib.suppress(KeyboardInterrupt):
        threading.Thread(target=time.sleep, args=(_LONG,)).start()
        _said()
        time.sleep(_LONG)


def deaf_loop() -> None:
    """A loop that does nothing else for a long time."""

    async def run() -> None:
        with Interrupts(lambda _: None, "this is left"):
            _said()
            time.sleep(_LONG)  # noqa: ASYNC251 - that is what it is about

    _hang(lambda: run_loop(run()))


def deaf_main_thread() -> None:
    """A call that looks for no signals, as one to a disk that does not answer."""

    def wait() -> None:
        _said()
        hashlib.pbkdf2_hmac("sha256", b"x" * 4096, b"y", 2_000_000_000)

    _hang(wait)


def blocked_printing() -> None:
    """Nobody reads what is printed, neither there nor where errors go."""

    async def run() -> None:
        with Interrupts(lambda _: None):
            _said()
            while True:
                print("x" * 10_000, flush=True)

    _hang(lambda: run_loop(run()))
