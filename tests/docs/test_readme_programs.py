"""Every program in the READMEs does what the text says, as it stands: what it takes for Feishu is the sandbox."""

import ast
import asyncio
import contextlib
import inspect
import logging
import re
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from feishu_mail_async import (
    ContentRisk,
    FeishuMailClient,
    Priority,
    RateLimit,
    RetryPolicy,
    codes,
    events,
    open_ledger,
)
from feishu_mail_async._api.base_url import FEISHU
from feishu_mail_async._auth.store import StoredToken
from feishu_mail_async._clock import wall_clock
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.cli import PATIENCE, TOKEN_VARIABLE, environment
from tests.helpers.readmes import BLOCKS, SECTIONS, assert_installs, runs, take_for_feishu

APP: Final = "cli_a1b2c3"
DRAFT: Final = "268dce11-85f7-427d-8756-6be3abc850fd"
virtual = pytest.mark.looptime(start=0)


async def execute(code: str, **names: Any) -> dict[str, Any]:
    """Run a program as it stands, with what the text says there is; the names that there are in the end."""
    running = eval(compile(code, "README.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
    if inspect.iscoroutine(running):
        await running
    return names


@contextlib.asynccontextmanager
async def feishu(monkeypatch: pytest.MonkeyPatch, *, latency: float = 0.1) -> AsyncIterator[Sandbox]:
    """A sandbox for the real Feishu, with the users and tokens that the text names."""
    async with Sandbox(latency=latency, client_id=APP) as sandbox:
        for user, token in {
            "alice": "u-alice-token",
            "bob": "u-bob-token",
            "you": "u-your-user-access-token",
        }.items():
            sandbox.add_user(user, token=token)
        take_for_feishu(monkeypatch, sandbox.base_url)
        yield sandbox


def client_of(*users: str, **settings: Any) -> FeishuMailClient:
    return FeishuMailClient({user: f"u-{user}-token" for user in users or ("alice",)}, app=APP, **settings)


@virtual
@runs(("python", "feishu-mail-async", 1))
async def test_one_draft(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with feishu(monkeypatch) as sandbox:
        sandbox.add_draft("you", DRAFT)
        result = (await execute(code))["result"]
        assert sandbox.ledger.sent == {DRAFT: 1}
        assert (bool(result.message_id), result.already_sent) == (True, False)


@runs(("python", "Before and after sending", 1))
async def test_before_and_after_sending(
    code: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with feishu(monkeypatch, latency=0) as sandbox, client_of() as client:
        await execute(code, client=client)
        (draft_id,) = sandbox.ledger.created
        assert sandbox.ledger.scheduled == sandbox.ledger.cancelled == sandbox.ledger.sent == {draft_id: 1}
        assert capsys.readouterr().out == "li@example.com delivering\n"


@virtual
@runs(("python", "Many users", 1))
async def test_many_users(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with feishu(monkeypatch) as sandbox:
        sandbox.share_mailbox("team@example.com", "bob")
        sandbox.add_draft("alice", "draft-1")
        sandbox.add_draft("bob", "draft-2", "team@example.com")
        await execute(code)
        assert [(call.user, call.mailbox, call.draft_id) for call in sandbox.ledger.sends] == [
            ("alice", "alice@example.com", "draft-1"),
            ("bob", "team@example.com", "draft-2"),
        ]
        assert sandbox.ledger.sent == {"draft-1": 1, "draft-2": 1}


@runs(("python", "Tokens that renew themselves", 1))
async def test_tokens_that_renew_themselves(code: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    async with feishu(monkeypatch, latency=0) as sandbox:
        sandbox.add_draft("alice", "draft-1")
        issued = sandbox.issue_tokens("alice")
        before = StoredToken(issued["access_token"], wall_clock() + 60, 7200, issued["refresh_token"])
        # Where `login` keeps it, and a minute before its end.
        kept = open_ledger("sqlite:///mail.db")
        await kept.tokens(FEISHU, APP).save("alice", before)
        await execute(code, app_secret=sandbox.client_secret)
        assert sandbox.ledger.refreshes == {"alice": 1}
        assert sandbox.ledger.sent == {"draft-1": 1}
        after = await kept.tokens(FEISHU, APP).load("alice")
        await kept.close()
        assert after is not None
        assert {after.access_token, after.refresh_token}.isdisjoint({before.access_token, before.refresh_token})


@virtual
@runs(("python", "Many drafts", 1))
async def test_many_drafts(code: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    async with feishu(monkeypatch) as sandbox:
        sent, before, risky, lost, *spent = sandbox.add_drafts("alice", 6)
        sandbox.script(before, Fault.code("AlreadySent", accepted=True))
        sandbox.script(risky, Fault.code("ContentRisk"))
        sandbox.script(lost, *[Fault.hang_before()] * RetryPolicy().attempts)
        sandbox.set_quota("alice", 2)
        async with client_of("alice") as client:
            told = await execute(code, client=client, draft_ids=[sent, before, sent, risky, lost, *spent])
        expected = {sent: "sent", before: "already_sent", risky: "failed", lost: "unknown"}
        # The first to meet the quota fails by it and closes its user; the other is skipped.
        statuses = {spent[0]: "failed", spent[1]: "skipped"} | expected
        *lines, summary = capsys.readouterr().out.splitlines()
        assert Counter(tuple(line.split(" ")[:2]) for line in lines) == Counter(
            [*statuses.items(), (sent, "already_sent")]
        )
        assert summary == str(told["run"].summary)
        assert told["run"].summary.statuses == Counter([*statuses.values(), "already_sent"])
        assert sandbox.ledger.sent == {sent: 1, before: 1}


@virtual
@runs(("python", "Bots and web services", 1))
async def test_the_web_service(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with feishu(monkeypatch) as sandbox:
        monkeypatch.setenv("FEISHU_BASE_URL", sandbox.base_url)
        monkeypatch.setenv(TOKEN_VARIABLE, "u-alice-token")
        plain, risky, late, lost = sandbox.add_drafts("alice", 4)
        sandbox.script(risky, Fault.code("ContentRisk"))
        sandbox.script(lost, Fault.reset_after())
        service = (await execute(code))["app"]
        transport = httpx2.ASGITransport(service)
        async with (
            service.router.lifespan_context(service),
            httpx2.AsyncClient(transport=transport, base_url="http://service", timeout=None) as browser,
        ):
            granted: list[events.Event] = []
            service.state.client.subscribe(granted.append)
            said = await browser.post(f"/send/{plain}")
            assert (said.status_code, said.json()["already_sent"]) == (200, False)
            assert said.json()["message_id"]
            said = await browser.post(f"/send/{plain}")
            assert (said.status_code, said.json()) == (200, {"message_id": None, "already_sent": True})
            said = await browser.post(f"/send/{risky}")
            assert said.status_code == 422
            assert codes.named("ContentRisk").advice in said.json()["detail"]
            sandbox.limit_now(30)
            before = asyncio.get_running_loop().time()
            said = await browser.post(f"/send/{late}")
            assert asyncio.get_running_loop().time() - before == pytest.approx(10, abs=1)
            assert said.status_code == 503
            # It is told that it passes in thirty seconds, of which ten are over.
            assert int(said.headers["Retry-After"]) == pytest.approx(20, abs=2)
            await asyncio.sleep(60)
            assert (await browser.post(f"/send/{lost}")).status_code == 504
            await asyncio.sleep(60)
            sandbox.expire_token("alice")
            # The first to meet it has its user closed; nothing that is known says when to come again.
            assert (await browser.post(f"/send/{late}")).status_code == 502
            said = await browser.post(f"/send/{late}")
            assert (said.status_code, said.headers["Retry-After"]) == (503, "1")
        turns = [event for event in granted if isinstance(event, events.TurnGranted)]
        assert {turn.priority for turn in turns} == {Priority.INTERACTIVE}
        assert sandbox.ledger.sent == {plain: 1, lost: 1}


@runs(("python", "From code that is not async", 1))
async def test_from_code_that_is_not_async(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with feishu(monkeypatch, latency=0) as sandbox:
        sandbox.add_draft("alice", "draft-1")
        names = {"asyncio": asyncio, "loop": asyncio.get_running_loop()}
        async with client_of("alice") as client:
            told = await asyncio.to_thread(lambda: asyncio.run(execute(code, client=client, **names)))
        assert told["result"].message_id
        assert sandbox.ledger.sent == {"draft-1": 1}


@virtual
@runs(("python", "The limit, and why it is kept this way", 1))
async def test_limits(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with feishu(monkeypatch):
        told = await execute(code, tokens={"alice": "u-alice-token"})
        async with told["client"] as client:
            assert client.snapshot().limit == RateLimit(calls=50)
    smooth, reserved = [
        eval(line, {"RateLimit": RateLimit}) for line in code.splitlines() if line.startswith("RateLimit")
    ]
    raised = told["raised"]
    assert (raised.calls, raised.per, smooth.spacing, reserved.calls, reserved.reserve) == (100, 60, 3, 20, 2)


@runs(("python", "Several processes, and runs that survive a crash", 1))
async def test_ledgers(code: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, postgres_url: str) -> None:
    monkeypatch.chdir(tmp_path)
    lines = code.replace("postgresql://mail@db/mail", postgres_url).splitlines()
    assert ["sqlite:///mail.db" in lines[0], postgres_url in lines[1]] == [True, True]
    tokens = {"alice": "u-alice-token"}
    async with feishu(monkeypatch, latency=0) as sandbox:
        for line in lines:
            draft_id = sandbox.add_draft("alice")

            async def run_once(line: str = line, draft_id: str = draft_id) -> Any:
                told = await execute(line, FeishuMailClient=FeishuMailClient, tokens=tokens)
                async with told["client"] as client:
                    return await client.send_draft(draft_id)

            first, again = await run_once(), await run_once()
            assert (first.already_sent, again.already_sent) == (False, True)
            assert first.message_id == again.message_id
            assert len(sandbox.ledger.calls(draft_id)) == 1


class Heard(logging.Handler):
    """All records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextlib.contextmanager
def unset_logging() -> Iterator[logging.Logger]:
    """Logging as a program finds it; the package's own logger."""
    package, root = logging.getLogger("feishu_mail_async"), logging.getLogger()
    before, root.handlers = root.handlers, []
    try:
        yield package
    finally:
        root.handlers = before
        package.setLevel(logging.NOTSET)


@virtual
@runs(("python", "In your logs", 1), ("text", "In your logs", 1))
async def test_logs(
    code: str, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heard = Heard()
    async with feishu(monkeypatch) as sandbox, client_of("alice") as client:
        first, second, risky = sandbox.add_drafts("alice", 3)
        with unset_logging() as package:
            sandbox.limit_now(5)  # worth a warning
            await client.send_draft(first)
            assert capsys.readouterr().err == ""
            await execute(code)
            await client.send_draft(second)
            (line,) = capsys.readouterr().err.splitlines()
            assert re.sub(r"\d+", "0", line.replace(second, DRAFT)) == re.sub(r"\d+", "0", shown)

            package.setLevel(logging.DEBUG)
            package.addHandler(heard)
            sandbox.script(risky, Fault.code("ContentRisk"))
            with pytest.raises(ContentRisk):
                await client.send_draft(risky)
            package.removeHandler(heard)
    (done,) = [vars(record) for record in heard.records if vars(record).get("event") == "draft_done"]
    assert done["log_id"]
    told = {name.removeprefix("record.") for name in SECTIONS["In your logs"].names if name.startswith("record.")}
    assert told > {"event", "log_id"}
    assert told - {"message_id"} <= done.keys()  # which is for a draft that was sent


@virtual
@runs(("python", "As events", 1))
async def test_subscribing(code: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    async with feishu(monkeypatch) as sandbox, client_of("alice") as client:
        first, second, third = sandbox.add_drafts("alice", 3)
        told = await execute(code, client=client)
        await client.send_draft(first)
        sandbox.limit_now(5)
        await client.send_draft(second)
        told["unsubscribe"]()
        await client.send_draft(third)
    plain, paused, waited = capsys.readouterr().out.splitlines()
    assert plain == f"{first} sent waited 0.0 s"
    assert paused.startswith("all send calls of the app wait for 5")
    assert re.fullmatch(rf"{second} sent waited [5-9]\.\d s", waited)


@virtual
@runs(("python", "As events", 2))
async def test_reading_events(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[events.Event] = []

    async def write_down(event: events.Event) -> None:
        await asyncio.sleep(1)  # no send waits for it
        written.append(event)

    async with feishu(monkeypatch) as sandbox, client_of("alice") as client:
        reading = asyncio.create_task(execute(code, client=client, write_down=write_down))
        await asyncio.sleep(0)
        await client.send_draft(sandbox.add_draft("alice"))
        assert written == []
    await reading
    assert [type(event) for event in written] == [
        events.DraftQueued,
        events.TurnGranted,
        events.AttemptStarted,
        events.AttemptEnded,
        events.DraftDone,
    ]


@virtual
@runs(("python", "With OpenTelemetry", 1))
async def test_opentelemetry(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_installs(code.splitlines()[0].partition("# ")[2])
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # A process can set its provider once; other tests of this process want none.
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    async with feishu(monkeypatch) as sandbox, client_of("alice") as client:
        draft_id = sandbox.add_draft("alice")
        await execute(code, client=client)
        with provider.get_tracer("a service").start_as_current_span("request") as request:
            await client.send_draft(draft_id)
    call, draft, _ = exporter.get_finished_spans()
    assert draft.parent == request.get_span_context()
    assert call.parent == draft.get_span_context()
    assert (call.attributes or {})["http.request.method"] == "POST"
    provider.shutdown()


@runs(("python", "Testing your own program", 1), ("python", "Testing your own program", 2))
def test_tests_of_ones_own(code: str, shown: str, tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nfilterwarnings = error\nasyncio_default_fixture_loop_scope = function\n"
    )
    (tmp_path / "test_bot.py").write_text(code + "\n")
    (tmp_path / "service.py").write_text(BLOCKS["python", "Bots and web services", 1] + "\n")
    (tmp_path / "test_service.py").write_text(shown + "\n")
    # In virtual time, which saves the second before the lost call is made again.
    arguments = ["-q", "--looptime", "-p", "no:randomly", "-p", "no:xdist", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        check=False,
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr
