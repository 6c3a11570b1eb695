"""The exceptions: their family, what they say, and their way through a pickle."""

import copy
import pickle
from typing import Any

import pytest

import feishu_mail_async
from feishu_mail_async import (
    AccessDenied,
    ApiError,
    AppQuotaSpent,
    AttachmentBlocked,
    AutomatedSendDisabled,
    BadReply,
    ClientClosed,
    ConcurrentWrite,
    ContentRisk,
    Draft,
    DraftNotFound,
    DraftRejected,
    FeishuMailError,
    FrequencyLimited,
    InlineImageRejected,
    InvalidRequest,
    InvalidToken,
    LedgerError,
    LoginRequired,
    MailboxNotFound,
    MailThrottled,
    MessageMalformed,
    MessageTooLarge,
    Misconfigured,
    NotScheduled,
    NotSent,
    OutcomeStatus,
    OutcomeUnknown,
    PermissionDenied,
    QuotaSpent,
    ReceiverCheckFailed,
    RecordRefused,
    ScheduleMissed,
    ScopeMissing,
    SenderCheckFailed,
    ServerError,
    Suspended,
    TenantExternalQuota,
    TenantStorageFull,
    Throttled,
    TooManyAttachments,
    TooManyRecipients,
    TransportError,
    UnknownUser,
    UserDailyQuota,
    UserExternalQuota,
)
from feishu_mail_async._api.refusals import api_error
from feishu_mail_async.codes import CODES, Code, lookup

# DESIGN.md, literally: class -> parent.
FAMILY: dict[type[BaseException], type[BaseException]] = {
    FeishuMailError: Exception,
    ApiError: FeishuMailError,
    DraftRejected: ApiError,
    InvalidRequest: DraftRejected,
    TooManyRecipients: DraftRejected,
    TooManyAttachments: DraftRejected,
    ContentRisk: DraftRejected,
    SenderCheckFailed: DraftRejected,
    ReceiverCheckFailed: DraftRejected,
    DraftNotFound: DraftRejected,
    MessageTooLarge: DraftRejected,
    MessageMalformed: DraftRejected,
    AttachmentBlocked: DraftRejected,
    InlineImageRejected: DraftRejected,
    NotScheduled: ApiError,
    AccessDenied: ApiError,
    PermissionDenied: AccessDenied,
    MailboxNotFound: AccessDenied,
    ScopeMissing: AccessDenied,
    InvalidToken: AccessDenied,
    QuotaSpent: ApiError,
    UserDailyQuota: QuotaSpent,
    UserExternalQuota: QuotaSpent,
    TenantExternalQuota: QuotaSpent,
    TenantStorageFull: QuotaSpent,
    AppQuotaSpent: QuotaSpent,
    Throttled: ApiError,
    ConcurrentWrite: Throttled,
    MailThrottled: Throttled,
    FrequencyLimited: Throttled,
    ServerError: ApiError,
    AutomatedSendDisabled: FeishuMailError,
    OutcomeUnknown: FeishuMailError,
    NotSent: FeishuMailError,
    ScheduleMissed: NotSent,
    ClientClosed: NotSent,
    LedgerError: NotSent,
    RecordRefused: LedgerError,
    LoginRequired: NotSent,
    TransportError: FeishuMailError,
    Misconfigured: TransportError,
    BadReply: FeishuMailError,
    UnknownUser: FeishuMailError,
    Suspended: FeishuMailError,
}

DRAFT = Draft("d1", "box@example.com", "alice", tag={"row": 7})
FAILING = [row for row in CODES.values() if row.error]


def with_cause(error: FeishuMailError, cause: BaseException) -> FeishuMailError:
    error.__cause__ = cause
    return error


def of(row: Code) -> ApiError:
    error = api_error(row, "what the server said", http_status=row.http_status, log_id="log1")
    error.draft, error.attempts = DRAFT, 3
    return error


EVERY: list[FeishuMailError] = [
    *(of(row) for row in FAILING),
    of(lookup(1239999, 400, "a code of tomorrow")),
    AutomatedSendDisabled("switched off", "https://mail.example.com/d1", draft=DRAFT, log_id="log1", attempts=1),
    AutomatedSendDisabled("", None, draft=DRAFT),
    OutcomeUnknown("it may have been sent", draft=DRAFT, log_id="log1", attempts=6),
    NotSent("the deadline passed", draft=DRAFT),
    LedgerError("ledger: /var/mail.db: the disk is full", draft=DRAFT),
    RecordRefused("draft 'd1': the ledger takes no record of it", draft=DRAFT),
    LoginRequired("user alice has to log in again", draft=DRAFT),
    ScheduleMissed("not scheduled: its turn came too late", draft=DRAFT),
    ClientClosed("the client is closed"),
    TransportError("the server cannot be reached", draft=DRAFT),
    Misconfigured("the server cannot be reached", draft=DRAFT),
    BadReply("the answer cannot be read", http_status=502, draft=DRAFT, log_id="log1", attempts=2),
    UnknownUser("user: 'zoe' is not one of them", users=("alice", "bob"), draft=DRAFT),
    Suspended("not attempted", subject="user:alice", until=12.5, draft=DRAFT, attempts=1),
    Suspended("not attempted", subject="app", until=None),
    FeishuMailError("of no other kind"),
]


def name_of(error: FeishuMailError) -> str:
    return type(error).__name__


def test_the_family_is_the_promised_one() -> None:
    exported = {
        value
        for name in feishu_mail_async.__all__
        if isinstance(value := getattr(feishu_mail_async, name), type) and issubclass(value, BaseException)
    }
    assert exported == set(FAMILY)
    assert {cls: cls.__bases__ for cls in FAMILY} == {cls: (parent,) for cls, parent in FAMILY.items()}


