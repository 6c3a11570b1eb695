"""The demo and the sandbox as commands."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from feishu_mail_async import Draft, Outcome, OutcomeStatus, RateLimit
from feishu_mail_async.cli.commands.demo_scene import Scene, mistakes
from feishu_mail_async.sandbox import Arrival, CallLog
from tests.helpers.cli import COMMAND, PATIENCE, TOKEN_VARIABLE, environment, run_process

pytestmark = pytest.mark.usefixtures("own_state")


# --- the sandbox ------------------------------------------------------------------------------------------


def test_sandbox_says_what_to_do_and_ends_with_its_ledger(tmp_path: Path) -> None:
    arguments = [
        "--users",
        "alice,bob",
        "--drafts",
        "5",
        "--latency",
        "0",
        "--window",
        "token_bucket",
        "--rate",
        "9/30",
    ]
    process = subprocess.Popen(
        [*COMMAND, "sandbox", *arguments],
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    )
    assert process.stdout is not None
    text = ""
    while "Ctrl-C ends it" not in text:
        line = process.stdout.readline()
        assert line
        text += line
    assert "9 send calls in 30 s (token bucket window)" in text
    assert re.search(r"alice\n    token   u-\S+\n    drafts  \S+\n +\S+\n +\S+  and 2 more\n", text)
    address, header, value = re.search(r"GET (\S+) .*\n  (\S+): (\S+)\n", text).groups()  # type: ignore[union-attr]
    with urllib.request.urlopen(urllib.request.Request(address, headers={header: value})) as reply:
        assert json.load(reply)["totals"]["arrivals"] == 0
    copied = re.search(rf"  {TOKEN_VARIABLE}=(?:.*\\\n)+.*", text)
    assert copied is not None
    (tmp_path / "feishu-mail-async").write_text(f'#!/bin/sh\nexec {sys.executable} -m feishu_mail_async "$@"\n')
    (tmp_path / "feishu-mail-async").chmod(0o755)
    env = environment(PATH=f"{tmp_path}:{os.environ['PATH']}")
    sent = run_process(["sh", "-c", copied.group()], env)
    assert (sent.returncode, sent.stderr) == (0, ""), sent.stdout
    assert "3 drafts: 3 sent" in sent.stdout
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")
    for row in (
        r"send calls +3",
        r"mails sent +3",
        r"busiest 30 s +3 of 9 calls allowed",
        r"limit +0",
        r"user +0",
    ):
        assert re.search(rf"{row}\n", out)


# --- the demo ---------------------------------------------------------------------------------------------


def test_demo() -> None:
    ended = run_process([*COMMAND, "demo", "--drafts", "20", "--rate", "50/1", "--seed", "7"])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    text = ended.stdout
    assert "Every draft ended as it must" in text
    for row in (
        r"sent +10\n",
        r"already sent +2: ",
        r"failed +4\n",
        r"unknown +1: ",
        r"skipped +3\n",
        r"send calls +\d+\n",
        r"busiest 1 s +\d+ of 50 calls allowed\n",
        r"refused: over the limit +0\n",
        r"refused: two at once for one user +0\n",
        r"refused: on purpose, by the demo +1, ",
    ):
        assert re.search(rf"\n  {row}", text), row
    assert "feishu-mail-async send DRAFT_ID" in text
    assert all(len(line) == len(line.rstrip()) for line in text.splitlines())
    assert "\x1b" not in text


def call(draft_id: str, at: float = 0.0) -> Arrival:
    return Arrival(at, "send", "bob", "me", draft_id, None, 0, 200, scripted=False, accepted=True, log_id="")


@pytest.mark.parametrize(
    ("status", "times", "wrong"),
    [
        (OutcomeStatus.SENT, 1, False),
        (OutcomeStatus.SENT, 0, True),
        (OutcomeStatus.SENT, 2, True),
        (OutcomeStatus.ALREADY_SENT, 0, True),
        (OutcomeStatus.FAILED, 0, False),
        (OutcomeStatus.FAILED, 1, True),
        (OutcomeStatus.SKIPPED, 1, True),
        (OutcomeStatus.UNKNOWN, 0, False),
        (OutcomeStatus.UNKNOWN, 1, False),
        (OutcomeStatus.UNKNOWN, 2, True),
    ],
)
def test_demo_believes_the_server_only(status: OutcomeStatus, times: int, wrong: bool) -> None:
    draft, ledger, scene = Draft("a", user="bob"), CallLog(1.0), Scene()
    scene.tell("a story", [draft], status)
    ledger.sent["a"] = times
    found = mistakes(scene, [Outcome(draft, status, None, None)], ledger, RateLimit(), whole=True)
    assert bool(found) == wrong


def test_demo_finds_what_did_not_go_as_scripted() -> None:
    draft, ledger, scene = Draft("a", user="bob"), CallLog(1.0), Scene()
    scene.tell("a story", [draft], OutcomeStatus.FAILED)
    skipped = [Outcome(draft, OutcomeStatus.SKIPPED, None, None)]
    assert mistakes(scene, skipped, ledger, RateLimit(), whole=True)
    assert mistakes(scene, skipped, ledger, RateLimit(), whole=False) == []
    # A draft without an outcome is a mistake also when the run was stopped.
    assert mistakes(scene, [], ledger, RateLimit(), whole=False)


def test_demo_finds_a_limit_that_was_not_kept() -> None:
    ledger, scene = CallLog(1.0), Scene()
    assert mistakes(scene, [], ledger, RateLimit(1, 1.0), whole=True) == []
    ledger.record(call("a"))
    ledger.record(call("b"))
    assert mistakes(scene, [], ledger, RateLimit(1, 1.0), whole=True)
    ledger.refusals, ledger.conflicts = 1, 1
    assert len(mistakes(scene, [], ledger, RateLimit(1, 1.0), whole=True)) == 3
