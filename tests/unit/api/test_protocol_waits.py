"""How long an answer asks to wait, and whom."""

import json

import pytest

from feishu_mail_async import FrequencyLimited
from feishu_mail_async._api.protocol import Reply
from feishu_mail_async.codes import CODES, Subject, named
from tests.helpers.judgements import judge_send


def test_a_cut_off_429_is_the_rate_limits() -> None:
    for body in (None, b"", b"<html>", b'{"msg":"slow down"}'):
        found = judge_send(Reply(429, body, reset="5"))
        assert isinstance(found.error, FrequencyLimited)
        assert (found.subject, found.pause) == (Subject.APP, 5.0)


DATE = "Wed, 21 Oct 2026 07:28:00 GMT"
THEN = 1792567680


@pytest.mark.parametrize(
    ("reset", "pause"),
    [
        ("30", 30.0),
        (" 30 ", 30.0),
        ("0", 0.0),
        ("0.5", 0.5),
        ("3600", 3600.0),
        ("3601", 3.601),
        ("30000", 30.0),
        ("60000", 60.0),
        ("86400", 86.4),
        ("1e99", 3600.0),
        ("inf", 3600.0),
        ("9" * 400, 3600.0),
        (str(THEN), 0.0),
        (str(THEN + 30), 30.0),
        (f"{THEN + 30}.5", 30.5),
        (str(THEN * 1000 + 30_250), 30.25),
        (str(THEN + 100_000), 3600.0),
        (str(THEN - 1), None),
        ("1764000000", None),
        ("1764000000000", None),
        (None, None),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("-inf", None),
        ("nan", None),
        ("NaN", None),
        ("1,5", None),
        ("30s", None),
        ("0x10", None),
        (DATE, 0.0),
    ],
)
def test_how_long_the_app_is_asked_to_wait(reset: str | None, pause: float | None) -> None:
    body = json.dumps({"code": named("FrequencyLimited").number}).encode()
    for status, text in ((429, body), (400, body), (429, b"")):
        assert judge_send(Reply(status, text, reset=reset, date=DATE)).pause == pause


@pytest.mark.parametrize("date", [None, "", "yesterday", "Wed, 99 Oct 2026 07:28:00 GMT", "9" * 400])
@pytest.mark.parametrize("reset", [str(THEN), str(THEN * 1000)])
def test_a_moment_says_nothing_without_the_servers_own_time(reset: str, date: str | None) -> None:
    assert judge_send(Reply(429, b"", reset=reset, date=date)).pause is None


@pytest.mark.parametrize(
    ("retry_after", "pause"),
    [
        ("17", 17.0),
        ("0", 0.0),
        ("86400000", 3600.0),
        ("Wed, 21 Oct 2026 07:28:45 GMT", 45.0),
        ("Wednesday, 21-Oct-26 07:28:45 GMT", 45.0),
        ("Wed Oct 21 07:28:45 2026", 45.0),
        ("Wed, 21 Oct 2026 09:28:45 +0200", 45.0),
        ("Thu, 22 Oct 2026 07:28:00 GMT", 3600.0),
        (DATE, 0.0),
        ("Wed, 21 Oct 2026 07:27:00 GMT", None),
        ("-5", None),
        ("soon", None),
        (None, None),
    ],
)
def test_retry_after_counts_where_no_reset_does(retry_after: str | None, pause: float | None) -> None:
    body = json.dumps({"code": named("FrequencyLimited").number}).encode()
    for status, text in ((429, body), (400, body), (429, b"")):
        assert judge_send(Reply(status, text, date=DATE, retry_after=retry_after)).pause == pause
        assert judge_send(Reply(status, text, date=DATE, reset="never", retry_after=retry_after)).pause == pause
        assert judge_send(Reply(status, text, date=DATE, reset="5", retry_after=retry_after)).pause == 5.0


def test_only_what_concerns_the_app_pauses_it() -> None:
    for row in CODES.values():
        found = judge_send(Reply(row.http_status, json.dumps({"code": row.number}).encode(), reset="30"))
        if row.subject is not Subject.APP:
            assert found.pause is None
