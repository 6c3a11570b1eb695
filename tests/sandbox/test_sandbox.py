"""The sandbox against a plain aiohttp client: it must be right before it may judge anyone."""

import asyncio
import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from feishu_mail_async import codes
from feishu_mail_async.sandbox import Arrival, CallLog, Fault, Sandbox, Window
from feishu_mail_async.sandbox.process import read_latency
from feishu_mail_async.sandbox.window import make_window
from tests.helpers.clock import now

pytestmark = pytest.mark.looptime

TOKEN_PATH = "/open-apis/authen/v2/oauth/token"
AUTHORIZE_PATH = "/open-apis/authen/v1/authorize"
CALLBACK = "http://127.0.0.1:9/callback"


def number(name: str) -> int:
    return codes.named(name).number


@dataclass
class Answer:
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> int:
        return int(self.json["code"])

    @property
    def data(self) -> Any:
        return self.json["data"]


class Caller:
    """A client without any policy: one call, one answer."""

    def __init__(self, sandbox: Sandbox, session: aiohttp.ClientSession) -> None:
        self.sandbox = sandbox
        self.session = session

    async def call(
        self, method: str, path: str, user: str | None = "alice", patience: float = 600.0, **kwargs: Any
    ) -> Answer:
        headers = {} if user is None else {"Authorization": f"Bearer {self.sandbox.token(user)}"}
        headers |= kwargs.pop("headers", {})
        url = URL(self.sandbox.base_url + path, encoded=True)
        limit = aiohttp.ClientTimeout(patience)
        async with self.session.request(
            method, url, headers=headers, timeout=limit, allow_redirects=False, **kwargs
        ) as response:
            return Answer(response.status, response.headers, await response.read())

    async def mail(self, method: str, rest: str, mailbox: str = "me", **kwargs: Any) -> Answer:
        place = quote(mailbox, safe="")
        return await self.call(method, f"/open-apis/mail/v1/user_mailboxes/{place}/{rest}", **kwargs)

    async def send(self, draft_id: str, **kwargs: Any) -> Answer:
        return await self.mail("POST", f"drafts/{quote(draft_id, safe='')}/send", **kwargs)

    async def token(self, **form: str) -> Answer:
        app = {"client_id": self.sandbox.client_id, "client_secret": self.sandbox.client_secret}
        return await self.call("POST", TOKEN_PATH, user=None, json=app | form)


@asynccontextmanager
async def running(**kwargs: Any) -> AsyncIterator[tuple[Sandbox, Caller]]:
    kwargs = {"users": ("alice", "bob")} | kwargs
    async with Sandbox(**kwargs) as sandbox, aiohttp.ClientSession() as session:
        yield sandbox, Caller(sandbox, session)


# --- windows ---------------------------------------------------------------------------------------------


def test_fixed_window_starts_anew_at_multiples() -> None:
    window = make_window(Window.FIXED, 2, 60.0)
    assert [window.arrive(t) for t in (58.0, 59.0, 59.5, 60.0, 61.0)] == [None, None, 0.5, None, None]
    assert window.arrive(62.0) == 58.0


def test_sliding_window_forgets_a_call_after_per() -> None:
    window = make_window(Window.SLIDING, 2, 60.0)
    assert [window.arrive(t) for t in (0.0, 30.0, 59.0, 60.0, 61.0)] == [None, None, 1.0, None, 29.0]


def test_sliding_window_may_count_refusals() -> None:
    window = make_window(Window.SLIDING, 1, 60.0, count_refusals=True)
    assert [window.arrive(t) for t in (0.0, 59.0, 60.0, 119.0, 179.0)] == [None, 60.0, 60.0, 60.0, None]


def test_token_bucket_refills_continuously() -> None:
    window = make_window(Window.TOKEN_BUCKET, 2, 60.0)
    assert [window.arrive(t) for t in (0.0, 0.0, 29.0, 30.0)] == [None, None, pytest.approx(1.0), None]


