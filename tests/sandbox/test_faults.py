"""Faults: scripted, drawn, and out of the net."""

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
import pytest

from feishu_mail_async.sandbox import Arrival, CallLog, Fault
from tests.helpers.callers import number, running
from tests.helpers.clock import now
from tests.helpers.letters import letter, raw_of

pytestmark = pytest.mark.looptime


# --- faults ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status", "sent"),
    [
        (Fault.code("InternalError"), 500, 0),
        (Fault.code("InternalError", accepted=True), 500, 1),
        (Fault.code("ContentRisk"), 400, 0),
        (Fault.unknown(42, 418), 418, 0),
        (Fault.gateway(504, accepted=True), 504, 1),
        (Fault.bare_429(), 429, 0),
        (Fault.broken(), 200, 0),
        (Fault.empty(accepted=True), 200, 1),
        (Fault.null(accepted=True), 200, 1),
        (Fault.array(), 200, 0),
        (Fault.nulls(), 200, 0),
        (Fault.huge(300_000, accepted=True), 200, 1),
        (Fault.huge(300_000, declared=True), 200, 0),
        (Fault.redirect("http://127.0.0.1:9/", 307), 307, 0),
        (Fault.automation_disabled("why", "where"), 200, 0),
        (Fault.normal(), 200, 1),
    ],
    ids=repr,
)
async def test_an_answer_may_be_scripted(fault: Fault, status: int, sent: int) -> None:
    async with running(latency=0.0) as (sandbox, caller):
        draft = sandbox.add_draft("alice")
        sandbox.script(draft, fault)
        answer = await caller.send(draft)
        assert answer.status == status == sandbox.ledger.sends[0].http_status
        assert sandbox.ledger.sent[draft] == sent
        if fault.size:
            assert len(answer.body) == fault.size
            assert answer.code == 0
        # Used up: afterwards it behaves.
        assert (await caller.send(draft)).code == (number("AlreadySent") if sent else 0)
        assert sandbox.ledger.sent[draft] == 1
        # What is scripted is not held against the client.
        assert (sandbox.ledger.refusals, sandbox.ledger.conflicts) == (0, 0)


