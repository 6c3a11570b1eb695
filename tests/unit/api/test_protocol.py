"""What an answer means."""

import json
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from feishu_mail_async import (
    ApiError,
    AutomatedSendDisabled,
    BadReply,
    ConcurrentWrite,
    ContentRisk,
    DraftNotFound,
    FrequencyLimited,
    InvalidToken,
    Misconfigured,
    ServerError,
    TransportError,
    UserDailyQuota,
)
from feishu_mail_async._api.endpoints import DELETE, ENDPOINTS, SEND
from feishu_mail_async._api.protocol import CallEnd, Reply, judge, lost, never_left
from feishu_mail_async.codes import CODES, ResumeWhen, Subject, Verdict, named
from tests.helpers.judgements import judge_send
from tests.helpers.samples import SAMPLES, sample


@dataclass(frozen=True)
class Meant:
    """What a sample means."""

    status: int
    verdict: Verdict
    error: type[Exception] | None = None
    conclusive: bool = True
    subject: Subject = Subject.DRAFT
    until: ResumeWhen | None = None
    ids: tuple[str | None, str | None] = (None, None)
    pause: float | None = None
    says: str = ""
    headers: dict[str, str] = field(default_factory=dict)


SENT, ALREADY, RETRY, FATAL = Verdict.DONE, Verdict.ALREADY_DONE, Verdict.RETRY, Verdict.FATAL
REAL = ("TUlHc1NoWFhJMXgyUi9VZTNVL3h6UnlkRUdzPQ==", "tfuh9N4WnzU6jdDw=")
UNREADABLE = Meant(200, RETRY, BadReply, conclusive=False)
LINK = "https://mail.feishu.cn/mail/drafts/268dce11-85f7-427d-8756-6be3abc850fd"
SWITCHED_OFF = Meant(200, FATAL, AutomatedSendDisabled, subject=Subject.MAILBOX, until=ResumeWhen.RESUMED)

MEANT = {
    "sent.json": Meant(200, SENT, ids=REAL),
    "sent-recallable.json": Meant(200, SENT, ids=REAL),
    "sent-automation-null.json": Meant(200, SENT, ids=("m-1", "t-1")),
    "sent-automation-false.json": Meant(200, SENT, ids=("m-1", "t-1")),
    "sent-without-data.json": Meant(200, SENT),
    "sent-data-null.json": Meant(200, SENT),
    "sent-data-list.json": Meant(200, SENT),
    "sent-empty-ids.json": Meant(200, SENT),
    "sent-odd-ids.json": Meant(200, SENT),
    "automation-disabled.json": SWITCHED_OFF,
    "automation-disabled-empty.json": SWITCHED_OFF,
    "automation-disabled-with-id.json": SWITCHED_OFF,
    "automation-disabled-true.json": SWITCHED_OFF,
    "already-sent.json": Meant(409, ALREADY),
    "draft-not-found.json": Meant(404, FATAL, DraftNotFound),
    "concurrent-write.json": Meant(429, RETRY, ConcurrentWrite, subject=Subject.USER),
    "daily-quota.json": Meant(429, FATAL, UserDailyQuota, subject=Subject.USER, until=ResumeWhen.HOUR),
    "frequency-limited.json": Meant(429, RETRY, FrequencyLimited, subject=Subject.APP, pause=17.0),
    "server-error.json": Meant(500, RETRY, ServerError, conclusive=False),
    "token-expired.json": Meant(401, FATAL, InvalidToken, subject=Subject.USER, until=ResumeWhen.TOKEN),
    "unknown-code.json": Meant(400, FATAL, ApiError, says="a code of tomorrow"),
    "code-without-msg.json": Meant(400, FATAL, ContentRisk, says="content risk"),
    "code-odd-msg.json": Meant(400, FATAL, ContentRisk, says="content risk"),
    "code-as-string.json": UNREADABLE,
    "code-as-boolean.json": UNREADABLE,
    "code-as-float.json": UNREADABLE,
    "code-missing.json": UNREADABLE,
    "nulls.json": UNREADABLE,
    "null.json": UNREADABLE,
    "array.json": UNREADABLE,
    "string.json": UNREADABLE,
    "empty.json": UNREADABLE,
    "cut-off.json": UNREADABLE,
    "captive-portal-200.html": UNREADABLE,
    "gateway-502.html": Meant(502, RETRY, BadReply, conclusive=False),
    "gateway-504.html": Meant(504, RETRY, BadReply, conclusive=False),
    "gateway-429.html": Meant(429, RETRY, FrequencyLimited, subject=Subject.APP, pause=17.0),
}


def test_every_sample_is_judged() -> None:
    assert {path.name for path in SAMPLES.iterdir()} - {"send-draft-codes.md"} == set(MEANT)


