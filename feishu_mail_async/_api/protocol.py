"""Requests to the server and the meaning of its answers. Pure: no I/O, no clock.

Source: "发送草稿" for the request and the body of the reply; for `automation_send_disable`, the gateway's headers
and the log id, the platform's generic documentation.
"""

import calendar
import json
import math
from collections.abc import Iterable, Mapping
from email.utils import parsedate_tz
from enum import Enum
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from urllib.parse import quote, quote_plus

from feishu_mail_async._text import escape
from feishu_mail_async.codes import CODES, Code, Reach, ResumeWhen, Subject, Verdict, lookup, named
from feishu_mail_async.errors import (
    AutomatedSendDisabled,
    BadReply,
    FeishuMailError,
    Misconfigured,
    TransportError,
)

from .base_url import FEISHU
from .endpoints import Endpoint
from .refusals import api_error

__all__ = [
    "LONGEST_REPLY",
    "REDACTED",
    "CallEnd",
    "Judgement",
    "Reply",
    "judge",
    "lost",
    "never_left",
    "redact",
]

LONGEST_REPLY: Final = 256 * 1024
"""Bytes of a reply that are read at most; the API's own have a few hundred."""

_LONGEST_PAUSE: Final = 3600.0
"""Seconds that are read from a header, at most; a pause itself is bound in `EndpointState`."""
_EPOCH: Final = 1e9
"""Threshold from which on a number of seconds is a moment, counted from 1970: this one is in 2001."""
_LONGEST_MESSAGE: Final = 300
_LONGEST_LINK: Final = 2000
_LONGEST_HEADER: Final = 200
REDACTED: Final = "***"
"""Replacement for the token where an answer repeats it."""
_TOO_MANY_REQUESTS: Final = 429
_NO_SUCH_CALL: Final = {301, 308, 404, 405, 410}
"""Statuses of a server that has not done what it was asked for, because that is not found here.

It may also be so with other pages of gateways (302, 403), but those may come after a call was passed on, too.
"""


class Reply(NamedTuple):
    """An HTTP answer, as far as it could be read.

    Attributes:
        status: the HTTP status.
        body: the whole body; None if it was cut off or longer than `LONGEST_REPLY`.
        log_id: the header `X-Tt-Logid`.
        reset: the header `x-ogw-ratelimit-reset`, as it came.
        date: the header `Date`, as it came.
        retry_after: the header `Retry-After`, as it came.
    """

    status: int
    body: bytes | None
    log_id: str | None = None
    reset: str | None = None
    date: str | None = None
    retry_after: str | None = None


class CallEnd(Enum):
    """The end of a call, which decides when its permit and its locks come back.

    ANSWERED: one window later. LOST: as late as if it were still on its way. NEVER_LEFT: at once.
    """

    ANSWERED = "answered"
    LOST = "lost"
    NEVER_LEFT = "never left"


class Judgement(NamedTuple):
    """The meaning of one attempt.

    Attributes:
        verdict: done, already done, retry or fatal.
        end: how the call ended.
        conclusive: true if it is settled whether this attempt did what it asked for.
        subject: the draft, user, mailbox or app that waits (retry) or is suspended (fatal).
        until: the condition that ends that suspension; None: only the draft is concerned.
        reach: the endpoints for which that suspension holds.
        pause: seconds the server asks the app to wait; None: it did not say.
        error: the exception to raise if the attempt is not retried.
        data: the `data` of a success.
        code: the `code` in the answer's body; None without one.
        http_status: the HTTP status of the answer; None without one.
        log_id: the log id of the answer; None without one.
        scheduled_for: when the server will send the draft, as a record says; None if no record says so.
    """

    verdict: Verdict
    end: CallEnd = CallEnd.ANSWERED
    conclusive: bool = True
    subject: Subject = Subject.DRAFT
    until: ResumeWhen | None = None
    reach: Reach = Reach.ALL
    pause: float | None = None
    error: FeishuMailError | None = None
    data: Mapping[str, Any] = MappingProxyType({})
    code: int | None = None
    http_status: int | None = None
    log_id: str | None = None
    scheduled_for: float | None = None

    @property
    def good(self) -> bool:
        """True if what the call asked for is done, by it or an earlier one."""
        return self.verdict in {Verdict.DONE, Verdict.ALREADY_DONE}

    def failure(self) -> FeishuMailError:
        """Return the error of a call that has not succeeded."""
        assert self.error is not None  # only a success has none
        return self.error

    def text(self, name: str) -> str | None:
        """Return a text in `data`, as it can be shown; None where there is none."""
        return _text(self.data.get(name))


