"""The decision about a call at the instant it arrives: limit, token, mailbox, locks, and the fault that is due.

Nothing here awaits, so no other call can come between a check and the lock that follows from it.
"""

import math
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from feishu_mail_async import codes

from .calllog import SEND, Arrival, CallLog
from .case import Case, Effect, now
from .endpoints import SUBMITTING, Endpoints
from .faults import LIMIT_HEADER, RESET_HEADER, Fault, Kind, Reply, refusal
from .messages import Mail, read_submission
from .oauth import OAuth
from .paths import Call
from .window import RateWindow, Window, make_window
from .world import MODIFY, READ, SEND_SCOPE, World

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Judge", "Plan"]

_SCOPES: Final = {
    SEND: SEND_SCOPE,
    "cancel": SEND_SCOPE,
    "list": READ,
    "read": READ,
    "create": MODIFY,
    "update": MODIFY,
    "delete": MODIFY,
    "mails": READ,
    "delivery": READ,
    "recall": MODIFY,
    "recall_progress": READ,
}
_WRITES: Final = frozenset({SEND, "cancel", "create", "update", "delete", "recall"})
# (calls, seconds), from the platform's pages of these endpoints; those of "update" and "mails" are not documented.
_SIBLING_LIMITS: Final = {
    "list": (10, 1.0),
    "read": (10, 1.0),
    "create": (5, 1.0),
    "update": (5, 1.0),
    "delete": (5, 1.0),
    "cancel": (5, 1.0),
    "mails": (10, 1.0),
    "delivery": (10, 1.0),
    "recall": (10, 1.0),
    "recall_progress": (20, 60.0),
}
_LARGE: Final = 1024 * 1024
"""Bytes from which on a body is not read between two steps of the loop: it takes some 30 milliseconds."""

_AS_USUAL: Final = frozenset({Kind.DELAY, Kind.NORMAL, Kind.GRANT})


class _RefusedError(Exception):
    """A refusal, which ends the judgement of a call, with the answer from the table of codes."""

    def __init__(self, row: codes.Code, *headers: tuple[str, str], paused: bool = False) -> None:
        super().__init__(row.name)
        self.reply = refusal(row, *headers)
        self.paused = paused


@dataclass(slots=True)
class Plan:
    """The decision about a call, made when it arrived.

    Attributes:
        log_id: the answer's `X-Tt-Logid`.
        call: the endpoint and ids read from the request line.
        time: the arrival, in seconds of the loop's clock.
        reply: the answer.
        fault: the fault of this call; None if nothing goes wrong.
        user: the user's name; None until the token has been checked.
        mailbox: the mailbox's address, `me` resolved where it could be.
        locks: the names of the locks that the call holds until it is released.
        effect: the change to make when the call has been processed; None if there is none.
        accepted: True if the call passed the rate limit.
        paused: True if a pause refused it, not the window.
        undecided: the call, if its body is too large to be read at once: `decide` has to be called with the mail
            in it. Until then there is no answer and no effect.
    """

    log_id: str
    call: Call
    time: float
    reply: Reply
    fault: Fault | None
    mailbox: str
    user: str | None = None
    locks: tuple[str, ...] = ()
    effect: Effect | None = None
    accepted: bool = False
    paused: bool = False
    undecided: Case | None = None


