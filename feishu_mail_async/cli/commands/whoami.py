"""`feishu-mail-async whoami` and `logout`: show logins, and delete them."""

import os
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer
from rich.text import Text

from feishu_mail_async._auth.store import StoredToken
from feishu_mail_async._clock import wall_clock
from feishu_mail_async._text import escape
from feishu_mail_async.cli.account import ENVIRONMENT
from feishu_mail_async.cli.app_secret import APP_SECRET, find_secret, forget_secret
from feishu_mail_async.cli.logins import choose_app, read_logins
from feishu_mail_async.cli.logs import Verbose
from feishu_mail_async.cli.loop import run_loop
from feishu_mail_async.cli.options import AppOptions, JsonOption, VerboseOption
from feishu_mail_async.cli.problems import SOME_NOT, CannotStart, WrongUsage
from feishu_mail_async.cli.render.console import console, print_json, print_line, print_note, print_rows
from feishu_mail_async.cli.render.wording import moment
from feishu_mail_async.cli.state_dir import ledger_url
from feishu_mail_async.errors import LedgerError
from feishu_mail_async.ledger import open_ledger

__all__ = ["logout", "whoami"]


def whoami(
    *,
    options: AppOptions,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Say who has logged in, until when, and what they allowed. It shows no token, and makes no call.

    Without --app it says so of every app; --base-url and --lark choose among them, too. Nobody: exit code 1.
    """
    Verbose(on=verbose)
    app, host = options.app, options.only_host
    known = {
        key: tokens
        for key, tokens in read_logins(ledger_url(options.ledger)).items()
        if host in {None, key[0]} and app in {None, key[1]}
    }
    out = console()
    for place, ((where, name), tokens) in enumerate(known.items()):
        if as_json:
            for user, token in tokens.items():
                print_json(_as_json(where, name, user, token))
            continue
        if place:
            print_line(out)
        print_line(out, f"{name} at {where}", "bold")
        print_rows(out, [(Text(escape(user)), escape(_told(token))) for user, token in tokens.items()])
        for note in _notes(where, name, tokens):
            print_line(out, f"  {note}", "dim")
    if not known:
        print_line(console(stderr=True), "Nobody has logged in: feishu-mail-async login")
        return SOME_NOT
    if os.environ.get(ENVIRONMENT, "").strip():
        print_note(f"{ENVIRONMENT} is set, and is used instead of these logins")
    return 0


def _told(token: StoredToken) -> str:
    now = wall_clock()
    alive = f"token until {moment(token.expires)}" if token.expires > now else "token has ended"
    if token.refresh_token is None:
        renewed = "it cannot be renewed: log in again then" if token.expires > now else "log in again"
    elif token.refresh_expires is None:
        renewed = "it can be renewed"
    elif token.refresh_expires > now:
        renewed = f"it can be renewed until {moment(token.refresh_expires)}"
    else:
        renewed = "it can be renewed no more: log in again"
    return f"{alive}, {renewed}; scopes: {', '.join(token.scope.split()) or 'not known'}"


def _notes(base_url: str, app: str, tokens: Mapping[str, StoredToken]) -> Iterator[str]:
    if any(token.refresh_token is not None for token in tokens.values()):
        try:
            secret = find_secret(base_url, app)[0]
        except CannotStart as error:
            yield escape(str(error))
            return
        if secret is None:
            yield f"To renew tokens, set {APP_SECRET}, or log in with --keep-secret."


def _as_json(base_url: str, app: str, user: str, token: StoredToken) -> dict[str, Any]:
    return {
        "base_url": base_url,
        "app": app,
        "user": user,
        "expires": token.expires,
        "renewable": token.refresh_token is not None,
        "renewable_until": token.refresh_expires,
        "scopes": token.scope.split(),
    }


def logout(
    *,
    user: Annotated[
        str | None,
        typer.Option(
            "--user",
            metavar="NAME",
            help="Whose tokens to forget; without it, the only user's.",
            show_default=False,
        ),
    ] = None,
    everybody: Annotated[
        bool,
        typer.Option("--all", help="Forget all users of the app, and the app's kept secret.", show_default=False),
    ] = False,
    options: AppOptions,
    verbose: VerboseOption = False,
) -> int:
    """Forget the tokens of a login on this machine.

    They are deleted here. The server knows nothing of that: a token that somebody has copied is good until it
    ends, unless you take the app's access away in your account's settings.
    """
    Verbose(on=verbose)
    if user is not None and everybody:
        raise WrongUsage("--user", "give it or --all, not both")
    host = options.host
    url = ledger_url(options.ledger)
    known = read_logins(url)
    named = choose_app(options.app, host, known)
    tokens = known.get((host, named or ""), {})
    if everybody:
        users = list(tokens)
    elif user is None and len(tokens) > 1:
        raise WrongUsage("--user", f"there are logins of {', '.join(tokens)}; name one of them, or give --all")
    else:
        users = [name for name in tokens if user in {None, name}]
    out = console()
    for name in _forget(url, (host, named or ""), users):
        print_line(out, f"Logged out: {name}, of app {named} at {host}.")
    without_secret = everybody and named is not None and forget_secret(host, named)
    if without_secret:
        print_line(out, f"The secret of app {named} is forgotten.")
    if users or without_secret:
        return 0
    whom = f"{user} has not" if user is not None else "nobody has"
    others = f" (only {', '.join(tokens)})" if tokens else ""
    print_line(console(stderr=True), f"There is nothing to forget: {whom} logged in{others}.")
    return SOME_NOT


def _forget(ledger: str, key: tuple[str, str], users: list[str]) -> list[str]:
    async def forget() -> list[str]:
        home = open_ledger(ledger)
        try:
            store = home.tokens(*key)
            return [user for user in users if await store.delete(user)]
        finally:
            await home.close()

    try:
        return run_loop(forget()) if users else []
    except LedgerError as error:
        raise CannotStart(f"{error}; nobody, or not everybody, was logged out") from error