@pytest.mark.parametrize("name", MEANT)
def test_what_a_sample_means(name: str) -> None:
    meant = MEANT[name]
    found = judge_send(Reply(meant.status, sample(name), log_id="log1", reset="17"))
    assert found.verdict is meant.verdict
    assert found.end is CallEnd.ANSWERED
    assert found.conclusive is meant.conclusive
    assert found.subject is meant.subject
    assert found.until is meant.until
    assert (found.text("message_id"), found.text("thread_id")) == meant.ids
    assert found.pause == meant.pause
    assert found.log_id == "log1"
    if meant.error is None:
        assert found.error is None
        return
    assert type(found.error) is meant.error
    assert found.error.log_id == "log1"
    assert meant.says in str(found.error)


def test_a_switched_off_mailbox_brings_its_reason_and_its_link() -> None:
    error = judge_send(Reply(200, sample("automation-disabled.json"))).error
    assert isinstance(error, AutomatedSendDisabled)
    assert (error.reason, error.reference) == ("该邮箱已关闭自动发信", LINK)
    bare = judge_send(Reply(200, sample("automation-disabled-empty.json"))).error
    assert isinstance(bare, AutomatedSendDisabled)
    assert (bare.reason, bare.reference) == ("", None)


@pytest.mark.parametrize("row", CODES.values(), ids=lambda row: row.name)
@pytest.mark.parametrize("status", [200, 400, 404, 429, 500, 503])
def test_the_code_decides_whatever_the_http_status(row: Any, status: int) -> None:
    found = judge_send(Reply(status, json.dumps({"code": row.number, "msg": "said"}).encode()))
    assert found.verdict is row.verdict
    assert (found.subject, found.until, found.conclusive) == (row.subject, row.until, row.conclusive)
    if row.error:
        assert isinstance(found.error, ApiError)
        assert (found.error.code, found.error.http_status, found.error.msg) == (row.number, status, "said")


NESTED = b'{"code":0,"data":' + b"[" * 200_000 + b"]" * 200_000 + b"}"


@pytest.mark.parametrize(
    "body",
    [
        None,
        b"",
        b" ",
        b"\xff\xfe\x00",
        b"\x80",
        b"{",
        b'{"code":',
        b'{"code":0',
        b"0",
        b'{"code":"1236005"}',
        b'{"code":true}',
        b'{"code":[0]}',
        b'{"code":{}}',
        b'{"code":NaN}',
        b'{"code":-Infinity}',
        b'{"code":0.0}',
        b'{"code":1e3}',
        b'{"code":' + b"9" * 5000 + b"}",
        b'[{"code":0}]',
        b'{"code":0}{"code":0}',
        b"[" * 200_000,
        NESTED,
    ],
    ids=lambda body: repr(body)[:30],
)
@pytest.mark.parametrize("status", [200, 302, 303, 307, 400, 401, 403, 500, 502])
def test_what_cannot_be_read_may_have_been_sent(body: bytes | None, status: int) -> None:
    found = judge_send(Reply(status, body, log_id="log1"))
    assert found.verdict is RETRY
    assert found.subject is Subject.DRAFT
    assert not found.conclusive
    assert found.end is CallEnd.ANSWERED
    assert isinstance(found.error, BadReply)
    assert (found.error.http_status, found.error.log_id) == (status, "log1")


PAGES = [b"", b"404 page not found", b"<html>no</html>", b'{"detail":"Not Found"}', b'{"code":"no"}', b"\xff"]


@pytest.mark.parametrize("body", PAGES, ids=repr)
@pytest.mark.parametrize("status", [301, 308, 404, 405, 410])
def test_a_page_that_says_there_is_no_such_call_is_of_a_wrong_address(body: bytes, status: int) -> None:
    found = judge_send(Reply(status, body, log_id="log1"), base_url="https://gate.example.com/x")
    assert (found.verdict, found.subject, found.until) == (FATAL, Subject.DRAFT, None)
    assert found.conclusive
    assert found.end is CallEnd.ANSWERED
    assert isinstance(found.error, Misconfigured)
    assert (found.http_status, found.error.log_id) == (status, "log1")
    for word in (str(status), "base_url", "https://gate.example.com/x"):
        assert word in str(found.error)


@pytest.mark.parametrize("status", [301, 404, 405])
def test_such_a_page_that_is_cut_off_may_have_been_the_apis(status: int) -> None:
    found = judge_send(Reply(status, None))
    assert (found.verdict, found.conclusive) == (RETRY, False)


@pytest.mark.parametrize(
    ("number", "status", "verdict", "subject"),
    [
        (1, 200, FATAL, Subject.DRAFT),
        (-1, 400, FATAL, Subject.DRAFT),
        (1239999, 429, RETRY, Subject.USER),
        (1239999, 500, RETRY, Subject.DRAFT),
        (10**400, 400, FATAL, Subject.DRAFT),
    ],
)
def test_a_code_of_tomorrow(number: int, status: int, verdict: Verdict, subject: Subject) -> None:
    found = judge_send(Reply(status, json.dumps({"code": number, "msg": "new"}).encode()))
    assert (found.verdict, found.subject, found.until) == (verdict, subject, None)
    assert type(found.error) is ApiError
    assert found.error.code == number


