"""A run over many drafts: it reads ahead, lets the scheduler choose, and yields each outcome once it is known.

    input --read_ahead--> intake --> job in the scheduler --> outcomes --> the consumer
              ^                          ^                       |
              |                          `-- held at 100 --------+
              `-- stops at read_ahead drafts and outcomes -------'

Fairness among users holds for the drafts that have been read. A consumer that falls behind has the run's stream
held in the scheduler, so that no new calls are made for it; and reading stops when `read_ahead` drafts have been
read whose outcomes have not been fetched. So memory stays bounded at both ends (`backlog`).
"""

import asyncio
import itertools
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Sized,
)
from contextvars import copy_context
from types import TracebackType
from typing import Self

from feishu_mail_async._forks import NOT_THIS_CLIENT, Origin
from feishu_mail_async._scheduling.sweeps import SLICE
from feishu_mail_async._tasks import start_task
from feishu_mail_async.errors import ClientClosed, UnknownUser
from feishu_mail_async.model import Draft, Priority
from feishu_mail_async.outcomes import Outcome, Summary

from .backlog import Backlog
from .call import Call
from .intake import Intake, check_stack

__all__ = ["BulkRun", "DraftSource"]

DraftSource = Iterable[str | Draft] | AsyncIterable[str | Draft]
"""The input of `send_drafts`."""