def test_token_bucket_may_count_refusals_and_its_debt_ends() -> None:
    window = make_window(Window.TOKEN_BUCKET, 2, 60.0, count_refusals=True)
    for _ in range(100):
        wait = window.arrive(0.0)
    assert wait == pytest.approx(90.0)
    assert window.arrive(90.0) is None


@given(st.lists(st.floats(0.0, 40.0), max_size=60), st.sampled_from(list(Window)))
def test_no_window_refuses_whom_the_sliding_one_admits(gaps: list[float], kind: Window) -> None:
    sliding, other = make_window(Window.SLIDING, 4, 60.0), make_window(kind, 4, 60.0)
    at = 0.0
    for gap in gaps:
        at += gap
        if sliding.arrive(at) is None:
            assert other.arrive(at) is None


@pytest.mark.parametrize(("calls", "per"), [(0, 60.0), (1, 0.0), (1, float("inf"))])
def test_a_window_without_sense_is_refused(calls: int, per: float) -> None:
    with pytest.raises(ValueError, match="give"):
        make_window(Window.FIXED, calls, per)


@pytest.mark.parametrize("window", list(Window))
async def test_the_21st_call_is_refused_with_limit_and_reset(window: Window) -> None:
    async with running(window=window, latency=0.0) as (sandbox, caller):
        drafts = sandbox.add_drafts("alice", 21)
        answers = [await caller.send(draft) for draft in drafts]
        assert [answer.status for answer in answers] == [200] * 20 + [429]
        assert answers[20].code == number("FrequencyLimited")
        assert answers[20].headers["x-ogw-ratelimit-limit"] == "20"
        await asyncio.sleep(float(answers[20].headers["x-ogw-ratelimit-reset"]))
        assert (await caller.send(drafts[20])).code == 0
        assert sandbox.ledger.refusals == 1
        assert sandbox.ledger.sent.total() == 21


async def test_a_call_is_counted_when_it_arrives_not_when_it_sets_out() -> None:
    ways = iter([(59.0, 0.0), (0.5, 0.0)])
    async with running(calls=1, latency=lambda _: next(ways)) as (sandbox, caller):
        first, second = sandbox.add_drafts("alice", 2)
        assert (await caller.send(first)).code == 0
        await asyncio.sleep(1.5)
        # 61 s after the first set out, and 2 s after it arrived.
        assert (await caller.send(second)).code == number("FrequencyLimited")
        assert [arrival.time for arrival in sandbox.ledger.sends] == pytest.approx([59.0, 61.0])


async def test_refused_calls_take_the_way_back_too() -> None:
    async with running(calls=1, latency=4.0) as (sandbox, caller):
        for draft in sandbox.add_drafts("alice", 2):
            await caller.send(draft)
        assert now() == pytest.approx(8.0)


async def test_a_call_given_up_by_its_client_still_arrives() -> None:
    async with running(latency=10.0) as (sandbox, caller):
        draft = sandbox.add_draft("alice")
        with pytest.raises(TimeoutError):
            await caller.send(draft, patience=1.0)
        assert sandbox.ledger.sends == []
        await asyncio.sleep(9.5)
        assert sandbox.ledger.sent[draft] == 1


async def test_limit_now_refuses_and_counts_apart() -> None:
    async with running(latency=0.0) as (sandbox, caller):
        draft = sandbox.add_draft("alice")
        sandbox.limit_now(12.3)
        answer = await caller.send(draft)
        assert answer.code == number("FrequencyLimited")
        assert answer.headers["x-ogw-ratelimit-reset"] == "13"
        await asyncio.sleep(12.3)
        assert (await caller.send(draft)).code == 0
        assert (sandbox.ledger.refusals, sandbox.ledger.paused_refusals) == (0, 1)
        assert [arrival.accepted for arrival in sandbox.ledger.calls(draft)] == [False, True]


# --- the ledger ------------------------------------------------------------------------------------------


def arrival(time: float, *, accepted: bool = True, endpoint: str = "send") -> Arrival:
    return Arrival(time, endpoint, "alice", "a@example.com", "d", 0, 200, False, accepted, "log")


