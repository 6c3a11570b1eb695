"""The checks of `doctor`: what may be missing to send a draft, found out without sending one.

They stand in a table, and run in its order. What one of them finds out stays in the case for those after it. A
check is not made if one that it needs has not found all well.
"""

import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Final

from feishu_mail_async._api.endpoints import CREATE, LIST, SEND
from feishu_mail_async._api.protocol import Reply, judge
from feishu_mail_async._auth.store import StoredToken
from feishu_mail_async._clock import wall_clock
from feishu_mail_async._scheduling.suspensions import subjects
from feishu_mail_async._scheduling.waiters import mailbox_key
from feishu_mail_async._secrecy import Hidden
from feishu_mail_async._transport import Failure, Transport
from feishu_mail_async.cli.account import UNNAMED, Account
from feishu_mail_async.cli.app_secret import APP_SECRET
from feishu_mail_async.cli.options import AccountOptions
from feishu_mail_async.cli.problems import CannotStart
from feishu_mail_async.cli.render.estimate import name_limit
from feishu_mail_async.cli.render.wording import Width, moment, name_subject, say, span
from feishu_mail_async.cli.state_dir import find_ledger
from feishu_mail_async.codes import ResumeWhen
from feishu_mail_async.errors import (
    AccessDenied,
    BadReply,
    FeishuMailError,
    InvalidRequest,
    InvalidToken,
    LedgerError,
    Misconfigured,
    NotSent,
    ScopeMissing,
)
from feishu_mail_async.ledger import Ledger, open_ledger
from feishu_mail_async.ledger.texts import stored
from feishu_mail_async.oauth import OFFLINE

__all__ = ["CHECKS", "Findings", "Status", "examine"]

_TIMEOUT: Final = 15.0
_WIDEST_GAP: Final = 60.0
"""The tolerated difference of two clocks, in seconds: tokens are refreshed five minutes before they expire."""
_AGAIN: Final = "feishu-mail-async login"


class Status(StrEnum):
    """The status of a check."""

    OK = "ok"
    PROBLEM = "problem"
    NOT_CHECKED = "not checked"


class _Problem(Exception):
    """What a check has found wrong.

    Args:
        told: a sentence.
        of: the check that it belongs to; None for the one that found it.
        advised: True if the sentence says what to do, so that the check's remedy is left out.
    """

    def __init__(self, told: object, *, of: str | None = None, advised: bool = False) -> None:
        super().__init__(str(told))
        self.of = of
        self.advised = advised


class _NotChecked(Exception):
    """The reason why a check cannot be made."""


@dataclass(slots=True)
class _Case:
    """What is examined, and what the checks have found out.

    Attributes:
        options: the options of the command line.
        mailbox: the mailbox.
        account: the account, or the reason why there is none.
        opened: what is to be closed in the end.
        home: the ledger.
        transport: the transport to the host.
        answer: the host's answer to a call without a token.
        asked: this machine's time of that call, in Unix seconds.
        listed: the host's word on listing the drafts: an error, or None if it did.
    """

    options: AccountOptions
    mailbox: str
    account: Account | CannotStart
    opened: AsyncExitStack
    home: Ledger | None = None
    transport: Transport | None = None
    answer: Reply | None = None
    asked: float = 0.0
    listed: FeishuMailError | None = None

    @property
    def known(self) -> Account:
        """The account, for a check that needs the login."""
        assert isinstance(self.account, Account)
        return self.account

    async def kept(self) -> StoredToken | None:
        """Return the login's tokens; None for a token that was given."""
        logins, user = self.known.logins, self.known.user
        if logins is None or self.home is None or user is None:
            return None
        return await self.home.tokens(logins.base_url, logins.app).load(user)


@dataclass(frozen=True, slots=True)
class _Check:
    """A check.

    Attributes:
        name: its name.
        look: a function that makes it, and returns a sentence if all is well.
        needs: the checks that must have found all well before.
        remedy: what to do about a problem, where the problem does not say it.
    """

    name: str
    look: Callable[[_Case], Awaitable[str]]
    needs: tuple[str, ...] = ()
    remedy: str = ""


Findings = dict[str, tuple[Status, str]]
"""Name of the check -> its status, and a sentence."""


