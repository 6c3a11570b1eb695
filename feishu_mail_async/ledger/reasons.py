"""Errors as a database keeps them: what suspended a subject is told in other processes too."""

import json
from typing import Any

from feishu_mail_async.codes import lookup
from feishu_mail_async.errors import ApiError, AutomatedSendDisabled, FeishuMailError, api_error

__all__ = ["dump", "load"]


def dump(error: FeishuMailError) -> str:
    """An error as text. What it was the cause of, and the draft concerned, are not kept."""
    kept: dict[str, Any] = {"text": str(error), "log_id": error.log_id}
    if isinstance(error, ApiError):
        kept |= {"code": error.code, "msg": error.msg, "http_status": error.http_status}
    elif isinstance(error, AutomatedSendDisabled):
        kept |= {"reason": error.reason, "reference": error.reference}
    return json.dumps(kept)  # in ASCII: a database does not take every text of a server


def load(text: str) -> FeishuMailError:
    """The error that was kept."""
    kept = json.loads(text)
    if "code" in kept:
        row = lookup(kept["code"], kept["http_status"])
        return api_error(row, kept["msg"], http_status=kept["http_status"], log_id=kept["log_id"])
    if "reason" in kept:
        return AutomatedSendDisabled(kept["reason"], kept["reference"], log_id=kept["log_id"])
    return FeishuMailError(kept["text"], log_id=kept["log_id"])
