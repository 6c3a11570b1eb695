"""`feishu-mail-async doctor`: find out whether drafts could be sent, without sending one.

Each check has a name and a status. Checks that an earlier problem makes impossible count as not checked.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Final

from rich.text import Text

from feishu_mail_async._api.endpoints import LIST, SEND
from feishu_mail_async._api.protocol import Reply, judge
from feishu_mail_async._auth.refresh import RefreshingTokens
from feishu_mail_async._auth.store import StoredToken
from feishu_mail_async._clock import wall_clock
from feishu_mail_async._scheduling.lanes import mailbox_key
from feishu_mail_async._scheduling.suspensions import subjects
from feishu_mail_async._text import escape
from feishu_mail_async._transport import Failure, Transport
from feishu_mail_async.cli.account import UNNAMED, Account, read_account
from feishu_mail_async.cli.app_secret import APP_SECRET
from feishu_mail_async.cli.logs import Verbose
from feishu_mail_async.cli.loop import run_loop
from feishu_mail_async.cli.options import AccountOptions, JsonOption, MailboxOption, VerboseOption
from feishu_mail_async.cli.problems import SOME_NOT, CannotStart
from feishu_mail_async.cli.render.console import console, print_hanging
from feishu_mail_async.cli.render.estimate import name_limit
from feishu_mail_async.cli.render.wording import Width, moment, name_subject, say, span
from feishu_mail_async.cli.state_dir import find_ledger
from feishu_mail_async.codes import ResumeWhen
from feishu_mail_async.errors import (
    AccessDenied,
    BadReply,
    InvalidRequest,
    InvalidToken,
    LedgerError,
    Misconfigured,
    NotSent,
    ScopeMissing,
)
from feishu_mail_async.ledger import Ledger, Overview, open_ledger
from feishu_mail_async.ledger.texts import stored
from feishu_mail_async.oauth import MODIFY, OFFLINE

from .listing import check_mailbox

__all__ = ["doctor"]

_TIMEOUT: Final = 15.0
_WIDEST_GAP: Final = 60.0
"""The tolerated difference of two clocks, in seconds: tokens are refreshed five minutes before they expire."""
_AGAIN: Final = "feishu-mail-async login"


class _Status(StrEnum):
    OK = "ok"
    PROBLEM = "problem"
    NOT_CHECKED = "not checked"


_STYLES: Final = {_Status.OK: "green", _Status.PROBLEM: "red", _Status.NOT_CHECKED: "yellow"}
_WIDTH: Final = max(map(len, _Status)) + 2
_NAMES: Final = ("ledger", "login", "host", "clock", "token", "scopes", "mailbox", "permits")


@dataclass(slots=True)
class _Findings:
    """The results of the checks.

    Attributes:
        found: name of the check -> its status, and a sentence.
    """

    found: dict[str, tuple[_Status, str]] = field(default_factory=dict)

    def ok(self, name: str, told: str) -> None:
        self.found[name] = _Status.OK, told

    def problem(self, name: str, told: object) -> None:
        self.found[name] = _Status.PROBLEM, str(told)

    def unknown(self, name: str, why: str) -> None:
        self.found.setdefault(name, (_Status.NOT_CHECKED, why))

    def is_ok(self, name: str) -> bool:
        return name in self.found and self.found[name][0] is _Status.OK

    @property
    def rows(self) -> Iterator[tuple[str, _Status, str]]:
        for name in _NAMES:
            yield name, *self.found.get(name, (_Status.NOT_CHECKED, "because of the problem above"))

    @property
    def well(self) -> bool:
        return not any(status is _Status.PROBLEM for status, _ in self.found.values())


def doctor(
    *,
    mailbox: MailboxOption = "me",
    options: AccountOptions,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Say what is missing to send a draft, and what to do about it. It sends nothing.

    It looks at the ledger, at who has logged in, whether the host answers and its clock agrees with this
    machine's, whether the token is good, what it allows, whether the mailbox can be read, and how much of the
    limit is in use. All is well: exit code 0.
    """
    check_mailbox(mailbox)
    host = options.host
    Verbose(on=verbose)
    findings = _Findings()
    url = _find(findings, options.ledger)
    account = None
    try:
        account = read_account(options).only()
    except CannotStart as error:
        account = None
        findings.problem("login", error)
    run_loop(_examine(findings, host, mailbox, account, url))
    _tell(findings, as_json=as_json)
    return 0 if findings.well else SOME_NOT