@given(st.lists(st.floats(0.0, 300.0), max_size=40))
def test_busiest_window_is_what_counting_them_all_gives(times: list[float]) -> None:
    ledger = CallLog(60.0)
    for time in sorted(times):
        ledger.record(arrival(time))
    slow = max((sum(start <= time < start + 60.0 - 1e-9 for time in times) for start in times), default=0)
    assert ledger.busiest_window() == slow


def test_busiest_window_is_half_open_and_of_sends_that_were_let_in() -> None:
    ledger = CallLog(60.0)
    ledger.record(arrival(0.0))
    ledger.record(arrival(1.0, endpoint="list"))
    ledger.record(arrival(2.0, accepted=False))
    ledger.record(arrival(60.0))
    assert ledger.busiest_window() == 1
    assert ledger.busiest_window(61.0) == 2
    assert ledger.busiest_window(accepted_only=False) == 2


async def test_every_answer_has_a_log_id_of_its_own() -> None:
    async with running(latency=0.0) as (sandbox, caller):
        draft = sandbox.add_draft("alice")
        answers = [await caller.send(draft) for _ in range(3)]
        answers.append(await caller.call("GET", "/nowhere"))
        assert len({answer.headers["X-Tt-Logid"] for answer in answers}) == 4
        assert [a.log_id for a in sandbox.ledger.calls(draft)] == [
            answer.headers["X-Tt-Logid"] for answer in answers[:3]
        ]


async def test_no_token_is_told() -> None:
    async with running() as (sandbox, caller):
        draft = sandbox.add_draft("alice")
        await caller.send(draft)
        pair = sandbox.issue_tokens("alice")
        told = [repr(sandbox), repr(vars(sandbox)["_oauth"]), json.dumps(sandbox.ledger.as_json())]
        for secret in (sandbox.token("alice"), pair["access_token"], pair["refresh_token"], sandbox.client_secret):
            assert not any(secret in text for text in told)


# --- sending ---------------------------------------------------------------------------------------------


async def test_a_draft_is_sent_once() -> None:
    async with running() as (sandbox, caller):
        draft, other = sandbox.add_drafts("alice", 2)
        first, second = await caller.send(draft), await caller.send(draft)
        assert (first.status, first.code) == (200, 0)
        assert set(first.data) == {"message_id", "thread_id"}
        assert (second.status, second.code) == (409, number("AlreadySent"))
        assert sandbox.ledger.sent == {draft: 1}
        assert (await caller.mail("GET", "drafts")).data["items"] == [{"id": other}]


async def test_what_a_send_may_be_refused_for() -> None:
    async with running(calls=100) as (sandbox, caller):
        draft = sandbox.add_draft("alice")

        async def refused(**kwargs: Any) -> tuple[int, int]:
            answer = await caller.send(kwargs.pop("draft", draft), **kwargs)
            return answer.status, answer.code

        assert await refused(draft="no such draft") == (404, number("DraftNotFound"))
        assert await refused(user="bob") == (404, number("DraftNotFound"))
        assert await refused(mailbox="bob@example.com") == (403, number("PermissionDenied"))
        assert await refused(mailbox="nobody@example.com") == (404, number("MailboxNotFound"))
        assert await refused(draft="x" * 600) == (400, number("InvalidRequest"))
        assert await refused(draft="a\nb") == (400, number("InvalidRequest"))
        sandbox.close_mailbox("Alice@example.com")
        assert await refused() == (404, number("MailboxNotFound"))
        assert sandbox.ledger.sends[-1].mailbox == "alice@example.com"
        assert sandbox.ledger.sent.total() == 0


