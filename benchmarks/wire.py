"""The sandbox's judge behind a wire of its own, on a clock that leaps: ten thousand calls in a few seconds.

What is real: the sandbox's judge, limit, locks, tokens, mails and ledger, and of our client all that stands above
the transport (scheduler, budget, retries, runs). What is not: HTTP. A call is two timers, one for its way to the
judge and one for its way back, and it arrives also when its caller has given it up meanwhile.
"""

import asyncio
import contextlib
import functools
import itertools
import math
import random
import selectors
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any, Final, TypeVar
from unittest import mock

from feishu_mail_async import FeishuMailClient
from feishu_mail_async import client as client_module
from feishu_mail_async._api.bodies import Body
from feishu_mail_async._api.endpoints import SEND
from feishu_mail_async._api.protocol import CallEnd, Reply
from feishu_mail_async._secrecy import Hidden
from feishu_mail_async._transport import NOT_MADE, Failure, Transport
from feishu_mail_async.sandbox import CallLog, Fault, Window
from feishu_mail_async.sandbox import faults as sandbox_faults
from feishu_mail_async.sandbox.endpoints import Endpoints
from feishu_mail_async.sandbox.judge import Judge, Plan
from feishu_mail_async.sandbox.oauth import OAuth
from feishu_mail_async.sandbox.paths import read_call
from feishu_mail_async.sandbox.window import make_window
from feishu_mail_async.sandbox.world import SEND_SCOPE, World

__all__ = ["CALLS", "PER", "Server", "Ways", "near", "ours", "run_virtual"]

CALLS: Final = 20
PER: Final = 60.0
"""The limit of the send endpoint: calls in so many seconds."""

_LEAST_PASS: Final = 1e-7
"""Seconds that one pass of the loop takes. With none at all, a limiter that a rounding error has woken too early
would look at the same clock for ever."""

Ways = Callable[[random.Random], tuple[float, float]]
"""Draws the seconds that one call takes to the server, and back."""

_NOWHERE: Final = "http://127.0.0.1:9"
"""No call ever goes there: the wire stands in its place."""

T = TypeVar("T")


class _NoInput(selectors.DefaultSelector):
    """Waits for nothing: it reports how long it was asked to wait, and that nothing has come in."""

    def __init__(self, passes: Callable[[float], None]) -> None:
        super().__init__()
        self._passes = passes

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("nothing is going to happen any more, and something waits for it")
        self._passes(timeout)
        return []


class _LeapingLoop(asyncio.SelectorEventLoop):
    """An event loop without input, whose clock begins at 0 and leaps to the next timer when all else is done."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_NoInput(self._pass))

    def time(self) -> float:
        return self._now

    def _pass(self, seconds: float) -> None:
        self._now += max(seconds, _LEAST_PASS)


def run_virtual(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on a clock of its own; nothing in it may wait for sockets or threads."""
    with asyncio.Runner(loop_factory=_LeapingLoop) as runner:
        return runner.run(work)


def near(draw: random.Random) -> tuple[float, float]:
    """A round trip of 0.05 to 0.25 s."""
    return draw.uniform(0.025, 0.125), draw.uniform(0.025, 0.125)


