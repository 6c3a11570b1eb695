"""Header values of a message: read from whatever wrote them, written on one line of ASCII.

The platform is said to read neither folded lines nor RFC 2231 parameters. So a value with anything but ASCII
becomes RFC 2047 words in base64, several of them with one space between them if it is long; that goes for names of
files too, which stand as such words within quotes.

A value comes in two forms. One that was parsed is a raw string: folded, with encoded words, perhaps raw UTF-8.
One that was set on an `EmailMessage` is a header object, whose text is decoded: what looks like an encoded word in
it is text, and is not decoded again.
"""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.header import Header
from email.headerregistry import BaseHeader, HeaderRegistry
from email.message import Message
from typing import Any, Final, TypeAlias

from feishu_mail_async._text import escape

__all__ = ["Parameters", "decode", "header_line", "read_parameters", "recipients", "text_of"]

_ADDRESS_HEADERS: Final = frozenset(
    {
        *("from", "sender", "reply-to", "to", "cc", "bcc", "disposition-notification-to", "return-receipt-to"),
        *("resent-from", "resent-sender", "resent-to", "resent-cc", "resent-bcc"),
    }
)
"""Headers that hold addresses, in small letters."""

_Group: TypeAlias = tuple[str | None, list[tuple[str, str]]]
"""The name of a group, if it is one, and names and addresses."""
_HIDDEN: Final = re.compile("\x01([0-9]+)\x01")
"""What stands for encoded words while addresses are parsed; no header may hold it otherwise."""
_REGISTRY: Final = HeaderRegistry()
_NAME: Final = re.compile(r"(?!--)[!-9;-~]+")
"""Names of headers. What begins with two hyphens might be taken for a boundary."""
_FOLD: Final = re.compile(r"\r?\n(?=[ \t])")
_FORBIDDEN: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters except the tab, and lone surrogates."""
_WORD: Final = re.compile(r"=\?([^?\s*]+)(?:\*[^?\s]*)?\?([bBqQ])\?([^?\s]*)\?=")
_WORDS: Final = re.compile(rf"{_WORD.pattern}(?:[ \t]+{_WORD.pattern})*")
"""Encoded words in a row: the blanks between them are no part of the text."""
_BLANKS: Final = re.compile(r"\s*[ \t]\s*")
"""Blanks in a name, of which readers make one; wider ones that stand alone (between Chinese names) they keep."""
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(rf"{_TOKEN.pattern}(?:/{_TOKEN.pattern})?")
_SUPERSETS: Final = {"gb2312": "gb18030", "gbk": "gb18030", "us-ascii": "utf-8", "ascii": "utf-8"}
"""Charsets that are named by programs that write more than these have, and what they write."""

_LONGEST_SHOWN: Final = 80
"""Characters of a value that an error shows, at most."""
_BYTES_OF_A_WORD: Final = 45
"""60 characters of base64: with `=?utf-8?B?` and `?=` they stay within the 75 that RFC 2047 allows."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """A value with parameters, as of Content-Type.

    Attributes:
        value: what stands before the parameters, in small letters; empty if there is nothing of use.
        parameters: the parameters by their names in small letters, decoded.
    """

    value: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return them on one line."""
        return "; ".join([self.value, *(f"{name}={_quote(value)}" for name, value in self.parameters.items())])


def decode(what: str, data: bytes, charset: str) -> str:
    """Return the text that these bytes hold.

    Args:
        what: what holds them, for the message.
        data: the bytes.
        charset: the name of their charset.

    Raises:
        ValueError: the charset is not known, or it is not what the bytes are in.
    """
    try:
        return data.decode(_SUPERSETS.get(charset.lower(), charset))
    except (LookupError, ValueError):  # ValueError: also a name with NUL in it
        raise ValueError(
            f"message: {what} cannot be read as {escape(charset)}, which it is said to be; write it as UTF-8"
        ) from None


def text_of(name: str, value: Any) -> str:
    """Return the decoded text of a header whose value has no parts.

    Args:
        name: the name of the header.
        value: the value as `raw_items` of a message gives it.

    Raises:
        ValueError: it holds control characters or lone surrogates, or cannot be decoded.
    """
    text = _unfold(name, value)
    return _checked(name, _decode_words(name, text) if _is_raw(value) else text)


