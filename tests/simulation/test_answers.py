"""Every code of the table, twice: through aioresponses, and over HTTP against the sandbox."""

from collections.abc import AsyncIterator

import pytest

from feishu_mail_async import (
    ApiError,
    AutomatedSendDisabled,
    BadReply,
    FeishuMailError,
    OutcomeStatus,
    OutcomeUnknown,
    SendResult,
    ServerError,
    Suspended,
    errors,
)
from feishu_mail_async.codes import CODES, named
from feishu_mail_async.sandbox import Fault
from tests.helpers.answers import BOX, OTHER_BOX, REFUSALS, Answering, Real, check, draft, mocked, real

pytestmark = pytest.mark.looptime(start=0)

HOUR = 3600.0

# What becomes of a draft whose every call gets this code, and who is suspended by it.
RETRIED = ["ConcurrentWrite", "MailThrottled", "FrequencyLimited", "InternalError", "ServiceFailed"]
CLOSING = {
    "MailboxNotFound": ("mailbox:box@example.com", None),
    "UserDailyQuota": ("user:alice", HOUR),
    "TenantStorageFull": ("app", HOUR),
    "AppQuotaSpent": ("app", HOUR),
    "TokenMissing": ("user:alice", None),
    "TokenMalformed": ("user:alice", None),
    "TokenInvalid": ("user:alice", None),
    "UserTokenInvalid": ("user:alice", None),
    "TokenExpired": ("user:alice", None),
    "AppScopeMissing": ("user:alice", None),
    "UserScopeMissing": ("user:alice", None),
}
FATAL = [row.name for row in CODES.values() if row.error and row.name not in RETRIED]
THE_DRAFTS_OWN = [name for name in FATAL if name not in CLOSING]


@pytest.fixture(params=[mocked, real])
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Answering]:
    async with request.param() as one:
        yield one


# -- the plays ---------------------------------------------------------------------------------------------


def test_every_code_is_played() -> None:
    played = {*RETRIED, *FATAL, "Success", "AlreadySent"}
    assert played == {row.name for row in CODES.values()}
    assert {name for name in FATAL if named(name).until} == set(CLOSING)


async def test_success(stage: Answering) -> None:
    one = draft("d1")
    stage.script(one)
    result = await stage.client.send_draft(one)
    assert isinstance(result, SendResult)
    assert result.message_id
    assert result.thread_id
    assert (result.draft, result.already_sent, result.attempts) == (one, False, 1)
    assert result.log_id


async def test_already_sent(stage: Answering) -> None:
    one = draft("d1")
    stage.script(one, "AlreadySent")
    result = await stage.client.send_draft(one)
    assert (result.already_sent, result.message_id, result.thread_id) == (True, None, None)
    assert (result.draft.tag, result.attempts) == (one.tag, 1)
    assert result.log_id


@pytest.mark.parametrize("name", FATAL)
async def test_a_fatal_code_is_raised_at_once(stage: Answering, name: str) -> None:
    one = draft("d1")
    stage.script(one, *[name] * 9)
    with pytest.raises(FeishuMailError) as caught:
        await stage.client.send_draft(one)
    check(caught.value, named(name), one, attempts=1)
    assert stage.calls(one) == 1


@pytest.mark.parametrize("name", THE_DRAFTS_OWN)
async def test_what_is_the_drafts_own_stops_nobody_else(stage: Answering, name: str) -> None:
    one, two = draft("d1"), draft("d2")
    stage.script(one, name)
    stage.script(two)
    with pytest.raises(ApiError):
        await stage.client.send_draft(one)
    assert stage.client.snapshot().suspended == ()
    assert (await stage.client.send_draft(two)).attempts == 1
    # Nor itself, once a person has mended it.
    assert (await stage.client.send_draft(one)).attempts == 1


@pytest.mark.parametrize("name", CLOSING)
async def test_what_is_closed_costs_no_calls(stage: Answering, name: str) -> None:
    scope, until = CLOSING[name]
    one, two = draft("d1"), draft("d2")
    others = {
        "app": [],
        "user:alice": [draft("d3", "bob"), draft("d4", "bob", OTHER_BOX)],
        "mailbox:box@example.com": [draft("d3", "alice", OTHER_BOX), draft("d4", "bob", OTHER_BOX)],
    }[scope]
    for other in (two, *others):
        stage.script(other)
    stage.script(one, name)
    with pytest.raises(ApiError) as first:
        await stage.client.send_draft(one)
    with pytest.raises(Suspended) as caught:
        await stage.client.send_draft(two)
    error = caught.value
    assert (error.subject, error.until) == (scope, None if until is None else pytest.approx(until))
    assert error.__cause__ is not None
    assert type(error.__cause__) is type(first.value)
    assert named(name).advice in str(error)
    assert (error.draft, error.attempts, error.status) == (two, 0, OutcomeStatus.SKIPPED)
    assert stage.calls(two) == 0
    (closed,) = stage.client.snapshot().suspended
    assert (closed.subject, closed.seconds) == (error.subject, error.until)
    assert named(name).advice in closed.reason
    for other in others:
        assert (await stage.client.send_draft(other)).attempts == 1
    stage.client.resume(scope)
    assert stage.client.snapshot().suspended == ()
    assert (await stage.client.send_draft(two)).attempts == 1


