"""What the tests of logins share: a browser without a window, and a login that is under way."""

import contextlib
import http.client
import io
import logging
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

import pytest

from feishu_mail_async.cli import app
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.cli import (
    PATIENCE,
    TOKEN_VARIABLE,
    Ended,
    Feishu,
    environment,
    run_here,
    start_command,
    wait_for,
)
from tests.helpers.nursery import Program

APP_ID, APP_SECRET = "FEISHU_APP_ID", "FEISHU_APP_SECRET"

# Where the printed address stands, and nothing else.
_ADDRESS = re.compile(r"^(http://\S+/authorize\?\S+)$", re.MULTILINE)


def secrets_of(feishu: Feishu) -> list[str]:
    """All tokens, codes and secrets that the server has ever given out."""

    def collect(sandbox: Sandbox) -> list[str]:
        oauth = sandbox._oauth
        return [*oauth._access, *oauth._refresh, *oauth._codes, sandbox.client_secret]

    return feishu.do(collect)


def expect_no_secret(feishu: Feishu, *texts: str) -> None:
    for secret in secrets_of(feishu):
        for text in texts:
            assert secret not in text


def app_environment(feishu: Feishu) -> dict[str, str]:
    return {APP_ID: feishu.sandbox.client_id, APP_SECRET: feishu.sandbox.client_secret}


def with_query(address: str, **changes: str) -> str:
    parts = urlsplit(address)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()} | changes
    return urlunsplit(parts._replace(query=urlencode(query)))


def browse(address: str, **changes: str) -> tuple[int, str]:
    """Open an address as a browser would, redirects and all; the status and the page it ends at."""
    try:
        with urllib.request.urlopen(with_query(address, **changes), timeout=PATIENCE) as page:
            return page.status, page.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def where_to(address: str, **changes: str) -> str:
    """The address to which the authorization page sends the browser back."""
    parts = urlsplit(with_query(address, **changes))
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=PATIENCE)
    try:
        connection.request("GET", f"{parts.path}?{parts.query}")
        return connection.getresponse().headers["Location"]
    finally:
        connection.close()


def knock(address: str, *, method: str = "GET", host: str | None = None, path: str | None = None) -> int:
    """Make one request to the callback, by hand; its status."""
    parts = urlsplit(address)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=PATIENCE)
    try:
        headers = {} if host is None else {"Host": host}
        connection.request(method, path or f"{parts.path}?{parts.query}", headers=headers)
        reply = connection.getresponse()
        assert "Location" not in reply.headers
        page = reply.read().decode()
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        assert not any(value in page for value in query.values() if len(value) > 3)
        return reply.status
    finally:
        connection.close()


class Attempt:
    """A login that is under way in this process."""

    def __init__(self, feishu: Feishu, *arguments: str) -> None:
        self._feishu = feishu
        self._out, self._err = io.StringIO(), io.StringIO()
        self._heard = contextlib.ExitStack()
        # Not by pytest's capture: what is printed in the moment in which one looks is lost there.
        self._heard.enter_context(contextlib.redirect_stdout(self._out))
        self._heard.enter_context(contextlib.redirect_stderr(self._err))
        self._pool = ThreadPoolExecutor(1)
        command = ["login", "--port", "0", "--wait", str(PATIENCE), *arguments]
        self._ending: Future[int] = self._pool.submit(app.run, [*command, "--base-url", feishu.sandbox.base_url])

    @property
    def err(self) -> str:
        return self._err.getvalue()

    @property
    def address(self) -> str:
        """The authorization page's, once it is printed and the callback awaited."""
        wait_for(lambda: "waiting" in self.err or self._ending.done())
        found = _ADDRESS.search(self._out.getvalue())
        assert found is not None, self._out.getvalue() + self.err
        return found[1]

    @property
    def redirect(self) -> str:
        return parse_qs(urlsplit(self.address).query)["redirect_uri"][0]

    def end(self) -> Ended:
        """What became of it; nothing that it printed holds a secret."""
        code = self._ending.result(PATIENCE)
        self.close()
        expect_no_secret(self._feishu, self._out.getvalue(), self.err)
        return Ended(code, self._out.getvalue(), self.err)

    def close(self) -> None:
        self._heard.close()
        self._pool.shutdown(wait=False)


class Desk:
    """The command line of somebody who logs in, in this process."""

    def __init__(self, capfd: pytest.CaptureFixture[str], feishu: Feishu, state: Path) -> None:
        self._capfd = capfd
        self._attempts: list[Attempt] = []
        self.feishu = feishu
        self.state = state / "feishu-mail-async"

    def attempt(self, *arguments: str) -> Attempt:
        self._attempts.append(Attempt(self.feishu, *arguments))
        return self._attempts[-1]

    def close(self) -> None:
        for attempt in self._attempts:
            attempt.close()
        self.feishu.close()

    def log_in(self, *arguments: str, who: str = "alice", **changes: str) -> Ended:
        """Log in as one of the server's users."""
        attempt = self.attempt(*arguments)
        assert browse(attempt.address, user=who, decision="allow", **changes)[0] == 200
        ended = attempt.end()
        assert ended.code == 0, ended.err
        return ended

    def run(self, command: str, *arguments: str) -> Ended:
        options = ["--base-url", self.feishu.sandbox.base_url]
        if command in {"send", "bulk"}:
            options += ["--rate", "10000/60"]
        return run_here(self._capfd, [command, *arguments, *options], secrets_of(self.feishu))

    def start(self, command: str, *arguments: str) -> Program:
        """The same as a program of its own, without a terminal."""
        env = process_environment(self.feishu, self.state.parent)
        return start_command(command, *arguments, "--base-url", self.feishu.sandbox.base_url, env=env)


@contextlib.contextmanager
def open_desk(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, directory: Path, state: Path
) -> Iterator[Desk]:
    """A desk, and a server that knows its app."""
    feishu = Feishu(directory)
    for name in (TOKEN_VARIABLE, "DISPLAY", "WAYLAND_DISPLAY", "BROWSER", "FEISHU_MAIL_LEDGER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in app_environment(feishu).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "100")
    # What an earlier --verbose of this process has set up writes to a stream that is closed by now.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    desk = Desk(capfd, feishu, state)
    try:
        yield desk
    finally:
        desk.close()


def process_environment(feishu: Feishu, state: Path, *, app: bool = True, **more: str) -> dict[str, str]:
    return environment(XDG_STATE_HOME=str(state), **(app_environment(feishu) if app else {}), **more)


@pytest.fixture
def desk(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own_state: Path
) -> Iterator[Desk]:
    """A desk at which a user can log in."""
    with open_desk(capfd, monkeypatch, tmp_path, own_state) as opened:
        yield opened
