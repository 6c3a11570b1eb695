"""The distribution of an app's events: to the log, to the subscribers and to the readers.

Theory of operation. An event is delivered where it happens, in the same step of the loop: first to the log, then
to each subscriber in the order in which they came. Nothing is built while nobody listens. An event that a
subscriber brings about while it is called is delivered afterwards, so that all of them see one order. What a
subscriber raises is logged once and goes no further: it would end a call in the midst of its bookkeeping.
"""

import asyncio
import contextlib
import contextvars
import functools
import inspect
import logging
import weakref
from collections import deque
from collections.abc import Callable
from typing import Final, Self

from ._forks import Origin
from .events import Event, EventsLost

__all__ = ["EventHub", "EventReader", "Subscription", "log_takes_infos"]

_log: Final = logging.getLogger("feishu_mail_async.events")
# Without a handler Python prints warnings by itself; a library must be quiet until the program sets up logging.
logging.getLogger("feishu_mail_async").addHandler(logging.NullHandler())


log_takes_infos: Final = functools.partial(_log.isEnabledFor, logging.INFO)
"""Returns whether the log takes events that are no warnings."""


class Subscription:
    """A subscriber, and the memory of whether it has failed before.

    Args:
        callback: a plain function that takes an event.
        closed: a function called when the client has been closed; None: none.

    Raises:
        TypeError: `callback` cannot be called, or has to be awaited; or `closed` cannot be called.
    """

    __slots__ = ("_callback", "_closed", "_failed")

    def __init__(self, callback: Callable[[Event], object], closed: Callable[[], object] | None = None) -> None:
        if not callable(callback):
            raise TypeError(f"callback: give a function that takes an event, not {type(callback).__name__}")
        if inspect.iscoroutinefunction(callback) or inspect.iscoroutinefunction(type(callback).__call__):
            raise TypeError("callback: it is called, not awaited; give a plain function, or use events()")
        if closed is not None and not callable(closed):
            raise TypeError(f"closed: give a function without parameters, or None, not {type(closed).__name__}")
        self._callback = callback
        self._closed = closed
        self._failed = False

    def deliver(self, event: Event) -> None:
        """Call the subscriber with an event; its first exception is logged, and none is raised here.

        Args:
            event: the event.
        """
        try:
            self._callback(event)
        # A subscriber is foreign code that runs inside the scheduler's and the jobs' steps. An exception that got
        # through would end a call's task between "made" and "recorded". CancelledError is no Exception, so it is
        # named: raised here by mistake, it would look as if the task itself had been cancelled.
        except (Exception, asyncio.CancelledError):  # noqa: BLE001
            if not self._failed:
                self._failed = True
                _log.exception("a subscriber failed at %s; it goes on being called", event.name)

    def close(self) -> None:
        """Notify the subscriber that the client is closed and no more events will come."""
        if self._closed is not None:
            try:
                self._closed()
            except (Exception, asyncio.CancelledError):  # noqa: BLE001 - as above
                _log.exception("a subscriber failed at the end of its client")


class EventHub:
    """The distributor of an app's events: to the log and to the subscribers.

    Attributes:
        subscriptions: the subscribers.
    """

    __slots__ = ("_nested", "_telling", "subscriptions")

    def __init__(self) -> None:
        self.subscriptions: tuple[Subscription, ...] = ()
        self._telling = False
        self._nested: deque[tuple[Event, contextvars.Context]] = deque()

    @property
    def has_listeners(self) -> bool:
        """True if a subscriber or the log takes DEBUG and INFO events, so that it is worth making them."""
        return bool(self.subscriptions) or log_takes_infos()

    def add(self, subscription: Subscription) -> None:
        """Add a subscription; it receives the events from now on.

        Args:
            subscription: the subscription.
        """
        self.subscriptions = *self.subscriptions, subscription

    def remove(self, subscription: Subscription) -> None:
        """Remove a subscription; nothing happens if it was not there.

        Args:
            subscription: the subscription.
        """
        self.subscriptions = tuple(one for one in self.subscriptions if one is not subscription)

    def publish(self, event: Event) -> None:
        """Deliver an event to the log and all subscribers.

        An event that is published by a subscriber while it handles another is delivered after that one, so that
        all subscribers see the same order.

        Args:
            event: the event.
        """
        if self._telling:
            # With the context of its publisher: the loop below runs in that of the event being delivered.
            self._nested.append((event, contextvars.copy_context()))
            return
        self._telling = True
        try:
            self._tell(event)
            while self._nested:
                nested, context = self._nested.popleft()
                context.run(self._tell, nested)
        finally:
            self._telling = False

    def _tell(self, event: Event) -> None:
        if _log.isEnabledFor(event.level):
            with contextlib.suppress(
                Exception
            ):  # a program's own filter may raise anything, in the midst of a call
                _log.log(event.level, "%s", event, extra=event.extra())
        for subscription in self.subscriptions:
            subscription.deliver(event)


class EventReader:
    """An async iterator of events; it ends when its client is closed.

    Events that are not read in time are dropped, the oldest first, and an `EventsLost` stands in their place.

    Args:
        buffer: the most events that wait to be read.
    """

    def __init__(self, buffer: int) -> None:
        self._waiting: deque[Event] = deque(maxlen=buffer)
        self._lost = 0
        self._ended = False
        self._news: asyncio.Future[None] | None = None
        self._origin = Origin()
        self._origin.opened()

    def subscription(self) -> Subscription:
        """Return the subscription that puts events into this buffer for as long as the reader is alive."""
        reader = weakref.ref(self)  # so that a reader dropped by its user is collected, and its subscription ends

        def put(event: Event) -> None:
            held = reader()
            if held is not None:
                held.put(event)

        return Subscription(put)

    def put(self, event: Event) -> None:
        """Add an event to the buffer.

        Args:
            event: the event.
        """
        if len(self._waiting) == self._waiting.maxlen:
            self._lost += 1
        self._waiting.append(event)
        self._wake()

    def end(self) -> None:
        """End the iteration once all buffered events have been read."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._waiting:
            if self._ended or self._origin.elsewhere:
                raise StopAsyncIteration
            if self._news is None or self._news.done():
                self._news = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._news)  # another task may read from here too
        if self._lost:
            lost, self._lost = self._lost, 0
            return EventsLost(self._waiting[0].time, lost)
        return self._waiting.popleft()