def header_line(name: str, value: Any, *, strict: bool) -> str:
    """Return the line of a header, without its end.

    Args:
        name: the name of the header.
        value: the value as `raw_items` of a message gives it.
        strict: whether an address header must hold nothing but addresses if it has to be written anew.

    Raises:
        ValueError: the name or the value cannot be written, or is not what a header may hold.
    """
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"message: {escape(name)!r} is no name of a header; use ASCII without blanks or colons")
    text = _unfold(name, value)
    raw = _is_raw(value)
    if _needs_words(text) or not raw:
        if name.lower() in _ADDRESS_HEADERS:
            text = _write_addresses(name, text, value, strict=strict)
        else:
            text = _write_text(text_of(name, value))
    return f"{name}: {_checked(name, text)}" if text else f"{name}:"


def recipients(name: str, value: Any) -> int:
    """Return how many addresses a header holds.

    Args:
        name: the name of the header.
        value: the value as `raw_items` of a message gives it.

    Raises:
        ValueError: something in it is no address.
    """
    return sum(len(addresses) for _, addresses in _groups(name, _unfold(name, value), value, strict=True))


def read_parameters(name: str, value: Any) -> Parameters:
    """Return a value with parameters, as of Content-Type or Content-Disposition.

    Args:
        name: the name of the header.
        value: the value as `raw_items` of a message gives it.

    Raises:
        ValueError: it holds control characters or lone surrogates, or cannot be decoded.
    """
    text = _unfold(name, value)
    if isinstance(value, BaseHeader):
        main = text.partition(";")[0]
        items = list(getattr(value, "params", {}).items())
    else:
        # The older parser: that of `policy.default` leaves blanks between encoded words in some Python releases.
        carrier = Message()
        carrier[name] = text
        (main, _), *rest = carrier.get_params([("", "")], name)
        items = [(key, _decode_parameter(name, held)) for key, held in rest]
    main = main.strip().lower()
    return Parameters(
        main if _VALUE.fullmatch(main) else "",
        {key.lower(): _checked(name, str(held)) for key, held in items if _TOKEN.fullmatch(key)},
    )


def _is_raw(value: object) -> bool:
    return not isinstance(value, BaseHeader | Header)


def _unfold(name: str, value: Any) -> str:
    """Return the value on one line, raw bytes in it read as UTF-8."""
    text = str(value)
    if _is_raw(value):
        text = _FOLD.sub("", text).strip(" \t\r\n")
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            text = text.encode("utf-8", "surrogateescape").decode()
        except UnicodeError:
            raise ValueError(
                f"message: the header {escape(name)} holds bytes that are not UTF-8, or lone surrogates; "
                "write it as UTF-8"
            ) from None
    return _checked(name, text)


def _checked(name: str, text: str) -> str:
    """Return the text, which an encoded word may have brought line ends into."""
    found = _FORBIDDEN.search(text)
    if found is not None:
        raise ValueError(
            f"message: the header {escape(name)} holds the character U+{ord(found[0]):04X}, "
            "which no header may hold; take it out"
        )
    return text


def _decode_words(name: str, text: str) -> str:
    if "=?" not in text:
        return text
    return _WORDS.sub(lambda run: "".join(_decode_run(name, run[0])), text)


def _decode_run(name: str, run: str) -> Iterator[str]:
    """Decode encoded words in a row; those of one charset as one, since some programs cut within a character."""
    charset, data = "", b""
    for word_charset, encoding, content in _WORD.findall(run):
        if word_charset.lower() != charset:
            if data:
                yield decode(f"the header {name}", data, charset)
            charset, data = word_charset.lower(), b""
        if encoding in "qQ":
            data += binascii.a2b_qp(content.encode(), header=True)
            continue
        try:
            digits = content.rstrip("=")  # some programs forget the padding
            data += base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
        except ValueError:
            raise ValueError(
                f"message: the header {escape(name)} holds an encoded word that is not base64; write its text anew"
            ) from None
    yield decode(f"the header {name}", data, charset)


def _decode_parameter(name: str, value: str | tuple[str | None, str | None, str]) -> str:
    if isinstance(value, tuple):  # RFC 2231
        charset, _, text = value
        return decode(f"the header {name}", text.encode("latin-1", "replace"), charset or "us-ascii")
    return _decode_words(name, value)


