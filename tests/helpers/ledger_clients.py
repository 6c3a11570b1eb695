"""Clients that send with a ledger which may break, and what must hold then."""

import asyncio
import threading
from typing import Any

import pytest

from feishu_mail_async import (
    BulkRun,
    Draft,
    FeishuMailClient,
    LedgerError,
    OutcomeStatus,
    OutcomeUnknown,
    RateLimit,
)
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.canary import holds
from tests.helpers.ledgers import client_of, ledger_on
from tests.helpers.postgres import DATABASE_PASSWORD

USERS = [f"user{n}" for n in range(5)]
QUICK = RateLimit(calls=100_000, per=0.3, spacing=0, margin=0, grace=0.1)
"""No limit that a test would notice, and nothing that is kept for long."""


def workers() -> list[threading.Thread]:
    """The threads in which SQLite works."""
    return [
        one
        for one in threading.enumerate()
        if "aiosqlite" in repr(getattr(one, "_target", "")) or ("_connection_worker" in one.name)
    ]


def open_client(sandbox: Sandbox, ledger: Any, **settings: Any) -> FeishuMailClient:
    return client_of(sandbox, ledger, **({"rate_limit": QUICK, "attempt_timeout": 2.0} | settings))


def drafts_of(sandbox: Sandbox, number: int) -> list[Draft]:
    """That many drafts of every user."""
    return [Draft(one, user=user) for user in USERS for one in sandbox.add_drafts(user, number)]


async def outcomes(run: BulkRun) -> dict[str, OutcomeStatus]:
    found: dict[str, OutcomeStatus] = {}
    async for one in run:
        assert one.draft.draft_id not in found
        found[one.draft.draft_id] = one.status
    return found


def sent_once(sandbox: Sandbox, drafts: list[Draft]) -> None:
    assert sandbox.ledger.sent == {one.draft_id: 1 for one in drafts}


async def refused_at_once(sandbox: Sandbox, url: str, says: str, **settings: Any) -> LedgerError:
    """A single draft and a run are told the same, without waiting, and no call is made.

    No record was read, so nobody claims that the draft was not sent by an earlier call.
    """
    ledger = ledger_on(url, **({"patience": 1000.0} | settings))
    async with open_client(sandbox, ledger) as client:
        with pytest.raises(OutcomeUnknown, match=says) as caught:
            await asyncio.wait_for(client.send_draft(Draft("d1", user=USERS[0])), 60)
        found = await asyncio.wait_for(outcomes(client.send_drafts([Draft("d2", user=USERS[0])])), 60)
    await ledger.close()
    assert found == {"d2": OutcomeStatus.UNKNOWN}
    assert sandbox.ledger.sends == []
    assert not holds(caught.value, DATABASE_PASSWORD)
    assert caught.value.draft == Draft("d1", user=USERS[0])
    cause = caught.value.__cause__
    assert isinstance(cause, LedgerError)
    assert str(cause).startswith("ledger: ")
    return cause
