"""`feishu-mail-async login`: authorize the app in a browser, and store the user's tokens in the ledger."""

import asyncio
import os
import sys
import threading
import webbrowser
from dataclasses import dataclass, field
from typing import Annotated, Final

import typer
from rich.text import Text

from feishu_mail_async._auth.refresh import RefreshingTokens
from feishu_mail_async._auth.store import StoredToken
from feishu_mail_async._checks import check_text
from feishu_mail_async._text import escape
from feishu_mail_async.cli.app_secret import APP_ID, APP_SECRET, find_secret, keep_secret
from feishu_mail_async.cli.callback import Answer, Callback
from feishu_mail_async.cli.logins import choose_app, read_logins
from feishu_mail_async.cli.logs import Verbose, hide
from feishu_mail_async.cli.loop import run_loop
from feishu_mail_async.cli.options import AppOptions, VerboseOption, check_name
from feishu_mail_async.cli.problems import CannotStart, Problem
from feishu_mail_async.cli.prompts import agrees, ask, can_be_asked, hear_lines
from feishu_mail_async.cli.render.console import console, print_line, print_note, print_rows
from feishu_mail_async.cli.render.wording import moment, span
from feishu_mail_async.cli.state_dir import find_ledger, ledger_url
from feishu_mail_async.codes import OAUTH
from feishu_mail_async.errors import LedgerError, NotSent
from feishu_mail_async.ledger import open_ledger
from feishu_mail_async.oauth import OFFLINE, SCOPES, Login

__all__ = ["DEFAULT_USER", "login"]

DEFAULT_USER: Final = "me"

_PORT: Final = 8765
_PATIENCE: Final = 300.0
_TYPED: Final = "the one you typed"
_ADVICE: Final = {
    "ClientSecretWrong": "Check the app's id and secret: {secret}.",
    "AuthorizationCodeNotFound": "Log in again, and paste the whole code.",
    "AuthorizationCodeExpired": "Log in again: a code is good for five minutes.",
    "AuthorizationCodeUsed": "Log in again: a code works once.",
    "RedirectMismatch": "Add {redirect} to the redirect URLs in the app's security settings.",
}


@dataclass(frozen=True, slots=True)
class _App:
    """The app that a user logs in to.

    Attributes:
        base_url: the API's base URL.
        app_id: the app's id.
        secret: the app's secret.
        source: the source of the secret, for messages.
        keep: True if the secret is to be stored on this machine.
    """

    base_url: str
    app_id: str
    secret: str = field(repr=False)
    source: str
    keep: bool

    @property
    def lasting(self) -> bool:
        """True if later commands will have the secret too."""
        return self.keep or self.source != _TYPED


@dataclass(frozen=True, slots=True)
class _Done:
    """The result of a login: the tokens, and the other users who have logged in to the app."""

    token: StoredToken
    others: list[str]


