"""The values: what bad input gets, and what they are to each other."""

import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feishu_mail_async import Draft, Outcome, OutcomeStatus, Priority, RateLimit, RetryPolicy, SendResult
from tests.helpers.wrong import begins_with

NAN = float("nan")

WRONG_TEXTS: list[tuple[Any, type[Exception]]] = [
    ("", ValueError),
    ("   ", ValueError),
    ("\u3000\u2003", ValueError),
    ("\n", ValueError),
    ("x" * 513, ValueError),
    ("a\nb", ValueError),
    ("a\r", ValueError),
    ("\ta", ValueError),
    ("a\0b", ValueError),
    ("a\x7f", ValueError),
    ("a\x85b", ValueError),
    ("a\u2028b", ValueError),
    ("a\u2029b", ValueError),
    ("a\ud800b", ValueError),
    (b"bytes", TypeError),
    (7, TypeError),
    (True, TypeError),
    (["id"], TypeError),
]


@pytest.mark.parametrize(("value", "error"), WRONG_TEXTS)
@pytest.mark.parametrize("name", ["draft_id", "mailbox", "user"])
def test_text_that_cannot_stand_in_a_path(name: str, value: Any, error: type[Exception]) -> None:
    given_ = {"draft_id": "d1", name: value}
    with pytest.raises(error, match=begins_with(name)):
        Draft(**given_)


def test_only_the_user_may_be_left_open() -> None:
    assert Draft("d1", user=None).user is None
    with pytest.raises(TypeError, match=begins_with("draft_id")):
        Draft(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=begins_with("mailbox")):
        Draft("d1", None)  # type: ignore[arg-type]


@pytest.mark.parametrize("draft_id", ["x", "x" * 512, "草稿", "a/b?c#d%2F..", "a b", "\U0001f4e7", "..", "é"])
def test_text_that_can(draft_id: str) -> None:
    assert Draft(draft_id).draft_id == draft_id


@given(st.text(max_size=40))
def test_text_is_taken_as_it_is_or_not_at_all(text: str) -> None:
    try:
        draft = Draft(text)
    except ValueError as error:
        assert str(error).startswith("draft_id: ")  # noqa: PT017 - either way is fine
        assert str(error).isprintable()  # noqa: PT017
    else:
        assert draft.draft_id == text


Make = Callable[..., object]
NUMBERS: list[tuple[Make, str]] = [
    (RateLimit, "per"),
    (RateLimit, "spacing"),
    (RateLimit, "grace"),
    (RateLimit, "margin"),
    (RetryPolicy, "initial"),
    (RetryPolicy, "maximum"),
    (RetryPolicy, "outage"),
]
COUNTS: list[tuple[Make, str]] = [
    (RateLimit, "calls"),
    (RateLimit, "reserve"),
    (RetryPolicy, "attempts"),
    (RetryPolicy, "refusals"),
]


@pytest.mark.parametrize(("make", "name"), NUMBERS + COUNTS)
@pytest.mark.parametrize("value", [True, False, "20", b"1", [1], 1j, object()])
def test_what_is_no_number(make: Make, name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=begins_with(name)):
        make(**{name: value})


@pytest.mark.parametrize(("make", "name"), NUMBERS)
@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf, -1, -0.001])
def test_numbers_that_make_no_sense(make: Make, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=begins_with(name)):
        make(**{name: value})


@pytest.mark.parametrize(("make", "name"), COUNTS)
@pytest.mark.parametrize("value", [1.0, NAN, math.inf])
def test_counts_are_whole(make: Make, name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=begins_with(name)):
        make(**{name: value})


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (RateLimit, "calls", 0),
        (RateLimit, "calls", -20),
        (RateLimit, "per", 0),
        (RateLimit, "reserve", -1),
        (RateLimit, "reserve", 20),
        (RateLimit, "reserve", 21),
        (RetryPolicy, "attempts", 0),
        (RetryPolicy, "refusals", -1),
        (RetryPolicy, "initial", -1),
        (RetryPolicy, "maximum", -1),
    ],
)
def test_numbers_out_of_bounds(make: Make, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=begins_with(name)):
        make(**{name: value})