class Judge:
    """The judge of all calls of the mail endpoints, which records each in the call log.

    Args:
        world: the mail.
        oauth: the tokens.
        ledger: the call log.
        endpoints: the endpoints, which carry calls out.
        window: the send endpoint's window.
        calls: the number of calls that this window holds.

    Attributes:
        on_call: see `Sandbox.on_call`.
        paused_until: the time until which sends are refused, in seconds of the loop's clock.
    """

    def __init__(
        self, *, world: World, oauth: OAuth, ledger: CallLog, endpoints: Endpoints, window: RateWindow, calls: int
    ) -> None:
        self._world = world
        self._oauth = oauth
        self._ledger = ledger
        self._endpoints = endpoints
        self._limits: dict[str, tuple[RateWindow, int]] = {
            name: (make_window(Window.SLIDING, most, per), most) for name, (most, per) in _SIBLING_LIMITS.items()
        }
        self._limits[SEND] = (window, calls)
        self._locks: set[str] = set()
        self._scripts: dict[str, deque[Fault]] = {}
        self._call_scripts: dict[str, deque[Fault]] = {}
        self.on_call: Callable[[Arrival], Fault | None] | None = None
        self.paused_until = -math.inf

    def script(self, draft_id: str, *faults: Fault) -> None:
        """Queue faults for the next sends of a draft.

        Args:
            draft_id: the draft's id.
            *faults: the faults, one for each send.
        """
        self._scripts.setdefault(draft_id, deque()).extend(faults)

    def script_calls(self, endpoint: str, *faults: Fault) -> None:
        """Queue faults for the next calls of an endpoint.

        Args:
            endpoint: the endpoint's name.
            *faults: the faults, one for each call.

        Raises:
            ValueError: there is no such endpoint.
        """
        if endpoint not in _SCOPES:
            raise ValueError(f"endpoint: give one of {', '.join(_SCOPES)}, not {endpoint!r}")
        self._call_scripts.setdefault(endpoint, deque()).extend(faults)

    def claim_delay(self, call: Call) -> Fault | None:
        """Return the scripted delay of a call that sets out, and use it up; None if none is due.

        A delay begins before the call can be judged, so it is taken here.

        Args:
            call: the call.
        """
        script = self._script_of(call)
        return script.popleft() if script and script[0].kind is Kind.DELAY else None

    def _script_of(self, call: Call) -> deque[Fault] | None:
        """Return the script for a call: that of the draft it sends, else that of its endpoint."""
        script = self._scripts.get(call.draft_id or "") if call.endpoint == SEND else None
        return script or self._call_scripts.get(call.endpoint)

    def release(self, plan: Plan) -> None:
        """Release the call's locks. Idempotent.

        Args:
            plan: the decision about the call.
        """
        self._locks.difference_update(plan.locks)
        # Otherwise a second release would take the locks from the call that holds them by then.
        plan.locks = ()

    def forget_locks(self) -> None:
        """Release every lock, once all calls have ended."""
        self._locks.clear()

    def judge(
        self, call: Call, *, authorization: str | None, body: bytes, log_id: str, delay: Fault | None
    ) -> Plan:
        """Decide about a call that arrives now, take its locks, and record it in the call log.

        Only a large message is not judged here, because that takes a while: then the plan is `undecided`.

        Args:
            call: the endpoint and ids read from the request line.
            authorization: the Authorization header.
            body: the request's body.
            log_id: the `X-Tt-Logid` of the answer to come.
            delay: the result of `claim_delay` when the call set out.

        Returns:
            the decision. Its locks are held until `release`.
        """
        plan = Plan(log_id, call, now(), _NOTHING, delay, call.mailbox)
        try:
            # First of all, so that calls with a bad token count against the limit too: the strictest reading.
            self._limit(call, plan.time)
            plan.accepted = True
            case = self._identify(call, authorization, body, plan)
            if call.endpoint in _WRITES:
                self._lock(case, plan)
        except _RefusedError as error:
            plan.reply, plan.paused = error.reply, error.paused
            self._ledger.record(_arrival(plan), paused=plan.paused)
            return plan
        # The call has passed every check: only now may a fault replace answer and effect.
        script = self._script_of(call)
        if plan.fault is None and script:
            plan.fault = script.popleft()
        plan.undecided = case
        if call.endpoint not in SUBMITTING:
            self.decide(plan, None)
        elif len(body) < _LARGE:
            self.decide(plan, read_submission(body))
        return plan

    def decide(self, plan: Plan, submitted: Mail | codes.Code | None) -> None:
        """Decide about the answer and the effect of a call that is undecided, and record it in the call log.

        Args:
            plan: the decision so far.
            submitted: what `read_submission` made of the body; None if the endpoint takes no message.
        """
        assert plan.undecided is not None
        case, plan.undecided = replace(plan.undecided, submitted=submitted), None
        plan.reply, plan.effect = self._endpoints.carry_out(case)
        arrival = self._disturb(case, _arrival(plan), plan)
        if plan.effect is not None:
            self._endpoints.begin(case)
        self._ledger.record(arrival)

    def _limit(self, call: Call, time: float) -> None:
        if call.endpoint not in self._limits:
            return
        window, calls = self._limits[call.endpoint]
        if call.endpoint == SEND and time < self.paused_until:
            raise _limited(calls, self.paused_until - time, paused=True)
        wait = window.arrive(time)
        if wait is not None:
            raise _limited(calls, wait)

    def _identify(self, call: Call, authorization: str | None, body: bytes, plan: Plan) -> Case:
        grant = self._oauth.check(authorization, plan.time)
        if isinstance(grant, codes.Code):
            raise _RefusedError(grant)
        user = self._world.users[grant.user]
        plan.user = user.name
        if _SCOPES[call.endpoint] not in grant.scopes:
            raise _RefusedError(codes.named("UserScopeMissing"))
        if not call.readable:
            raise _RefusedError(codes.named("InvalidRequest"))
        mailbox = self._world.find_mailbox(call.mailbox, user)
        if mailbox is None:
            raise _RefusedError(codes.named("MailboxNotFound"))
        plan.mailbox = mailbox.address
        if mailbox.closed:
            raise _RefusedError(codes.named("MailboxNotFound"))
        if user.name not in mailbox.members:
            raise _RefusedError(codes.named("PermissionDenied"))
        return Case(call, body, plan.time, user, mailbox)

    def _lock(self, case: Case, plan: Plan) -> None:
        locks = (f"user:{case.user.name}", f"mailbox:{case.mailbox.address.casefold()}")
        if not self._locks.isdisjoint(locks):
            raise _RefusedError(codes.named("ConcurrentWrite"))
        self._locks.update(locks)
        plan.locks = locks

    def _disturb(self, case: Case, arrival: Arrival, plan: Plan) -> Arrival:
        """Let the fault that is due, if any, replace the answer and the effect."""
        if plan.fault is None and self.on_call is not None:
            plan.fault = self.on_call(arrival)
        fault = plan.fault
        if fault is None or fault.kind in _AS_USUAL:
            return arrival
        plan.effect = (plan.effect or self._endpoints.forced(case)) if fault.accepted else None
        if fault.reply is not None:
            plan.reply = fault.reply
            return replace(arrival, scripted=True, code=fault.reply.code, http_status=fault.reply.status)
        return replace(arrival, scripted=True, code=None, http_status=_OK if fault.kind is Kind.HUGE else None)


_OK: Final = 200
_NOTHING: Final = Reply(500, b"")
"""The answer of a plan before anything is decided; it is never sent."""


def _arrival(plan: Plan) -> Arrival:
    return Arrival(
        time=plan.time,
        endpoint=plan.call.endpoint,
        user=plan.user,
        mailbox=plan.mailbox,
        draft_id=plan.call.draft_id,
        message_id=plan.call.message_id,
        code=plan.reply.code,
        http_status=plan.reply.status,
        scripted=False,
        accepted=plan.accepted,
        log_id=plan.log_id,
    )


def _limited(calls: int, wait: float, *, paused: bool = False) -> _RefusedError:
    # Whole seconds, rounded up, so that a client that waits as long is accepted. The microsecond taken off keeps
    # a float's rounding error from adding a whole second.
    seconds = max(1, math.ceil(wait - 1e-6))
    return _RefusedError(
        codes.named("FrequencyLimited"),
        (LIMIT_HEADER, str(calls)),
        (RESET_HEADER, str(seconds)),
        paused=paused,
    )
