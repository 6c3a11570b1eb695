"""Calls that must not be repeated when their reply was lost, before it was looked for what they have done."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from feishu_mail_async._calls.intake import Intake
from feishu_mail_async._clock import loop_time
from feishu_mail_async.errors import FeishuMailError, NotSent, OutcomeUnknown

__all__ = ["look_before_repeating"]

T = TypeVar("T")


async def look_before_repeating(
    intake: Intake,
    attempt: Callable[[float | None], Awaitable[T]],
    look: Callable[[], Awaitable[T | None]],
    ends: float | None,
) -> T:
    """Make a call; if its reply was lost, look for what it has done, and repeat it only if that is not there.

        attempt -- answered --> done
           ^  `--- lost --> wait until it has certainly arrived --> look -- found --> done
           |                                                          |
           `----------------------- not found ------------------------'

    Args:
        intake: the intake of the call's endpoint.
        attempt: makes the call, within these seconds.
        look: returns what the call has done; None if it has not.
        ends: when all of it has to be over, in the loop's time; None: there is no limit.

    Raises:
        OutcomeUnknown: it may be done, and looking did not settle it, or no attempt is left.
        FeishuMailError: what `attempt` raises otherwise.
    """
    for left in reversed(range(intake.policy.attempts)):
        try:
            return await attempt(None if ends is None else ends - loop_time())
        except OutcomeUnknown as unknown:
            # Without a cause, or with one that is no answer's, its caller or its client has given it up.
            if unknown.__cause__ is None or isinstance(unknown.__cause__, NotSent):
                raise
            grace = intake.scheduler.limit.grace
            if ends is not None and loop_time() + grace >= ends:
                raise
            await asyncio.sleep(grace)
            try:
                found = await look()
            except FeishuMailError:
                raise unknown from unknown.__cause__
            if found is not None:
                return found
            if not left:
                raise
    raise AssertionError("a policy has one attempt at least")