def never_left(reason: str, *, lasting: bool = False) -> Judgement:
    """Return the judgement on a call that provably did not reach the server.

    Args:
        reason: the reason.
        lasting: whether it lasts until a setting is changed.
    """
    said = f"the server cannot be reached: {reason}"
    if lasting:
        return Judgement(Verdict.FATAL, CallEnd.NEVER_LEFT, error=Misconfigured(said))
    return Judgement(Verdict.RETRY, CallEnd.NEVER_LEFT, subject=Subject.APP, error=TransportError(said))


def lost(reason: str) -> Judgement:
    """Return the judgement on a call without an answer, which may have done what it asked for.

    Args:
        reason: the reason.
    """
    return Judgement(
        Verdict.RETRY, CallEnd.LOST, conclusive=False, error=BadReply(f"no answer came back: {reason}")
    )


def judge(
    reply: Reply,
    endpoint: Endpoint[Any],
    token: str | None = None,
    base_url: str = FEISHU,
    *,
    in_doubt: bool = False,
) -> Judgement:
    """Return the judgement on an answer. The body's code decides; the HTTP status only where there is none.

    Args:
        reply: the answer.
        endpoint: the endpoint that was called.
        token: the token of the call. Where the answer repeats it, it is taken out.
        base_url: the host that the call went to.
        in_doubt: an earlier attempt may have done it already.
    """
    log_id = _shown(reply.log_id, token)
    body = _parse(reply.body, token)
    code = body.get("code")
    if isinstance(code, bool) or not isinstance(code, int):
        return _not_the_api(reply, log_id, base_url)
    row = CODES.get(code) or lookup(code, reply.status)
    if row.verdict is Verdict.DONE:
        return _done(body.get("data"), code, reply.status, log_id)
    if code in endpoint.done and (in_doubt or row.verdict is Verdict.ALREADY_DONE):
        return Judgement(Verdict.ALREADY_DONE, code=code, http_status=reply.status, log_id=log_id)
    return _refused(row, code, reply, log_id, _text(body.get("msg"), _LONGEST_MESSAGE) or "")


def redact(text: str, secrets: Iterable[str]) -> str:
    """Remove secrets from a text, also in their URL-encoded spelling; the longest first.

    Args:
        text: the text.
        secrets: the secrets; empty ones are ignored.
    """
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        for written in (secret, quote(secret, safe=""), quote_plus(secret)):
            text = text.replace(written, REDACTED)
    return text


def _shown(header: str | None, token: str | None) -> str | None:
    """Return a header as it can stand in a message."""
    return _text(header.replace(token, REDACTED) if header and token else header, _LONGEST_HEADER)


def _parse(body: bytes | None, token: str | None) -> dict[str, Any]:
    """Return the JSON object in `body`; an empty one where there is none."""
    try:
        # Decoded leniently: a bad byte in a message must not hide the code beside it.
        text = body.decode("utf-8", "replace").removeprefix("\ufeff") if body else ""
        parsed = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return {}
    if not isinstance(parsed, dict):
        return {}
    if token and (token in text or "\\" in text):
        _redact(parsed, token)
    return parsed


def _redact(parsed: dict[str, Any], token: str) -> None:
    """Remove the token from every text in parsed JSON, where escapes do not hide it any more."""
    containers: list[Any] = [parsed]  # a loop and no recursion: the nesting is the server's choice
    while containers:
        container = containers.pop()
        for key, value in list(container.items() if isinstance(container, dict) else enumerate(container)):
            if isinstance(value, str):
                container[key] = value.replace(token, REDACTED)
            elif isinstance(value, dict | list):
                containers.append(value)


