"""What the tests of runs are given."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.cli import CANARY, FAST, TOKEN_VARIABLE, Ended, Feishu, run_here

Cli = Callable[..., Ended]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, feishu: Feishu) -> Iterator[Cli]:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    nobody = Path(os.devnull).open()  # noqa: SIM115 - closed below
    monkeypatch.setattr("sys.stdin", nobody)

    def run(command: str, *arguments: str, rate: str = FAST) -> Ended:
        options = feishu.options(rate)[: None if command == "bulk" else -2]
        return run_here(capfd, [command, *arguments, *options], [CANARY, *feishu.sandbox.tokens.values()])

    yield run
    nobody.close()
