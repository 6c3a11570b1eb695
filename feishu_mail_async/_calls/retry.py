"""Retry decisions and delays. Every delay is computed here; the scheduler obeys.

A failure of the draft's own uses up its `attempts`; a refusal on account of its app or user, its `refusals`; an
outage uses up neither, until it has lasted `outage`. Only a failure of the draft's own makes the draft itself
wait: for the others the scheduler holds the user or the app, and the next turn comes when they may go on.

tenacity decides after each failure whether another attempt follows, and after which delay (`Repetition`). Its
ready-made loop would need a task for each waiting draft, and cost every call an eighth of its time, though most
need no second attempt.
"""

import random
from dataclasses import dataclass
from typing import Final

from tenacity import DoSleep, RetryCallState, Retrying, retry_always

from feishu_mail_async._api.protocol import CallEnd, Judgement
from feishu_mail_async.codes import Subject, Verdict
from feishu_mail_async.model import RetryPolicy

__all__ = ["PolicyDelays", "Repetition", "Tries"]

_LARGEST_EXPONENT: Final = 60
"""Exponent of the backoff, at most: a larger power could overflow a float."""
_LEAST_PROBE: Final = 0.1
"""Seconds between two probes of an outage, at least: a policy without delays must not probe in a busy loop."""


@dataclass(slots=True)
class Tries:
    """The history of a draft's attempts.

    Attributes:
        calls: calls made; one that provably never left does not count.
        faults: attempts that failed through the draft's own fault.
        refusals: refusals on account of the app or the user.
        conclusive: true while it is certain that no attempt so far has done what was asked for.
        renewed: true if the user's token has been renewed for this draft.
    """

    calls: int = 0
    faults: int = 0
    refusals: int = 0
    conclusive: bool = True
    renewed: bool = False

    def count(self, judgement: Judgement) -> None:
        """Count an attempt.

        Args:
            judgement: the meaning of its answer.
        """
        if judgement.end is CallEnd.NEVER_LEFT:
            return  # an outage uses up neither attempts nor refusals; its own clock is the scheduler's
        self.calls += 1
        self.conclusive = self.conclusive and judgement.conclusive
        if judgement.verdict is not Verdict.RETRY:
            return
        if judgement.subject is Subject.DRAFT:
            self.faults += 1
        else:
            self.refusals += 1


class PolicyDelays:
    """The delays of a retry policy: twice as long each time, with jitter.

    Args:
        policy: its `initial` and `maximum` bound the delays.
    """

    __slots__ = ("_policy",)

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy

    def backoff(self, times: int) -> float:
        """Return the seconds to wait after the same thing went wrong `times` times in a row (1 or more)."""
        policy = self._policy
        longest = min(policy.maximum, policy.initial * 2.0 ** min(times - 1, _LARGEST_EXPONENT))
        # Half of the delay is jitter: programs that were refused together must not come back together.
        return longest * random.uniform(0.5, 1.0)

    def outage(self, times: int, lasted: float) -> float:
        """Return the seconds until the next probe of an outage; the last probe falls on the end of `outage`.

        Args:
            times: the probes so far that reached nothing (1 or more).
            lasted: seconds that the outage has lasted.
        """
        wait = self.backoff(times)
        if self._policy.outage is not None and lasted < self._policy.outage:
            wait = min(wait, self._policy.outage - lasted)
        return max(_LEAST_PROBE, wait)


class Repetition:
    """The decision after each failed attempt of one draft.

    Args:
        policy: the retry policy.
        tries: the draft's history, in which the attempts count themselves.
    """

    __slots__ = ("_retrying", "_state")

    def __init__(self, policy: RetryPolicy, tries: Tries) -> None:
        delays = PolicyDelays(policy)

        def wait(state: RetryCallState) -> float:
            # Nothing for a user or an app: the scheduler makes them wait, and a delay here would only add to it.
            return delays.backoff(tries.faults) if _judgement(state).subject is Subject.DRAFT else 0.0

        def spent(_: RetryCallState) -> bool:
            # By the counts and not by tenacity's number of attempts, which would count outages, too.
            return tries.faults >= policy.attempts or tries.refusals > policy.refusals

        self._retrying = Retrying(retry=retry_always, wait=wait, stop=spent, retry_error_callback=lambda _: None)
        self._retrying.begin()
        self._state = RetryCallState(self._retrying, None, (), {})

    def after(self, judgement: Judgement) -> float | None:
        """Return the seconds to wait before the next attempt; None: there is none, for the policy is used up.

        Args:
            judgement: the judgement on the attempt that failed.
        """
        self._state.set_result(judgement)
        action = self._retrying.iter(self._state)
        return float(action) if isinstance(action, DoSleep) else None


def _judgement(state: RetryCallState) -> Judgement:
    judgement = None if state.outcome is None else state.outcome.result()
    assert isinstance(judgement, Judgement)
    return judgement
