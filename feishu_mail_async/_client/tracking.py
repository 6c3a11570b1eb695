"""Following many mails up until their delivery is final: each is asked for more rarely the longer nothing changes.

    due? --ask (20 at a time)--> changed --> yielded; asked again soon
      ^                      `-- as before --> asked again later, after twice the time
      `---------------------------------------------------------------------'
    final, or the server will not tell --> yielded for the last time, and left alone

There is no task in the background: while the consumer works on a change, nothing is asked.
"""

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from feishu_mail_async._api.mails import Delivery
from feishu_mail_async._clock import loop_time
from feishu_mail_async.codes import Verdict, lookup
from feishu_mail_async.errors import ApiError, ClientClosed, FeishuMailError, UnknownUser

from .arguments import Mail

__all__ = ["track"]

_AT_ONCE: Final = 20
"""Mails that are asked for at the same time."""
_SOON: Final = 2.0
"""Seconds from a change to the next question."""
_RARELY: Final = 300.0
"""Seconds between two questions, at most."""


@dataclass(order=True, slots=True)
class _Followed:
    """A mail on its way.

    Attributes:
        due: when to ask for it next, in the loop's time.
        number: its place in the input, which decides among those due at once.
        mail: the mail.
        wait: seconds from the last question to the next one.
        known: its delivery as it was told last; None before it was told.
    """

    due: float
    number: int
    mail: Mail = field(compare=False)
    wait: float = field(default=_SOON, compare=False)
    known: Delivery | None = field(default=None, compare=False)


async def track(
    mails: Iterable[Mail], ask: Callable[[Mail], Awaitable[Delivery]], ends: float | None
) -> AsyncIterator[Delivery]:
    """Yield the delivery of each mail, each time it has changed, until all are final.

    Args:
        mails: the mails.
        ask: asks the server for the delivery of one.
        ends: when to stop all the same, in the loop's time; None: never.
    """
    numbers, now = itertools.count(), loop_time()
    waiting = [_Followed(now + mail.goes_out_in(), next(numbers), mail) for mail in mails]
    heapq.heapify(waiting)
    while waiting:
        until_due = waiting[0].due - loop_time()
        if until_due > 0:
            if ends is not None and waiting[0].due > ends:
                await asyncio.sleep(max(0.0, ends - loop_time()))
                return
            await asyncio.sleep(until_due)
        if ends is not None and loop_time() >= ends:
            return
        for one, found in await _ask(_take(waiting), ask):
            changed = found is not None and found != one.known
            if changed:
                one.known, one.wait = found, _SOON
            else:
                one.wait = min(_RARELY, 2 * one.wait)
            if found is None or not found.final:
                one.due = loop_time() + one.wait
                heapq.heappush(waiting, one)
            if changed and found is not None:
                yield found


def _take(waiting: list[_Followed]) -> list[_Followed]:
    """Take out the mails that are due, as many as are asked for at once."""
    now = loop_time()
    taken: list[_Followed] = []
    while waiting and waiting[0].due <= now and len(taken) < _AT_ONCE:
        taken.append(heapq.heappop(waiting))
    return taken


async def _ask(
    some: list[_Followed], ask: Callable[[Mail], Awaitable[Delivery]]
) -> list[tuple[_Followed, Delivery | None]]:
    """Ask for these mails; None stands for one that could not be asked for now."""

    async def one(followed: _Followed) -> Delivery | None:
        try:
            return replace(await ask(followed.mail), message_id=followed.mail.message_id)
        except ClientClosed:
            raise
        except FeishuMailError as error:
            if _lasts(error):
                known = followed.known or Delivery(followed.mail.message_id, ())
                return replace(known, error=error)
            return None  # it passes

    return list(zip(some, await asyncio.gather(*map(one, some)), strict=True))


def _lasts(error: FeishuMailError) -> bool:
    """Return whether asking for the same mail again cannot help."""
    if isinstance(error, ApiError):
        return lookup(error.code, error.http_status).verdict is not Verdict.RETRY
    return isinstance(error, UnknownUser)
