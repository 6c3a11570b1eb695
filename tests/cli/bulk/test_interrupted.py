"""Runs that are interrupted or killed, or whose reader goes away."""

import re
import signal

import pytest

from feishu_mail_async.sandbox import Fault
from tests.helpers.cli import PATIENCE, Feishu, read_until, wait_for

STILL = "5/3600"
"""Five calls, and no other while a test lasts."""


pytestmark = pytest.mark.usefixtures("own_state")


def test_ctrl_c_once(feishu: Feishu) -> None:
    drafts = feishu.drafts("alice", 20)
    process = feishu.start(feishu.csv(drafts), "-y", "--out", str(feishu.out), rate=STILL)
    read_until(process.stderr, "progress: 5 of 20 drafts: 5 sent")
    process.send_signal(signal.SIGINT)
    ended = feishu.finish(process)
    assert ended.code == 1
    assert "stopping: " in ended.err
    assert "20 drafts: 5 sent, 15 skipped. 5 calls in " in ended.out
    assert re.search(r"\n  skipped +15: stopped before its turn came\n", ended.out)
    statuses = feishu.statuses()
    assert set(statuses) == set(drafts)
    assert {draft_id for draft_id, status in statuses.items() if status == "sent"} == set(feishu.sent)


def test_ctrl_c_once_finishes_the_call_under_way(feishu: Feishu) -> None:
    drafts = feishu.drafts("alice", 3)
    feishu.script(drafts[0], Fault.delay(there=0, back=1))
    process = feishu.start(feishu.csv(drafts), "-y", "--out", str(feishu.out))
    wait_for(lambda: feishu.calls == 1)
    process.send_signal(signal.SIGINT)
    assert feishu.finish(process).code == 1
    assert feishu.statuses() == {drafts[0]: "sent", drafts[1]: "skipped", drafts[2]: "skipped"}


def test_ctrl_c_twice(feishu: Feishu) -> None:
    drafts = feishu.drafts("alice", 20)
    feishu.script(drafts[2], Fault.hang_after())
    process = feishu.start(feishu.csv(drafts), "-y", "--out", str(feishu.out))
    read_until(process.stderr, "progress: 2 of 20")
    wait_for(lambda: feishu.calls == 3)
    process.send_signal(signal.SIGINT)
    read_until(process.stderr, "stopping: ")
    process.send_signal(signal.SIGINT)
    ended = feishu.finish(process)
    assert ended.code == 130
    assert "20 drafts: 2 sent, 1 unknown, 17 skipped" in ended.out
    statuses = feishu.statuses()
    assert set(statuses) == set(drafts)
    assert statuses[drafts[2]] == "unknown"
    assert "Sending it again is safe" in ended.out


def test_killed_it_leaves_what_it_has_written(feishu: Feishu) -> None:
    drafts = feishu.drafts("alice", 20)
    process = feishu.start(feishu.csv(drafts), "-y", "--out", str(feishu.out), rate=STILL)
    read_until(process.stderr, "progress: 5 of 20")
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert set(feishu.statuses()) == set(feishu.sent)
    assert len(feishu.sent) == 5


def test_nobody_reads_the_output(feishu: Feishu) -> None:
    drafts = feishu.drafts("alice", 20)
    feishu.script(drafts[0], Fault.code("ContentRisk"))
    process = feishu.start(feishu.csv(drafts), "-y", "--out", str(feishu.out))
    assert process.stdout is not None
    read_until(process.stdout, "It takes")
    process.stdout.close()
    assert process.wait(PATIENCE) == 1
    assert process.stderr is not None
    with process.stderr:
        assert "Traceback" not in process.stderr.read()
    # It goes on: the file says what became of the drafts.
    assert feishu.statuses() == dict.fromkeys(drafts, "sent") | {drafts[0]: "failed"}
