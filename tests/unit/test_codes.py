"""The table of codes: what the document says, what invariants 7 and 8 say, and that there is only one."""

import re
from typing import NamedTuple

import pytest

from feishu_mail_async import codes, errors
from feishu_mail_async._api.refusals import api_error
from feishu_mail_async.codes import CODES, OAUTH, ResumeWhen, Subject, Verdict, lookup, named
from tests.helpers.samples import PACKAGE, sample

# Invariants 7 and 8, spelled out: who waits or is suspended, whether the answer settles it, what resumes it.
SENT, ALREADY, RETRY, FATAL = Verdict.DONE, Verdict.ALREADY_DONE, Verdict.RETRY, Verdict.FATAL
DRAFT, USER, MAILBOX, APP = Subject.DRAFT, Subject.USER, Subject.MAILBOX, Subject.APP
HOUR, TOKEN, REOPEN = ResumeWhen.HOUR, ResumeWhen.TOKEN, ResumeWhen.RESUMED
MEANING = {
    0: (SENT, DRAFT, True, None),
    1234008: (FATAL, DRAFT, True, None),
    1236003: (FATAL, DRAFT, True, None),
    1236004: (FATAL, DRAFT, True, None),
    1236014: (FATAL, DRAFT, True, None),
    1236017: (FATAL, DRAFT, True, None),
    1236018: (FATAL, DRAFT, True, None),
    1234017: (FATAL, DRAFT, True, None),
    1234050: (FATAL, DRAFT, True, None),
    1234013: (FATAL, MAILBOX, True, REOPEN),
    1236005: (ALREADY, DRAFT, True, None),
    1236006: (RETRY, USER, True, None),
    1236007: (FATAL, USER, True, HOUR),
    1236008: (FATAL, DRAFT, True, None),
    1236009: (FATAL, DRAFT, True, None),
    1236010: (RETRY, USER, True, None),
    1236013: (FATAL, APP, True, HOUR),
    1236019: (RETRY, DRAFT, False, None),
    1236001: (FATAL, DRAFT, True, None),
    1236002: (FATAL, DRAFT, True, None),
    1236020: (FATAL, DRAFT, True, None),
    1236021: (FATAL, DRAFT, True, None),
    1234051: (FATAL, DRAFT, True, None),
    1235000: (RETRY, DRAFT, False, None),
    99991400: (RETRY, APP, True, None),
    99991403: (FATAL, APP, True, HOUR),
    99991661: (FATAL, USER, True, TOKEN),
    99991663: (FATAL, USER, True, TOKEN),
    99991668: (FATAL, USER, True, TOKEN),
    99991671: (FATAL, USER, True, TOKEN),
    99991677: (FATAL, USER, True, TOKEN),
    99991672: (FATAL, USER, True, REOPEN),
    99991679: (FATAL, USER, True, REOPEN),
}

# The public names of DESIGN.md: code -> (class, group).
CLASSES = {
    1234008: ("InvalidRequest", "DraftRejected"),
    1236003: ("TooManyRecipients", "DraftRejected"),
    1236004: ("TooManyAttachments", "DraftRejected"),
    1236014: ("ContentRisk", "DraftRejected"),
    1236017: ("SenderCheckFailed", "DraftRejected"),
    1236018: ("ReceiverCheckFailed", "DraftRejected"),
    1234050: ("DraftNotFound", "DraftRejected"),
    1234017: ("PermissionDenied", "AccessDenied"),
    1234013: ("MailboxNotFound", "AccessDenied"),
    99991672: ("ScopeMissing", "AccessDenied"),
    99991679: ("ScopeMissing", "AccessDenied"),
    99991661: ("InvalidToken", "AccessDenied"),
    99991663: ("InvalidToken", "AccessDenied"),
    99991668: ("InvalidToken", "AccessDenied"),
    99991671: ("InvalidToken", "AccessDenied"),
    99991677: ("InvalidToken", "AccessDenied"),
    1236007: ("UserDailyQuota", "QuotaSpent"),
    1236008: ("UserExternalQuota", "QuotaSpent"),
    1236009: ("TenantExternalQuota", "QuotaSpent"),
    1236013: ("TenantStorageFull", "QuotaSpent"),
    99991403: ("AppQuotaSpent", "QuotaSpent"),
    1236006: ("ConcurrentWrite", "Throttled"),
    1236010: ("MailThrottled", "Throttled"),
    99991400: ("FrequencyLimited", "Throttled"),
    1236019: ("ServerError", "ApiError"),
    1236001: ("MessageTooLarge", "DraftRejected"),
    1236002: ("MessageMalformed", "DraftRejected"),
    1236020: ("AttachmentBlocked", "DraftRejected"),
    1236021: ("InlineImageRejected", "DraftRejected"),
    1234051: ("NotScheduled", "ApiError"),
    1235000: ("ServerError", "ApiError"),
}

OF_OTHER_ENDPOINTS = {1236001, 1236002, 1236020, 1236021, 1234051, 1235000}
"""Codes that the page of sending drafts does not have."""