def login(
    *,
    user: Annotated[
        str,
        typer.Option("--user", metavar="NAME", help="A name for who logs in, by which drafts name them."),
    ] = DEFAULT_USER,
    port: Annotated[
        int,
        typer.Option(
            "--port",
            metavar="NUMBER",
            min=0,
            max=65535,
            help="Where on this machine the browser comes back to: http://127.0.0.1:NUMBER/callback.",
        ),
    ] = _PORT,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the address, and open no browser.", show_default=False)
    ] = False,
    keep_the_secret: Annotated[
        bool,
        typer.Option(
            "--keep-secret",
            help="Keep the app's secret on this machine, in a file that only you may read.",
            show_default=False,
        ),
    ] = False,
    patience: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", min=0.1, help="Give up after so long.")
    ] = _PATIENCE,
    options: AppOptions,
    verbose: VerboseOption = False,
) -> int:
    """Log in: let the app send, list and create drafts for you, in a browser.

    The app's id and secret come from FEISHU_APP_ID and FEISHU_APP_SECRET, or are asked for unless they are known.
    Its security settings must list the redirect URL http://127.0.0.1:8765/callback (or with the port that you
    give).

    Without a browser on this machine, open the address elsewhere, and paste the address that the browser ends at
    here, though it shows no page.

    The tokens are kept in the ledger, and renewed when needed; `send`, `bulk`, `list` and `worker` use them. The
    secret is needed for that, too: keep FEISHU_APP_SECRET set, or give --keep-secret.
    """
    host = options.host
    check_name("--user", user)
    Verbose(on=verbose)
    app = choose_app(options.app, host, read_logins(ledger_url(options.ledger)))
    credentials = _read_app(host, app, keep=keep_the_secret)
    url = find_ledger(options.ledger)
    try:
        done = run_loop(_log_in(credentials, user, url, port=port, patience=patience, browse=not no_browser))
    except LedgerError as error:
        raise CannotStart(f"{error}; or give another one with --ledger; then log in again") from error
    _report(credentials, user, done)
    if credentials.keep:
        where = keep_secret(host, credentials.app_id, credentials.secret)
        print_line(console(), f"The app's secret is kept in {where}.")
    return 0


# -- the app ---------------------------------------------------------------------------------------------


def _read_app(base_url: str, app: str | None, *, keep: bool) -> _App:
    """Return the app's id and secret: given, stored, or typed at the terminal.

    Raises:
        WrongUsage: the id is not valid.
        CannotStart: one of them is missing, and there is no terminal, or an invalid value was typed.
    """
    app_id = app or _ask("--app", "App id: ", f"put the app's id into {APP_ID}, or give --app ID")
    check_name("--app", app_id)
    secret, source = find_secret(base_url, app_id)
    if secret is not None:
        return _App(base_url, app_id, secret, source, keep)
    secret = _ask(
        APP_SECRET, "App secret (it is not shown): ", f"put the app's secret into {APP_SECRET}", hidden=True
    )
    hide(secret)
    keep = keep or agrees("Keep the secret on this machine, so that the login can be renewed? [y/N] ")
    return _App(base_url, app_id, secret, _TYPED, keep)


def _ask(name: str, question: str, otherwise: str, *, hidden: bool = False) -> str:
    if not can_be_asked():
        raise CannotStart(f"{name}: it is missing, and without a terminal nobody can be asked: {otherwise}")
    try:
        return check_text(name, ask(question, hidden=hidden))
    except ValueError:
        raise CannotStart(f"{name}: what was typed cannot be one: {otherwise}") from None


# -- logging in ------------------------------------------------------------------------------------------


async def _log_in(app: _App, user: str, ledger: str, *, port: int, patience: float, browse: bool) -> _Done:
    home = open_ledger(ledger)
    store = home.tokens(app.base_url, app.app_id)
    try:
        tokens = RefreshingTokens(app.app_id, app.secret, store, base_url=app.base_url)
    except ValueError as error:  # the proxy in the environment: all other values were checked before
        raise CannotStart(str(error)) from None
    callback = Callback(port, print_note)
    try:
        users = await tokens.store.users()  # fails before the user authorizes if the ledger cannot be used
        try:
            await callback.open()
        except OSError as error:
            raise _port_taken(port, error) from None
        attempt = Login(callback.redirect_uri)
        hide(attempt.verifier)
        hide(attempt.state)
        callback.answer = Answer(attempt)
        _invite(app, user, attempt, browse=browse)
        code = await _await_code(callback.answer, patience)
        hide(code)
        token = await _redeem(tokens, app, user, code, attempt)
        return _Done(token, [other for other in users if other != user])
    finally:
        await callback.close()
        await tokens.close()
        await home.close()


def _port_taken(port: int, error: OSError) -> CannotStart:
    said = os.strerror(error.errno) if error.errno else str(error)
    return CannotStart(
        f"--port {port}: it cannot be used ({said}): give another one, and add http://127.0.0.1:NUMBER/callback "
        "to the redirect URLs in the app's security settings"
    )


