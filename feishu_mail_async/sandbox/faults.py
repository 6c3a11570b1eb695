"""Scripted faults: prepared answers, and connections that break.

In each of them, `accepted` says whether the call has its effect although the answer does not say so: a mail that
is to be sent goes out, a draft that is to be created is there, and so on.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Final, Self

from feishu_mail_async import codes

__all__ = ["Fault", "Kind", "Reply", "json_reply", "refusal", "success"]

JSON: Final = "application/json; charset=utf-8"
HTML: Final = "text/html; charset=utf-8"
LIMIT_HEADER: Final = "x-ogw-ratelimit-limit"
RESET_HEADER: Final = "x-ogw-ratelimit-reset"

_OK: Final = HTTPStatus.OK.value
_TOO_MANY: Final = HTTPStatus.TOO_MANY_REQUESTS.value


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer, ready to be sent.

    Attributes:
        status: the HTTP status.
        body: the body's bytes.
        code: the `code` in the body, for the call log; None if it has none.
        headers: further headers, as (name, value) pairs.
        content_type: the value of the Content-Type header.
    """

    status: int
    body: bytes
    code: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    content_type: str = JSON


def json_reply(status: int, value: object, code: int | None = None) -> Reply:
    """Return an answer whose body is `value` as JSON.

    Args:
        status: the HTTP status.
        value: the body, JSON-compatible.
        code: the `code` in it, for the call log.
    """
    return Reply(status, json.dumps(value, separators=(",", ":")).encode(), code)


def success(data: Mapping[str, Any]) -> Reply:
    """Return the API's answer to a successful call.

    Args:
        data: the answer's `data`.
    """
    row = codes.named("Success")
    return json_reply(row.http_status, {"code": row.number, "msg": row.message, "data": data}, row.number)


def refusal(
    row: codes.Code, *headers: tuple[str, str], http_status: int | None = None, msg: str | None = None
) -> Reply:
    """Return the API's answer to a call that it refuses.

    Args:
        row: the code's row, which gives number, message and HTTP status.
        *headers: further headers, as (name, value) pairs.
        http_status: another HTTP status than the row's.
        msg: another message than the row's.
    """
    told = {"code": row.number, "msg": row.message if msg is None else msg, "data": {}}
    body = json.dumps(told, separators=(",", ":"))
    return Reply(http_status or row.http_status, body.encode(), row.number, headers)