async def test_what_a_token_may_be_refused_for() -> None:
    async with running(calls=100) as (sandbox, caller):
        draft = sandbox.add_draft("alice")
        sandbox.add_user("carol", scopes=["mail:user_mailbox.message:readonly"])
        sandbox.add_user("dave", expires_in=10.0)

        async def refused(authorization: str) -> int:
            return (await caller.send(draft, user=None, headers={"Authorization": authorization})).code

        assert (await caller.send(draft, user=None)).code == number("TokenMissing")
        assert await refused("Basic abc") == number("TokenMissing")
        assert await refused("Bearer abc") == number("TokenMalformed")
        assert await refused("Bearer u-abc") == number("TokenInvalid")
        assert (await caller.send(draft, user="carol")).code == number("UserScopeMissing")
        await asyncio.sleep(10.0)
        assert (await caller.send(draft, user="dave")).code == number("TokenExpired")
        sandbox.expire_token("alice")
        assert (await caller.send(draft)).code == number("TokenExpired")
        sandbox.renew_token("alice")
        sandbox.revoke("alice")
        assert (await caller.send(draft)).code == number("UserTokenInvalid")
        sandbox.renew_token("alice")
        assert (await caller.send(draft)).code == 0
        assert sandbox.tokens["alice"] == sandbox.token("alice")


async def test_a_long_token_is_fine() -> None:
    async with running() as (sandbox, caller):
        sandbox.add_user("carol", token="eyJ" + "x" * 4093)
        assert (await caller.send(sandbox.add_draft("carol"), user="carol")).code == 0


@pytest.mark.parametrize("draft", ["a/b", "..", ".", "%2F", "#", "?x=1", "ü 漢", "a%252Fb", "+", ";", "a b"])
async def test_an_id_is_decoded_exactly_once(draft: str) -> None:
    async with running() as (sandbox, caller):
        sandbox.add_draft("alice", draft)
        path = quote(draft, safe="").replace(".", "%2E")
        assert (await caller.mail("POST", f"drafts/{path}/send")).code == 0
        assert sandbox.ledger.sent == {draft: 1}


async def test_a_mailbox_may_be_shared_and_is_compared_without_case() -> None:
    async with running() as (sandbox, caller):
        sandbox.share_mailbox("großteam@example.com", "alice", "bob")
        draft = sandbox.add_draft("alice", mailbox="Großteam@Example.com")
        answer = await caller.send(draft, user="bob", mailbox="GROSSTEAM@example.com")
        assert answer.code == 0
        assert sandbox.ledger.sends[0].mailbox == "großteam@example.com"
        assert (await caller.send(sandbox.add_draft("alice"), mailbox="ALICE@example.com")).code == 0


async def test_a_mailbox_may_block_automation() -> None:
    async with running() as (sandbox, caller):
        draft = sandbox.add_draft("alice")
        sandbox.disable_automation("alice@example.com", "policy", "https://example.com/d")
        answer = await caller.send(draft)
        assert answer.code == 0
        assert answer.data == {
            "automation_send_disable": {"reason": "policy", "reference": "https://example.com/d"}
        }
        assert sandbox.ledger.sent.total() == 0
        sandbox.open_mailbox("alice@example.com")
        assert (await caller.send(draft)).code == 0


async def test_a_daily_quota_comes_back_after_a_day() -> None:
    async with running(daily_quota=2) as (sandbox, caller):
        drafts = sandbox.add_drafts("alice", 4)
        found = [(await caller.send(draft)).code for draft in drafts[:3]]
        assert found == [0, 0, number("UserDailyQuota")]
        assert (await caller.send(sandbox.add_draft("bob"), user="bob")).code == 0
        await asyncio.sleep(86_400.0)
        assert (await caller.send(drafts[2])).code == 0
        sandbox.set_quota("alice", 0)
        assert (await caller.send(drafts[3])).code == number("UserDailyQuota")
        sandbox.set_quota("alice", None)
        assert (await caller.send(drafts[3])).code == 0


async def test_a_send_may_be_scheduled_and_cancelled() -> None:
    async with running() as (sandbox, caller):
        later, never, soon = sandbox.add_drafts("alice", 3)
        at = str(int(sandbox.unix_time()) + 1000)
        for draft in (later, never):
            assert (await caller.send(draft, json={"send_time": at})).json["data"] == {}
        assert (await caller.send(soon, json={"send_time": str(int(sandbox.unix_time()) + 10)})).status == 400
        assert (await caller.send(soon, data=b"[]")).code == number("InvalidRequest")
        cancelled = await caller.mail("POST", f"drafts/{never}/cancel_scheduled_send")
        assert cancelled.code == 0
        assert (await caller.mail("POST", f"drafts/{soon}/cancel_scheduled_send")).status == 400
        assert sandbox.ledger.sent.total() == 0
        await asyncio.sleep(1001)
        assert sandbox.ledger.sent == {later: 1}
        assert (await caller.send(never)).code == 0


