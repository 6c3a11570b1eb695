"""What a job sees of its surroundings: its client's parts, and the parties that want its outcome."""

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any, Protocol

from feishu_mail_async._api.endpoints import Endpoint
from feishu_mail_async._auth.tokens import Tokens
from feishu_mail_async._scheduling.record import DraftKey
from feishu_mail_async._scheduling.scheduler import Scheduler
from feishu_mail_async._scheduling.waiters import Stream
from feishu_mail_async._transport import Transport
from feishu_mail_async.errors import FeishuMailError
from feishu_mail_async.model import Priority, RetryPolicy

from .call import Call
from .progress import Progress
from .retry import PolicyDelays

__all__ = ["JobContext", "Listener"]


class JobContext(Protocol):
    """What a job needs of its client.

    Attributes:
        endpoint: the endpoint that is called.
        scheduler: grants the turns.
        transport: makes the calls.
        tokens: the users' tokens.
        policy: the retry policy.
        delays: its delays.
        outage: seconds for which nothing may be reachable before a waiting call ends.
        time: the loop's clock.
        closing: true if the client is being closed.
        jobs: the jobs that can be joined, by their keys.
        tasks: what jobs wait for: exchanges, renewals of tokens, writes. Held, because asyncio holds tasks weakly.
    """

    endpoint: Endpoint[Any]
    scheduler: Scheduler
    transport: Transport
    tokens: Tokens
    policy: RetryPolicy
    delays: PolicyDelays
    outage: float
    time: Callable[[], float]
    closing: bool
    jobs: dict[DraftKey, Any]
    tasks: set[asyncio.Future[Any]]

    def end_waiting(self, error: FeishuMailError) -> None:
        """End all waiting calls: what kept one from the API would keep each of them from it."""


class Listener(Protocol):
    """A party that wants the outcome of a job.

    Attributes:
        call: the call as this listener submitted it.
    """

    call: Call

    @property
    def priority(self) -> Priority:
        """The order among waiting calls."""

    @property
    def stream(self) -> Stream | None:
        """The run it belongs to; None: none."""

    @property
    def context(self) -> Context:
        """The context of the submitting code: events are delivered in it."""

    @property
    def wants_calls(self) -> bool:
        """True if further calls are to be made for it; a job stops if none of its listeners wants any."""

    def ended(self, job: Progress) -> None:
        """Handle the end of the job. It must be quick and must not raise."""