def _done(data: Any, code: int, status: int, log_id: str | None) -> Judgement:
    fields = data if isinstance(data, dict) else {}
    disabled = fields.get("automation_send_disable")
    if disabled is None or disabled is False:
        return Judgement(Verdict.DONE, data=fields, code=code, http_status=status, log_id=log_id)
    told = disabled if isinstance(disabled, dict) else {}
    reason = _text(told.get("reason"), _LONGEST_MESSAGE) or ""
    return Judgement(
        Verdict.FATAL,
        subject=Subject.MAILBOX,
        until=ResumeWhen.RESUMED,
        reach=Reach.ENDPOINT,
        error=AutomatedSendDisabled(reason, _reference(told.get("reference")), log_id=log_id),
        code=code,
        http_status=status,
        log_id=log_id,
    )


def _reference(value: Any) -> str | None:
    text = _text(value)
    return text if text is not None and len(text) <= _LONGEST_LINK else None  # a link cut short is useless


def _refused(row: Code, code: int | None, reply: Reply, log_id: str | None, msg: str) -> Judgement:
    # "Already done" of something else than what was asked for is no success.
    verdict = Verdict.FATAL if row.verdict is Verdict.ALREADY_DONE else row.verdict
    return Judgement(
        verdict,
        conclusive=row.conclusive,
        subject=row.subject,
        until=row.until,
        reach=row.reach,
        pause=_asked_for(reply) if row.subject is Subject.APP else None,
        error=api_error(row, msg, http_status=reply.status, log_id=log_id),
        code=code,
        http_status=reply.status,
        log_id=log_id,
    )


def _not_the_api(reply: Reply, log_id: str | None, base_url: str) -> Judgement:
    if reply.status == _TOO_MANY_REQUESTS:
        # A gateway that refuses without a body does so because its own limit is reached, which counts by app.
        return _refused(named("FrequencyLimited"), None, reply, log_id, "HTTP 429 without a JSON body")
    if reply.status in _NO_SUCH_CALL and reply.body is not None:
        wrong = Misconfigured(
            f"HTTP {reply.status}: base_url {base_url} is not the API's address, for there is no such call; give "
            f"one like {FEISHU}",
            log_id=log_id,
        )
        return Judgement(Verdict.FATAL, error=wrong, http_status=reply.status, log_id=log_id)
    what = "was cut off or too long" if reply.body is None else "is not the API's (a gateway's page, perhaps)"
    error = BadReply(f"HTTP {reply.status}: the answer {what}", http_status=reply.status, log_id=log_id)
    return Judgement(Verdict.RETRY, conclusive=False, error=error, http_status=reply.status, log_id=log_id)


def _text(value: Any, longest: int | None = None) -> str | None:
    """Return a text of the server's as it can stand in an error, a log and a file; None where there is none."""
    if not isinstance(value, str) or not value:
        return None
    value = value[:longest]
    return value if value.isprintable() else escape(value)


def _asked_for(reply: Reply) -> float | None:
    """Return the seconds that an answer asks to wait."""
    reset = _seconds(reply.reset, reply.date)
    return _seconds(reply.retry_after, reply.date) if reset is None else reset


def _seconds(header: str | None, date: str | None) -> float | None:
    """Return the seconds that a header asks to wait: at most an hour; None where it says nothing usable.

    Args:
        header: seconds, milliseconds, or a moment: seconds or milliseconds since 1970, or a date.
        date: the time of the answer, by the server's own clock.
    """
    try:
        number = float(header or "")
    except ValueError:
        number = _moment(header)
    if number >= _EPOCH * 1000:
        number /= 1000
    if number >= _EPOCH:
        number -= _moment(date)
    elif number > _LONGEST_PAUSE:  # no server demands so many seconds: these are milliseconds
        number /= 1000
    return min(number, _LONGEST_PAUSE) if number >= 0 else None


def _moment(date: str | None) -> float:
    """Return the seconds since 1970 of an HTTP date; NaN where it is none."""
    parsed = parsedate_tz(date or "")
    try:
        seconds = math.nan if parsed is None else calendar.timegm(parsed[:6]) - (parsed[9] or 0)
    except (ValueError, OverflowError):
        return math.nan
    return seconds if seconds >= _EPOCH else math.nan
