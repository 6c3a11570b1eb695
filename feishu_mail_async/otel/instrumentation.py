"""The instrumentation of an app: one subscription that feeds its spans and its metrics."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from feishu_mail_async._engine import Engine, engine_of_client
from feishu_mail_async._hub import EventHub, Subscription
from feishu_mail_async._scheduling.snapshot import Snapshot
from feishu_mail_async.client import FeishuMailClient
from feishu_mail_async.errors import ClientClosed
from feishu_mail_async.events import Event

from .attributes import Server
from .metrics import Metrics
from .spans import Spans

__all__ = ["instrument"]


def instrument(
    client: FeishuMailClient,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> Callable[[], None]:
    """Emit spans and metrics for the calls of a client's app, until the client is closed.

    They cover all clients of the app in this loop, as `FeishuMailClient.subscribe` does. If several of them are
    instrumented, nothing is counted twice, and all are covered for as long as one instrumented client is open.

    Args:
        client: a client, in its own event loop.
        tracer_provider: the provider of the spans; None for the global one.
        meter_provider: the provider of the metrics; None for the global one.

    Returns:
        a function that ends the instrumentation, to be called in the client's loop. It ends open spans.

    Raises:
        ClientClosed: the client is closed.
        RuntimeError: this is not the client's event loop.
    """
    client.snapshot()  # binds the client to this loop, or raises the reason why that is impossible
    # Loops that ended without closing their clients have left entries behind.
    for ended in [one for one in tuple(_live.values()) if one.loop.is_closed()]:
        ended.close()
    engine = engine_of_client(client)
    key = engine.events, tracer_provider, meter_provider
    if key not in _live:
        _live[key] = _Instrumentation(engine, tracer_provider, meter_provider)
    return _live[key].join(client)


class _Instrumentation:
    """The spans and metrics of one app in one loop, for one pair of providers, while a client of it is open.

    It is subscribed to the engine once, however many clients are instrumented: so nothing is counted twice.

    Args:
        engine: the engine that the app's clients share in this loop.
        tracer_provider: the provider of the spans; None for the global one.
        meter_provider: the provider of the metrics; None for the global one.

    Attributes:
        loop: the loop.
    """

    def __init__(
        self, engine: Engine, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._key = engine.events, tracer_provider, meter_provider
        self._clients: dict[Callable[[], None], FeishuMailClient] = {}  # by what ends the part of each
        base_url, app, _ = engine.key
        server = Server(base_url)
        at = server.at if app is None else {"feishu_mail.app": app, **server.at}
        self._metrics = Metrics(meter_provider, server, at, self._snapshot)
        self._spans = Spans(tracer_provider, server)
        self._events = engine.events
        self._subscription = Subscription(self._hear)
        self._events.add(self._subscription)

    def join(self, client: FeishuMailClient) -> Callable[[], None]:
        """Last until this client is closed, too; return a function that ends its part before."""

        def end() -> None:
            if self._clients.pop(end, None) is not None:
                unsubscribe()
                if not self._clients:
                    self.close()

        unsubscribe = client.subscribe(_ignore, closed=end)
        self._clients[end] = client
        return end

    def close(self) -> None:
        """Hear no more events, and end the open spans."""
        if _live.pop(self._key, None) is not None:  # two threads may find that the same loop has ended
            self._clients.clear()
            self._events.remove(self._subscription)
            self._metrics.close()
            self._spans.close()

    def _hear(self, event: Event) -> None:
        if self._clients:  # otherwise a subscriber before this one has ended it at this very event
            self._metrics.hear(event)  # first, while the call's span is current, which exemplars refer to
            self._spans.hear(event)

    def _snapshot(self) -> Snapshot | None:
        """Return the state of the app's calls; None if no instrumented client can give it."""
        for client in self._clients.values():
            with contextlib.suppress(ClientClosed):  # one that is closing still finishes its calls
                return client.snapshot()
        return None


def _ignore(_: Event) -> None:
    pass


_live: Final[dict[tuple[EventHub, TracerProvider | None, MeterProvider | None], _Instrumentation]] = {}