@pytest.mark.parametrize(("make", "name"), [(RateLimit, name) for name in ("per", "spacing", "grace", "margin")])
def test_none_is_no_number(make: Make, name: str) -> None:
    with pytest.raises(TypeError, match=begins_with(name)):
        make(**{name: None})


@pytest.mark.parametrize(
    ("make", "given_"),
    [
        (RateLimit, {"calls": 1, "per": 0.5, "spacing": 0, "grace": 0, "margin": 0, "reserve": 0}),
        (RateLimit, {"calls": 100, "per": 60, "reserve": 99}),
        (RetryPolicy, {"attempts": 1, "refusals": 0, "outage": 0}),
        (RetryPolicy, {"initial": 60.0, "outage": None}),
    ],
)
def test_numbers_at_their_bounds(make: Make, given_: dict[str, Any]) -> None:
    made = make(**given_)
    assert {name: getattr(made, name) for name in given_} == given_


def test_the_defaults_are_the_promised_ones() -> None:
    assert RateLimit() == RateLimit(calls=20, per=60.0, spacing=0.2, grace=10.0, margin=0.1, reserve=0)
    assert RetryPolicy() == RetryPolicy(attempts=6, refusals=20, initial=1.0, maximum=60.0, outage=600.0)
    names = [field.name for field in fields(RateLimit)]
    assert names == ["calls", "per", "spacing", "grace", "margin", "reserve"]
    names = [field.name for field in fields(RetryPolicy)]
    assert names == [
        "attempts",
        "refusals",
        "initial",
        "maximum",
        "outage",
    ]
    assert [field.name for field in fields(Draft)] == ["draft_id", "mailbox", "user", "tag", "link"]
    assert [field.name for field in fields(Outcome)] == ["draft", "status", "result", "error"]
    assert [field.name for field in fields(SendResult)] == (
        ["draft", "message_id", "thread_id", "already_sent", "scheduled_for", "attempts", "log_id"]
    )


def test_smooth_spreads_the_calls_evenly() -> None:
    assert RateLimit.smooth() == RateLimit(spacing=3.0)
    assert RateLimit.smooth(100, 50.0, grace=1, margin=0, reserve=7) == RateLimit(100, 50.0, 0.5, 1, 0, 7)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [("calls", 0, ValueError), ("per", 0, ValueError), ("calls", "20", TypeError), ("per", None, TypeError)],
)
def test_smooth_says_what_is_wrong(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=begins_with(name)):
        RateLimit.smooth(**{name: value})


def test_priorities_are_served_in_their_order() -> None:
    assert sorted(Priority) == [Priority.INTERACTIVE, Priority.NORMAL, Priority.BULK]


def test_the_statuses_are_the_promised_words() -> None:
    words = ["sent", "scheduled", "already_sent", "failed", "unknown", "skipped"]
    assert [str(status) for status in OutcomeStatus] == words


RESULT = SendResult(Draft("d1"), "m1", "t1", already_sent=False, attempts=1, log_id="log")


@pytest.mark.parametrize(
    "value",
    [Draft("d1"), RateLimit(), RetryPolicy(), RESULT, Outcome(Draft("d1"), OutcomeStatus.SENT, RESULT, None)],
)
def test_values_are_frozen_and_hashable(value: Any) -> None:
    assert len({value, value}) == 1
    with pytest.raises(FrozenInstanceError):
        setattr(value, fields(value)[0].name, "another")
    with pytest.raises((AttributeError, TypeError)):
        value.new = 1


def test_a_tag_is_the_callers_own() -> None:
    secret = ["anything, not even hashable"]
    tagged = Draft("d1", tag=secret)
    assert tagged.tag is secret
    assert tagged == Draft("d1")
    assert hash(tagged) == hash(Draft("d1", tag=object()))
    assert "anything" not in repr(tagged)
    assert "tag" not in repr(tagged)


def test_drafts_differ_by_all_else() -> None:
    assert len({Draft("d1"), Draft("d2"), Draft("d1", "a@b.c"), Draft("d1", user="alice")}) == 4
