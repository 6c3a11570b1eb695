"""The error that an answer with a code is raised as: the class that the code's row names."""

from typing import Final

from feishu_mail_async import errors
from feishu_mail_async.codes import CODES, Code
from feishu_mail_async.errors import ApiError

__all__ = ["api_error"]

_CLASSES: Final[dict[str, type[ApiError]]] = {
    name: cls for name, cls in vars(errors).items() if isinstance(cls, type) and issubclass(cls, ApiError)
}
# A row that names no such class must fail at import, not in the middle of a run.
assert all(row.error in _CLASSES for row in CODES.values() if row.error)


def api_error(row: Code, msg: str, *, http_status: int, log_id: str | None) -> ApiError:
    """Return the exception for a row of the code table and the answer that named it.

    Args:
        row: the row.
        msg: the `msg` of the answer's body; if it is empty, the row's own message is used.
        http_status: the HTTP status of the answer.
        log_id: the `X-Tt-Logid` of the answer.
    """
    return _CLASSES[row.error or ApiError.__name__](
        row.number,
        msg or row.message or "no message",
        http_status=http_status,
        advice=row.advice,
        advice_zh=row.advice_zh,
        log_id=log_id,
    )
