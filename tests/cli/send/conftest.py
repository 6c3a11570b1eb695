"""What the tests of single sends are given."""

import json
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.helpers.cli import CANARY, COMMAND, PATIENCE, TOKEN_VARIABLE, Ended, environment, run_here
from tests.helpers.server import Server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    arguments = ["sandbox", "--json", "--latency", "0", "--rate", "10000/60", "--users", "alice", "--drafts", "60"]
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    yield Server(json.loads(process.stdout.readline()))
    process.terminate()
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    # With --json there is the one line, and what a person reads goes elsewhere.
    assert out == ""
    assert "mails sent" in err


@pytest.fixture
def cli(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, server: Server
) -> Callable[..., Ended]:
    """Run the command line in this process; whatever it prints, no token is in it."""
    monkeypatch.setenv(TOKEN_VARIABLE, server.token)
    monkeypatch.setenv("COLUMNS", "80")

    return lambda *arguments: run_here(capfd, arguments, (server.token, CANARY))
