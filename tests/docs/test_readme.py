"""Both READMEs: they say the same, their links lead somewhere, and every program in them does what the text says.

The programs run as they stand, against the sandbox: what they take for the real Feishu is that.
"""

import ast
import asyncio
import contextlib
import csv
import inspect
import io
import logging
import re
import shlex
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("opentelemetry.sdk")
pytest.importorskip("procrastinate")
pytest.importorskip("typer")

import httpx2
import typer
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from readme import CHINESE, ENGLISH, ROOT, Language, update

from feishu_mail_async import (
    ContentRisk,
    FeishuMailClient,
    OutcomeStatus,
    Priority,
    RateLimit,
    RefreshingTokens,
    RetryPolicy,
    codes,
    events,
    open_ledger,
)
from feishu_mail_async._api.protocol import FEISHU
from feishu_mail_async._auth.store import StoredToken
from feishu_mail_async._clock import wall_clock
from feishu_mail_async.cli import app, problems
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.browser import APP_ID, APP_SECRET, open_desk
from tests.helpers.cli import PATIENCE, TOKEN_VARIABLE, Apart, Ended, environment, run_here
from tests.helpers.postgres import DATABASE_PASSWORD
from tests.helpers.support import PACKAGE

LANGUAGES: Final = (ENGLISH, CHINESE)
NAMED: Final = pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.path.name)

# --- reading them -----------------------------------------------------------------------------------------

_TABLE: Final = re.compile(r"(<!-- codes: .*? -->).*?(<!-- end of codes -->)", re.DOTALL)
_LINK: Final = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_NAME: Final = re.compile(r"`([^`]+)`")
_NUMBER: Final = re.compile(r"\d+(?:[.,]\d+)*(?: ?%)?")


@dataclass
class Section:
    """A heading, and what stands under it up to the next one.

    Attributes:
        level: of the heading.
        title: the heading.
        prose: the lines that stand in no block of code, without the generated table.
        blocks: the blocks of code, each with its language.
    """

    level: int
    title: str
    prose: list[str]
    blocks: list[tuple[str, str]]

    @property
    def text(self) -> str:
        return "\n".join(self.prose)

    @property
    def anchor(self) -> str:
        """What a link to this heading says behind its #, by GitHub's rule."""
        return re.sub(r"[^\w\- ]", "", self.title.lower()).replace(" ", "-")

    @property
    def shape(self) -> tuple[int, int, list[int]]:
        """The heading's level, the number of points of lists, and the number of cells of each row of tables."""
        points = [line for line in self.prose if line.startswith("- ")]
        return self.level, len(points), [line.count("|") for line in self.prose if line.startswith("|")]

    @property
    def links(self) -> list[str]:
        return _LINK.findall(self.text)

    @property
    def names(self) -> Counter[str]:
        """What stands in backquotes, which no language translates."""
        return Counter(" ".join(name.split()) for name in _NAME.findall(self.text))

    @property
    def numbers(self) -> Counter[str]:
        """The numbers of the sentences and tables."""
        return Counter(
            number.replace(" ", "") for number in _NUMBER.findall(_NAME.sub("", _LINK.sub("", self.text)))
        )

    def column(self, number: int = 0) -> list[str]:
        """The cells of a column of its table, without the head."""
        return [line.strip("| ").split(" | ")[number] for line in self.prose if line.startswith("|")][2:]


def read(language: Language) -> list[Section]:
    sections: list[Section] = []
    block: list[str] | None = None
    written = ""
    for line in _TABLE.sub(r"\1\2", language.path.read_text(encoding="utf-8")).splitlines():
        if line.startswith("```"):
            if block is None:
                block, written = [], line.removeprefix("```")
            else:
                sections[-1].blocks.append((written, "\n".join(block)))
                block = None
        elif block is not None:
            block.append(line)
        elif line.startswith("#"):
            marks, _, title = line.partition(" ")
            sections.append(Section(len(marks), title, [], []))
        else:
            sections[-1].prose.append(line)
    return sections


