"""The table of all answer codes that the platform gives.

Exceptions, retries, the scheduler, the sandbox and the documentation read this table; no code number stands
anywhere else in the package. A reply is classified by the code in its body, never by its HTTP status: a 429 alone
means seven different things here.

Three questions decide what happens after an answer, and each row answers them: the `verdict` (done, retry or
fatal), the `subject` (the draft, user, mailbox or app that waits or is suspended) and `conclusive` (whether the
answer settles if the attempt did what it asked for).

What follows from a row: RETRY of a draft means its own backoff (`_calls.retry`); of a user, a backoff of the
user's calls; of the app, a pause of the endpoint (both in `_scheduling.state`). FATAL with `until` means a
suspension (`_scheduling.suspensions`); without, the draft ends alone. How often: `RetryPolicy`.
"""

from types import MappingProxyType
from typing import Final

from .meanings import Code, Reach, ResumeWhen, Subject, Verdict
from .oauth import OAUTH
from .rows import ROWS

__all__ = [
    "CODES",
    "OAUTH",
    "Code",
    "Reach",
    "ResumeWhen",
    "Subject",
    "Verdict",
    "lookup",
    "named",
]

CODES: Final = MappingProxyType({row.number: row for row in ROWS})
"""Code number -> row."""

_NAMED: Final = MappingProxyType({row.name: row for row in ROWS})


def named(name: str) -> Code:
    """Return the row of that name.

    Args:
        name: the row's `name`.

    Raises:
        KeyError: there is none.
    """
    return _NAMED[name]


def lookup(number: int, http_status: int, message: str = "") -> Code:
    """Return the row for an answer, also for a code that the table does not know.

    Args:
        number: the `code` of the body.
        http_status: the reply's HTTP status. It decides only for a code that the table does not know: 429 slows
            the user down, 5xx is the server's failure, anything else ends the draft alone.
        message: the `msg` of the body, kept in a row made up for an unknown code.
    """
    row = CODES.get(number)
    if row is not None:
        return row
    # A 4xx refuses before anything is done, so an unknown one is taken as proof that nothing was sent; 5xx is not.
    verdict, subject, conclusive = Verdict.FATAL, Subject.DRAFT, True
    advice = "The platform's list of error codes may explain it; otherwise ask support, with the log id."
    advice_zh = "请查阅开放平台通用错误码，或携带 log id 联系技术支持。"
    if http_status == 429:  # noqa: PLR2004 - HTTP's own number
        verdict, subject = Verdict.RETRY, Subject.USER
    elif http_status >= 500:  # noqa: PLR2004
        verdict, conclusive = Verdict.RETRY, False
    return Code(
        number,
        f"Code{number}",
        "ApiError",
        http_status,
        message,
        verdict,
        subject,
        conclusive,
        advice,
        advice_zh,
    )