class Server:
    """The sandbox's judge and what it decides about, and the ways there and back.

    Args:
        ways: draws the two ways of each call.
        window: how the limit's window is laid.
        count_refusals: whether refused calls fill it too.
        seed: of the ways and the ids.

    Attributes:
        ledger: what arrived, and what was counted.
        round_trips: seconds that each call took there and back, answered or not.
    """

    def __init__(
        self, ways: Ways, *, window: Window = Window.SLIDING, count_refusals: bool = False, seed: int = 0
    ) -> None:
        self.ledger = CallLog(PER)
        self.round_trips: list[float] = []
        self._ways = ways
        self._random = random.Random(seed)
        self._log_ids = itertools.count(1)
        self._world = World(seed, None)
        self._oauth = OAuth(self._world, "cli_benchmark", "", math.inf, self.ledger.refreshes)
        self._judge = Judge(
            world=self._world,
            oauth=self._oauth,
            ledger=self.ledger,
            endpoints=Endpoints(self._world, self.ledger),
            window=make_window(window, CALLS, PER, count_refusals=count_refusals),
            calls=CALLS,
        )

    def add_user(self, name: str) -> str:
        """Add a user, and return a token of theirs that does not end."""
        self._world.add_user(name, None)
        return self._oauth.new_access(name, frozenset({SEND_SCOPE}), None)

    def add_draft(self, user: str) -> str:
        """Put a draft into a user's mailbox, and return its id."""
        mailbox = self._world.mailbox(self._world.user(user).address)
        return self._world.add_draft(mailbox, None).draft_id

    def script(self, draft_id: str, fault: Fault) -> None:
        """Let this happen to the next send of a draft that gets as far as being carried out."""
        self._judge.script(draft_id, fault)

    def send(self, draft_id: str, token: str) -> asyncio.Future[sandbox_faults.Reply]:
        """Let the call set out that sends a draft of the token's own mailbox; as `post`."""
        return self.post(SEND.url(mailbox="me", draft_id=draft_id), token)

    def post(self, path: str, token: str) -> asyncio.Future[sandbox_faults.Reply]:
        """Let a call set out.

        Args:
            path: as `Endpoint.url` makes it.
            token: whose call it is.

        Returns:
            what its answer will be: ConnectionResetError where the connection breaks, and nothing at all where
            no answer ever comes.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[sandbox_faults.Reply] = loop.create_future()
        there, back = self._ways(self._random)
        self.round_trips.append(there + back)
        loop.call_later(there, self._arrive, path, token, back, answer)
        return answer

    def _arrive(self, path: str, token: str, back: float, answer: asyncio.Future[sandbox_faults.Reply]) -> None:
        call = read_call("POST", path)
        assert call is not None
        plan = self._judge.judge(
            call, authorization=f"Bearer {token}", body=b"", log_id=f"wire{next(self._log_ids)}", delay=None
        )
        if plan.effect is not None:
            plan.effect()
        asyncio.get_running_loop().call_later(back, self._leave, plan, answer)

    def _leave(self, plan: Plan, answer: asyncio.Future[sandbox_faults.Reply]) -> None:
        self._judge.release(plan)
        kind = sandbox_faults.Kind.NORMAL if plan.fault is None else plan.fault.kind
        if answer.done() or kind is sandbox_faults.Kind.HANG:
            return  # the caller has given up, or will
        if kind is sandbox_faults.Kind.RESET:
            answer.set_exception(ConnectionResetError("the connection broke"))
        else:
            answer.set_result(plan.reply)


class _Wire(Transport):
    """Our client's transport, with the wire in the place of aiohttp's exchange."""

    def __init__(self, server: Server, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._server = server

    async def exchange(
        self,
        method: str,  # noqa: ARG002 - it is always POST
        path: str,
        token: Hidden[str] | None,
        body: Body | None = None,  # noqa: ARG002 - sending has none
        may_go: Callable[[], bool] = lambda: True,
    ) -> Reply | Failure:
        if not may_go():
            return NOT_MADE
        assert token is not None
        try:
            async with asyncio.timeout(self.attempt_timeout):
                reply = await self._server.post(path, token.value)
        except TimeoutError:
            return Failure(CallEnd.LOST, f"none within {self.attempt_timeout:g} s")
        except ConnectionResetError as error:
            return Failure(CallEnd.LOST, str(error))
        reset = dict(reply.headers).get(sandbox_faults.RESET_HEADER)
        return Reply(reply.status, reply.body, reset=reset)


@contextlib.contextmanager
def _on(server: Server) -> Iterator[None]:
    with mock.patch.object(client_module, "Transport", functools.partial(_Wire, server)):
        yield


def ours(server: Server, tokens: Mapping[str, str], **settings: Any) -> FeishuMailClient:
    """Our client, whole but for the exchange over HTTP; the settings are its own."""
    with _on(server):
        return FeishuMailClient(tokens, base_url=_NOWHERE, **settings)
