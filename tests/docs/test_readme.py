"""Both READMEs: they say the same, their links lead somewhere, and what they say of the code is so."""

import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any, Final

import pytest
import typer
from readme import CHINESE, ENGLISH, ROOT, Language, update

from feishu_mail_async import FeishuMailClient, OutcomeStatus, RateLimit, RetryPolicy, events
from feishu_mail_async.cli import app, problems
from tests.helpers.browser import APP_ID, APP_SECRET
from tests.helpers.cli import TOKEN_VARIABLE
from tests.helpers.readmes import (
    BLOCKS,
    CHINESE_SECTIONS,
    ENGLISH_SECTIONS,
    KNOWN,
    SECTIONS,
    Section,
    commands,
    options,
    spans,
    unquoted,
)
from tests.helpers.samples import PACKAGE

LANGUAGES: Final = (ENGLISH, CHINESE)
NAMED: Final = pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.path.name)


def target(link: str, sections: list[Section]) -> str:
    """A link, however a language writes it."""
    if link.startswith("#"):
        return f"section {[section.anchor for section in sections].index(link.removeprefix('#'))}"
    return "the other language" if link in {language.path.name for language in LANGUAGES} else link


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
    for name in ("install", "programs", "commands"):
        importlib.import_module(f"tests.docs.test_readme_{name}")  # says which blocks it runs
    assert sorted(KNOWN) == sorted(BLOCKS)


def test_the_statuses_are_those_of_the_code() -> None:
    assert unquoted(SECTIONS["Many drafts"].column()) == [status.value for status in OutcomeStatus]


def test_the_exit_codes_are_those_of_the_code() -> None:
    ends = 0, problems.SOME_NOT, problems.USAGE, problems.CANNOT_START, problems.UNSAID, problems.INTERRUPTED
    assert [int(cell) for cell in SECTIONS["Command line"].column()] == list(ends)


def test_the_events_are_those_of_the_code() -> None:
    kinds = {
        kind.__name__
        for kind in vars(events).values()
        if isinstance(kind, type) and issubclass(kind, events.Event)
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