def test_every_class_is_tried_here() -> None:
    groups = {DraftRejected, AccessDenied, QuotaSpent, Throttled}
    assert {type(error) for error in EVERY} == set(FAMILY) - groups


@pytest.mark.parametrize("error", EVERY, ids=name_of)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_errors_pickle(error: FeishuMailError, protocol: int) -> None:
    back: FeishuMailError = pickle.loads(pickle.dumps(error, protocol))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert back.args == error.args
    assert vars(back) == vars(error)
    if error.draft is not None:
        assert back.draft is not None
        assert back.draft.tag == error.draft.tag


@pytest.mark.parametrize("error", EVERY, ids=name_of)
def test_errors_copy(error: FeishuMailError) -> None:
    for twin in (copy.copy(error), copy.deepcopy(error)):
        assert (type(twin), str(twin), vars(twin)) == (type(error), str(error), vars(error))


@pytest.mark.parametrize("error", EVERY, ids=name_of)
def test_the_cause_comes_along_where_it_is_ours(error: FeishuMailError) -> None:
    deepest = of(CODES[1236019])
    error = with_cause(copy.copy(error), with_cause(OutcomeUnknown("in between"), deepest))
    back = pickle.loads(pickle.dumps(error))
    assert isinstance(back.__cause__, OutcomeUnknown)
    assert isinstance(back.__cause__.__cause__, ServerError)
    assert vars(back.__cause__.__cause__) == vars(deepest)


def test_a_foreign_cause_does_not_keep_an_error_from_pickling() -> None:
    class Unpicklable(Exception):
        def __reduce__(self) -> Any:
            raise TypeError("never")

    back = pickle.loads(pickle.dumps(with_cause(NotSent("no token"), Unpicklable())))
    assert str(back) == "no token"
    assert back.__cause__ is None


def test_notes_come_along() -> None:
    error = NotSent("no token")
    error.add_note("seen on Tuesday")
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["seen on Tuesday"]


@pytest.mark.parametrize("row", FAILING, ids=lambda row: row.name)
def test_an_api_error_says_what_and_what_to_do(row: Code) -> None:
    error = of(row)
    for part in (str(row.number), "what the server said", "log1", row.advice):
        assert part in str(error)
    assert (error.code, error.msg, error.http_status) == (row.number, "what the server said", row.http_status)
    assert (error.advice, error.advice_zh, error.log_id) == (row.advice, row.advice_zh, "log1")


def test_without_a_message_the_tables_is_taken() -> None:
    error = api_error(CODES[1236014], "", http_status=400, log_id=None)
    assert error.msg == CODES[1236014].message
    assert "log id" not in str(error)
    assert api_error(lookup(5, 400), "", http_status=400, log_id=None).msg


def test_a_switched_off_mailbox_says_where_to_go() -> None:
    text = str(AutomatedSendDisabled("switched off", "https://mail.example.com/d1"))
    for part in ("nothing was sent", "switched off", "https://mail.example.com/d1", "setting"):
        assert part in text
    bare = AutomatedSendDisabled("", None)
    assert bare.reference is None
    assert "None" not in str(bare)


@pytest.mark.parametrize("cls", FAMILY, ids=lambda cls: cls.__name__)
def test_the_status_that_an_error_makes(cls: type[FeishuMailError]) -> None:
    skipped = {NotSent, ClientClosed, LedgerError, LoginRequired, UnknownUser, Suspended}
    expected = OutcomeStatus.FAILED
    if cls is OutcomeUnknown:
        expected = OutcomeStatus.UNKNOWN
    elif cls in skipped:
        expected = OutcomeStatus.SKIPPED
    assert cls.status is expected


@pytest.mark.parametrize("cls", FAMILY, ids=lambda cls: cls.__name__)
def test_every_class_says_what_it_is(cls: type[BaseException]) -> None:
    assert cls.__doc__


def test_an_error_pickles_whatever_the_tag() -> None:
    error = NotSent("not sent", draft=Draft("d", tag=lambda: None))
    again = pickle.loads(pickle.dumps(error))
    assert again.draft == Draft("d")
    assert again.draft.tag is None
    kept = pickle.loads(pickle.dumps(NotSent("not sent", draft=Draft("d", tag=("row", 7)))))
    assert kept.draft.tag == ("row", 7)


# --- whether it may succeed later, and whether nothing went out -----------------------------------------------

LATER = {1236006, 1236010, 1236019, 1235000, 99991400, 1236007, 1236008, 1236009, 1236013, 99991403}
"""Codes after which the same call may succeed later."""


@pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)
def test_whether_the_same_call_may_succeed_later(error: FeishuMailError) -> None:
    if isinstance(error, ApiError):
        wanted = error.code in LATER
    elif isinstance(error, Suspended):
        wanted = error.until is not None
    else:
        wanted = type(error) in {OutcomeUnknown, NotSent, LedgerError, TransportError, BadReply}
    assert error.retryable is wanted
    assert pickle.loads(pickle.dumps(error)).retryable is wanted


@pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)
def test_whether_nothing_went_out(error: FeishuMailError) -> None:
    in_doubt = isinstance(error, OutcomeUnknown | BadReply | ServerError)
    assert error.certainly_not_sent is not in_doubt
    assert copy.copy(error).certainly_not_sent is not in_doubt


def test_a_code_of_tomorrow_goes_by_its_status() -> None:
    for http_status, later, certain in ((400, False, True), (429, True, True), (503, True, False)):
        error = of(lookup(1239999, http_status, "a code of tomorrow"))
        assert (error.retryable, error.certainly_not_sent) == (later, certain)
