"""No token and no secret is seen anywhere: a run in which everything goes wrong, at DEBUG, looked through."""

import asyncio
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from feishu_mail_async import Draft, FeishuMailClient, RateLimit, RefreshingTokens, RetryPolicy
from feishu_mail_async._auth.store import MemoryTokens, StoredToken
from feishu_mail_async.cli.results import Results
from feishu_mail_async.codes import CODES, OAUTH
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.support import sides

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


class Everything(logging.Handler):
    """Every record of every logger, as it would be printed, with its traceback and extras."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += f"{record.getMessage()} {vars(record)}\n"
        if record.exc_info and record.exc_info[1] is not None:
            self.text += "".join(traceback.format_exception(record.exc_info[1]))


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
    for secret in secrets:
        assert secret not in seen
        assert secret not in heard.text
        assert secret not in written
    assert "asyncio" in heard.text  # at DEBUG, others than we speak too
