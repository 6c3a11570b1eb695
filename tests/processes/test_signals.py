"""Ctrl-C and SIGTERM from the first line of a program on: also while it imports, and as the first process."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.cli import COMMAND, PATIENCE, environment, run_process

SANDBOX = [sys.executable, "-m", "feishu_mail_async.sandbox"]
INSTALLED = [str(Path(sys.executable).with_name("feishu-mail-async"))]

HEARS = """
import os, signal, time
os.kill(os.getpid(), {number})
time.sleep({patience})
"""
FIRST = ("unshare", "--pid", "--fork")


def first_process() -> tuple[str, ...]:
    """What makes a command the first process of a container, where that is allowed."""
    tried = shutil.which("unshare") and subprocess.run([*FIRST, "true"], capture_output=True, check=False)
    return FIRST if tried and tried.returncode == 0 else ()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "command", [[*COMMAND, "list"], [*INSTALLED, "list"], SANDBOX], ids=["-m", "script", "sandbox"]
)
@pytest.mark.parametrize("prefix", [(), first_process()], ids=["a process", "the first process"])
def test_a_signal_while_the_program_is_imported(
    tmp_path: Path, command: list[str], prefix: tuple[str, ...], number: signal.Signals
) -> None:
    # The first module that takes a while to import, and gives the signal meanwhile.
    for name in ("aiohttp", "typer", "asyncio"):
        (tmp_path / f"{name}.py").write_text(HEARS.format(number=int(number), patience=PATIENCE))
    done = run_process([*prefix, *command], environment(PYTHONPATH=str(tmp_path)))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
