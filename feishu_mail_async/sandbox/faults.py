"""What can go wrong on purpose: replies that are scripted, and connections that break.

`accepted` says in all of them whether the mail goes out although the answer does not say so.
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
    """An HTTP answer, ready to go.

    Attributes:
        status: the HTTP status.
        body: the body's bytes.
        code: the `code` in it, for the ledger; None where it has none.
        headers: further headers, as pairs.
        content_type: the header of that name.
    """

    status: int
    body: bytes
    code: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    content_type: str = JSON


def json_reply(status: int, value: object, code: int | None = None) -> Reply:
    """An answer whose body is `value` as JSON."""
    return Reply(status, json.dumps(value, separators=(",", ":")).encode(), code)


def success(data: Mapping[str, Any]) -> Reply:
    """The API's answer to a call that went well."""
    row = codes.named("Success")
    return json_reply(row.http_status, {"code": row.number, "msg": row.message, "data": data}, row.number)


def refusal(
    row: codes.Code, *headers: tuple[str, str], http_status: int | None = None, msg: str | None = None
) -> Reply:
    """The API's answer to a call that it refuses, as the table of codes has it, or with another message."""
    told = {"code": row.number, "msg": row.message if msg is None else msg, "data": {}}
    body = json.dumps(told, separators=(",", ":"))
    return Reply(http_status or row.http_status, body.encode(), row.number, headers)


class Kind(StrEnum):
    """What a fault does to a call."""

    ANSWER = "answer"
    RESET = "reset"
    HANG = "hang"
    HUGE = "huge"
    DELAY = "delay"
    NORMAL = "normal"
    GRANT = "grant"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong with one call; made by the class methods.

    Attributes:
        kind: what happens.
        accepted: the mail goes out all the same (never a second time).
        reply: the answer, where one is scripted.
        size: bytes of a huge answer.
        declared: whether a huge answer says its length beforehand.
        there: seconds of a delayed call's way to the server.
        back: seconds of its way home.
        alter: makes another answer of what the token endpoint grants.
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
        """Nothing goes wrong: the call is answered as if there were no script."""
        return cls(Kind.NORMAL)

    @classmethod
    def code(cls, name: str, *, msg: str | None = None, accepted: bool = False) -> Self:
        """The answer of that name in the table of codes, with its own HTTP status; `msg` is another message."""
        return cls._answer(refusal(codes.named(name), msg=msg), accepted)

    @classmethod
    def unknown(cls, number: int, http_status: int = 400, *, accepted: bool = False) -> Self:
        """A code that the table does not know."""
        body = {"code": number, "msg": "a code of tomorrow", "data": {}}
        return cls._answer(json_reply(http_status, body, number), accepted)

    @classmethod
    def frequency(cls, status: int = 429, reset: str | None = "30", *, accepted: bool = False) -> Self:
        """The rate limit's refusal, with any reset header or none (some older APIs send it as HTTP 400)."""
        headers = () if reset is None else ((RESET_HEADER, reset),)
        return cls._answer(refusal(codes.named("FrequencyLimited"), *headers, http_status=status), accepted)

    @classmethod
    def bare_429(cls, reset: str | None = None) -> Self:
        """A 429 without a body, as a proxy in front of the API sends it."""
        headers = () if reset is None else ((RESET_HEADER, reset),)
        return cls._answer(Reply(_TOO_MANY, b"", None, headers, HTML), accepted=False)

    @classmethod
    def automation_disabled(
        cls, reason: str = "automation is off", reference: str = "https://mail.example.com/draft"
    ) -> Self:
        """Code 0, and nothing was sent: the mailbox's own setting blocked the automated send."""
        data = {"automation_send_disable": {"reason": reason, "reference": reference}}
        return cls._answer(success(data), accepted=False)

    @classmethod
    def odd_grant(cls, alter: Callable[[dict[str, Any]], object], http_status: int = 200) -> Self:
        """Tokens are granted, and the old ones spent, but the token endpoint says so otherwise than documented.

        Args:
            alter: takes the documented answer's JSON, and returns what is answered instead: JSON, or bytes as they
                are.
            http_status: of the answer.
        """

        def altered(reply: Reply) -> Reply:
            value = alter(json.loads(reply.body))
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            return Reply(http_status, body, reply.code)

        return cls(Kind.GRANT, accepted=True, alter=altered)

    @classmethod
    def gateway(cls, status: int = 502, *, accepted: bool = False) -> Self:
        """An HTML page of the gateway's."""
        title = f"{status} {HTTPStatus(status).phrase}"
        page = f"<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>"
        return cls._answer(Reply(status, page.encode(), None, (), HTML), accepted)

    @classmethod
    def redirect(cls, location: str, status: int = 302) -> Self:
        """A redirect, which a client that carries a token must not follow."""
        return cls._answer(Reply(status, b"", None, (("Location", location),), HTML), accepted=False)

    @classmethod
    def broken(cls, *, accepted: bool = False) -> Self:
        """HTTP 200 with JSON that breaks off."""
        return cls._answer(Reply(_OK, b'{"code": 0, "msg": "succ'), accepted)

    @classmethod
    def empty(cls, *, accepted: bool = False) -> Self:
        """HTTP 200 with no body."""
        return cls._answer(Reply(_OK, b""), accepted)

    @classmethod
    def null(cls, *, accepted: bool = False) -> Self:
        """HTTP 200 with the body `null`."""
        return cls._answer(Reply(_OK, b"null"), accepted)

    @classmethod
    def array(cls, *, accepted: bool = False) -> Self:
        """HTTP 200 with a JSON array."""
        return cls._answer(Reply(_OK, b"[]"), accepted)

    @classmethod
    def nulls(cls, *, accepted: bool = False) -> Self:
        """HTTP 200 with the right fields, all of them null."""
        return cls._answer(Reply(_OK, b'{"code": null, "msg": null, "data": null}'), accepted)

    @classmethod
    def huge(cls, size: int = 50_000_000, *, declared: bool = False, accepted: bool = False) -> Self:
        """HTTP 200 with a JSON body of `size` bytes, streamed.

        Args:
            size: bytes.
            declared: whether a Content-Length gives it away; otherwise it comes in chunks.
            accepted: whether the mail goes out.
        """
        return cls(Kind.HUGE, accepted, size=size, declared=declared)

    @classmethod
    def reset_before(cls) -> Self:
        """The connection breaks, and nothing was sent."""
        return cls(Kind.RESET)

    @classmethod
    def reset_after(cls) -> Self:
        """The mail goes out, and then the connection breaks."""
        return cls(Kind.RESET, accepted=True)

    @classmethod
    def hang_before(cls) -> Self:
        """No answer ever comes, and nothing was sent."""
        return cls(Kind.HANG)

    @classmethod
    def hang_after(cls) -> Self:
        """The mail goes out, and no answer ever comes."""
        return cls(Kind.HANG, accepted=True)

    @classmethod
    def delay(cls, there: float, back: float = 0.0) -> Self:
        """A straggler: its ways take these seconds, and it is answered as usual.

        The way to the server is over before a call can be judged, so this one fault is used up when the
        call sets out, even if the rate limit then refuses it.
        """
        return cls(Kind.DELAY, there=there, back=back)

    @classmethod
    def from_json(cls, spec: Mapping[str, Any]) -> Self:
        """The fault that `{"kind": NAME, ...}` describes; NAME is a class method's, the rest its arguments.

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