async def examine(options: AccountOptions, mailbox: str, account: Account | CannotStart) -> Findings:
    """Make all checks.

    Args:
        options: the options of the command line.
        mailbox: the mailbox.
        account: the account, or the reason why there is none.
    """
    async with AsyncExitStack() as opened:
        case = _Case(options, mailbox, account, opened)
        findings: Findings = {}
        for check in CHECKS:
            await _make(check, case, findings)
        return findings


async def _make(check: _Check, case: _Case, findings: Findings) -> None:
    findings[check.name] = Status.NOT_CHECKED, "because of the problem above"
    if any(findings[need][0] is not Status.OK for need in check.needs):
        return
    problem: _Problem | None = None
    try:
        findings[check.name] = Status.OK, await check.look(case)
    except _NotChecked as reason:
        findings[check.name] = Status.NOT_CHECKED, str(reason)
    except CannotStart as error:
        problem = _Problem(error, advised=True)
    except LedgerError as error:
        problem = _Problem(str(error).removeprefix("ledger: "), of="ledger")
    except _Problem as found:
        problem = found
    if problem is not None:
        name = problem.of or check.name
        remedy = "" if problem.advised else next(each.remedy for each in CHECKS if each.name == name)
        findings[name] = Status.PROBLEM, f"{problem}; {remedy}" if remedy else str(problem)


# -- the ledger and the login ----------------------------------------------------------------------------


async def _look_at_ledger(case: _Case) -> str:
    case.home = open_ledger(find_ledger(case.options.ledger))
    case.opened.push_async_callback(case.home.close)
    await case.home.apps()
    caution = getattr(case.home, "caution", "")
    return f"it can be used: {getattr(case.home, 'where', '')}{'; ' if caution else ''}{caution}"


async def _look_at_login(case: _Case) -> str:
    if isinstance(case.account, CannotStart):
        raise case.account
    if case.account.logins is None:
        return f"none is needed: {case.account.source}"
    return f"{case.account.user}, to app {case.account.logins.app}"


# -- the host --------------------------------------------------------------------------------------------


async def _look_at_host(case: _Case) -> str:
    """Make a call without a token: a refusal by the API is the good result."""
    try:
        case.transport = Transport(case.options.host, _TIMEOUT, None)
    except ValueError as error:  # the proxy in the environment is malformed
        raise _Problem(error, advised=True) from error
    case.opened.push_async_callback(case.transport.close)
    began, case.asked = time.monotonic(), wall_clock()
    answer = await case.transport.exchange("GET", LIST.url({"page_size": "1"}, mailbox="me"), None)
    took = time.monotonic() - began
    if isinstance(answer, Failure):
        raise _Problem(f"it cannot be reached: {answer.reason}", advised=answer.lasting)
    refused = judge(answer, LIST, None, case.transport.base_url).error
    if isinstance(refused, BadReply | Misconfigured):
        raise _Problem(refused)
    case.answer, case.asked = answer, case.asked + took / 2
    return f"it answers ({took:.2f} s)"


async def _look_at_clock(case: _Case) -> str:
    assert case.answer is not None
    try:
        theirs = parsedate_to_datetime(case.answer.date or "").timestamp()
    except (ValueError, OverflowError):
        raise _NotChecked("the host does not say what time it is") from None
    gap = case.asked - theirs - 0.5  # Date has whole seconds, so on average it is half a second behind
    if abs(gap) <= _WIDEST_GAP:
        return "it agrees with the host's"
    way = "ahead of" if gap > 0 else "behind"
    raise _Problem(f"this machine's is {span(abs(gap))} {way} the host's, so tokens end when nobody expects it")


# -- the token -------------------------------------------------------------------------------------------


async def _look_at_token(case: _Case) -> str:
    case.listed = error = await _try_token(case)
    if isinstance(error, InvalidToken):
        raise _Problem(say(error, Width.LINE))
    if not (error is None or isinstance(error, ScopeMissing | AccessDenied | InvalidRequest)):
        told = f"it answers, but not to this token now: {say(error, Width.LINE)}"
        raise _Problem(told, of="host", advised=True)
    kept = await case.kept()
    if kept is None:
        return "the host takes it"
    return f"the host takes it, until {moment(kept.expires)}; {_renewal(case, kept)}"