def target(link: str, sections: list[Section]) -> str:
    """A link, however a language writes it."""
    if link.startswith("#"):
        return f"section {[section.anchor for section in sections].index(link.removeprefix('#'))}"
    return "the other language" if link in {language.path.name for language in LANGUAGES} else link


ENGLISH_SECTIONS: Final = read(ENGLISH)
CHINESE_SECTIONS: Final = read(CHINESE)
SECTIONS: Final = {section.title: section for section in ENGLISH_SECTIONS}

Key = tuple[str, str, int]
"""Which block: its language, its heading, and its number among those of this language there."""
BLOCKS: Final[dict[Key, str]] = {}
for _section in ENGLISH_SECTIONS:
    _numbers: Counter[str] = Counter()
    for _language, _text in _section.blocks:
        _numbers[_language] += 1
        BLOCKS[_language, _section.title, _numbers[_language]] = _text

KNOWN: Final[list[Key]] = []


def runs(*keys: Key) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Hand a test the blocks that it runs, the first as `code`, a second as `shown`."""
    KNOWN.extend(keys)
    names = ("code", "shown")[: len(keys)]
    texts = [BLOCKS.get(key, f"raise LookupError({key!r})") for key in keys]
    return pytest.mark.parametrize(names, [texts], ids=["README"])


# --- the two say the same ---------------------------------------------------------------------------------


@NAMED
def test_what_is_generated_is_up_to_date(language: Language) -> None:
    text = language.path.read_text(encoding="utf-8")
    assert update(text, language) == text, "run make readme"
    for broken in (
        text.replace("<!-- end of codes -->", ""),
        text.replace("<!-- end of measured -->", ""),
        text + text,
    ):
        with pytest.raises(ValueError, match=re.escape(language.path.name)):
            update(broken, language)


@pytest.mark.parametrize(
    "what",
    [
        lambda section: section.shape,
        lambda section: section.blocks,
        lambda section: section.names,
        lambda section: section.numbers,
    ],
    ids=["shapes", "blocks", "names", "numbers"],
)
def test_both_say_the_same(what: Callable[[Section], Any]) -> None:
    for english, chinese in zip(ENGLISH_SECTIONS, CHINESE_SECTIONS, strict=True):
        assert what(english) == what(chinese), f"{english.title} | {chinese.title}"


def test_both_link_to_the_same() -> None:
    for english, chinese in zip(ENGLISH_SECTIONS, CHINESE_SECTIONS, strict=True):
        assert [target(link, ENGLISH_SECTIONS) for link in english.links] == [
            target(link, CHINESE_SECTIONS) for link in chinese.links
        ]


def test_each_leads_to_the_other_first() -> None:
    assert ENGLISH_SECTIONS[0].prose[1] == f"English | [简体中文]({CHINESE.path.name})"
    assert CHINESE_SECTIONS[0].prose[1] == f"[English]({ENGLISH.path.name}) | 简体中文"


@pytest.mark.parametrize("sections", [ENGLISH_SECTIONS, CHINESE_SECTIONS], ids=["English", "Chinese"])
def test_what_they_link_to_is_there(sections: list[Section]) -> None:
    links = [link for section in sections for link in section.links if not link.startswith(("#", "https://"))]
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_every_block_is_run() -> None:
    assert sorted(KNOWN) == sorted(BLOCKS)


# --- names and numbers that the text has of the code ------------------------------------------------------


def spans() -> list[str]:
    return [name for section in ENGLISH_SECTIONS for name in section.names]


def commands() -> list[str]:
    """Every line of a shell, in a block or in a sentence, as words."""
    lines = [line for (language, _, _), text in BLOCKS.items() if language == "sh" for line in text.splitlines()]
    return lines + spans()


def unquoted(cells: list[str]) -> list[str]:
    return [name for cell in cells for name in _NAME.findall(cell)]


def test_the_statuses_are_those_of_the_code() -> None:
    assert unquoted(SECTIONS["Many drafts"].column()) == [status.value for status in OutcomeStatus]


def test_the_exit_codes_are_those_of_the_code() -> None:
    ends = 0, problems.SOME_NOT, problems.USAGE, problems.CANNOT_START, problems.UNSAID, problems.INTERRUPTED
    assert [int(cell) for cell in SECTIONS["Command line"].column()] == list(ends)


def test_the_events_are_those_of_the_code() -> None:
    kinds = {
        kind.__name__
        for kind in vars(events).values()
        if isinstance(kind, type) and kind.__module__ == events.__name__ and issubclass(kind, events.Event)
    }
    told = unquoted(SECTIONS["As events"].column())
    assert len(told) == len(set(told))
    assert {*told, "EventsLost"} == kinds - {"Event", "DraftEvent"}
    assert "EventsLost" in SECTIONS["As events"].names


def test_the_numbers_are_those_of_the_code() -> None:
    limit = RateLimit()
    (policy,) = [name for name in spans() if name.startswith("RetryPolicy(")]
    assert eval(policy, {"RetryPolicy": RetryPolicy}) == RetryPolicy()
    kept = SECTIONS["The limit, and why it is kept this way"].numbers
    assert {f"{limit.calls}", f"{limit.per + limit.margin}", f"{limit.grace:g}", f"{limit.spacing}"} <= set(kept)
    timeout = inspect.signature(FeishuMailClient).parameters["attempt_timeout"].default
    assert f"{timeout + limit.grace + 5:g}" in SECTIONS["Several processes, and runs that survive a crash"].numbers
    defaults = {option: parameter.default for option, parameter in options("worker").items()}
    for option in ("--dead-after", "--call-timeout"):
        assert f"{defaults[option]:g}" in SECTIONS["Many machines"].numbers


def options(*wanted: str) -> dict[str, Any]:
    """The options of these commands, or of all."""
    program = typer.main.get_command(app.app)
    return {
        option: parameter
        for name, command in program.commands.items()  # type: ignore[attr-defined]
        if name in wanted or not wanted
        for parameter in command.params
        for option in parameter.opts
    }


def test_every_option_and_command_is_there() -> None:
    program = typer.main.get_command(app.app)
    lines = [line for line in commands() if "docker" not in line]
    named = {option for line in lines for option in re.findall(r"(?<!\S)--[a-z-]+", line)}
    assert named > {"--ledger", "--keep-secret", "--until-empty"}
    # What is no option of the program is one of the examples.
    assert named - set(options()) == {"--sandbox"}
    called = {name for line in lines for name in re.findall(r"feishu-mail-async ([a-z]+)", line)}
    assert called <= set(program.commands)  # type: ignore[attr-defined]
    assert called >= {"send", "bulk", "list", "enqueue", "worker", "status", "login", "sandbox"}


def test_every_variable_is_read_somewhere() -> None:
    named = {name for line in commands() for name in re.findall(r"FEISHU_[A-Z_]+", line)}
    assert named > {TOKEN_VARIABLE, APP_ID, APP_SECRET}
    sources = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    read_by_us = set(re.findall(r'"(FEISHU_[A-Z_]+)"', sources))
    (up,) = [line for line in commands() if "docker compose" in line]
    for_compose = set(re.findall(r"[A-Z_]+(?==)", up))
    assert named <= read_by_us | for_compose
    compose = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    assert for_compose == set(re.findall(r"\$\{([A-Z_]+)", compose))


# --- setting up -------------------------------------------------------------------------------------------
# Neither pip nor make is run: what the lines ask for must be there to be installed or made.


def assert_installs(line: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    words = shlex.split(line, comments=True)
    assert words[:2] == ["pip", "install"]
    assert len(words) == 3
    asked = re.fullmatch(r"\.(?:\[(.+)\])?", words[2])
    assert asked is not None
    assert {*(asked[1] or "").split(",")} - {""} <= project["optional-dependencies"].keys()


@runs(("sh", "Install", 1))
def test_what_is_to_be_installed_is_there(code: str) -> None:
    library, program = code.splitlines()
    assert_installs(library)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert library.partition("# the library: ")[2].split(", ") == [
        re.split("[^a-z]", one)[0] for one in project["dependencies"]
    ]
    assert_installs(program)


@runs(("sh", "Several processes, and runs that survive a crash", 1))
def test_what_a_ledger_needs_is_there(code: str) -> None:
    for line in code.splitlines():
        assert_installs(line)


@runs(("sh", "Install", 2))
def test_what_is_to_be_made_is_there(code: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    made = {name for line in [*code.splitlines(), *spans()] for name in re.findall(r"\bmake ([a-z]+)", line)}
    assert made == {"bench", "demo", "test"}
    assert made <= targets


# --- programs ---------------------------------------------------------------------------------------------

APP: Final = "cli_a1b2c3"
DRAFT: Final = "268dce11-85f7-427d-8756-6be3abc850fd"
virtual = pytest.mark.looptime(start=0)


async def execute(code: str, **names: Any) -> dict[str, Any]:
    """Run a program as it stands, with what the text says there is; the names that there are in the end."""
    running = eval(compile(code, "README.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
    if inspect.iscoroutine(running):
        await running
    return names


def take_for_feishu(monkeypatch: pytest.MonkeyPatch, base_url: str) -> None:
    """Have a sandbox be the default of all that take a base_url."""
    for made in (FeishuMailClient, RefreshingTokens):
        defaults = made.__init__.__kwdefaults__
        assert defaults is not None
        assert defaults["base_url"] == FEISHU
        monkeypatch.setitem(defaults, "base_url", base_url)
    monkeypatch.setattr("feishu_mail_async.cli.options.FEISHU", base_url)


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


# --- the command line -------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """A terminal, to which somebody has typed."""

    def isatty(self) -> bool:
        return True


class Shell:
    """A shell that knows `export` and the program, which runs in this process."""

    def __init__(self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, apart: Apart) -> None:
        self._capfd = capfd
        self._monkeypatch = monkeypatch
        self.apart = apart

    def __call__(self, line: str, *more: str) -> Ended:
        name, *arguments = shlex.split(line, comments=True)
        if name == "export":
            for assignment in arguments:
                self._monkeypatch.setenv(*assignment.split("=", 1))
            return Ended(0, "", "")
        assert name == "feishu-mail-async"
        secrets = [DATABASE_PASSWORD, *self.apart.do(lambda sandbox: sandbox.tokens).values()]
        ended = run_here(self._capfd, [*arguments, *more], secrets)
        assert ended.code == 0, ended
        return ended

    def drafts(self, user: str, number: int) -> list[str]:
        return self.apart.do(lambda sandbox: sandbox.add_drafts(user, number))


@pytest.fixture
def shell(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own_state: Path
) -> Iterator[Shell]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    for name in (TOKEN_VARIABLE, APP_ID, APP_SECRET, "FEISHU_MAIL_LEDGER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.stdin", Terminal("y\n" * 5))
    apart = Apart(tmp_path, Sandbox(latency=0, users=["alice", "bob"]))
    take_for_feishu(monkeypatch, apart.sandbox.base_url)
    yield Shell(capfd, monkeypatch, apart)
    apart.close()


def write_drafts(drafts: Mapping[str, str]) -> None:
    """Make drafts.csv, of drafts and their users; an empty user is none."""
    with Path("drafts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("draft_id", "user"), *drafts.items()])


@runs(("sh", "Command line", 1))
def test_the_command_line(code: str, shell: Shell) -> None:
    export, send, bulk, everything, listing, status = code.splitlines()
    shell(export)
    shell.apart.do(lambda sandbox: sandbox.add_user("you", token="u-your-user-access-token"))
    one, two, three, four, five = shell.drafts("you", 5)
    shell(send.replace("DRAFT_ID", one, 1).replace("DRAFT_ID", two, 1))
    assert shell.apart.sent == Counter([one, two])
    (told,) = shell(send.replace("DRAFT_ID", one, 1).replace("DRAFT_ID", ""), "--json").outcomes
    assert (told["draft_id"], told["status"]) == (one, "already_sent")

    write_drafts({one: "", three: ""})
    ended = shell(bulk)
    assert "[y/N]" in ended.err
    assert "1 draft was sent before" in ended.out
    with Path("results.csv").open(newline="") as file:
        assert {row["draft_id"]: row["status"] for row in csv.DictReader(file)} == {
            one: "already_sent",
            three: "sent",
        }
    assert four in shell(listing).out.split()
    shell(everything)
    assert shell.apart.sent == Counter([one, two, three, four, five])
    assert shell.apart.calls == 5
    said = shell(status).out
    assert re.search(r"\bsent +5\b", said)
    assert "5 of 20 in use" in said


@runs(("sh", "Tokens", 1))
def test_logins(
    code: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own_state: Path
) -> None:
    export, *lines = code.splitlines()
    assert re.findall(r"(\w+)=", export) == [APP_ID, APP_SECRET]
    assert [line.split()[1] for line in lines] == ["login", "doctor", "whoami", "logout"]
    # The sandbox's own id and secret, a port that is free, and a browser without a window.
    with open_desk(capfd, monkeypatch, tmp_path, own_state) as desk:
        login, doctor, whoami, logout = [shlex.split(line, comments=True)[1:] for line in lines]
        assert len(login) == len(doctor) == len(whoami) == len(logout) == 1
        desk.log_in()
        assert desk.run("doctor").code == 0
        assert "mail:user_mailbox.message:send" in desk.run("whoami", "--json").out
        assert desk.feishu.calls == 0
        assert desk.run("logout").code == 0
        assert desk.run("doctor").code == 1
    for line, (name, *more) in zip(lines, [("login", "--user"), ("logout", "--user", "--all")], strict=False):
        assert {*more} <= set(options(name)), line


@runs(("sh", "Many machines", 1))
def test_many_machines(code: str, shell: Shell, monkeypatch: pytest.MonkeyPatch, postgres_url: str) -> None:
    install, docker, export, enqueue, worker, status = [line for line in code.splitlines() if line]
    assert_installs(install)
    # Docker is not run: the fixture's PostgreSQL stands for its database.
    compose = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    assert f"image: {docker.split()[-1]}" in compose
    given = dict(re.findall(r"--env (\w+)=(\S+)", docker))
    assert [*given] == ["POSTGRES_USER", "POSTGRES_PASSWORD"]
    assert all(f"{name}: " in compose for name in given)
    url = f"postgresql://{given['POSTGRES_USER']}:{given['POSTGRES_PASSWORD']}@localhost/{given['POSTGRES_USER']}"
    assert shlex.split(export, comments=True) == ["export", f"FEISHU_MAIL_LEDGER={url}"]
    monkeypatch.setenv("FEISHU_MAIL_LEDGER", postgres_url)

    mine, theirs = *shell.drafts("alice", 1), *shell.drafts("bob", 1)
    write_drafts({mine: "alice", theirs: "bob"})
    ended = shell(enqueue)
    assert "[y/N]" in ended.err
    assert "2 drafts queued." in ended.out
    assert "0 drafts queued. 2 were queued before." in shell(enqueue).out
    assert re.search(r"\bqueued +2\b", shell(status).out)
    shell(worker, "--until-empty")  # or it would run until it is stopped
    assert shell.apart.sent == Counter([mine, theirs])
    said = shell(status).out
    assert re.search(r"\bqueued +0\b", said)
    assert re.search(r"\bsent +2\b", said)