# --- locks -----------------------------------------------------------------------------------------------


async def test_a_user_may_make_one_call_at_a_time() -> None:
    async with running() as (sandbox, caller):
        drafts = sandbox.add_drafts("alice", 2)
        answers = await asyncio.gather(
            *map(caller.send, drafts), caller.send(sandbox.add_draft("bob"), user="bob")
        )
        assert sorted(answer.code for answer in answers) == [0, 0, number("ConcurrentWrite")]
        assert sandbox.ledger.conflicts == 1
        # One after another never conflicts, however fast.
        sandbox.latency = 0.0
        for draft in sandbox.add_drafts("alice", 10):
            assert (await caller.send(draft)).code == 0
        assert sandbox.ledger.conflicts == 1


async def test_a_mailbox_takes_one_call_at_a_time() -> None:
    async with running() as (sandbox, caller):
        sandbox.share_mailbox("team@example.com", "alice", "bob")
        first, second = sandbox.add_drafts("alice", 2, mailbox="team@example.com")
        answers = await asyncio.gather(
            caller.send(first, mailbox="team@example.com"),
            caller.send(second, mailbox="TEAM@example.com", user="bob"),
        )
        assert sorted(answer.code for answer in answers) == [0, number("ConcurrentWrite")]


@pytest.mark.parametrize(("strict", "conflicts"), [(True, 1), (False, 0)])
async def test_locks_are_held_to_the_end_of_the_way_back_or_of_the_processing(
    strict: bool, conflicts: int
) -> None:
    ways = lambda _: (0.0, 10.0)  # noqa: E731
    async with running(latency=ways, processing=2.0, lock_until_answered=strict) as (sandbox, caller):
        first, second, third = sandbox.add_drafts("alice", 3)
        async with asyncio.TaskGroup() as group:
            group.create_task(caller.send(first))
            await asyncio.sleep(1.0)
            # Within the processing both readings agree.
            group.create_task(caller.send(second))
            await asyncio.sleep(4.0)
            group.create_task(caller.send(third))
        assert sandbox.ledger.conflicts == 1 + conflicts


async def test_other_writes_take_the_locks_and_reads_do_not() -> None:
    async with running() as (sandbox, caller):
        sandbox.latency = 1.0
        first, second = sandbox.add_drafts("alice", 2)
        answers = await asyncio.gather(
            caller.send(first), caller.mail("DELETE", f"drafts/{second}"), caller.mail("GET", "drafts")
        )
        assert sorted(answer.code for answer in answers) == [0, 0, number("ConcurrentWrite")]


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
        raw = base64.urlsafe_b64encode(b"Subject: Hello\r\nTo: bob@example.com\r\n\r\nHi\r\n").decode()
        created = await caller.mail("POST", "drafts", json={"raw": raw.rstrip("=")})
        draft = created.data["draft"]["id"]
        read = (await caller.mail("GET", f"drafts/{draft}?format=metadata")).data["draft"]
        assert read["message"] == {
            "message_state": 3,
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
    ("method", "path"), [("GET", "drafts/x/send"), ("POST", "drafts/a/b/send"), ("PUT", "drafts"), ("GET", "")]
)
async def test_what_is_no_endpoint_is_not_found(method: str, path: str) -> None:
    async with running() as (sandbox, caller):
        assert (await caller.mail(method, path)).status == 404
        assert sandbox.ledger.arrivals == []


# --- tokens ----------------------------------------------------------------------------------------------

SCOPE = "mail:user_mailbox.message:send offline_access"
VERIFIER = "v" * 50
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()