async def _try_token(case: _Case) -> FeishuMailError | None:
    """List a draft of the mailbox, and return the host's word on it. A login is refreshed as for a send."""
    logins, user = case.known.logins, case.known.user
    if logins is None:
        return await _list(case, case.known.tokens[user])
    assert case.home is not None  # the logins come from this ledger
    tokens = logins.tokens(case.home, margin=0.0)  # no refresh of a token that is still valid, only for a check
    try:
        token = await tokens.token(user)
        error = await _list(case, token)
        if isinstance(error, InvalidToken):
            await tokens.refused(user, token)
            error = await _list(case, await tokens.token(user))
    except LedgerError:
        raise
    except NotSent as missing:
        raise _Problem(missing) from None
    finally:
        await tokens.close()
    return error


async def _list(case: _Case, token: str) -> FeishuMailError | None:
    assert case.transport is not None
    answer = await case.transport.exchange(
        "GET", LIST.url({"page_size": "1"}, mailbox=case.mailbox), Hidden(token)
    )
    if isinstance(answer, Failure):
        told = f"it answered, and then it did not ({answer.reason}): try again"
        raise _Problem(told, of="host", advised=True)
    return judge(answer, LIST, token, case.transport.base_url).error


def _renewal(case: _Case, kept: StoredToken) -> str:
    if kept.refresh_token is None:
        return f"then {_AGAIN} again, and allow {OFFLINE} so that it is renewed"
    if case.known.logins is not None and case.known.logins.secret is None:
        return f"to have it renewed set {APP_SECRET}, or {_AGAIN} --keep-secret"
    until = "" if kept.refresh_expires is None else f", until {moment(kept.refresh_expires)} at least"
    return f"it is renewed{until}"


async def _look_at_scopes(case: _Case) -> str:
    if isinstance(case.listed, ScopeMissing):
        raise _Problem(say(case.listed, Width.LINE), advised=True)
    kept = await case.kept()
    if kept is None:
        raise _NotChecked("they are known of logins only")
    granted = kept.scope.split()
    missing = [scope for scope in (SEND.scope, LIST.scope) if scope not in granted]
    if not granted:
        raise _NotChecked("the server did not say what was granted")
    if missing:
        raise _Problem(f"not granted: {', '.join(missing)}")
    return "drafts can be sent and listed" + (
        "" if CREATE.scope in granted else f"; drafts cannot be created without {CREATE.scope}"
    )


async def _look_at_mailbox(case: _Case) -> str:
    if isinstance(case.listed, ScopeMissing):
        raise _NotChecked(f"reading it takes {LIST.scope}")
    if case.listed is not None:
        raise _Problem(say(case.listed, Width.LINE))
    return "it can be read"


# -- the limit -------------------------------------------------------------------------------------------


async def _look_at_permits(case: _Case) -> str:
    assert case.home is not None
    overview = await case.home.overview(case.known.base_url, case.known.budget)
    if overview is None:
        return f"all are free: no call was made with this ledger for app {case.known.budget}"
    limit, user = overview.limit, case.known.user or UNNAMED
    told = [f"{overview.in_use} of {limit.calls} in use ({name_limit(limit)})"]
    if overview.in_use >= limit.calls:
        told.append(f"the next call can go in {span(max(1, overview.next_permit))}")
    if overview.paused is not None:
        told.append(f"the server has asked for a pause, next try in {span(max(1, overview.paused))}")
    mine = {stored(subject) for subject in subjects(user, mailbox_key(user, case.mailbox))}
    suspended = [one for one in overview.suspended if one.subject in mine and one.until is not ResumeWhen.TOKEN]
    for one in suspended:
        again = "the next command tries it again"
        if one.seconds is not None:
            again = f"it may go again in {span(max(1, one.seconds))}"
        told.append(f"{name_subject(one.subject)} is suspended ({one.reason}): {again}")
    if any(one.until is ResumeWhen.HOUR for one in suspended):
        raise _Problem("; ".join(told))
    return "; ".join(told)


CHECKS: Final = (
    _Check("ledger", _look_at_ledger, remedy="or give another one with --ledger"),
    _Check("login", _look_at_login),
    _Check("host", _look_at_host, remedy="check the network, the proxy (HTTPS_PROXY) and --base-url"),
    _Check("clock", _look_at_clock, needs=("host",), remedy="set it right, best by NTP"),
    _Check("token", _look_at_token, needs=("login", "host")),
    _Check("scopes", _look_at_scopes, needs=("login",), remedy=f"see that the app has them, and {_AGAIN} again"),
    _Check("mailbox", _look_at_mailbox, needs=("token",)),
    _Check("permits", _look_at_permits, needs=("ledger", "login")),
)
