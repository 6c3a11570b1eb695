"""What the tests of the command line share: how it is run, as a program of its own or in this process."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from feishu_mail_async.cli import app

TOKEN_VARIABLE = "FEISHU_USER_ACCESS_TOKEN"
CANARY = "u-CANARY0123456789abcdefCANARY"
PATIENCE = 60.0
"""Seconds before a test gives up; none passes or fails by it."""

COMMAND = [sys.executable, "-m", "feishu_mail_async"]


def environment(**more: str) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("FEISHU", "COLUMNS"))}
    return env | {"PYTHONWARNINGS": "error", "NO_COLOR": "1", "TERM": "xterm"} | more


def run_process(command: list[str], env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, check=False, env=env or environment(), capture_output=True, text=True, timeout=PATIENCE
    )


def wait_for(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def outcomes(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


def run_here(capfd: pytest.CaptureFixture[str], arguments: Iterable[str], secrets: Iterable[str]) -> Ended:
    """Run the command line in this process; whatever it prints, no secret is in it."""
    # In a thread, because it has a loop of its own, and pytest's plugins care for the one of this thread.
    with ThreadPoolExecutor(1) as pool:
        code = pool.submit(app.run, [*arguments]).result(PATIENCE)
    out, err = capfd.readouterr()
    for secret in secrets:
        assert secret not in out + err
    return Ended(code, out, err)
