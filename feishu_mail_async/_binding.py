"""A client's place in the engine of its app: taken at its first use, given back when it is closed.

    FeishuMailClient --1:1--> Binding --n:1--> Engine (one for each loop and EngineKey) --1:n--> Scheduler
                                 `--1:n--> Intake (one for each endpoint) --n:1--> Scheduler --n:1--> store

A client may be built outside a loop. It binds to the loop in which it is first used, and to the process: neither
another loop nor a forked child can use it.
"""

import asyncio
import contextlib
import itertools
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar
from weakref import WeakSet

from ._api.bodies import Body, json_body
from ._api.endpoints import ENDPOINTS, READ, SEND, Endpoint
from ._auth.tokens import Account, Tokens
from ._calls.bulk import BulkRun
from ._calls.call import Call
from ._calls.caller import request
from ._calls.intake import Intake
from ._calls.preparing import Preparation
from ._checks import check_type
from ._engine import Engine, EngineKey, engine_of, forget_engine, is_open
from ._forks import NOT_THIS_CLIENT, PROCESS, Origin
from ._hub import EventReader, Subscription
from ._scheduling.record import DraftKey, Schedule
from ._scheduling.waiters import mailbox_key
from ._tasks import carry_through, start_task
from ._transport import Transport
from .errors import ClientClosed, UnknownUser
from .ledger import Ledger, check_url
from .ledger.opening import StoringLedger
from .model import Draft, Priority, RateLimit, RetryPolicy

__all__ = ["Binding", "check_endpoint", "check_ledger", "check_limits"]

T = TypeVar("T")

_CLOSED: Final = "the client is closed; open a new one"

_LEAST_WRITING: Final = 2.0
"""Least seconds that a client which closes at once leaves its ledger to record the calls that have ended."""