def _needs_words(text: str) -> bool:
    """Return whether the text as it is would not come through, or be read as something else."""
    return not text.isascii() or ("=?" in text and "?=" in text) or text != text.strip()


def _write_text(text: str) -> str:
    return " ".join(_encoded_words(text)) if _needs_words(text) else text


def _encoded_words(text: str) -> Iterator[str]:
    """Encode a text as RFC 2047 words, cut between characters."""
    chunk = b""
    for character in text:
        data = character.encode()
        if len(chunk) + len(data) > _BYTES_OF_A_WORD:
            yield _encoded_word(chunk)
            chunk = b""
        chunk += data
    yield _encoded_word(chunk)


def _encoded_word(data: bytes) -> str:
    return f"=?utf-8?B?{binascii.b2a_base64(data, newline=False).decode()}?="


def _quote(value: str) -> str:
    if _TOKEN.fullmatch(value):
        return f'"{value}"'
    if _needs_words(value) or "  " in value or "\t" in value:  # readers make one blank of several
        return f'"{" ".join(_encoded_words(value))}"'
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _groups(name: str, text: str, value: Any, *, strict: bool) -> list[_Group]:
    """Return the groups of addresses of a header; nothing if it holds something else and `strict` is off."""
    words: list[str] = []

    def hide(run: re.Match[str]) -> str:
        words.append("".join(_decode_run(name, run[0])))
        return f"\x01{len(words) - 1}\x01"

    # The parser decodes words by rules of its own (their blanks, their charsets), so it does not get to see them.
    header = value if hasattr(value, "groups") else _parse_addresses(_WORDS.sub(hide, text))
    groups = [] if header is None else [(one.display_name, one.addresses) for one in header.groups]
    # What it does not understand the parser leaves out, up to the next comma ("a@example.com; b@example.com").
    fault = header is None or any(
        "invalid" in str(one) and "in address-list" in str(one) for one in header.defects
    )
    for address in (address for _, addresses in groups for address in addresses):
        if not address.addr_spec.isascii() and address.domain and strict:
            raise ValueError(
                f"message: {_cut(address.addr_spec)} in {name} is not ASCII; "
                "write its domain as xn--..., or use another address"
            )
        plain = address.addr_spec.isascii() and address.addr_spec.isprintable()
        fault = fault or not (address.username and address.domain and plain)
    if fault and strict:
        raise ValueError(
            f"message: {name} holds something that is no address ({_cut(text)}); "
            "give such as name@example.com, with commas between"
        )

    def shown(phrase: str) -> str:
        return _HIDDEN.sub(lambda place: words[int(place[1])], phrase)

    return (
        []
        if fault
        else [
            (
                None if group is None else shown(group),
                [(shown(address.display_name), address.addr_spec) for address in addresses],
            )
            for group, addresses in groups
        ]
    )


def _parse_addresses(text: str) -> Any:
    """Return the header object of an address header; None if the parser fails."""
    try:
        return _REGISTRY("To", text)
    except Exception:  # noqa: BLE001 (it fails in many ways on what is no address: IndexError, TypeError...)
        return None


def _cut(text: str) -> str:
    return repr(escape(text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."))


def _write_addresses(name: str, text: str, value: Any, *, strict: bool) -> str:
    groups = _groups(name, text, value, strict=strict)
    if not groups:
        return _write_text(text_of(name, value))
    return ", ".join(_write_group(name, *group) for group in groups)


def _write_group(name: str, group: str | None, addresses: Sequence[tuple[str, str]]) -> str:
    written = ", ".join(_write_address(_write_phrase(name, phrase), spec) for phrase, spec in addresses)
    return written if group is None else f"{_write_phrase(name, group)}: {written};"


def _write_address(phrase: str, spec: str) -> str:
    return f"{phrase} <{spec}>" if phrase else spec


def _write_phrase(name: str, phrase: str) -> str:
    phrase = _BLANKS.sub(" ", _checked(name, phrase)).strip()
    if not phrase or _needs_words(phrase):
        return _write_text(phrase)
    return phrase if _TOKEN.fullmatch(phrase.replace(" ", "")) and "." not in phrase else _quote_phrase(phrase)


def _quote_phrase(phrase: str) -> str:
    escaped = phrase.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