def test_a_long_message_is_shortened() -> None:
    body = json.dumps({"code": 1236014, "msg": "x" * 200_000}).encode()
    error = judge_send(Reply(400, body)).error
    assert isinstance(error, ContentRisk)
    assert len(str(error)) < 1000
    switched_off = {"automation_send_disable": {"reason": "x" * 200_000, "reference": "https://a.example"}}
    error_off = judge_send(Reply(200, json.dumps({"code": 0, "data": switched_off}).encode())).error
    assert len(str(error_off)) < 1000


def test_calls_without_an_answer() -> None:
    gone = lost("none within 30 s")
    assert (gone.verdict, gone.end, gone.conclusive, gone.subject) == (RETRY, CallEnd.LOST, False, Subject.DRAFT)
    assert isinstance(gone.error, BadReply)
    assert "none within 30 s" in str(gone.error)
    kept = never_left("connection refused")
    assert (kept.verdict, kept.end, kept.conclusive, kept.subject) == (
        RETRY,
        CallEnd.NEVER_LEFT,
        True,
        Subject.APP,
    )
    assert isinstance(kept.error, TransportError)
    assert "connection refused" in str(kept.error)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NUMBERS = st.sampled_from(sorted(CODES)) | st.integers() | JSON_VALUES
DATA = st.fixed_dictionaries(
    {}, optional={"automation_send_disable": JSON_VALUES, "message_id": JSON_VALUES, "thread_id": JSON_VALUES}
)
BODIES = st.fixed_dictionaries({}, optional={"code": NUMBERS, "msg": JSON_VALUES, "data": DATA | JSON_VALUES})
SUCCESSES = {named("Success").number: SENT, named("AlreadySent").number: ALREADY}


def check(reply: Reply) -> None:
    """No crash, nothing claimed, and everything there that the rooms above rely on."""
    found = judge_send(reply)
    try:
        body = json.loads(reply.body or b"")
        code = body["code"] if isinstance(body, dict) else None
    except (ValueError, KeyError, RecursionError):
        code = None
    success = SUCCESSES.get(code) if type(code) is int else None
    if found.verdict in SUCCESSES.values():
        assert found.verdict is success
        assert found.error is None
    else:
        assert found.error is not None
        assert str(found.error)
    for name in ("message_id", "thread_id"):
        text = found.text(name)
        assert text is None or text
    assert found.pause is None or (0 <= found.pause <= 3600 and not math.isnan(found.pause))
    assert found.end is CallEnd.ANSWERED
    if found.until is not None:
        assert found.verdict is FATAL
    if not found.conclusive:
        assert found.verdict is RETRY


@given(st.integers(100, 599), st.none() | st.binary(max_size=200), st.none() | st.text(max_size=12))
@example(200, b'{"code":0}', None)
@example(429, b"", "nan")
def test_no_bytes_crash_it(status: int, body: bytes | None, reset: str | None) -> None:
    check(Reply(status, body, reset=reset))


@given(st.integers(100, 599), BODIES, st.none() | st.text(max_size=12))
def test_no_json_crashes_it(status: int, body: dict[str, Any], reset: str | None) -> None:
    check(Reply(status, json.dumps(body).encode(), reset=reset))
    check(Reply(status, json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass"), reset=reset))


@pytest.mark.parametrize(
    "body",
    [
        b'\xef\xbb\xbf{"code":1236007,"msg":"with a byte order mark"}',
        b'{"code":1236007,"msg":"a bad \xff byte"}',
        b'{"code":1236007,"msg":"half \xed\xa0\x80 a character"}',
        b'{"code":1236007,"msg":"half \\ud800 a character"}',
    ],
)
def test_a_message_that_is_not_quite_text_hides_no_code_and_breaks_no_log(body: bytes) -> None:
    found = judge_send(Reply(403, body, log_id="log\udcff"))
    assert found.code == 1236007
    assert found.conclusive
    str(found.error).encode()
    assert found.log_id is not None
    found.log_id.encode()


# --- what "done already" means, by endpoint --------------------------------------------------------------------


def answer(name: str) -> Reply:
    row = named(name)
    return Reply(row.http_status, json.dumps({"code": row.number, "msg": row.message}).encode())


@pytest.mark.parametrize("in_doubt", [False, True])
def test_a_mail_that_was_sent_is_sent_already_for_a_send_alone(in_doubt: bool) -> None:
    sent = answer("AlreadySent")
    assert judge(sent, SEND, in_doubt=in_doubt).verdict is Verdict.ALREADY_DONE
    for endpoint in set(ENDPOINTS.values()) - {SEND}:
        found = judge(sent, endpoint, in_doubt=in_doubt)
        assert found.verdict is Verdict.FATAL
        assert type(found.error) is ApiError


def test_a_draft_that_is_gone_was_deleted_if_an_earlier_call_may_have_done_it() -> None:
    gone = answer("DraftNotFound")
    assert judge(gone, DELETE, in_doubt=True).verdict is Verdict.ALREADY_DONE
    assert isinstance(judge(gone, DELETE).error, DraftNotFound)
    for endpoint in set(ENDPOINTS.values()) - {DELETE}:
        assert isinstance(judge(gone, endpoint, in_doubt=True).error, DraftNotFound)
