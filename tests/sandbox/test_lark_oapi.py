"""The official SDK, lark-oapi, works against the sandbox unchanged: each understands what the other says."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from feishu_mail_async import codes
from feishu_mail_async.codes import Code
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.cli import PATIENCE, environment
from tests.helpers.lark import lark_python

PROGRAM: Final = Path(__file__).parents[1] / "helpers" / "programs" / "official_sdk.py"

SENDS: Final = 9
"""Sends of the program before the one that is too many."""


async def run_program(given: Mapping[str, Any]) -> dict[str, Any]:
    # Not `environment`'s "every warning is an error": what lark-oapi's own imports warn of is its business.
    process = await asyncio.create_subprocess_exec(
        lark_python(),
        PROGRAM,
        env=environment(PYTHONWARNINGS="ignore"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE):
        out, err = await process.communicate(json.dumps(given).encode())
    assert process.returncode == 0, err.decode()
    told = json.loads(out)
    assert isinstance(told, dict)
    return told


def assert_refused(told: dict[str, Any], row: Code) -> None:
    """A response object that says what the table of codes has, with a log id."""
    assert (told["success"], told["code"], told["msg"], told["http_status"]) == (
        False,
        row.number,
        row.message,
        row.http_status,
    )
    assert told["headers"]["x-tt-logid"]


async def test_the_official_sdk_works_against_the_sandbox() -> None:
    async with Sandbox(calls=SENDS, users=("alice", "bob"), latency=0) as sandbox:
        # Ids that only work if both sides encode a path alike.
        drafts = {
            name: sandbox.add_draft("alice", f"{name} /?#ä")
            for name in ("blocking", "risky", "scheduled", "deleted", "last")
        }
        listed = list(drafts.values())
        sandbox.delivery_seconds = 0.0
        sandbox.script(drafts["risky"], Fault.code("ContentRisk"))
        drafts["disabled"] = sandbox.add_draft("bob")
        sandbox.disable_automation("bob@example.com", "switched off", "https://mail.example.com/here")
        send_time = str(int(sandbox.unix_time()) + 1000)
        said = await run_program(
            {"base_url": sandbox.base_url, "tokens": sandbox.tokens, "drafts": drafts, "send_time": send_time}
        )
        ledger = sandbox.ledger

    assert said["pages"] == [listed[:2], listed[2:4], listed[4:]]
    assert (said["updated"]["success"], said["updated"]["id"]) == (True, said["created"])
    assert said["updated"]["reference"].endswith(said["created"])
    mail = said["sent"]["message_id"]
    assert said["read"] == {
        "subject": "Grüße",
        "message_id": mail,
        "smtp_message_id": f"<{mail}@sandbox>",
        "to": ["bob@example.com"],
        "state": 3,
    }
    for sent in (said["sent"], said["blocking"]):
        assert sent["success"]
        assert sent["message_id"]
        assert sent["thread_id"]
        assert sent["recall_status"] == "available"
    assert_refused(said["again"], codes.named("AlreadySent"))
    assert_refused(said["blocking again"], codes.named("AlreadySent"))
    assert_refused(said["no such draft"], codes.named("DraftNotFound"))
    assert_refused(said["risky"], codes.named("ContentRisk"))
    assert_refused(said["limited"], codes.named("FrequencyLimited"))
    assert said["limited"]["headers"]["x-ogw-ratelimit-limit"] == str(SENDS)
    assert 1 <= int(said["limited"]["headers"]["x-ogw-ratelimit-reset"]) <= 60
    assert codes.lookup(said["bad token"]["code"], said["bad token"]["http_status"]).error == "InvalidToken"
    assert said["scheduled"]["success"]
    assert said["scheduled"]["message_id"] is None
    waiting, scheduled = said["waiting"]
    assert waiting == [scheduled]
    assert_refused(said["draft's id"], codes.named("NotScheduled"))
    assert said["cancelled"]["success"]
    assert said["waiting no more"] == []
    assert said["delivery"] == {"bob@example.com": 4}
    assert said["recall"] == {"status": "available", "reason": None}
    assert said["recalled again"] == {"status": "unavailable", "reason": "already_recalled"}
    assert said["progress"] == {"status": "in_progress", "people": {"bob@example.com": "processing"}}
    assert said["deleted"]["success"]
    assert said["disabled"]["success"], "code 0, and nothing was sent"
    assert said["disabled"]["disabled"] == {"reason": "switched off", "reference": "https://mail.example.com/here"}

    # What really happened, by the server's record.
    assert ledger.sent == {said["created"]: 1, drafts["blocking"]: 1}
    assert len(ledger.sends) == SENDS + 1
    assert (ledger.scheduled, ledger.cancelled) == ({drafts["scheduled"]: 1}, {drafts["scheduled"]: 1})
    assert (ledger.updated, ledger.recalled) == ({said["created"]: 1}, {said["created"]: 1})
    assert [arrival.endpoint for arrival in ledger.arrivals[:5]] == ["list", "list", "list", "create", "update"]
    log_ids = {arrival.log_id for arrival in ledger.arrivals}
    for name in ("sent", "again", "limited", "bad token"):
        assert said[name]["headers"]["x-tt-logid"] in log_ids
    # The SDK's own `get_log_id` looks for the header as the platform writes it. (Of its asynchronous calls it gets
    # the headers in small letters, and finds none, whichever server answers.)
    assert said["blocking again"]["log_id"] == said["blocking again"]["headers"]["x-tt-logid"]


def test_without_the_sdk_the_tests_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tests.helpers.lark._ENVIRONMENT", tmp_path / "py3.0-lark")
    with pytest.raises(pytest.fail.Exception, match="make test"):
        lark_python()
