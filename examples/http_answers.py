"""What a web service tells its callers, in HTTP's words; both services here share it."""

import math
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from feishu_mail_async import (
    ApiError,
    AutomatedSendDisabled,
    ClientClosed,
    DraftRejected,
    FeishuMailClient,
    FeishuMailError,
    NotSent,
    OutcomeUnknown,
    SendResult,
    Suspended,
    TransportError,
    UnknownUser,
)

__all__ = ["DEADLINE", "LONGEST_DEADLINE", "Answer", "bad_request", "explain", "health", "sent"]

DEADLINE: Final = 10.0
"""Seconds that a caller waits who does not say how long."""
LONGEST_DEADLINE: Final = 60.0

_STATUSES: Final = (
    (UnknownUser, HTTPStatus.BAD_REQUEST),
    (DraftRejected | AutomatedSendDisabled, HTTPStatus.UNPROCESSABLE_ENTITY),
    # Not 202: callers, and the proxies between, take any 2xx for done, and nobody would look again at a mail that
    # perhaps never went out. After a 504 they try again, and that is safe: what went out is not sent twice.
    (OutcomeUnknown, HTTPStatus.GATEWAY_TIMEOUT),
    (NotSent | Suspended | TransportError, HTTPStatus.SERVICE_UNAVAILABLE),
    (FeishuMailError, HTTPStatus.BAD_GATEWAY),
)
"""The first that fits counts."""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, whichever framework sends it."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)


def sent(result: SendResult) -> Answer:
    """The draft has been sent, now or by an earlier call."""
    body = {"message_id": result.message_id, "already_sent": result.already_sent, "log_id": result.log_id}
    return Answer(HTTPStatus.OK, body)


def bad_request(message: str) -> Answer:
    """The caller has to mend the request."""
    return Answer(HTTPStatus.BAD_REQUEST, {"error": "BadRequest", "message": message})


def explain(error: FeishuMailError, client: FeishuMailClient) -> Answer:
    """What to tell the caller of a send that did not end well."""
    status = next(status for kinds, status in _STATUSES if isinstance(error, kinds))
    body: dict[str, Any] = {"error": type(error).__name__, "message": str(error)}
    match error:
        case UnknownUser():
            body["message"] = "user: name one that this service has a token of"  # without a list of them
        case ApiError():
            body |= {"message": error.msg, "code": error.code, "advice": error.advice, "log_id": error.log_id}
        case AutomatedSendDisabled():
            body |= {"reference": error.reference, "log_id": error.log_id}
        case _:
            pass
    seconds = _retry_after(error, client) if status == HTTPStatus.SERVICE_UNAVAILABLE else None
    headers = {} if seconds is None else {"Retry-After": str(max(1, math.ceil(seconds)))}
    return Answer(status, body, headers)


def health(client: FeishuMailClient) -> dict[str, Any]:
    """How the app's calls stand, for a dashboard or a load balancer; times are seconds from now."""
    now = client.snapshot()
    return {
        "status": "ok" if now.paused is None and not now.suspended else "degraded",
        "waiting": sum(now.waiting.values()),
        "in_flight": now.in_flight,
        "permits": now.permits,
        "next_permit": now.next_permit and round(now.next_permit, 1),
        "paused": now.paused and round(now.paused, 1),
        "closed": [closed.subject for closed in now.suspended],
    }


def _retry_after(error: FeishuMailError, client: FeishuMailClient) -> float | None:
    """Seconds until asking again may help; None: not before a person has done something about it."""
    if isinstance(error, Suspended):
        return error.until
    try:
        now = client.snapshot()
    except ClientClosed:
        return 0.0  # this process ends, and another one takes the next request
    return max(now.paused or 0.0, now.next_permit or 0.0)
