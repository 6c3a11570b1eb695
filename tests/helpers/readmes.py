"""The READMEs, read: sections, tables, and blocks of code that tests run."""

import re
import shlex
import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import pytest
import typer
from readme import CHINESE, ENGLISH, ROOT, Language

from feishu_mail_async import FeishuMailClient, RefreshingTokens
from feishu_mail_async._api.base_url import FEISHU
from feishu_mail_async.cli import app

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


# --- names and numbers that the text has of the code ------------------------------------------------------


def spans() -> list[str]:
    return [name for section in ENGLISH_SECTIONS for name in section.names]


def commands() -> list[str]:
    """Every line of a shell, in a block or in a sentence, as words."""
    lines = [line for (language, _, _), text in BLOCKS.items() if language == "sh" for line in text.splitlines()]
    return lines + spans()


def unquoted(cells: list[str]) -> list[str]:
    return [name for cell in cells for name in _NAME.findall(cell)]


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


def take_for_feishu(monkeypatch: pytest.MonkeyPatch, base_url: str) -> None:
    """Have a sandbox be the default of all that take a base_url."""
    for made in (FeishuMailClient, RefreshingTokens):
        defaults = made.__init__.__kwdefaults__
        assert defaults is not None
        assert defaults["base_url"] == FEISHU
        monkeypatch.setitem(defaults, "base_url", base_url)
    monkeypatch.setattr("feishu_mail_async.cli.options.FEISHU", base_url)