async def authorize(caller: Caller, **asked: str) -> Answer:
    query = {
        "client_id": caller.sandbox.client_id,
        "response_type": "code",
        "redirect_uri": CALLBACK,
        "scope": SCOPE,
        "state": "s&=",
        "code_challenge": CHALLENGE,
        "code_challenge_method": "S256",
    } | asked
    text = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items() if value)
    return await caller.call("GET", f"{AUTHORIZE_PATH}?{text}", user=None)


def returned(answer: Answer) -> dict[str, str]:
    assert answer.status == 302
    parts = urlsplit(answer.headers["Location"])
    assert f"{parts.scheme}://{parts.netloc}{parts.path}" == CALLBACK
    return {name: values[0] for name, values in parse_qs(parts.query).items()}


async def new_code(caller: Caller, **asked: str) -> str:
    found = returned(await authorize(caller, decision="allow", **asked))
    assert found["state"] == "s&="
    return found["code"]


def error(answer: Answer) -> str:
    rows = {row.number: row.name for row in codes.OAUTH.values()}
    assert answer.json["error"]
    return rows[answer.code]


async def test_a_login_with_pkce_brings_tokens_that_work() -> None:
    async with running(expires_in=100) as (sandbox, caller):
        code = await new_code(caller, user="bob")
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": CALLBACK}
        assert error(await caller.token(**form, code_verifier="wrong")) == "PkceFailed"
        assert error(await caller.token(**(form | {"redirect_uri": "x:"}))) == "RedirectMismatch"
        answer = await caller.token(**form, code_verifier=VERIFIER)
        pair = answer.json
        assert (pair["code"], pair["token_type"], pair["expires_in"]) == (0, "Bearer", 100)
        assert (pair["scope"], pair["refresh_token_expires_in"]) == (SCOPE, 604_800)
        assert error(await caller.token(**form, code_verifier=VERIFIER)) == "AuthorizationCodeUsed"
        headers = {"Authorization": f"Bearer {pair['access_token']}"}
        assert (await caller.send(sandbox.add_draft("bob"), user=None, headers=headers)).code == 0
        assert (await caller.mail("GET", "drafts", user=None, headers=headers)).code == number("UserScopeMissing")


async def test_a_code_ends_after_five_minutes() -> None:
    async with running(auto_approve=True) as (_, caller):
        code = returned(await authorize(caller))["code"]
        form = {"grant_type": "authorization_code", "redirect_uri": CALLBACK, "code_verifier": VERIFIER}
        await asyncio.sleep(300.0)
        assert error(await caller.token(**form, code=code)) == "AuthorizationCodeExpired"
        assert error(await caller.token(**form, code="x")) == "AuthorizationCodeNotFound"


async def test_a_refresh_token_works_once_and_the_old_access_token_lives_on() -> None:
    async with running(expires_in=100) as (sandbox, caller):
        first = sandbox.issue_tokens("alice")
        form = {"grant_type": "refresh_token"}
        second = (await caller.token(**form, refresh_token=first["refresh_token"])).json
        assert second["refresh_token"] != first["refresh_token"]
        assert error(await caller.token(**form, refresh_token=first["refresh_token"])) == "RefreshTokenUsed"
        assert error(await caller.token(**form, refresh_token="x")) == "RefreshTokenMalformed"
        for pair in (first, second):
            headers = {"Authorization": f"Bearer {pair['access_token']}"}
            assert (await caller.send(sandbox.add_draft("alice"), user=None, headers=headers)).code == 0
        await asyncio.sleep(100.0)
        assert (await caller.send(sandbox.add_draft("alice"), user=None, headers=headers)).code == number(
            "TokenExpired"
        )
        sandbox.revoke("alice")
        revoked = await caller.token(**form, refresh_token=second["refresh_token"])
        assert error(revoked) == "RefreshTokenRevoked"
        assert sandbox.ledger.refreshes == {"alice": 1}


async def test_a_refresh_token_ends_and_needs_offline_access() -> None:
    async with running() as (sandbox, caller):
        old = sandbox.issue_tokens("alice")["refresh_token"]
        await asyncio.sleep(604_800.0)
        assert error(await caller.token(grant_type="refresh_token", refresh_token=old)) == "RefreshTokenExpired"
        assert "refresh_token" not in sandbox.issue_tokens("alice", scopes=["mail:user_mailbox.message:send"])


