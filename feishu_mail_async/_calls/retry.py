"""Whether another attempt is worth it. Every delay is computed here; the scheduler obeys.

What is the draft's own fault uses up its `attempts`; what is the app's or its user's, its `refusals`; an outage
uses up neither, until it has lasted `outage`. Only a draft's own fault makes the draft itself wait: for the
others the scheduler holds the user or the app, and the next turn comes when they may go on.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from feishu_mail_async._api.protocol import CallEnd, Judgement
from feishu_mail_async.codes import Subject, Verdict
from feishu_mail_async.model import RetryPolicy

__all__ = ["Again", "PolicyDelays", "Tries", "retrying"]

_LARGEST_EXPONENT: Final = 60
_LEAST_PROBE: Final = 0.1


class Again(Exception):
    """An attempt that may be worth repeating."""

    def __init__(self, judgement: Judgement) -> None:
        super().__init__(str(judgement.error))
        self.judgement = judgement


@dataclass(slots=True)
class Tries:
    """What a draft has been through so far.

    Attributes:
        calls: calls that were made, as far as anyone can tell.
        faults: attempts that failed through the draft's own fault.
        refusals: refusals for the app's or the user's sake.
        conclusive: it is certain that no attempt so far has sent the mail.
        renewed: the user's token has been renewed for this draft.
    """

    calls: int = 0
    faults: int = 0
    refusals: int = 0
    conclusive: bool = True
    renewed: bool = False

    def count(self, judgement: Judgement) -> None:
        """Count an attempt."""
        if judgement.end is CallEnd.NEVER_LEFT:
            return
        self.calls += 1
        self.conclusive = self.conclusive and judgement.conclusive
        if judgement.verdict is not Verdict.RETRY:
            return
        if judgement.subject is Subject.DRAFT:
            self.faults += 1
        else:
            self.refusals += 1


class PolicyDelays:
    """The waits of a policy: twice as long each time, with jitter.

    Args:
        policy: `initial` and `maximum` bound the waits.
    """

    __slots__ = ("_policy",)

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy

    def backoff(self, times: int) -> float:
        """Seconds to wait after the same thing went wrong `times` times in a row (1 or more)."""
        policy = self._policy
        longest = min(policy.maximum, policy.initial * 2.0 ** min(times - 1, _LARGEST_EXPONENT))
        # Half of it is jitter: programs that were refused together must not come back together.
        return longest * random.uniform(0.5, 1.0)

    def outage(self, times: int, lasted: float) -> float:
        """Seconds to the next probe of an outage; the last probe falls on the end of `outage`."""
        wait = self.backoff(times)
        if self._policy.outage is not None and lasted < self._policy.outage:
            wait = min(wait, self._policy.outage - lasted)
        return max(_LEAST_PROBE, wait)


def retrying(policy: RetryPolicy, tries: Tries, planned: Callable[[Judgement, float], None]) -> AsyncRetrying:
    """The loop around the attempts of one draft: each raises `Again` until one of them settles it.

    Args:
        policy: when to try again.
        tries: what the draft has been through; the attempts count in it.
        planned: is told that there will be another attempt: after which one, and in how many seconds.
    """
    delays = PolicyDelays(policy)

    def wait(state: RetryCallState) -> float:
        return delays.backoff(tries.faults) if _judgement(state).subject is Subject.DRAFT else 0.0

    def spent(_: RetryCallState) -> bool:
        return tries.faults >= policy.attempts or tries.refusals > policy.refusals

    def before_sleep(state: RetryCallState) -> None:
        planned(_judgement(state), state.upcoming_sleep)

    return AsyncRetrying(
        retry=retry_if_exception_type(Again), wait=wait, stop=spent, before_sleep=before_sleep, reraise=True
    )


def _judgement(state: RetryCallState) -> Judgement:
    error = state.outcome.exception() if state.outcome is not None else None
    assert isinstance(error, Again)
    return error.judgement
