"""Errors as text in a database, so that other processes can report why a subject is suspended."""

import json
from typing import Any

from feishu_mail_async.codes import lookup
from feishu_mail_async.errors import ApiError, AutomatedSendDisabled, FeishuMailError, api_error

__all__ = ["dump", "load"]


def dump(error: FeishuMailError) -> str:
    """Return an error as text. Its cause, and the draft concerned, are not kept."""
    kept: dict[str, Any] = {"text": str(error), "log_id": error.log_id}
    if isinstance(error, ApiError):
        kept |= {"code": error.code, "msg": error.msg, "http_status": error.http_status}
    elif isinstance(error, AutomatedSendDisabled):
        kept |= {"reason": error.reason, "reference": error.reference}
    return json.dumps(kept)  # escaped to ASCII: a database does not accept every text of a server


def load(text: str) -> FeishuMailError:
    """Return the error that `dump` has made a text of."""
    kept = json.loads(text)
    if "code" in kept:
        row = lookup(kept["code"], kept["http_status"])
        return api_error(row, kept["msg"], http_status=kept["http_status"], log_id=kept["log_id"])
    if "reason" in kept:
        return AutomatedSendDisabled(kept["reason"], kept["reference"], log_id=kept["log_id"])
    return FeishuMailError(kept["text"], log_id=kept["log_id"])