class Row(NamedTuple):
    code: int
    http_status: int
    message: str
    advice: str


def document() -> list[Row]:
    """The rows of the source document's table of error codes."""
    lines = sample("send-draft-codes.md").decode().splitlines()[2:]
    cells = ([cell.strip() for cell in line.split(" | ")] for line in lines if line.strip())
    return [Row(int(code), int(status), message, advice) for status, code, message, advice in cells]


def test_the_document_has_its_17_codes() -> None:
    assert len({row.code for row in document()}) == 17


@pytest.mark.parametrize("row", document(), ids=lambda row: str(row.code))
def test_the_table_agrees_with_the_document(row: Row) -> None:
    ours = CODES[row.code]
    assert (ours.number, ours.http_status, ours.message) == (row.code, row.http_status, row.message)


def test_no_code_of_the_endpoint_is_ours_alone() -> None:
    of_the_endpoint = {number for number in CODES if 1234000 <= number < 1237000}
    assert of_the_endpoint - OF_OTHER_ENDPOINTS == {row.code for row in document()}


def test_what_each_code_means() -> None:
    found = {row.number: (row.verdict, row.subject, row.conclusive, row.until) for row in CODES.values()}
    assert found == MEANING


def test_the_class_of_each_code() -> None:
    assert {row.number: row.error for row in CODES.values() if row.error} == {
        number: name for number, (name, _) in CLASSES.items()
    }


@pytest.mark.parametrize("number", CLASSES)
def test_the_group_of_each_class(number: int) -> None:
    name, group = CLASSES[number]
    error = getattr(errors, name)
    assert issubclass(error, errors.ApiError)
    assert error.__bases__ == (getattr(errors, group),)
    row = CODES[number]
    made = api_error(row, "msg", http_status=row.http_status, log_id="log")
    assert type(made) is error
    assert made.code == number


@pytest.mark.parametrize("row", CODES.values(), ids=lambda row: row.name)
def test_every_row_advises_in_both_languages(row: codes.Code) -> None:
    assert row.advice.endswith(".")
    assert row.advice.isascii()
    assert row.advice_zh.endswith("。")
    assert re.search(r"[\u4e00-\u9fff]", row.advice_zh)


@pytest.mark.parametrize("row", CODES.values(), ids=lambda row: row.name)
def test_a_row_is_found_by_number_and_by_name(row: codes.Code) -> None:
    assert named(row.name) is row
    # The code decides, whatever the HTTP status.
    for http_status in (200, 400, 429, 500):
        assert lookup(row.number, http_status, "another text") is row


def test_names_are_unique() -> None:
    names = [row.name for row in CODES.values()]
    assert len(names) == len(set(names))
    with pytest.raises(KeyError):
        named("NoSuchName")


@pytest.mark.parametrize(
    ("http_status", "expected"),
    [
        (200, (FATAL, DRAFT, True)),
        (302, (FATAL, DRAFT, True)),
        (400, (FATAL, DRAFT, True)),
        (403, (FATAL, DRAFT, True)),
        (409, (FATAL, DRAFT, True)),
        (428, (FATAL, DRAFT, True)),
        (429, (RETRY, USER, True)),
        (430, (FATAL, DRAFT, True)),
        (499, (FATAL, DRAFT, True)),
        (500, (RETRY, DRAFT, False)),
        (502, (RETRY, DRAFT, False)),
        (599, (RETRY, DRAFT, False)),
    ],
)
@pytest.mark.parametrize("number", [1, -7, 1239999, 10**30])
def test_a_code_that_the_table_does_not_know(
    number: int, http_status: int, expected: tuple[Verdict, Subject, bool]
) -> None:
    row = lookup(number, http_status, "what it says")
    assert (row.verdict, row.subject, row.conclusive) == expected
    assert row.until is None
    assert row.error == "ApiError"
    assert (row.number, row.http_status, row.message) == (number, http_status, "what it says")
    assert row.advice
    assert row.advice_zh


def test_the_token_endpoint_has_the_codes_of_the_facts() -> None:
    retryable = {row.number: row.http_status for row in OAUTH.values() if row.verdict is RETRY}
    assert retryable == {20050: 500, 20072: 503}
    fatal = {row.number for row in OAUTH.values() if row.verdict is FATAL}
    assert fatal >= {20002, 20026, 20037, 20064, 20073, 20074}


def test_the_tables_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        CODES[1] = CODES[0]  # type: ignore[index]
    with pytest.raises(AttributeError):
        CODES[0].advice = "another"  # type: ignore[misc]


A_CODE = re.compile(r"(?<!\d)(123[456]\d{3}|9999\d{4}|200\d\d)(?!\d)")


def test_no_code_number_stands_anywhere_else() -> None:
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {"client.py", "server.py"} <= {path.name for path in files}
    found = [
        f"{path.relative_to(PACKAGE)}:{place}: {match}"
        for path in files
        if PACKAGE / "codes" not in path.parents
        for place, line in enumerate(path.read_text(encoding="utf-8").replace("_", "").splitlines(), 1)
        for match in A_CODE.findall(line)
    ]
    assert found == []