class BulkRun:
    """A run over many drafts: an async iterator of outcomes, each as soon as it is known.

    Every draft read ends in exactly one outcome. Duplicates in the input are sent once; the others end as
    `already_sent`, without a call while the first is under way, or with the first one's error.

    Use it as an async context manager: leaving it makes no new calls and waits for those in flight. After a plain
    `async for … break` the client's `close` does that.

    Made by `FeishuMailClient.send_drafts`, which describes the parameters.
    """

    def __init__(
        self,
        intake: Intake,
        drafts: DraftSource,
        sending: Callable[[str | Draft], Call],
        priority: Priority,
        read_ahead: int,
    ) -> None:
        self._backlog = Backlog(intake, priority, read_ahead)
        self._drafts = drafts
        self._sending = sending
        self._reader: asyncio.Task[None] | None = None
        self._reading = False  # the reader's task has taken its first step; before that it is not cancelled
        self._failure: BaseException | None = None
        self._fetched = 0
        self._origin = Origin()
        self._origin.opened()

    # -- the consumer's side ---------------------------------------------------------------------------

    @property
    def summary(self) -> Summary:
        """Counts by status and code, of the outcomes known so far."""
        return self._backlog.summary

    @property
    def waiting(self) -> int:
        """The number of drafts that have been read and have no outcome yet."""
        return len(self._backlog.entries)

    def stop(self) -> None:
        """Make no new calls: those in flight are finished, and the rest is skipped.

        If the input has a length, its unread rest is skipped too; any other input is not read further. Skipped
        drafts are still looked up in the ledger, where they may be on record as sent.
        """
        if not self._backlog.stopping:
            self._backlog.stop()
            self._stop_reading()

    def _stop_reading(self) -> None:
        if self._reader is not None and self._reading:
            self._reader.cancel()

    def __aiter__(self) -> AsyncIterator[Outcome]:
        return self

    async def __anext__(self) -> Outcome:
        if self._origin.elsewhere:
            raise ClientClosed(NOT_THIS_CLIENT)
        check_stack()  # before an outcome is taken out: what follows runs on the consumer's stack
        self._begin()
        self._fetched += 1
        # With outcomes at hand nothing below suspends, and a fast consumer would block the loop.
        if self._fetched % SLICE == 0:
            await asyncio.sleep(0)
        backlog = self._backlog
        while not backlog.outcomes:
            if self._ended():
                if self._failure is not None and not backlog.left:
                    failure, self._failure = self._failure, None
                    raise failure
                raise StopAsyncIteration
            backlog.news.clear()
            await backlog.news.wait()
        outcome = backlog.outcomes.popleft()
        backlog.changed()
        return outcome

    async def __aenter__(self) -> Self:
        self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.leave()

    async def leave(self) -> None:
        """End the run: give up all that waits, wait for the calls in flight, and drop the outcomes left.

        Cancelling it does not undo it: the run ends in the background.
        """
        if self._origin.elsewhere:
            return
        self._stop_reading()
        ends: list[asyncio.Future[None]] = list(await self._backlog.leave())
        if self._reader is not None:
            ends.append(self._reader)
        if ends:
            await asyncio.wait(ends)

    async def read_rest(self, timeout: float | None) -> None:  # noqa: ASYNC109 - that of the client's `close`
        """Wait, after `stop`, until the reader has ended; for `timeout` seconds at most."""
        if self._reader is not None:
            await asyncio.wait([self._reader], timeout=timeout)

    async def finish(self) -> None:
        """Wait, after `stop`, until every draft has its outcome."""
        await self.read_rest(None)
        await self._backlog.swept()

    # -- reading ---------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Start the reader, once."""
        if self._reader is None and not self._backlog.left:
            self._backlog.context = copy_context()
            self._reader = start_task(self._read(), "feishu-mail-read")
            self._reader.add_done_callback(lambda _: self._backlog.news.set())

    def _ended(self) -> bool:
        backlog = self._backlog
        return backlog.left or (self._reader is not None and self._reader.done() and not backlog.entries)

    async def _read(self) -> None:
        """Read the input; keep its exception until all drafts read before it have their outcome."""
        self._reading = True
        try:
            iterator = aiter(self._drafts) if isinstance(self._drafts, AsyncIterable) else iter(self._drafts)
            try:
                await self._read_from(iterator)
            finally:
                if isinstance(iterator, AsyncGenerator):
                    await iterator.aclose()
                elif isinstance(iterator, Generator):
                    iterator.close()
        except asyncio.CancelledError as error:
            if not self._backlog.stopping:
                self._failure = RuntimeError("drafts: reading it was cancelled")
                self._failure.__cause__ = error
        except BaseException as error:  # noqa: BLE001 - of the caller's own input: the run raises it to the caller
            self._failure = error

    async def _read_from(self, iterator: AsyncIterator[str | Draft] | Iterator[str | Draft]) -> None:
        numbers, backlog = itertools.count(1), self._backlog
        if isinstance(iterator, AsyncIterator):
            while not backlog.stopping:
                try:
                    item = await anext(iterator)
                except StopAsyncIteration:
                    return
                await self._admit(next(numbers), item)
            return
        # A plain iterator survives the cancellation of this task, which an async one need not. So after a `stop`
        # the rest of an input with a length can still be read, to skip it and look it up.
        try:
            await self._read_while(lambda: not backlog.stopping, iterator, numbers)
        except asyncio.CancelledError:
            if not backlog.stopping:
                raise
        if backlog.stopping and not backlog.left and isinstance(self._drafts, Sized):
            await self._read_while(lambda: True, iterator, numbers)

    async def _read_while(
        self, wanted: Callable[[], bool], iterator: Iterator[str | Draft], numbers: Iterator[int]
    ) -> None:
        while wanted():
            try:
                item = next(iterator)
            except StopIteration:
                return
            await self._admit(next(numbers), item)

    async def _admit(self, number: int, item: str | Draft) -> None:
        """Start one input, then wait until there is room for the next."""
        backlog = self._backlog
        try:
            call = self._sending(item)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"drafts: item {number}: {error}") from None
        except UnknownUser as error:
            if error.draft is None:  # for the type checker: `_sending` sets it
                raise
            backlog.reject(error.draft, error)
        else:
            backlog.admit(call)
            backlog.changed()
        if number % SLICE == 0:
            await asyncio.sleep(0)
        if not backlog.stopping:
            await backlog.room.wait()
