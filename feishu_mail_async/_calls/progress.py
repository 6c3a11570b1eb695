"""What has become of a call so far: its attempts, and in the end its success or its error."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Any, TypeVar

from feishu_mail_async._api.protocol import Judgement
from feishu_mail_async.codes import Verdict
from feishu_mail_async.errors import BadReply, FeishuMailError
from feishu_mail_async.model import Draft, SendResult

from .call import Call
from .endings import settled
from .retry import Tries

__all__ = ["Progress", "State"]

T = TypeVar("T")


class State(Enum):
    """The states of a job; they are drawn in `_calls/__init__`."""

    QUEUED = auto()
    GRANTED = auto()
    IN_FLIGHT = auto()
    BACKING_OFF = auto()
    DONE = auto()


@dataclass(eq=False, slots=True)
class Progress:
    """What has become of a call so far.

    Attributes:
        call: the call, as it was submitted first.
        began: when it was submitted, in the loop's time.
        state: its state.
        waited: seconds for which it has waited for turns.
        tries: the history of its attempts.
        success: set when it has succeeded.
        error: set when it has ended and did not succeed, or may not have.
    """

    call: Call
    began: float
    state: State = State.QUEUED
    waited: float = 0.0
    tries: Tries = field(default_factory=Tries)
    success: Judgement | None = None
    error: FeishuMailError | None = None

    @property
    def conclusive(self) -> bool:
        """True while no attempt can have done what was asked for; one that only reads changes nothing."""
        return not self.call.endpoint.writes or self.tries.conclusive

    @property
    def in_doubt(self) -> bool:
        """True if an attempt may have done what was asked for, and no answer has settled it."""
        return self.call.endpoint.writes and (self.state is State.IN_FLIGHT or not self.tries.conclusive)

    def sent(self, draft: Draft) -> SendResult:
        """Return the result for a listener's own `draft` (its tag may differ), or raise the error."""
        success = self.success
        if success is None:
            raise self.error_for(draft)
        already = success.verdict is Verdict.ALREADY_DONE
        message_id, thread_id = success.text("message_id"), success.text("thread_id")
        scheduled_for, schedule = success.scheduled_for, self.call.schedule
        if schedule is not None and schedule.holds(already=already, in_doubt=not self.tries.conclusive):
            scheduled_for, message_id = schedule.at, message_id or schedule.message_id
        at = None if scheduled_for is None else datetime.fromtimestamp(scheduled_for, UTC)
        already, attempts = already and at is None, self.tries.calls
        return SendResult(draft, message_id, thread_id, already, attempts, success.log_id, scheduled_for=at)

    def value(self, what: str, read: Callable[[Mapping[str, Any]], T]) -> T:
        """Return what `read` makes of the answer's data, or raise the error.

        A write whose data cannot be read has been done, but nobody knows to what: it ends in doubt.

        Args:
            what: what is read, as a message names it.
            read: raises KeyError, TypeError or ValueError if the data have another form.
        """
        success = self.success
        if success is None:
            raise self.error_for(None)
        try:
            return read(success.data)
        except (KeyError, TypeError, ValueError) as error:
            bad = BadReply(f"{what} does not have the documented form ({error})", log_id=success.log_id)
        raise settled(bad, self.call, self.tries.calls, conclusive=not self.call.endpoint.writes)

    def error_for(self, draft: Draft | None) -> FeishuMailError:
        """Return the error, a copy for each listener, with the listener's draft and a traceback of its own.

        The original is never raised: the frames of its traceback would hold this object, and both would stay until
        the garbage collector runs.
        """
        assert self.error is not None
        error = copy.copy(self.error).with_traceback(self.error.__traceback__)
        error.draft, error.__cause__ = draft, self.error.__cause__
        return error

    def final(self, error: FeishuMailError) -> FeishuMailError:
        """Return the error to report: an OutcomeUnknown in its place if an attempt may have done it."""
        return settled(error, self.call, self.tries.calls, conclusive=self.conclusive)
