"""The base of all errors of this package."""

import pickle
from dataclasses import replace
from typing import Any, ClassVar, Self

from feishu_mail_async._text import escape
from feishu_mail_async.model import Draft, OutcomeStatus

__all__ = ["FeishuMailError"]


def _rebuild(
    cls: type["FeishuMailError"], args: tuple[Any, ...], state: dict[str, Any], cause: BaseException | None
) -> "FeishuMailError":
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    error.__cause__ = cause
    return error


class FeishuMailError(Exception):
    """Base of all errors that this package raises for a send that did not end well.

    Attributes:
        draft: the draft concerned, where there is one.
        log_id: the `X-Tt-Logid` of the last answer, which support asks for; None without one.
        attempts: calls made for the draft before the error.
        status: the outcome of a draft that ends with this error (set by class).
        retryable: the same call may succeed later, without anybody changing anything.
        certainly_not_sent: no call before this error has sent the mail, or done what else was asked for.
    """

    status: ClassVar[OutcomeStatus] = OutcomeStatus.FAILED
    retryable: bool = False
    certainly_not_sent: bool = True

    def __init__(
        self, message: str, *, draft: Draft | None = None, log_id: str | None = None, attempts: int = 0
    ) -> None:
        # Escaped because it may quote a stranger: a server, a proxy, a database, a caller's source of tokens.
        super().__init__(escape(message))
        self.draft = draft
        self.log_id = log_id
        self.attempts = attempts

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls the class with `args`, which fails for keyword-only parameters. The cause is kept if it
        # is an error of this package, because it says why (Suspended, OutcomeUnknown); any other may not pickle.
        cause = self.__cause__ if isinstance(self.__cause__, FeishuMailError) else None
        state = dict(self.__dict__)
        if self.draft is not None:
            try:
                pickle.dumps(self.draft.tag)
            except Exception:  # noqa: BLE001 - the tag may be any object; without it the error pickles
                state["draft"] = replace(self.draft, tag=None)
        return _rebuild, (type(self), self.args, state, cause)

    def __copy__(self) -> Self:
        error = _rebuild(type(self), self.args, self.__dict__, self.__cause__)
        assert isinstance(error, type(self))
        return error
