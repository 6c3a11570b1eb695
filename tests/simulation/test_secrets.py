"""No token and no secret is seen anywhere: a run in which everything goes wrong, at DEBUG, looked through."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from feishu_mail_async import (
    Draft,
    FeishuMailClient,
    FeishuMailError,
    RateLimit,
    RefreshingTokens,
    RetryPolicy,
    Suspended,
)
from feishu_mail_async._auth.store import MemoryTokens, StoredToken
from feishu_mail_async.cli.results import Results
from feishu_mail_async.codes import CODES, OAUTH
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.canary import TOKEN, Everything, chain, holds, sides
from tests.helpers.scenes import ONCE
from tests.helpers.sends import send

pytestmark = pytest.mark.looptime(start=0)


def faults() -> Iterator[Fault]:
    """Each of them."""
    for row in CODES.values():
        yield Fault.code(row.name)
    yield from (Fault.unknown(1, status) for status in (400, 429, 500))
    yield from (Fault.frequency(), Fault.bare_429(), Fault.automation_disabled(), Fault.gateway())
    yield from (Fault.redirect("https://evil.example.com/"), Fault.broken(), Fault.empty(), Fault.null())
    yield from (Fault.array(), Fault.nulls(), Fault.huge(1_000_000), Fault.reset_before(), Fault.reset_after())
    yield from (Fault.hang_before(), Fault.hang_after(), Fault.delay(40.0))


@pytest.fixture
def heard() -> Iterator[Everything]:
    handler, root = Everything(), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.setLevel(before)
    root.removeHandler(handler)


class Remembering(MemoryTokens):
    """A store that remembers every token it ever kept."""

    def __init__(self, secrets: set[str]) -> None:
        super().__init__()
        self.secrets = secrets

    async def save(self, user: str, token: StoredToken, lease: str | None = None) -> bool:
        self.secrets |= {token.access_token, token.refresh_token or token.access_token}
        return await super().save(user, token, lease)


async def test_no_token_is_seen_in_a_run_with_all_faults(heard: Everything, tmp_path: Path) -> None:
    users = [f"user-{number}" for number in range(40)]
    loop = asyncio.get_running_loop()
    results = Results(str(tmp_path / "results.jsonl"))
    results.open()
    secrets: set[str] = set()
    store = Remembering(secrets)
    async with Sandbox(users=users, calls=100_000, latency=0.05, expires_in=900) as sandbox:
        secrets.add(sandbox.client_secret)
        for user in users:
            issued: dict[str, Any] = sandbox.issue_tokens(user)
            token = StoredToken(
                issued["access_token"], loop.time() + 900, 900, issued["refresh_token"], scope=issued["scope"]
            )
            await store.save(user, token)
        tokens = RefreshingTokens(
            sandbox.client_id, sandbox.client_secret, store, base_url=sandbox.base_url, clock=loop.time
        )
        given = []
        for number, fault in enumerate(faults()):
            user = users[number % len(users)]
            draft_id = sandbox.add_draft(user)
            sandbox.script(draft_id, fault)
            given.append(Draft(draft_id, user=user))
        sandbox.script_token(*OAUTH, Fault.broken(), Fault.reset_before(), Fault.empty(), Fault.gateway())
        seen = ""
        async with FeishuMailClient(
            tokens,
            app="cli_canary",
            base_url=sandbox.base_url,
            rate_limit=RateLimit(100_000, 1.0, spacing=0),
            retry=RetryPolicy(attempts=2, refusals=2),
        ) as client:
            seen += repr(client)
            async with client.send_drafts(given) as run:
                async for outcome in run:
                    results.write(outcome)
                    seen += f"{outcome!r} {outcome.error} {client.snapshot()!r}"
                    if outcome.error is not None:
                        seen += "".join(text for _, text in sides(outcome.error))
            seen += f"{run.summary!r} {tokens!r} {store!r} {await store.load(users[0])!r}"
        await tokens.close()
    results.close()
    written = (tmp_path / "results.jsonl").read_text()
    assert len(run.summary.errors) > 10
    assert len(secrets) > len(users)
    logged = heard.text
    for secret in secrets:
        assert secret not in seen
        assert secret not in logged
        assert secret not in written
    assert "asyncio" in logged  # at DEBUG, others than we speak too


def every_fault() -> Iterator[tuple[str, Fault]]:
    """Every kind of fault once."""
    for row in CODES.values():
        if row.error:
            yield row.name, Fault.code(row.name)
    yield "unknown", Fault.unknown(7)
    yield "unknown 429", Fault.unknown(7, 429)
    yield "unknown 500", Fault.unknown(7, 500)
    yield "frequency", Fault.frequency(400, None)
    yield "bare", Fault.bare_429()
    yield "automation", Fault.automation_disabled()
    yield "gateway", Fault.gateway()
    yield "redirect", Fault.redirect("http://127.0.0.1:9/")
    yield "broken", Fault.broken()
    yield "empty", Fault.empty()
    yield "null", Fault.null()
    yield "array", Fault.array()
    yield "nulls", Fault.nulls()
    yield "huge", Fault.huge(1_000_000)
    yield "huge declared", Fault.huge(1_000_000, declared=True)
    yield "reset before", Fault.reset_before()
    yield "reset after", Fault.reset_after()
    yield "hang before", Fault.hang_before()
    yield "hang after", Fault.hang_after()
    yield "delay", Fault.delay(40)


async def test_the_canary(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG)
    handler = Everything()
    logging.getLogger().addHandler(handler)
    asyncio.get_running_loop().set_debug(True)
    shown: list[str] = []
    found: list[str] = []
    ended = 0
    try:
        async with Sandbox(latency=0.1, calls=1000) as sandbox:
            sandbox.add_user("alice", token=TOKEN)
            for name, fault in every_fault():
                one = sandbox.add_draft("alice")
                sandbox.script(one, *[fault] * 3)
                async with FeishuMailClient(
                    {"alice": TOKEN}, app=name, base_url=sandbox.base_url, retry=ONCE
                ) as client:
                    task = send(client, one)
                    await asyncio.sleep(0.05)
                    shown += [repr(client.snapshot()), repr(asyncio.all_tasks())]
                    await asyncio.wait([task])
                    if (error := task.exception()) is None:
                        shown.append(repr(task.result()))
                    else:
                        ended += 1
                        found += [f"{name}: {place}" for place in holds(error, TOKEN)]
                        shown += [repr(list(chain(error)))]
                    shown += [repr(client), repr(vars(client).keys()), repr(client.snapshot())]
                    if client.snapshot().suspended:
                        with pytest.raises(Suspended) as caught:
                            await client.send_draft("another")
                        found += [f"{name}, closed: {place}" for place in holds(caught.value, TOKEN)]
            async with (
                sandbox.outage(),
                FeishuMailClient({"alice": TOKEN}, app="outage", base_url=sandbox.base_url, retry=ONCE) as client,
            ):
                with pytest.raises(FeishuMailError) as unreachable:
                    await client.send_draft("d1")
                found += holds(unreachable.value, TOKEN)
                shown.append(repr(client.snapshot()))
    finally:
        asyncio.get_running_loop().set_debug(False)
        logging.getLogger().removeHandler(handler)
    assert ended > 35
    assert found == []
    assert [text[:300] for text in (*shown, *handler.texts, caplog.text) if TOKEN in text] == []
    assert TOKEN not in "".join(capfd.readouterr())