class Kind(StrEnum):
    """The effect of a fault on a call."""

    ANSWER = "answer"
    RESET = "reset"
    HANG = "hang"
    HUGE = "huge"
    DELAY = "delay"
    NORMAL = "normal"
    GRANT = "grant"


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of one call; made by the class methods.

    Attributes:
        kind: the effect on the call.
        accepted: True if the call has its effect all the same (a mail never goes out a second time).
        reply: the scripted answer; None if the answer is not scripted.
        size: the size of a huge answer, in bytes.
        declared: True if a huge answer has a Content-Length.
        there: a delayed call's latency to the server, in seconds.
        back: the latency of its answer, in seconds.
        alter: a function that turns the token endpoint's answer into another one.
    """

    kind: Kind
    accepted: bool = False
    reply: Reply | None = None
    size: int = 0
    declared: bool = False
    there: float = 0.0
    back: float = 0.0
    alter: Callable[[Reply], Reply] | None = None

    @classmethod
    def _answer(cls, reply: Reply, accepted: bool) -> Self:
        return cls(Kind.ANSWER, accepted, reply)

    @classmethod
    def normal(cls) -> Self:
        """Answer as if there were no script."""
        return cls(Kind.NORMAL)

    @classmethod
    def code(cls, name: str, *, msg: str | None = None, accepted: bool = False) -> Self:
        """Answer with a code of the table, and with the HTTP status of that code.

        Args:
            name: the code's name in the table of codes.
            msg: another message than the table's.
            accepted: True if the call has its effect.
        """
        return cls._answer(refusal(codes.named(name), msg=msg), accepted)

    @classmethod
    def unknown(cls, number: int, http_status: int = 400, *, accepted: bool = False) -> Self:
        """Answer with a code that the table does not know.

        Args:
            number: the code.
            http_status: the HTTP status.
            accepted: True if the call has its effect.
        """
        body = {"code": number, "msg": "a code of tomorrow", "data": {}}
        return cls._answer(json_reply(http_status, body, number), accepted)

    @classmethod
    def frequency(cls, status: int = 429, reset: str | None = "30", *, accepted: bool = False) -> Self:
        """Answer with the rate limit's refusal, `FrequencyLimited`.

        Args:
            status: the HTTP status; some older APIs send 400.
            reset: the text of the header x-ogw-ratelimit-reset, valid or not; None for no header.
            accepted: True if the call has its effect.
        """
        headers = () if reset is None else ((RESET_HEADER, reset),)
        return cls._answer(refusal(codes.named("FrequencyLimited"), *headers, http_status=status), accepted)

    @classmethod
    def bare_429(cls, reset: str | None = None) -> Self:
        """Answer with HTTP 429 and no body, like a proxy in front of the API.

        Args:
            reset: the text of the header x-ogw-ratelimit-reset; None for no header.
        """
        headers = () if reset is None else ((RESET_HEADER, reset),)
        return cls._answer(Reply(_TOO_MANY, b"", None, headers, HTML), accepted=False)

    @classmethod
    def automation_disabled(
        cls, reason: str = "automation is off", reference: str = "https://mail.example.com/draft"
    ) -> Self:
        """Answer with code 0 and send nothing: the mailbox's own setting blocks automated sends.

        Args:
            reason: the reason in `automation_send_disable`.
            reference: the link in it.
        """
        data = {"automation_send_disable": {"reason": reason, "reference": reference}}
        return cls._answer(success(data), accepted=False)

    @classmethod
    def odd_grant(cls, alter: Callable[[dict[str, Any]], object], http_status: int = 200) -> Self:
        """Grant tokens and spend the old ones, but answer otherwise than documented (token endpoint only).

        Args:
            alter: a function from the documented answer's JSON to the answer sent instead: a JSON value, or
                bytes, which are sent unchanged.
            http_status: the answer's HTTP status.
        """

        def altered(reply: Reply) -> Reply:
            value = alter(json.loads(reply.body))
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            return Reply(http_status, body, reply.code)

        return cls(Kind.GRANT, accepted=True, alter=altered)

    @classmethod
    def gateway(cls, status: int = 502, *, accepted: bool = False) -> Self:
        """Answer with an HTML error page of a gateway.

        Args:
            status: the HTTP status.
            accepted: True if the call has its effect.
        """
        title = f"{status} {HTTPStatus(status).phrase}"
        page = f"<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>"
        return cls._answer(Reply(status, page.encode(), None, (), HTML), accepted)

    @classmethod
    def redirect(cls, location: str, status: int = 302) -> Self:
        """Answer with a redirect, which a client that carries a token must not follow.

        Args:
            location: the Location header.
            status: the HTTP status.
        """
        return cls._answer(Reply(status, b"", None, (("Location", location),), HTML), accepted=False)

    @classmethod
    def broken(cls, *, accepted: bool = False) -> Self:
        """Answer with HTTP 200 and truncated JSON.

        Args:
            accepted: True if the call has its effect.
        """
        return cls._answer(Reply(_OK, b'{"code": 0, "msg": "succ'), accepted)

    @classmethod
    def empty(cls, *, accepted: bool = False) -> Self:
        """Answer with HTTP 200 and no body.

        Args:
            accepted: True if the call has its effect.
        """
        return cls._answer(Reply(_OK, b""), accepted)

    @classmethod
    def null(cls, *, accepted: bool = False) -> Self:
        """Answer with HTTP 200 and the body `null`.

        Args:
            accepted: True if the call has its effect.
        """
        return cls._answer(Reply(_OK, b"null"), accepted)

    @classmethod
    def array(cls, *, accepted: bool = False) -> Self:
        """Answer with HTTP 200 and a JSON array.

        Args:
            accepted: True if the call has its effect.
        """
        return cls._answer(Reply(_OK, b"[]"), accepted)

    @classmethod
    def nulls(cls, *, accepted: bool = False) -> Self:
        """Answer with HTTP 200 and the right fields, all of them null.

        Args:
            accepted: True if the call has its effect.
        """
        return cls._answer(Reply(_OK, b'{"code": null, "msg": null, "data": null}'), accepted)

    @classmethod
    def huge(cls, size: int = 50_000_000, *, declared: bool = False, accepted: bool = False) -> Self:
        """Answer with HTTP 200 and a streamed JSON body of `size` bytes.

        Args:
            size: the body's size, in bytes.
            declared: True to send a Content-Length; otherwise the body comes in chunks.
            accepted: True if the call has its effect.
        """
        return cls(Kind.HUGE, accepted, size=size, declared=declared)

    @classmethod
    def reset_before(cls) -> Self:
        """Reset the connection; the call has no effect."""
        return cls(Kind.RESET)

    @classmethod
    def reset_after(cls) -> Self:
        """Let the call have its effect, then reset the connection."""
        return cls(Kind.RESET, accepted=True)

    @classmethod
    def hang_before(cls) -> Self:
        """Never answer; the call has no effect."""
        return cls(Kind.HANG)

    @classmethod
    def hang_after(cls) -> Self:
        """Let the call have its effect, then never answer."""
        return cls(Kind.HANG, accepted=True)

    @classmethod
    def delay(cls, there: float, back: float = 0.0) -> Self:
        """Delay the call on its ways to the server and back, and answer as usual.

        The way to the server is over before a call can be judged. So this fault, unlike all others, is used up
        when the call sets out, even if the rate limit then refuses the call.

        Args:
            there: the latency to the server, in seconds.
            back: the latency of the answer, in seconds.
        """
        return cls(Kind.DELAY, there=there, back=back)

    @classmethod
    def from_json(cls, spec: Mapping[str, Any]) -> Self:
        """Return the fault that a JSON object describes.

        Args:
            spec: `{"kind": NAME, ...}`, where NAME is one of the class methods and the rest are its arguments.

        Raises:
            ValueError: there is no such fault, or it takes no such argument.
        """
        arguments = dict(spec)
        name = arguments.pop("kind", None)
        if name not in _MAKERS:
            raise ValueError(f"kind: give one of {', '.join(_MAKERS)}, not {name!r}")
        try:
            fault = getattr(cls, name)(**arguments)
        except (TypeError, KeyError) as error:
            raise ValueError(f"fault {name}: {error}") from error
        assert isinstance(fault, cls)
        return fault


_MAKERS: Final = (
    "normal",
    "code",
    "unknown",
    "frequency",
    "bare_429",
    "automation_disabled",
    "gateway",
    "redirect",
    "broken",
    "empty",
    "null",
    "array",
    "nulls",
    "huge",
    "reset_before",
    "reset_after",
    "hang_before",
    "hang_after",
    "delay",
)
