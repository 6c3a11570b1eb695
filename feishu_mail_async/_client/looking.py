"""Calls that must not be repeated when their reply was lost, before it was looked for what they have done."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from feishu_mail_async._calls.intake import Intake
from feishu_mail_async._clock import loop_time
from feishu_mail_async.errors import FeishuMailError, NotSent, OutcomeUnknown

from .arguments import left_until

__all__ = ["look_before_repeating", "look_in_doubt"]

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
        FeishuMailError: what the first `attempt` raises otherwise.
    """
    doubt: OutcomeUnknown | None = None
    try:
        for _ in range(intake.policy.attempts):
            try:
                return await attempt(left_until(ends))
            except OutcomeUnknown as unknown:
                # Without a cause, or with one that is no answer's, its caller or its client has given it up.
                if unknown.__cause__ is None or isinstance(unknown.__cause__, NotSent):
                    raise
                doubt = unknown
            except FeishuMailError as error:
                if doubt is not None:
                    raise doubt from error  # that this attempt did nothing says nothing of the one before
                raise
            if not await _arrived(intake, ends):
                break
            found = await look_in_doubt(look, doubt, ends)
            if found is not None:
                return found
        assert doubt is not None  # a policy has one attempt at least
        raise doubt
    finally:
        del doubt  # its traceback holds this frame


async def look_in_doubt(look: Callable[[], Awaitable[T]], doubt: OutcomeUnknown, ends: float | None) -> T:
    """Look for what a call has done.

    Args:
        look: looks.
        doubt: the end of that call, which is raised again if no look is answered in time.
        ends: when it has to be over, in the loop's time; None: there is no limit.
    """
    try:
        async with asyncio.timeout_at(ends):
            return await look()
    except (FeishuMailError, TimeoutError):
        pass
    try:
        raise doubt
    finally:
        del doubt  # as above


async def _arrived(intake: Intake, ends: float | None) -> bool:
    """Wait until a call without an answer has certainly arrived; return False if there is no time for that."""
    grace = intake.scheduler.limit.grace
    if ends is not None and loop_time() + grace >= ends:
        return False
    try:
        async with asyncio.timeout(grace):
            await intake.closed.wait()
    except TimeoutError:
        return True
    return False