def _invite(app: _App, user: str, attempt: Login, *, browse: bool) -> None:
    """Print the instructions, and open the browser."""
    address = attempt.url(app.base_url, app.app_id)
    opened = browse and _open(address)
    out = console()
    print_line(out, f"Log in {user} to app {app.app_id} at {app.base_url}", "bold")
    for line in (
        "The app's security settings must list this redirect URL:",
        f"  {attempt.redirect_uri}",
        "A browser opens this address; agree there:" if opened else "Open this address in a browser, and agree:",
        "",
        address,
        "",
    ):
        print_line(out, line)


async def _await_code(answer: Answer, patience: float) -> str:
    def hear(text: str) -> None:
        if text and not answer.taken:
            try:
                answer.take_typed(text)
            except ValueError as error:
                print_note(f"{error}")

    typed = hear_lines(hear)
    elsewhere = " If it runs elsewhere, paste the address that it ends at, or the code in it." if typed else ""
    print_note(f"waiting {span(patience)} for the browser to come back; Ctrl-C ends it.{elsewhere}")
    try:
        async with asyncio.timeout(patience):
            return await answer.code()
    except TimeoutError:
        raise Problem(f"nobody agreed within {span(patience)}: log in again") from None
    except ValueError as error:
        raise Problem(f"nobody was logged in: {escape(str(error))}") from None


async def _redeem(tokens: RefreshingTokens, app: _App, user: str, code: str, attempt: Login) -> StoredToken:
    try:
        return await tokens.log_in(user, code, attempt)
    except LedgerError:
        raise
    except NotSent as error:
        said = escape(str(error))
        advice = next((words for name, words in _ADVICE.items() if f" {OAUTH[name].number}: " in said), "")
        told = advice.format(secret=app.source, redirect=attempt.redirect_uri)
        raise Problem(f"{said}. {told}".strip()) from error


def _open(address: str) -> bool:
    """Open a browser in a thread, which may block, and return whether there can be one."""
    if sys.platform.startswith("linux") and not any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    ):
        return False  # without a display, webbrowser would start a text browser on this terminal
    threading.Thread(target=_browse, args=(address,), name="feishu-mail-browser", daemon=True).start()
    return True


def _browse(address: str) -> None:
    try:
        opened = webbrowser.open(address)
    except (webbrowser.Error, OSError):
        opened = False
    if not opened:
        print_note("no browser could be opened: open the address yourself")


# -- result ----------------------------------------------------------------------------------------------


def _report(app: _App, user: str, done: _Done) -> None:
    out, token = console(), done.token
    print_line(out, f"Logged in: {user}, to app {app.app_id} at {app.base_url}.")
    granted = token.scope.split()
    missing = [scope for scope in SCOPES if scope not in granted] if granted else []
    rows = [(Text("granted"), escape(", ".join(granted)) or "the server did not say what")]
    if missing:
        rows.append((Text("not granted", style="yellow"), escape(", ".join(missing))))
    rows += [(Text("until"), told) for told in _until(app, token)]
    print_rows(out, rows)
    if done.others:
        print_line(out, f"Others have logged in too: {', '.join(done.others)}. Name the user with --user.")


def _until(app: _App, token: StoredToken) -> list[str]:
    if token.refresh_token is None:
        why = f": without {OFFLINE} it cannot be renewed"
        return [f"{moment(token.expires)}; then log in again{why}"]
    if not app.lasting:
        longer = f"longer with the app's secret: set {APP_SECRET}, or log in with --keep-secret"
        return [f"{moment(token.expires)}, and {longer}"]
    if token.refresh_expires is None:
        return [f"it is renewed when it ends, first at {moment(token.expires)}"]
    return [f"{moment(token.refresh_expires)}, and longer with each use: it renews itself"]
