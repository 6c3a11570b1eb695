"""Tokens on their way to a database: it is said where nothing makes the connection encrypted."""

import asyncio
import logging
from contextlib import AsyncExitStack

import pytest

from feishu_mail_async import open_ledger
from feishu_mail_async.cli import checks
from feishu_mail_async.cli.options import AccountOptions
from feishu_mail_async.cli.problems import CannotStart
from feishu_mail_async.ledger.opening import Ledger

HOST = "https://open.feishu.cn"


@pytest.fixture(autouse=True)
def as_in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feishu_mail_async.ledger.sql._cautioned", set())
    for name in ("PGSSLMODE", "PGHOST"):
        monkeypatch.delenv(name, raising=False)


def said(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    caplog.set_level(logging.WARNING)
    ledger.tokens(HOST, "cli_a")
    ledger.tokens(HOST, "cli_b")
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:SECRET@db.example.com/mail",
        "postgresql://me:SECRET@db.example.com:5433/mail?sslmode=prefer",
        "postgresql://me:SECRET@192.168.0.1/mail?sslmode=allow",
        "postgresql://me:SECRET@/mail?host=/run/postgresql,db.example.com",
        "postgresql://me:SECRET@/mail?host=localhost:5432&host=db.example.com:5432",
        "postgresql://me:SECRET@localhost/mail?hostaddr=10.0.0.1",
    ],
)
def test_it_is_said_once_where_tokens_may_cross_a_network_in_the_clear(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    (told,) = said(open_ledger(url), caplog)
    assert "?sslmode=verify-full" in told
    assert "SECRET" not in told
    assert said(open_ledger(url), caplog) == []  # once in a process


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me@db.example.com/mail?sslmode=require",
        "postgresql://me@db.example.com/mail?sslmode=verify-full",
        "postgresql://me@db.example.com/mail?sslmode=disable",
        "postgresql://me@localhost/mail",
        "postgresql://me@127.0.0.1:5433/mail",
        "postgresql://me@[::1]/mail",
        "postgresql://me@/mail",
        "postgresql://me@/mail?host=/run/postgresql",
        "postgresql://me@/mail?host=localhost:5432&host=127.0.0.1:5433",
        "postgresql:///mail?service=mail",
        "sqlite:////nowhere/mail.db",
    ],
)
def test_nothing_is_said_where_they_do_not_or_somebody_has_decided(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert said(open_ledger(url), caplog) == []


def test_the_environment_counts(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "db.example.com")
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    assert said(open_ledger("postgresql:///of_the_environment"), caplog) == []
    monkeypatch.setenv("PGSSLMODE", "prefer")
    assert len(said(open_ledger("postgresql:///of_the_environment"), caplog)) == 1


def test_doctor_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Far:
        """A ledger far away that answers."""

        where = "postgresql://me@db.example.com/mail"
        caution = "tokens cross the network"

        async def apps(self) -> list[tuple[str, str]]:
            return []

        async def close(self) -> None:
            pass

    monkeypatch.setattr(checks, "open_ledger", lambda _: Far())
    case = checks._Case(AccountOptions(ledger=Far.where), "me", CannotStart("nobody"), AsyncExitStack())
    told = asyncio.run(checks._look_at_ledger(case))
    assert told == f"it can be used: {Far.where}; {Far.caution}"
