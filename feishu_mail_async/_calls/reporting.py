"""The events of a draft on its way. They are built only where somebody listens: callers have asked for that."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from feishu_mail_async._api.protocol import Judgement
from feishu_mail_async._causes import without_traceback
from feishu_mail_async.errors import FeishuMailError
from feishu_mail_async.events import AttemptEnded, DraftDone, RetryPlanned
from feishu_mail_async.model import Draft

from .progress import Progress

__all__ = ["About", "attempt_ended", "done", "done_early", "numbers", "retry_planned"]

numbers: Final = itertools.count(1)
"""The numbers of jobs, as `DraftEvent.job` has them: there is one count for the whole process."""


class About(NamedTuple):
    """The fields that all events of one call have, in their order.

    Attributes:
        job: its number.
        endpoint: its endpoint's name.
        user: its user's key.
        draft: the draft; None for a call that sends none.
    """

    job: int
    endpoint: str
    user: str
    draft: Draft | None


def attempt_ended(at: float, about: About, number: int, began: float, judgement: Judgement) -> AttemptEnded:
    """Return the event of an attempt's end.

    Args:
        at: the time.
        about: the call.
        number: the attempt's number.
        began: when it began.
        judgement: the judgement on it.
    """
    error = judgement.error
    return AttemptEnded(
        at,
        *about,
        attempt=number,
        seconds=at - began,
        end=judgement.end,
        verdict=judgement.verdict,
        code=judgement.code,
        http_status=judgement.http_status,
        log_id=judgement.log_id,
        error=None if error is None else without_traceback(error),
    )


def retry_planned(at: float, about: About, calls: int, delay: float, judgement: Judgement) -> RetryPlanned:
    """Return the event of a decision to make another attempt.

    Args:
        at: the time.
        about: the call.
        calls: calls made so far.
        delay: seconds that the draft itself waits.
        judgement: the judgement on the last attempt.
    """
    return RetryPlanned(at, *about, calls, delay, judgement.subject, without_traceback(judgement.failure()))


def done(at: float, about: About, drafts: Sequence[Draft | None], ended: Progress) -> Iterator[DraftDone]:
    """Yield the events of a draft's end: one for each listener, or one if there is none.

    Args:
        at: the time.
        about: the call.
        drafts: the draft of each listener, as it was submitted.
        ended: what has become of the call.
    """
    for place, draft in enumerate(drafts or [about.draft]):
        if draft is None:
            continue  # a call that sends no draft has no DraftDone
        error = None if ended.error is None else without_traceback(ended.error)
        result = ended.sent(draft) if error is None else None
        if result is not None and place:
            result = replace(result, already_sent=True)
        told = result or error
        assert told is not None
        yield DraftDone(
            at,
            *about._replace(draft=draft),
            status=told.status,
            attempts=0 if place else ended.tries.calls,
            waited=0.0 if place else ended.waited,
            lasted=at - ended.began,
            joined=place > 0,
            result=result,
            error=error,
        )


def done_early(at: float, about: About, error: FeishuMailError) -> DraftDone:
    """Return the event of a draft's end before it could wait for a turn."""
    return DraftDone(
        at,
        *about,
        status=error.status,
        attempts=0,
        waited=0.0,
        lasted=0.0,
        joined=False,
        result=None,
        error=without_traceback(error),
    )
