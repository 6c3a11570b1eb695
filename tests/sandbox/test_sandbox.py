"""The sandbox against a plain aiohttp client: it must be right before it may judge anyone."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.request
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from feishu_mail_async.sandbox import Fault, Sandbox
from feishu_mail_async.sandbox.process import read_latency
from tests.helpers.callers import Answer, Caller, number, running
from tests.helpers.clock import now
from tests.helpers.letters import letter, raw_of

pytestmark = pytest.mark.looptime


async def test_closing_waits_for_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async with aiohttp.ClientSession() as session:
        async with Sandbox(users=("alice", "bob")) as sandbox:
            caller = Caller(sandbox, session)
            hanging, sleeping = sandbox.add_draft("alice"), sandbox.add_draft("bob")
            sandbox.script(hanging, Fault.hang_after())
            sandbox.script(sleeping, Fault.delay(100_000.0))
            calls = [
                asyncio.create_task(caller.send(hanging)),
                asyncio.create_task(caller.send(sleeping, user="bob")),
            ]
            await asyncio.sleep(10.0)
        assert now() < 20.0
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(error, aiohttp.ClientError) for error in found)
        await sandbox.close()
        # It may be started again, with all that it holds.
        async with sandbox:
            assert (await caller.send(hanging)).code == number("AlreadySent")
    assert caplog.records == []


def test_a_sandbox_that_was_not_started_has_no_address() -> None:
    sandbox = Sandbox()
    assert "not started" in repr(sandbox)
    with pytest.raises(RuntimeError, match="start it"):
        _ = sandbox.base_url
    with pytest.raises(ValueError, match="localhost"):
        Sandbox(host="localhost")


async def test_what_is_asked_for_by_a_wrong_name_is_said() -> None:
    async with running() as (sandbox, _):
        for wrong in (
            lambda: sandbox.add_user("alice"),
            lambda: sandbox.add_user("eve", address="ALICE@example.com"),
            lambda: sandbox.token("nobody"),
            lambda: sandbox.add_draft("nobody"),
            lambda: sandbox.add_draft("alice", mailbox="nobody@example.com"),
            lambda: sandbox.close_mailbox("nobody@example.com"),
            lambda: (sandbox.add_draft("alice", "x"), sandbox.add_draft("bob", "x")),
        ):
            with pytest.raises(ValueError, match=r"user|address|mailbox|draft_id"):
                wrong()
        with pytest.raises(KeyError):
            sandbox.script_token("NoSuchCode")


async def test_the_same_seed_gives_the_same_run() -> None:
    times = []
    for _ in range(2):
        start = now()
        async with running(seed=7) as (sandbox, caller):
            drafts = sandbox.add_drafts("alice", 3)
            for draft in drafts:
                await caller.send(draft)
            times.append([(a.draft_id, round(a.time - start, 5)) for a in sandbox.ledger.sends])
    assert times[0] == times[1]


# --- the sibling endpoints -------------------------------------------------------------------------------


async def test_drafts_are_listed_in_pages_that_stay_true_while_drafts_go() -> None:
    async with running(calls=100) as (sandbox, caller):
        drafts = sandbox.add_drafts("alice", 25)
        sandbox.add_drafts("bob", 5)
        page = (await caller.mail("GET", "drafts?page_size=10")).data
        assert [item["id"] for item in page["items"]] == drafts[:10]
        assert page["has_more"]
        for draft in drafts[:10]:
            await caller.send(draft)
        rest = []
        while page["has_more"]:
            token = quote(page["page_token"], safe="")
            page = (await caller.mail("GET", f"drafts?page_size=10&page_token={token}")).data
            rest += [item["id"] for item in page["items"]]
        assert rest == drafts[10:]
        assert "page_token" not in page
        for wrong in ("page_size=0", "page_size=101", "page_size=x", "page_token=x"):
            assert (await caller.mail("GET", f"drafts?{wrong}")).code == number("InvalidRequest")
            await asyncio.sleep(0.2)
        default = (await caller.mail("GET", "drafts")).data
        assert len(default["items"]) == 15
        assert not default["has_more"]


async def test_a_draft_is_created_read_and_deleted() -> None:
    async with running() as (sandbox, caller):
        created = await caller.mail("POST", "drafts", json={"raw": raw_of(letter("Hello"))})
        draft = created.data["draft"]["id"]
        read = (await caller.mail("GET", f"drafts/{draft}?format=metadata")).data["draft"]
        assert read["message"] == {
            "message_state": 3,
            "message_id": sandbox.message_id(draft),
            "smtp_message_id": f"<{sandbox.message_id(draft)}@sandbox>",
            "internal_date": int((sandbox.unix_time() - now() + sandbox.ledger.arrivals[0].time) * 1000),
            "subject": "Hello",
            "to": [{"mail_address": "bob@example.com", "name": ""}],
            "cc": [],
            "bcc": [],
            "attachments": [],
        }
        assert (await caller.mail("DELETE", f"drafts/{draft}")).code == 0
        for answer in (
            await caller.mail("GET", f"drafts/{draft}"),
            await caller.mail("DELETE", f"drafts/{draft}"),
            await caller.send(draft),
        ):
            assert answer.code == number("DraftNotFound")
        for wrong in (b"", b"[]", b'{"raw": "***"}', b'{"raw": 1}'):
            assert (await caller.mail("POST", "drafts", data=wrong)).code == number("InvalidRequest")
            await asyncio.sleep(0.3)
        assert [a.endpoint for a in sandbox.ledger.arrivals[:3]] == ["create", "read", "delete"]


async def test_siblings_have_limits_of_their_own() -> None:
    async with running(calls=1, latency=0.0) as (sandbox, caller):
        found = [(await caller.mail("GET", "drafts")).code for _ in range(11)]
        assert found == [0] * 10 + [number("FrequencyLimited")]
        assert (sandbox.ledger.refusals, sandbox.ledger.sibling_refusals) == (0, 1)
        assert (await caller.send(sandbox.add_draft("alice"))).code == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "drafts/x/send"),
        ("POST", "drafts/a/b/send"),
        ("PUT", "drafts"),
        ("GET", ""),
        ("POST", "drafts/x/cancel_scheduled_send"),
    ],
)
async def test_what_is_no_endpoint_is_not_found(method: str, path: str) -> None:
    async with running() as (sandbox, caller):
        assert (await caller.mail(method, path)).status == 404
        assert sandbox.ledger.arrivals == []


# --- the control API, the process, the fixture -----------------------------------------------------------


async def test_it_can_be_controlled_from_outside() -> None:
    async with running() as (sandbox, caller):
        token = {"X-Sandbox-Token": sandbox.control_token}

        async def post(what: str, **value: Any) -> Answer:
            return await caller.call("POST", f"/_sandbox/{what}", user=None, json=value, headers=token)

        told = (await post("users", name="carol", address="c@example.com")).json["token"]
        assert told == sandbox.token("carol")
        (draft,) = (await post("drafts", user="carol", count=1)).json["ids"]
        await post("script", draft_id=draft, faults=[{"kind": "code", "name": "ContentRisk"}])
        assert (await caller.send(draft, user="carol")).code == number("ContentRisk")
        await caller.send(draft, user="carol")
        ledger = (await caller.call("GET", "/_sandbox/ledger", user=None, headers=token)).json
        assert ledger["sent"] == {draft: 1}
        assert ledger["totals"] == {"arrivals": 2, "sends": 2, "sent": 1}
        assert (ledger["busiest_window"], ledger["refusals"], ledger["conflicts"]) == (2, 0, 0)
        assert ledger["arrivals"][0]["mailbox"] == "c@example.com"
        assert ledger["created"] == ledger["cancelled"] == ledger["refusals_by_endpoint"] == {}
        await post("delivery", draft_id=draft, address="bob@example.com", status=3)
        await post("recall", draft_id=draft, address="bob@example.com", reason="unknown")
        await post("script_calls", endpoint="list", faults=[{"kind": "gateway"}])
        assert (await caller.mail("GET", "drafts")).status == 502
        for what, value in (
            ("users", {}),
            ("users", {"name": "alice"}),
            ("drafts", {"user": "alice", "count": "x"}),
            ("script", {"draft_id": "x", "faults": [{"kind": "x"}]}),
            ("script", {"draft_id": "x", "faults": "x"}),
            ("script_calls", {"endpoint": "x", "faults": []}),
            ("delivery", {"draft_id": draft, "address": "bob@example.com", "status": "x"}),
            ("delivery", {"draft_id": draft, "address": "bob@example.com", "status": 9}),
            ("recall", {"draft_id": "none", "address": "bob@example.com", "reason": "x"}),
        ):
            wrong = await post(what, **value)
            assert wrong.status == 400
            assert wrong.json["error"]
        assert (await caller.call("POST", "/_sandbox/users", user=None, data=b"[]", headers=token)).status == 400
        assert (await caller.call("GET", "/_sandbox/users", user=None, headers=token)).status == 404


@pytest.mark.parametrize(("text", "latency"), [("0.2", 0.2), ("0.1-0.5", (0.1, 0.5))])
def test_latency_on_a_command_line(text: str, latency: Any) -> None:
    assert read_latency(text) == latency


@pytest.mark.parametrize("text", ["x", "-1", "2-1", "nan", "inf", "0-inf", ""])
def test_no_latency_on_a_command_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_latency(text)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_of_its_own_ends_in_order(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "feishu_mail_async.sandbox", "--users", "a,b", "--drafts", "3"]
    command += ["--latency", "0", "--window", "fixed", "--calls", "5", "--per", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert set(told["tokens"]) == {"a", "b"}
        request = urllib.request.Request(
            told["base_url"] + "/open-apis/mail/v1/user_mailboxes/me/drafts",
            headers={"Authorization": f"Bearer {told['tokens']['a']}"},
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            assert len(json.load(response)["data"]["items"]) == 3
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (0, "", "")


async def test_the_fixture_gives_a_running_sandbox(feishu_sandbox: Sandbox) -> None:
    async with aiohttp.ClientSession() as session:
        answer = await Caller(feishu_sandbox, session).send(feishu_sandbox.add_draft("alice"))
    assert answer.code == 0
    assert feishu_sandbox.ledger.sent.total() == 1


async def test_many_calls_leave_nothing_behind() -> None:
    async with running(calls=1000, per=1.0, latency=0.0) as (sandbox, caller):
        for draft in sandbox.add_drafts("alice", 300):
            assert (await caller.send(draft)).code == 0
        assert sandbox.ledger.busiest_window(1.0) == 300
        assert vars(sandbox)["_handlers"] == set()