def _find(findings: _Findings, ledger: str | None) -> str | None:
    try:
        return find_ledger(ledger, none=False)
    except CannotStart as error:
        findings.problem("ledger", error)
        return None


async def _examine(
    findings: _Findings, host: str, mailbox: str, account: Account | None, ledger: str | None
) -> None:
    home = open_ledger(ledger) if ledger is not None else None
    try:
        if home is not None:
            await _look_at_ledger(findings, home, account, mailbox)
        try:
            transport = Transport(host, _TIMEOUT, None)
        except ValueError as error:  # the proxy in the environment is malformed
            findings.problem("host", error)
            if account is not None and account.logins is None:
                _look_at_given(findings, account)
            return
        try:
            if await _reach(findings, transport) and account is not None:
                await _try_token(findings, transport, account, mailbox, home)
        finally:
            await transport.close()
    finally:
        if home is not None:
            await home.close()


# -- the ledger ------------------------------------------------------------------------------------------


async def _look_at_ledger(findings: _Findings, home: Ledger, account: Account | None, mailbox: str) -> None:
    try:
        overview = await home.overview(account.base_url, account.budget) if account is not None else None
        await home.apps()
    except LedgerError as error:
        findings.problem("ledger", f"{str(error).removeprefix('ledger: ')}; or give another one with --ledger")
        return
    caution = getattr(home, "caution", "")
    findings.ok("ledger", f"it can be used: {getattr(home, 'where', '')}{'; ' if caution else ''}{caution}")
    if account is None:
        return
    if overview is None:
        findings.ok("permits", f"all are free: no call was made with this ledger for app {account.budget}")
        return
    _look_at_permits(findings, overview, account, mailbox)


def _look_at_permits(findings: _Findings, overview: Overview, account: Account, mailbox: str) -> None:
    limit, user = overview.limit, account.user or UNNAMED
    told = [f"{overview.in_use} of {limit.calls} in use ({name_limit(limit)})"]
    if overview.in_use >= limit.calls:
        told.append(f"the next call can go in {span(max(1, overview.next_permit))}")
    if overview.paused is not None:
        told.append(f"the server has asked for a pause, next try in {span(max(1, overview.paused))}")
    mine = {stored(subject) for subject in subjects(user, mailbox_key(user, mailbox))}
    suspended = [one for one in overview.suspended if one.subject in mine and one.until is not ResumeWhen.TOKEN]
    for one in suspended:
        again = "the next command tries it again"
        if one.seconds is not None:
            again = f"it may go again in {span(max(1, one.seconds))}"
        told.append(f"{name_subject(one.subject)} is suspended ({one.reason}): {again}")
    say = findings.problem if any(one.until is ResumeWhen.HOUR for one in suspended) else findings.ok
    say("permits", "; ".join(told))


# -- the host --------------------------------------------------------------------------------------------


async def _reach(findings: _Findings, transport: Transport) -> bool:
    """Check the host with a call without a token: a refusal by the API is the good result."""
    began, clock = time.monotonic(), wall_clock()
    answer = await transport.exchange("GET", LIST.url({"page_size": "1"}, mailbox="me"), None)
    took = time.monotonic() - began
    if isinstance(answer, Failure):
        advice = "" if answer.lasting else "; check the network, the proxy (HTTPS_PROXY) and --base-url"
        findings.problem("host", f"it cannot be reached: {answer.reason}{advice}")
        return False
    judgement = judge(answer, None, transport.base_url)
    if isinstance(judgement.error, BadReply | Misconfigured):
        findings.problem("host", f"{judgement.error}; check --base-url, and what stands between here and there")
        return False
    findings.ok("host", f"it answers ({took:.2f} s)")
    _compare_clocks(findings, answer, clock + took / 2)
    return True


def _compare_clocks(findings: _Findings, answer: Reply, now: float) -> None:
    try:
        theirs = parsedate_to_datetime(answer.date or "").timestamp()
    except (ValueError, OverflowError):
        findings.unknown("clock", "the host does not say what time it is")
        return
    gap = now - theirs - 0.5  # Date has whole seconds, so on average it is half a second behind
    if abs(gap) <= _WIDEST_GAP:
        findings.ok("clock", "it agrees with the host's")
        return
    way = "ahead of" if gap > 0 else "behind"
    findings.problem(
        "clock",
        f"this machine's is {span(abs(gap))} {way} the host's, so tokens end when nobody expects it: set it "
        "right, best by NTP",
    )


def _look_at_given(findings: _Findings, account: Account) -> None:
    findings.ok("login", f"none is needed: {account.source}")
    findings.unknown("scopes", "they are known of logins only")