class Binding:
    """What a client shares with the others of its app, and what it has of its own while it is open.

    Args:
        client: the client, which holds this.
        key: the engine's identity.
        limits: the limits of all endpoints, by their names.
        retry: the retry policy.
        tokens: the users' tokens.
        transport: makes the calls.
    """

    def __init__(  # noqa: PLR0917 - one for each thing concerned
        self,
        client: object,
        key: EngineKey,
        limits: dict[str, RateLimit],
        retry: RetryPolicy,
        tokens: Tokens,
        transport: Transport,
    ) -> None:
        self._client = weakref.ref(client)
        self._key = key
        self._limits = limits
        self._retry = retry
        self._tokens = tokens
        self._transport = transport
        self._loop: asyncio.AbstractEventLoop | None = None
        self._engine: Engine | None = None
        self._intakes: dict[str, Intake] = {}
        self._preparation: Preparation | None = None
        self._runs: WeakSet[BulkRun] = WeakSet()
        self._subscriptions: list[Subscription] = []
        self._readers: WeakSet[EventReader] = WeakSet()
        self._numbers = itertools.count()
        self._closed = False
        self._origin = Origin()

    # -- in use ----------------------------------------------------------------------------------------

    def intake(self, endpoint: Endpoint[Any] = SEND) -> Intake:
        """Return the intake of an endpoint; the first use binds the client to the running loop.

        Raises:
            ClientClosed: the client is closed, or belongs to the process that this one was forked from.
            RuntimeError: the client belongs to another loop.
        """
        here = asyncio.get_running_loop()
        if self._closed or self._loop is not here or self._origin.process is not PROCESS.current:
            self._bind(here)
        return self._intakes[endpoint.name]

    @property
    def engine(self) -> Engine:
        """The engine; the first use binds the client, as `intake` does."""
        self.intake()
        assert self._engine is not None
        return self._engine

    def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._closed:
            raise ClientClosed(_CLOSED)
        if self._origin.elsewhere:
            raise ClientClosed(NOT_THIS_CLIENT)
        if self._loop is not None:
            raise RuntimeError(
                "the client belongs to another event loop; from other threads use "
                "asyncio.run_coroutine_threadsafe(client.send_draft(...), loop)"
            )
        engine = engine_of(loop, self._key, self._limits)
        self._join(engine)
        self._engine = engine
        self._intakes = {
            name: Intake(scheduler, self._transport, self._tokens, self._retry)
            for name, scheduler in engine.schedulers.items()
        }
        self._preparation = Preparation(self._intakes[SEND.name], self._intakes[READ.name])
        self._intakes[SEND.name].prepare = self._preparation.admit
        self._loop = loop
        self._origin.opened()

    def _join(self, engine: Engine) -> None:
        """Share the engine; refuse if another open client has set a different limit."""
        for name, limit in self._limits.items():
            in_force = engine.schedulers[name].limit
            if limit != in_force:
                if is_open(self._key):
                    what = "rate_limit" if name == SEND.name else f"limits[{name!r}]"
                    raise ValueError(
                        f"{what}: another client of {self._key[0]} and app {self._key[1]!r} is open with "
                        f"{in_force}; give the same, or change it with set_rate_limit"
                    )
                engine.schedulers[name].set_limit(limit)
        engine.clients.add(self._client())
        for subscription in self._subscriptions:
            engine.events.add(subscription)
        self._tokens.on_change = engine.token_changed

    def account(self, draft: Draft) -> Account:
        """Return the account of a draft's user; an UnknownUser error carries the draft."""
        try:
            return self._tokens.account(draft.user)
        except UnknownUser as error:
            error.draft = draft
            raise

    def sending(self, draft: Draft, schedule: Schedule | None = None) -> Call:
        """Return the call that sends a draft, or has the server send it later.

        Raises:
            UnknownUser: there is no such user.
        """
        account = self.account(draft)
        key = DraftKey(account.key, mailbox_key(account.key, draft.mailbox), draft.draft_id)
        path = SEND.url(mailbox=draft.mailbox, draft_id=draft.draft_id)
        if schedule is None:
            return Call(SEND, path, key, account, draft)
        return Call(SEND, path, key, account, draft, json_body({"send_time": str(schedule.at)}), schedule)

    async def call(
        self,
        endpoint: Endpoint[T],
        account: Account,
        *,
        mailbox: str,
        query: Mapping[str, str] | None = None,
        body: Body | None = None,
        priority: Priority = Priority.NORMAL,
        deadline: float | None = None,
        **segments: str,
    ) -> T:
        """Make a call that sends no draft, and return what it reads.

        The same write made twice at once is one call, unless it has a body: then each has its own. So has each
        read, since the answer on its way to somebody else may be older than what this caller knows of.

        Args:
            endpoint: the endpoint.
            account: the account of the user.
            mailbox: the mailbox.
            query: the query of the URL.
            body: the request's body.
            priority: the order among waiting calls.
            deadline: seconds for all of it; None: no limit.
            **segments: the values of the other names in the endpoint's path.
        """
        path = endpoint.url(query, mailbox=mailbox, **segments)
        name = path if endpoint.writes and body is None else f"{path} {next(self._numbers)}"
        key = DraftKey(account.key, mailbox_key(account.key, mailbox), name)
        call = Call(endpoint, path, key, account, body=body)
        job = await request(self.intake(endpoint), call, priority, deadline)
        return job.value(endpoint.what, endpoint.read)

    def set_limit(self, endpoint: str, limit: RateLimit) -> None:
        """Change the limit of an endpoint, for all clients of the app."""
        engine = self.engine
        self._limits[endpoint] = limit
        engine.schedulers[endpoint].set_limit(limit)

    def add_run(self, run: BulkRun) -> None:
        """Have a run stopped when the client is closed."""
        self._runs.add(run)

    # -- subscriptions ---------------------------------------------------------------------------------

    def read_events(self, buffer: int) -> EventReader:
        """Return a reader of the app's events from now on; dropping it ends its subscription."""
        reader = EventReader(buffer)
        end = self.subscribe(reader.subscription())
        weakref.finalize(reader, end).atexit = False
        self._readers.add(reader)
        return reader

    def subscribe(self, subscription: Subscription) -> Callable[[], None]:
        """Add a subscription, and return a function that ends it.

        Raises:
            ClientClosed: the client is closed.
        """
        if self._closed:
            raise ClientClosed(_CLOSED)
        self._subscriptions.append(subscription)
        if self._engine is not None:
            self._engine.events.add(subscription)

        def end() -> None:
            if subscription in self._subscriptions:
                self._subscriptions.remove(subscription)
            if self._engine is not None:
                self._engine.events.remove(subscription)

        return end

    def _unsubscribe(self) -> None:
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            if self._engine is not None:
                self._engine.events.remove(subscription)
            subscription.close()
        for reader in self._readers:
            reader.end()

    # -- closing ---------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """True once it has begun to close."""
        return self._closed

    async def close(self, timeout: float | None) -> None:  # noqa: ASYNC109 - that of the client's `close`
        """Close it as `FeishuMailClient.close` says; cancelling the caller does not undo it."""
        self._closed = True
        if self._origin.elsewhere:
            return
        if self._loop is not None and self._loop.is_closed():
            await self._let_go()
            return
        try:
            await carry_through(self._close(timeout), "feishu-mail-close")
        except asyncio.CancelledError:
            # The caller has given up waiting: calls in flight get a moment more, and are cancelled then.
            hurried = _LEAST_WRITING if timeout is None else min(timeout, _LEAST_WRITING)
            carry_through(self._close(hurried), "feishu-mail-close")
            raise

    async def _close(self, timeout: float | None) -> None:  # noqa: ASYNC109
        """End all waiting sends, let calls in flight finish, and release everything the client holds."""
        for run in list(self._runs):
            run.stop()
        for intake in self._intakes.values():
            intake.close()
        try:
            await self._end_calls(timeout)
            await self._tokens.close()
            for intake in self._intakes.values():
                await intake.end_fetches()
        finally:
            if self._engine is not None:
                if (client := self._client()) is not None:
                    self._engine.clients.discard(client)
                await self._leave(self._engine, timeout)
            await self._transport.close()
            self._unsubscribe()
            await asyncio.sleep(0)  # a dispatcher without waiters ends in this step, and not as a pending task

    async def _let_go(self) -> None:
        """Release what can be released once the client's loop has ended: what waits there ends no more."""
        client = self._client()
        if self._engine is not None and client is not None:
            self._engine.clients.discard(client)
        self._unsubscribe()
        with contextlib.suppress(RuntimeError):  # of connections, whose loop is closed
            await self._transport.close()

    async def _end_calls(self, timeout: float | None) -> None:  # noqa: ASYNC109
        """Let calls in flight finish, and all that is on its way to a call end."""
        now = asyncio.get_running_loop().time
        began = now()
        for intake in self._intakes.values():
            await intake.wait_closed(None if timeout is None else max(0.0, began + timeout - now()))
        runs = list(self._runs)
        for run in runs:
            await run.read_rest(timeout)
        for intake in self._intakes.values():
            await intake.end_look_ups(timeout)
        if self._preparation is not None:
            await self._preparation.ended()
        for run in runs:
            await run.finish()

    async def _leave(self, engine: Engine, timeout: float | None) -> None:  # noqa: ASYNC109
        """Wait until the ended calls are on record; the last client of a ledger that was opened here closes it."""
        patience = None if timeout is None else max(timeout, _LEAST_WRITING)
        writing = start_task(engine.written(), "feishu-mail-written")
        await asyncio.wait([writing], timeout=patience)
        writing.cancel()
        if engine.ledger is not None and not engine.clients:
            assert self._loop is not None
            forget_engine(self._loop, self._key)
            await engine.ledger.close()