@pytest.mark.parametrize(
    ("fault", "error", "sent"),
    [
        (Fault.reset_before(), aiohttp.ClientOSError, 0),
        (Fault.reset_after(), aiohttp.ClientOSError, 1),
        (Fault.hang_before(), TimeoutError, 0),
        (Fault.hang_after(), TimeoutError, 1),
    ],
    ids=repr,
)
async def test_an_answer_may_not_come(
    fault: Fault, error: type[Exception], sent: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as (sandbox, caller):
        draft = sandbox.add_draft("alice")
        sandbox.script(draft, fault)
        with pytest.raises(error):
            await caller.send(draft, patience=30.0)
        assert sandbox.ledger.sent[draft] == sent
        seen = sandbox.ledger.sends[0]
        assert (seen.code, seen.http_status, seen.scripted, seen.accepted) == (None, None, True, True)
        # The locks are free again.
        assert (await caller.send(draft)).code == (number("AlreadySent") if sent else 0)
        assert sandbox.ledger.sent[draft] == 1
    assert caplog.records == []


@pytest.mark.parametrize("reset", ["30", None, "-5", "NaN", "1e99", "garbage"])
@pytest.mark.parametrize("status", [400, 429])
async def test_the_reset_header_may_be_anything(status: int, reset: str | None) -> None:
    async with running() as (sandbox, caller):
        draft = sandbox.add_draft("alice")
        sandbox.script(draft, Fault.frequency(status, reset), Fault.bare_429(reset))
        answers = [await caller.send(draft), await caller.send(draft)]
        assert (answers[0].status, answers[0].code) == (status, number("FrequencyLimited"))
        assert (answers[1].status, answers[1].body) == (429, b"")
        assert [answer.headers.get("x-ogw-ratelimit-reset") for answer in answers] == [reset] * 2
        assert sandbox.ledger.refusals == 0


async def test_a_fault_for_a_sent_draft_applies_and_sends_nothing() -> None:
    async with running() as (sandbox, caller):
        draft = sandbox.add_draft("alice")
        await caller.send(draft)
        sandbox.script(draft, Fault.gateway(accepted=True))
        assert (await caller.send(draft)).status == 502
        assert sandbox.ledger.sent[draft] == 1


async def test_a_refused_call_uses_no_fault_up() -> None:
    async with running(calls=1) as (sandbox, caller):
        draft, other = sandbox.add_drafts("alice", 2)
        sandbox.script(draft, Fault.gateway())
        await caller.send(other)
        assert (await caller.send(draft)).code == number("FrequencyLimited")
        await asyncio.sleep(60)
        assert (await caller.send(draft)).status == 502


async def test_a_straggler_arrives_late() -> None:
    async with running(latency=0.0) as (sandbox, caller):
        draft = sandbox.add_draft("alice")
        sandbox.script(draft, Fault.delay(35.0, 3.0))
        with pytest.raises(TimeoutError):
            await caller.send(draft, patience=30.0)
        # The next call of the same draft overtakes it.
        assert (await caller.send(draft)).code == 0
        await asyncio.sleep(10.0)
        seen = [(call.time, call.code) for call in sandbox.ledger.calls(draft)]
        assert seen == [(30.0, 0), (35.0, number("AlreadySent"))]


async def test_faults_may_be_drawn_by_a_function() -> None:
    async with running() as (sandbox, caller):
        seen: list[Arrival] = []

        def on_call(call: Arrival) -> Fault | None:
            seen.append(call)
            return Fault.gateway() if len(seen) == 1 else None

        sandbox.on_call = on_call
        draft = sandbox.add_draft("alice")
        assert (await caller.send(draft)).status == 502
        assert (await caller.send(draft)).code == 0
        assert [call.code for call in seen] == [0, 0]
        assert [call.scripted for call in sandbox.ledger.sends] == [True, False]


# --- of all endpoints ------------------------------------------------------------------------------------


def path_of(endpoint: str, draft: str, message_id: str) -> tuple[str, str, dict[str, Any]]:
    raw = {"json": {"raw": raw_of(letter("New"))}}
    return {
        "create": ("POST", "drafts", raw),
        "update": ("PUT", f"drafts/{draft}", raw),
        "delete": ("DELETE", f"drafts/{draft}", {}),
        "send": ("POST", f"drafts/{draft}/send", {}),
        "cancel": ("POST", f"messages/{message_id}/cancel_scheduled_send", {}),
        "recall": ("POST", f"messages/{message_id}/recall", {}),
    }[endpoint]


def effects(ledger: CallLog, endpoint: str) -> Mapping[str, Any]:
    if endpoint == "create":
        return ledger.created
    return {
        "update": ledger.updated,
        "delete": ledger.deleted,
        "send": ledger.sent,
        "cancel": ledger.cancelled,
        "recall": ledger.recalled,
    }[endpoint]


@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize("endpoint", ["create", "update", "delete", "send", "cancel", "recall"])
async def test_a_write_whose_reply_is_lost_may_have_had_its_effect(endpoint: str, accepted: bool) -> None:
    async with running() as (sandbox, caller):
        draft = sandbox.add_draft("alice", message=letter())
        if endpoint == "cancel":
            await caller.send(draft, json={"send_time": str(int(sandbox.unix_time()) + 1000)})
        if endpoint == "recall":
            await caller.send(draft)
            await asyncio.sleep(10)
        done = effects(sandbox.ledger, endpoint)
        method, path, body = path_of(endpoint, draft, sandbox.message_id(draft))
        sandbox.script_calls(
            endpoint,
            # No reset: aiohttp repeats a PUT or a DELETE by itself when the connection breaks.
            Fault.hang_after() if accepted else Fault.hang_before(),
            Fault.code("InternalError", accepted=accepted),
        )
        with pytest.raises(TimeoutError):
            await caller.mail(method, path, patience=30.0, **body)
        assert len(done) == accepted
        assert (await caller.mail(method, path, **body)).status == 500
        # A new draft each time, and everything else once.
        assert len(done) == (2 if endpoint == "create" else 1) * accepted
        scripted = [call.endpoint for call in sandbox.ledger.arrivals if call.scripted]
        assert scripted == [endpoint] * 2
        if not accepted:
            assert (await caller.mail(method, path, **body)).code == 0
            assert len(done) == 1


@pytest.mark.parametrize("path", ["drafts", "drafts/x", "messages?folder_id=SENT", "messages/y/send_status"])
async def test_reads_may_be_scripted_too(path: str) -> None:
    async with running() as (sandbox, caller):
        path = path.replace("x", sandbox.add_draft("alice", "x")).replace("y", sandbox.message_id("x"))
        endpoint = {"drafts": "list", "drafts/x": "read", "messages?folder_id=SENT": "mails"}.get(path, "delivery")
        sandbox.script_calls(endpoint, Fault.gateway(503), Fault.delay(7.0, 8.0))
        before = now()
        assert (await caller.mail("GET", path)).status == 503
        assert (await caller.mail("GET", path)).code == 0
        assert now() - before >= 15.0
        assert [call.scripted for call in sandbox.ledger.arrivals] == [True, False]


async def test_the_script_of_a_draft_comes_before_that_of_all_sends() -> None:
    async with running() as (sandbox, caller):
        first, second = sandbox.add_drafts("alice", 2)
        sandbox.script_calls("send", Fault.gateway(503))
        sandbox.script(first, Fault.gateway(502))
        assert (await caller.send(first)).status == 502
        assert (await caller.send(second)).status == 503
        assert (await caller.send(second)).code == 0
        with pytest.raises(ValueError, match="recall_progress"):
            sandbox.script_calls("sending", Fault.gateway())


async def test_a_scheduled_send_that_is_accepted_without_saying_so_is_scheduled() -> None:
    async with running() as (sandbox, caller):
        draft, wrong = sandbox.add_drafts("alice", 2)
        sandbox.script_calls("send", *[Fault.gateway(accepted=True)] * 3)
        at = {"send_time": str(int(sandbox.unix_time()) + 1000)}
        assert (await caller.send(draft, json=at)).status == 502
        # What is refused does not happen now instead, and not twice.
        assert (await caller.send(draft)).status == 502
        assert (await caller.send(wrong, json={"send_time": "1"})).status == 502
        assert (sandbox.ledger.scheduled, sandbox.ledger.sent) == ({draft: 1}, {})
        await asyncio.sleep(1001)
        assert sandbox.ledger.sent == {draft: 1}


async def test_a_function_hears_of_every_call_that_is_carried_out() -> None:
    async with running() as (sandbox, caller):
        seen: list[tuple[str, str | None, str | None]] = []
        sandbox.on_call = lambda call: seen.append((call.endpoint, call.draft_id, call.message_id))
        draft = sandbox.add_draft("alice", "d")
        sandbox.add_user("carol", scopes=[])
        await caller.mail("GET", "drafts", user="carol")
        for method, path in (
            ("GET", "drafts"),
            ("GET", "drafts/d"),
            ("POST", "messages/m/recall"),
            ("GET", "messages/m/recall"),
        ):
            await caller.mail(method, path)
        await caller.send(draft)
        assert seen == [
            ("list", None, None),
            ("read", "d", None),
            ("recall", None, "m"),
            ("recall_progress", None, "m"),
            ("send", "d", None),
        ]
        assert [call.endpoint for call in sandbox.ledger.calls("m")] == ["recall", "recall_progress"]


def test_a_fault_is_made_from_json_or_said_to_be_wrong() -> None:
    assert Fault.from_json({"kind": "code", "name": "ConcurrentWrite"}) == Fault.code("ConcurrentWrite")
    assert Fault.from_json({"kind": "delay", "there": 1, "back": 2}) == Fault.delay(1, 2)
    for wrong in ({}, {"kind": "from_json"}, {"kind": "code"}, {"kind": "code", "name": "Nothing"}):
        with pytest.raises(ValueError, match=r"kind|fault"):
            Fault.from_json(wrong)


async def test_a_client_that_leaves_in_a_huge_answer_leaves_no_trace(caplog: pytest.LogCaptureFixture) -> None:
    async with running(latency=0.0) as (sandbox, caller):
        draft = sandbox.add_draft("alice")
        sandbox.script(draft, Fault.huge())
        url = f"{sandbox.base_url}/open-apis/mail/v1/user_mailboxes/me/drafts/{draft}/send"
        headers = {"Authorization": f"Bearer {sandbox.token('alice')}"}
        async with caller.session.post(url, headers=headers) as response:
            await response.content.read(1000)
            response.close()
        assert (await caller.send(draft)).code == 0
        await asyncio.sleep(1)
    assert caplog.records == []


# --- the connection --------------------------------------------------------------------------------------


async def test_an_outage_refuses_and_ends() -> None:
    async with running(latency=10.0) as (sandbox, caller):
        before = sandbox.base_url
        first, second = sandbox.add_drafts("alice", 2)
        under_way = asyncio.create_task(caller.send(first))
        await asyncio.sleep(7.0)
        async with sandbox.outage():
            with pytest.raises(aiohttp.ClientConnectorError):
                await caller.send(second)
            with pytest.raises(aiohttp.ClientOSError):
                await under_way
            await asyncio.sleep(60.0)
        assert sandbox.base_url == before
        assert (await caller.send(second)).code == 0
        assert sandbox.ledger.sent == {first: 1, second: 1}
