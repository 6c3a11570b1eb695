"""Write the table of codes and what was measured into README.md and README.zh-CN.md: `make readme`."""

# ruff: noqa: RUF001 - Chinese sentences keep Chinese punctuation

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import measured

from feishu_mail_async.codes import CODES, Code, ResumeWhen, Subject, Verdict

__all__ = ["CHINESE", "ENGLISH", "ROOT", "Language", "generated", "update"]

ROOT: Final = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Language:
    """A README, and its words for what is generated.

    Attributes:
        path: the file.
        advice: the field of `Code` that stands in the last column.
        head: the names of the columns.
        ends: what becomes of a draft whose answer settles it and closes nothing.
        waits: what a RETRY brings about, by whom it concerns.
        closes: what a FATAL brings about, by what ends it; `{}` is who is suspended.
        who: the names of those who can be closed.
        measured: the section of what was measured.
    """

    path: Path
    advice: str
    head: tuple[str, str, str, str]
    ends: dict[Verdict, str]
    waits: dict[Subject, str]
    closes: dict[ResumeWhen, str]
    who: dict[Subject, str]
    measured: str


ENGLISH: Final = Language(
    ROOT / "README.md",
    "advice",
    ("code", "error class", "what the client does", "what you can do"),
    {
        Verdict.DONE: "the draft is `sent`",
        Verdict.ALREADY_DONE: "the draft is `already_sent`",
        Verdict.FATAL: "the draft ends",
    },
    {
        Subject.APP: "the app waits as long as the server says, then one call probes",
        Subject.USER: "the user waits, longer each time; the draft is tried again",
        Subject.DRAFT: "the draft waits, longer each time, and is tried again",
    },
    {
        ResumeWhen.HOUR: "{} is suspended for an hour, then one draft tries",
        ResumeWhen.TOKEN: "asks once for a new token; if there is none, {} is suspended until there is",
        ResumeWhen.RESUMED: "{} is suspended until `resume`",
    },
    {Subject.USER: "the user", Subject.MAILBOX: "the mailbox", Subject.APP: "the app"},
    measured.ENGLISH,
)

CHINESE: Final = Language(
    ROOT / "README.zh-CN.md",
    "advice_zh",
    ("错误码", "异常类", "客户端的处理", "排查建议"),
    {
        Verdict.DONE: "草稿状态为 `sent`",
        Verdict.ALREADY_DONE: "草稿状态为 `already_sent`",
        Verdict.FATAL: "该草稿就此结束",
    },
    {
        Subject.APP: "整个应用按服务器要求的时间等待，再用一次调用探测",
        Subject.USER: "该用户等待，时间逐次加长；之后重试该草稿",
        Subject.DRAFT: "该草稿等待，时间逐次加长；之后重试",
    },
    {
        ResumeWhen.HOUR: "{}停发一小时，之后放行一个草稿探测",
        ResumeWhen.TOKEN: "索取一次新凭证；没有则{}停发，直到有新凭证",
        ResumeWhen.RESUMED: "{}停发，直到调用 `resume`",
    },
    {Subject.USER: "该用户", Subject.MAILBOX: "该邮箱", Subject.APP: "整个应用"},
    measured.CHINESE,
)


def _reaction(code: Code, language: Language) -> str:
    """What the client does when this code is the answer."""
    if code.verdict is Verdict.RETRY:
        return language.waits[code.subject]
    if code.until is not None:
        return language.closes[code.until].format(language.who[code.subject])
    return language.ends[code.verdict]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def generated(language: Language) -> str:
    """The table of codes, in the order in which `codes` has them."""
    rows = [
        _line(
            str(code.number),
            f"`{code.error}`" if code.error else "–",
            _reaction(code, language),
            getattr(code, language.advice),
        )
        for code in CODES.values()
    ]
    return "".join([_line(*language.head), "|---|---|---|---|\n", *rows])


def update(text: str, language: Language) -> str:
    """A README's text with all that is generated as it should be.

    Raises:
        ValueError: there are not exactly one pair of markers for each part of it.
    """
    text = _fill(text, "codes", generated(language), language)
    return _fill(text, "measured", measured.measured(language.measured), language)


def _fill(text: str, name: str, part: str, language: Language) -> str:
    # From the first marker's end to the second one.
    place = rf"(?<=<!-- {name}: made from )([^\n]*\n).*?(?=<!-- end of {name} -->)"
    filled, places = re.subn(place, lambda found: found[1] + part, text, flags=re.DOTALL)
    if places != 1:
        raise ValueError(f"{language.path.name}: give {name!r} one place, between its two comments")
    return filled


def main() -> None:
    """Bring both files up to date."""
    for language in (ENGLISH, CHINESE):
        text = language.path.read_text(encoding="utf-8")
        language.path.write_text(update(text, language), encoding="utf-8")


if __name__ == "__main__":
    main()
