"""Waits, errors and codes in words."""

from dataclasses import replace
from typing import Any

import pytest

from feishu_mail_async import (
    AutomatedSendDisabled,
    BadReply,
    ClientClosed,
    Draft,
    FeishuMailError,
    NotSent,
    Outcome,
    OutcomeStatus,
    OutcomeUnknown,
    Priority,
    RateLimit,
    SendResult,
    Snapshot,
    Suspended,
    TransportError,
)
from feishu_mail_async._api.refusals import api_error
from feishu_mail_async.cli.render import wording as words
from feishu_mail_async.cli.render.waiting import why_waiting
from feishu_mail_async.codes import CODES, named

pytestmark = pytest.mark.usefixtures("own_state")


def snapshot(**changes: Any) -> Snapshot:
    calm = Snapshot(dict.fromkeys(Priority, 0), 0, 20, RateLimit(), 0.0, None, None, {}, ())
    return replace(calm, **changes)


@pytest.mark.parametrize(
    ("changes", "unfinished", "kind", "text"),
    [
        (
            {"waiting": {Priority.NORMAL: 3}, "permits": 0, "next_permit": 41.2},
            3,
            "limit",
            "3 waiting, next call in 42 s (20 of 20 calls of this minute made)",
        ),
        (
            {"waiting": {Priority.NORMAL: 3}, "permits": 0, "next_permit": None, "in_flight": 20},
            23,
            "limit",
            "3 waiting for a call under way to end (20 of 20 calls of this minute made)",
        ),
        (
            {
                "waiting": {Priority.NORMAL: 2},
                "paused": 29.5,
                "pause_reason": str(api_error(named("FrequencyLimited"), "", http_status=429, log_id="abc")),
            },
            2,
            "pause",
            "2 waiting, next try in 30 s: the server asked for a pause",
        ),
        (
            {
                "waiting": {Priority.NORMAL: 2},
                "paused": 0.0,
                "pause_reason": "the server cannot be reached: no route",
            },
            2,
            "unreachable",
            "2 waiting, trying one call: the server cannot be reached: no route",
        ),
        (
            {"waiting": {Priority.NORMAL: 2}, "cooling": {"bob": 9.0, "alice": 1.5}},
            2,
            "cooling",
            "2 waiting: the server slows alice down, next try in 2 s",
        ),
        (
            {"waiting": {Priority.NORMAL: 2}, "cooling": {"(token abc)": 1.5}},
            2,
            "cooling",
            "2 waiting: the server slows the user down, next try in 2 s",
        ),
        ({"in_flight": 1}, 1, "calls", "1 call under way"),
        (
            {"in_flight": 2, "waiting": {Priority.NORMAL: 5}},
            7,
            "calls",
            "2 calls under way, 5 waiting for their turn",
        ),
        ({}, 1, "retry", "1 to be tried again shortly"),
    ],
)
def test_why_it_waits(changes: dict[str, Any], unfinished: int, kind: str, text: str) -> None:
    wait = why_waiting(snapshot(**changes), unfinished)
    assert wait is not None
    assert (wait.kind, wait.text) == (kind, text)


def test_nothing_to_wait_for() -> None:
    assert why_waiting(snapshot(), 0) is None


def caused(error: FeishuMailError, cause: BaseException) -> FeishuMailError:
    error.__cause__ = cause
    return error


QUOTA = api_error(named("UserDailyQuota"), "spent", http_status=429, log_id="log1")
ERRORS: list[tuple[FeishuMailError, list[str]]] = [
    (QUOTA, ["spent (1236007).", QUOTA.advice, "[log id log1]"]),
    (
        caused(Suspended("-", subject="user:bob", until=3599.0), QUOTA),
        ["not tried, because of user bob: spent (1236007).", "It may go again in 60 minutes.", "[log id log1]"],
    ),
    (
        caused(Suspended("-", subject="user:(token ab12)", until=None), QUOTA),
        ["not tried, because of this user: spent"],
    ),
    (caused(Suspended("-", subject="mailbox:me/bob", until=None), QUOTA), ["because of the own mailbox of bob: "]),
    (
        caused(Suspended("-", subject="mailbox:b@example.com", until=30.0), QUOTA),
        ["mailbox b@example.com", "30 s"],
    ),
    (caused(Suspended("-", subject="app", until=None), QUOTA), ["because of the whole app: "]),
    (
        caused(OutcomeUnknown("-", attempts=1), BadReply("no answer came back: reset")),
        ["it may have been sent. Last: no answer came back: reset. Sending it again is safe"],
    ),
    (
        caused(OutcomeUnknown("-"), NotSent("the run was stopped before its turn came")),
        ["an earlier call may have sent it. This one made none: stopped before its turn came. Sending it again"],
    ),
    (OutcomeUnknown("it may have been sent"), ["it may have been sent."]),
    (
        AutomatedSendDisabled("by policy", "https://example.com/d"),
        ["automated sending (by policy). Open the draft at https://example.com/d and send it there"],
    ),
    (AutomatedSendDisabled("", None), ["does not allow automated sending. Send it by hand, or change"]),
    (ClientClosed("-"), ["stopped before its turn came; it was not sent."]),
    (TransportError("the server cannot be reached: gone"), ["the server cannot be reached: gone."]),
]


@pytest.mark.parametrize(("error", "parts"), ERRORS)
def test_errors_read_well(error: FeishuMailError, parts: list[str]) -> None:
    told = words.say(error, words.Width.LINE)
    for part in parts:
        assert part in told
    assert "\n" not in told
    assert "  " not in told
    assert ".." not in told
    assert "\n" not in words.say(error)


def test_every_code_reads_well() -> None:
    for row in CODES.values():
        if row.error:
            error = api_error(row, "", http_status=row.http_status, log_id="log1")
            told = words.say(error, words.Width.LINE)
            assert str(row.number) in told
            assert row.advice in told
            assert "reopen" not in told


def test_the_server_cannot_steer_the_terminal() -> None:
    error = api_error(named("ContentRisk"), "\x1b[2Jgone\r\nsent \u202e", http_status=400, log_id="\x07")
    for told in (words.say(error, words.Width.LINE), words.say(error)):
        assert told.isprintable()
    result = SendResult(Draft("a"), "\x1b[31m", None, already_sent=False, attempts=1, log_id=None)
    assert words.detail(Outcome(Draft("a"), OutcomeStatus.SENT, result, None)).isprintable()