@pytest.mark.parametrize("name", RETRIED)
@pytest.mark.parametrize("times", [1, 2])
async def test_what_passes_is_retried(stage: Answering, name: str, times: int) -> None:
    one = draft("d1")
    stage.script(one, *[name] * times)
    result = await stage.client.send_draft(one)
    assert (result.attempts, result.already_sent) == (times + 1, False)
    assert result.message_id
    assert stage.calls(one) == times + 1


@pytest.mark.parametrize("name", ["ConcurrentWrite", "MailThrottled", "FrequencyLimited"])
async def test_a_refusal_that_does_not_pass_is_raised(stage: Answering, name: str) -> None:
    one = draft("d1")
    stage.script(one, *[name] * 50)
    with pytest.raises(FeishuMailError) as caught:
        await stage.client.send_draft(one)
    check(caught.value, named(name), one, attempts=REFUSALS + 1)
    assert stage.calls(one) == REFUSALS + 1


async def test_a_failing_server_leaves_it_open(stage: Answering) -> None:
    one = draft("d1")
    stage.script(one, *["InternalError"] * 50)
    with pytest.raises(OutcomeUnknown) as caught:
        await stage.client.send_draft(one)
    error = caught.value
    assert (error.draft, error.attempts, error.status) == (one, 3, OutcomeStatus.UNKNOWN)
    assert error.log_id
    cause = error.__cause__
    assert isinstance(cause, ServerError)
    check(cause, named("InternalError"), one, attempts=3)
    assert named("InternalError").advice in str(error)


@pytest.mark.parametrize("name", THE_DRAFTS_OWN)
async def test_after_an_open_attempt_a_refusal_is_not_the_last_word(stage: Answering, name: str) -> None:
    one = draft("d1")
    stage.script(one, "InternalError", name)
    with pytest.raises(OutcomeUnknown) as caught:
        await stage.client.send_draft(one)
    assert type(caught.value.__cause__) is getattr(errors, named(name).error)
    assert caught.value.attempts == 2


async def test_after_an_open_attempt_already_sent_settles_it(stage: Answering) -> None:
    one = draft("d1")
    stage.script(one, "InternalError", "AlreadySent")
    result = await stage.client.send_draft(one)
    assert (result.already_sent, result.attempts) == (True, 2)


# -- answers that no table has -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "raised", "attempts"),
    [(400, ApiError, 1), (403, ApiError, 1), (200, ApiError, 1), (429, ApiError, 4), (500, OutcomeUnknown, 3)],
)
async def test_a_code_of_tomorrow(status: int, raised: type[Exception], attempts: int) -> None:
    one = draft("d1")
    async with real() as stage:
        assert isinstance(stage, Real)
        stage.script(one)
        stage.sandbox.script(one.draft_id, *[Fault.unknown(1239999, status)] * 9)
        with pytest.raises(raised) as caught:
            await stage.client.send_draft(one)
        assert stage.client.snapshot().suspended == ()
    error = caught.value
    assert type(error) is raised
    assert isinstance(error, FeishuMailError)
    assert error.attempts == attempts
    if isinstance(error, ApiError):
        assert (error.code, error.http_status, error.msg) == (1239999, status, "a code of tomorrow")
        assert error.advice


async def test_code_0_and_nothing_sent() -> None:
    one, two = draft("d1"), draft("d2")
    async with real() as stage:
        assert isinstance(stage, Real)
        stage.script(one)
        stage.script(two)
        stage.sandbox.disable_automation(BOX, "the box says no", "https://mail.example.com/d1")
        with pytest.raises(AutomatedSendDisabled) as caught:
            await stage.client.send_draft(one)
        error = caught.value
        assert (error.reason, error.reference) == ("the box says no", "https://mail.example.com/d1")
        assert (error.draft, error.attempts, error.status) == (one, 1, OutcomeStatus.FAILED)
        assert error.log_id
        with pytest.raises(Suspended) as closed:
            await stage.client.send_draft(two)
        assert isinstance(closed.value.__cause__, AutomatedSendDisabled)
        assert (closed.value.subject, closed.value.until) == (f"mailbox:{BOX}", None)
        stage.sandbox.open_mailbox(BOX)
        stage.client.resume(closed.value.subject)
        await stage.client.send_draft(two)
        assert stage.sandbox.ledger.sent == {"d2": 1}