# -- the token -------------------------------------------------------------------------------------------


async def _try_token(
    findings: _Findings, transport: Transport, account: Account, mailbox: str, home: Ledger | None
) -> None:
    logins = account.logins
    if logins is None:
        _look_at_given(findings, account)
        await _use(findings, transport, account.tokens[account.user], mailbox)
        return
    assert account.user is not None
    assert home is not None  # the logins come from this ledger
    findings.ok("login", f"{account.user}, to app {logins.app}")
    tokens = logins.tokens(home, margin=0.0)  # no refresh of a token that is still valid, only for a check
    try:
        await _use_login(findings, transport, tokens, account.user, mailbox)
        kept = await tokens.store.load(account.user)
        if kept is not None:
            _look_at_login(findings, kept, renewable=logins.secret is not None)
    except LedgerError as error:
        findings.problem("ledger", error)
    finally:
        await tokens.close()


async def _use_login(
    findings: _Findings, transport: Transport, tokens: RefreshingTokens, user: str, mailbox: str
) -> None:
    try:
        token = await tokens.token(user)
        if await _use(findings, transport, token, mailbox):
            await tokens.refused(user, token)  # a send would do the same: refresh and try once more
            await _use(findings, transport, await tokens.token(user), mailbox)
    except LedgerError:
        raise
    except NotSent as error:
        findings.problem("token", error)


async def _use(findings: _Findings, transport: Transport, token: str, mailbox: str) -> bool:
    """Check a token by listing one draft of the mailbox, and return whether the token was refused."""
    answer = await transport.exchange("GET", LIST.url({"page_size": "1"}, mailbox=mailbox), token)
    if isinstance(answer, Failure):
        findings.problem("host", f"it answered, and then it did not ({answer.reason}): try again")
        return False
    error = judge(answer, token, transport.base_url).error
    match error:
        case None:
            findings.ok("token", "the host takes it")
            findings.ok("mailbox", "it can be read")
        case InvalidToken():
            findings.problem("token", say(error, Width.LINE))
        case ScopeMissing():
            findings.ok("token", "the host takes it")
            findings.problem("scopes", say(error, Width.LINE))
            findings.unknown("mailbox", f"reading it takes {LIST.scope}")
        case AccessDenied() | InvalidRequest():
            findings.ok("token", "the host takes it")
            findings.problem("mailbox", say(error, Width.LINE))
        case _:
            findings.problem("host", f"it answers, but not to this token now: {say(error, Width.LINE)}")
    return isinstance(error, InvalidToken)


def _look_at_login(findings: _Findings, kept: StoredToken, *, renewable: bool) -> None:
    if findings.is_ok("token"):
        findings.ok("token", f"the host takes it, until {moment(kept.expires)}; {_renewal(kept, renewable)}")
    granted = kept.scope.split()
    missing = [scope for scope in (SEND.scope, LIST.scope) if scope not in granted]
    if "scopes" in findings.found:
        return  # the host's own answer about scopes is more precise
    if not granted:
        findings.unknown("scopes", "the server did not say what was granted")
    elif missing:
        findings.problem(
            "scopes",
            f"not granted: {', '.join(missing)}: see that the app has them, and {_AGAIN} again",
        )
    else:
        rest = "" if MODIFY in granted else f"; drafts cannot be created without {MODIFY}"
        findings.ok("scopes", f"drafts can be sent and listed{rest}")


def _renewal(kept: StoredToken, renewable: bool) -> str:
    if kept.refresh_token is None:
        return f"then {_AGAIN} again, and allow {OFFLINE} so that it is renewed"
    if not renewable:
        return f"to have it renewed set {APP_SECRET}, or {_AGAIN} --keep-secret"
    until = "" if kept.refresh_expires is None else f", until {moment(kept.refresh_expires)} at least"
    return f"it is renewed{until}"


# -- output ----------------------------------------------------------------------------------------------


def _tell(findings: _Findings, *, as_json: bool) -> None:
    if as_json:
        checks = [
            {"check": name, "status": status.replace(" ", "_"), "told": escape(told)}
            for name, status, told in findings.rows
        ]
        print(json.dumps({"ok": findings.well, "checks": checks}), flush=True)  # noqa: T201 - it is asked for
        return
    out = console()
    for name, status, told in findings.rows:
        head = Text(status.ljust(_WIDTH), style=_STYLES[status])
        head.append(name.ljust(max(map(len, _NAMES))), style="default")
        print_hanging(out, head, escape(told))