async def test_two_refreshes_at_once_lose_one() -> None:
    async with running() as (sandbox, caller):
        old = sandbox.issue_tokens("alice")["refresh_token"]
        found = await asyncio.gather(
            *[caller.token(grant_type="refresh_token", refresh_token=old) for _ in range(2)]
        )
        assert sorted(answer.status for answer in found) == [200, 400]


async def test_the_token_endpoint_takes_forms_and_basic_credentials() -> None:
    async with running() as (sandbox, caller):
        form = {"grant_type": "refresh_token", "scope": "mail:user_mailbox.message:send"}
        app = {"client_id": sandbox.client_id, "client_secret": sandbox.client_secret}
        basic = aiohttp.encode_basic_auth(sandbox.client_id, sandbox.client_secret)
        for extra, headers in ((app, {}), ({}, {"Authorization": basic})):
            token = sandbox.issue_tokens("alice")["refresh_token"]
            data = form | extra | {"refresh_token": token}
            answer = await caller.call("POST", TOKEN_PATH, user=None, data=data, headers=headers)
            assert (answer.status, answer.json["scope"]) == (200, "mail:user_mailbox.message:send")


async def test_what_the_token_endpoint_refuses() -> None:
    async with running() as (_, caller):
        assert error(await caller.token(client_secret="wrong")) == "ClientSecretWrong"
        assert error(await caller.token(client_id="wrong")) == "ClientSecretWrong"
        assert (await caller.token(grant_type="password")).json["error"] == "unsupported_grant_type"
        for wrong in (b"[]", b"{", b"\xff"):
            headers = {"Content-Type": "application/json"}
            answer = await caller.call("POST", TOKEN_PATH, user=None, data=wrong, headers=headers)
            assert answer.json["error"] == "invalid_request"


async def test_the_token_endpoint_may_be_scripted() -> None:
    async with running() as (sandbox, caller):
        old = sandbox.issue_tokens("alice")["refresh_token"]
        form = {"grant_type": "refresh_token", "refresh_token": old}
        sandbox.script_token("Unavailable", Fault.gateway(), Fault.delay(5.0, 5.0), Fault.reset_after())
        assert ((answer := await caller.token(**form)).status, error(answer)) == (503, "Unavailable")
        assert (await caller.token(**form)).status == 502
        start = now()
        pair = (await caller.token(**form)).json
        assert now() - start == pytest.approx(10.0)
        # The login is lost with the answer.
        form["refresh_token"] = pair["refresh_token"]
        with pytest.raises(aiohttp.ClientOSError):
            await caller.token(**form)
        assert error(await caller.token(**form)) == "RefreshTokenUsed"


async def test_the_page_asks_and_a_user_may_deny() -> None:
    async with running() as (_, caller):
        page = await authorize(caller, state='"><script>')
        assert page.status == 200
        assert b"Allow as alice" in page.body
        assert b"Allow as bob" in page.body
        assert b"<script>" not in page.body
        assert returned(await authorize(caller, decision="deny")) == {"error": "access_denied", "state": "s&="}


@pytest.mark.parametrize(
    "wrong",
    [
        {"client_id": "x"},
        {"response_type": "token"},
        {"redirect_uri": ""},
        {"code_challenge_method": "plain"},
        {"decision": "perhaps"},
        {"scope": "everything"},
        {"user": "nobody"},
    ],
    ids=str,
)
async def test_what_the_page_refuses(wrong: dict[str, str]) -> None:
    async with running() as (_, caller):
        answer = await authorize(caller, **wrong)
        assert answer.status == 400
        assert next(iter(wrong)).encode() in answer.body


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
        for what, value in (
            ("users", {}),
            ("users", {"name": "alice"}),
            ("drafts", {"user": "alice", "count": "x"}),
            ("script", {"draft_id": "x", "faults": [{"kind": "x"}]}),
            ("script", {"draft_id": "x", "faults": "x"}),
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
