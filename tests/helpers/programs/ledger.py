"""One of several processes that send drafts with one ledger, which the nursery starts with a task in JSON.

It says one JSON object a line. It can be told to send itself a signal at a chosen point; that is done from the
outside, by wrapping methods of the package, and never in it.
"""

import asyncio
import importlib
import itertools
import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from feishu_mail_async import Draft, FeishuMailClient, FeishuMailError, Outcome, Priority, RateLimit, RetryPolicy
from feishu_mail_async._api.protocol import Reply
from feishu_mail_async._scheduling.state import Settled
from feishu_mail_async._scheduling.store import Offer
from feishu_mail_async._transport import Transport
from feishu_mail_async.ledger import turns
from feishu_mail_async.ledger.database import Database
from feishu_mail_async.ledger.records import Records
from feishu_mail_async.ledger.session import Session

LONGEST_LIFE: Final = 150
"""Seconds after which a program that nobody has ended ends itself."""


def say(**told: Any) -> None:
    """One line; whoever is killed the moment after has said it."""
    os.write(1, json.dumps(told).encode() + b"\n")


class _Said(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(log=record.getMessage(), level=record.levelname)


# --- signals at chosen points ------------------------------------------------------------------------------


def _after(owner: Any, name: str, then: Callable[[Any], None]) -> None:
    """Have something done each time a coroutine method has come to its end."""
    original = getattr(owner, name)

    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = await original(*args, **kwargs)
        then(result)
        return result

    setattr(owner, name, wrapped)


def arm(point: str, nth: int, number: int, delay: float = 0.0) -> None:
    """Send this process a signal when it reaches a point for the n-th time.

    Args:
        point: "taking" (before the take's commit), "taken" (after it, before the call), "calling" (`delay` seconds
            after the call has begun), "answered" (before settle begins), "settling" (before its commit), "settled"
            (after it) or "recalled" (after the ledger was asked what it knows).
        nth: from 1.
        number: the signal.
        delay: see "calling".
    """
    seen = itertools.count(1)

    def strike() -> None:
        say(reached=point)
        os.kill(os.getpid(), number)
        time.sleep(0.001)  # a signal that only stops may take a moment

    def reached(matters: object = True) -> None:
        if matters and next(seen) == nth:
            strike()

    match point:
        case "taking":
            _after(turns, "_grant", reached)
        case "taken":
            _after(Session, "transact", lambda done: reached(_granted(done[0])))
        case "calling":
            original = Transport.exchange

            async def exchange(*args: Any, **kwargs: Any) -> Any:
                if next(seen) == nth:
                    asyncio.get_running_loop().call_later(delay, strike)
                return await original(*args, **kwargs)

            setattr(Transport, "exchange", exchange)  # noqa: B010 - mypy minds the plain way
        case "answered":
            _after(Transport, "exchange", lambda answer: reached(isinstance(answer, Reply)))
        case "settling":
            _after(turns, "settle", reached)
        case "settled":
            _after(Session, "transact", lambda done: reached(_settled(done[0])))
        case "recalled":
            _after(Records, "_look_up", lambda _: reached())
        case _:
            raise ValueError(point)


def _granted(done: Any) -> bool:
    return isinstance(done, Offer) and done.granted is not None


def _settled(done: Any) -> bool:
    return isinstance(done, tuple) and isinstance(done[0], Settled)


def _tell_transactions() -> None:
    original = Database._transact

    async def transact(database: Database, work: Any) -> Any:
        began = time.monotonic()
        done = await original(database, work)  # a try that found the file in use says nothing
        say(asked=began, took=time.monotonic() - began)
        return done

    setattr(Database, "_transact", transact)  # noqa: B010 - as above


# --- the program -------------------------------------------------------------------------------------------


def _tell(outcome: Outcome) -> None:
    error, result = outcome.error, outcome.result
    say(
        outcome=outcome.draft.draft_id,
        status=outcome.status.value,
        error=None if error is None else f"{type(error).__name__}: {error}",
        message_id=None if result is None else result.message_id,
        attempts=result.attempts if result is not None else error.attempts if error is not None else 0,
    )


async def _send(client: FeishuMailClient, draft: Draft, priority: Priority, deadline: float | None) -> None:
    try:
        result = await client.send_draft(draft, priority=priority, deadline=deadline)
    except FeishuMailError as error:
        say(
            outcome=draft.draft_id,
            status=error.status.value,
            error=f"{type(error).__name__}: {error}",
            message_id=None,
            attempts=error.attempts,
        )
    else:
        status = "already_sent" if result.already_sent else "sent"
        say(
            outcome=draft.draft_id,
            status=status,
            error=None,
            message_id=result.message_id,
            attempts=result.attempts,
        )


async def play(task: dict[str, Any]) -> None:
    """Send what the task says, and say what becomes of it."""
    client = FeishuMailClient(
        task["tokens"],
        app=task["app"],
        base_url=task["base_url"],
        rate_limit=RateLimit(**task["limit"]),
        retry=RetryPolicy(**task.get("retry", {})),
        attempt_timeout=task.get("attempt_timeout", 30.0),
        ledger=task["ledger"],
    )
    async with client:
        await _act(client, task)
        for more in task.get("then", ()):
            say(waits=more["when"])
            while not Path(more["when"]).exists():  # noqa: ASYNC110, ASYNC240 - the parent makes it
                await asyncio.sleep(0.02)
            await _act(client, more)
    say(end=True)


async def _act(client: FeishuMailClient, task: dict[str, Any]) -> None:
    drafts = [Draft(draft_id, mailbox, user) for draft_id, user, mailbox in task["drafts"]]
    priority = Priority[task.get("priority", "BULK")]
    for subject in task.get("resume", ()):
        client.resume(subject)
    if task.get("each"):
        await asyncio.gather(*(_send(client, draft, priority, task.get("deadline")) for draft in drafts))
        return
    async with client.send_drafts(drafts, priority=priority) as run:
        async for outcome in run:
            _tell(outcome)


def main() -> None:
    """Do what the program's argument says."""
    task = json.loads(sys.argv[1])
    signal.alarm(LONGEST_LIFE)
    logging.getLogger("feishu_mail_async").addHandler(_Said(logging.WARNING))
    for name, value in task.get("vars", {}).items():
        module, _, variable = name.rpartition(".")
        setattr(importlib.import_module(f"feishu_mail_async.{module}"), variable, value)
    _tell_transactions()
    for crash in task.get("crashes", ()):
        arm(**crash)
    say(pid=os.getpid())
    try:
        asyncio.run(play(task), debug=False)
    except Exception:  # noqa: BLE001 - it has no other way to tell
        say(crash=traceback.format_exc())