def check_ledger(ledger: str | Ledger | None, app: str | None) -> str | StoringLedger | None:
    """Return the ledger if it is one, and `app` names what it is kept by."""
    if ledger is None:
        return None
    if app is None:
        raise ValueError("app: a ledger is kept by app; name yours, for example with its app id")
    if isinstance(ledger, str):
        check_url(ledger)
    elif not isinstance(ledger, StoringLedger):
        raise TypeError(f"ledger: give a URL, what open_ledger returned, or None, not {type(ledger).__name__}")
    return ledger


def check_endpoint(name: str, endpoint: str) -> None:
    """Raise ValueError, naming the parameter, unless there is such an endpoint."""
    if endpoint not in ENDPOINTS:
        raise ValueError(f"{name}: there is no endpoint {endpoint!r}; give one of {', '.join(ENDPOINTS)}")


def check_limits(rate_limit: RateLimit, limits: Mapping[str, RateLimit] | None) -> dict[str, RateLimit]:
    """Return the limits of all endpoints: those that are given, or else those of the documents."""
    found = {name: endpoint.limit for name, endpoint in ENDPOINTS.items()}
    for name, limit in (limits or {}).items():
        check_endpoint("limits", name)
        if name == SEND.name:
            raise ValueError("limits: the limit of sends is rate_limit")
        found[name] = check_type(f"limits[{name!r}]", limit, RateLimit)
    return found | {SEND.name: check_type("rate_limit", rate_limit, RateLimit)}