UNREADABLE = {
    "gateway": Fault.gateway(502),
    "time-out": Fault.gateway(504),
    "broken": Fault.broken(),
    "empty": Fault.empty(),
    "null": Fault.null(),
    "array": Fault.array(),
    "nulls": Fault.nulls(),
    "huge": Fault.huge(1_000_000),
    "redirect": Fault.redirect("https://evil.example/"),
    "reset": Fault.reset_before(),
    "hang": Fault.hang_before(),
}


@pytest.mark.parametrize("name", UNREADABLE)
async def test_what_cannot_be_read_is_asked_again(name: str) -> None:
    one, two = draft("d1"), draft("d2")
    async with real() as stage:
        assert isinstance(stage, Real)
        stage.script(one)
        stage.script(two)
        stage.sandbox.script("d1", UNREADABLE[name])
        result = await stage.client.send_draft(one)
        assert (result.attempts, result.already_sent) == (2, False)
        stage.sandbox.script("d2", *[UNREADABLE[name]] * 9)
        with pytest.raises(OutcomeUnknown) as caught:
            await stage.client.send_draft(two)
        assert isinstance(caught.value.__cause__, BadReply)
        assert (caught.value.attempts, caught.value.draft) == (3, two)
        assert stage.sandbox.ledger.conflicts == 0


ACCEPTED = {
    "code": Fault.code("InternalError", accepted=True),
    "unknown": Fault.unknown(1239999, 503, accepted=True),
    "gateway": Fault.gateway(accepted=True),
    "broken": Fault.broken(accepted=True),
    "empty": Fault.empty(accepted=True),
    "null": Fault.null(accepted=True),
    "array": Fault.array(accepted=True),
    "nulls": Fault.nulls(accepted=True),
    "huge": Fault.huge(1_000_000, accepted=True),
    "reset": Fault.reset_after(),
    "hang": Fault.hang_after(),
}


@pytest.mark.parametrize("name", ACCEPTED)
async def test_a_mail_whose_answer_was_lost_was_sent_once(name: str) -> None:
    one = draft("d1")
    async with real() as stage:
        assert isinstance(stage, Real)
        stage.script(one)
        stage.sandbox.script("d1", ACCEPTED[name])
        result = await stage.client.send_draft(one)
        assert (result.attempts, result.already_sent, result.message_id) == (2, True, None)
        assert stage.sandbox.ledger.sent == {"d1": 1}


@pytest.mark.parametrize(
    "fault",
    [Fault.frequency(429, "17"), Fault.frequency(400, "17"), Fault.bare_429("17")],
    ids=["429", "400", "bare"],
)
async def test_the_whole_app_waits_as_long_as_it_is_told(fault: Fault) -> None:
    one, two = draft("d1"), draft("d2", "bob", OTHER_BOX)
    async with real() as stage:
        assert isinstance(stage, Real)
        stage.script(one)
        stage.script(two)
        stage.sandbox.script("d1", fault)
        # The first one is refused at 0.1 s, and its way home takes no time.
        result = await stage.client.send_draft(one)
        assert result.attempts == 2
        await stage.client.send_draft(two)
        times = [arrival.time for arrival in stage.sandbox.ledger.arrivals]
        assert times[1] - times[0] >= 17


async def wait_after(reset: str | None) -> float:
    """Seconds from a refusal for the rate, with this hint, to the next call."""
    one = draft("d1")
    async with real() as stage:
        assert isinstance(stage, Real)
        stage.script(one)
        stage.sandbox.script("d1", Fault.frequency(429, reset))
        await stage.client.send_draft(one)
        times = [arrival.time for arrival in stage.sandbox.ledger.arrivals]
        return times[1] - times[0]


@pytest.mark.parametrize("reset", [None, "", "nan", "-5", "soon"])
async def test_without_a_usable_hint_it_waits_a_window(reset: str | None) -> None:
    assert 60 <= await wait_after(reset) < 61


@pytest.mark.parametrize("reset", ["1e12", "3600", "inf"])
async def test_an_absurd_hint_is_a_few_windows_at_most(reset: str) -> None:
    assert 60 <= await wait_after(reset) < 241
