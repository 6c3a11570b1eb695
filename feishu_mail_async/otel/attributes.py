"""The names and attributes of spans and measurements, by the stable semantic conventions for HTTP."""

import functools
import re
from importlib.metadata import version
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.semconv.attributes.http_attributes import HTTP_REQUEST_METHOD, HTTP_RESPONSE_STATUS_CODE
from opentelemetry.semconv.attributes.server_attributes import SERVER_ADDRESS, SERVER_PORT
from opentelemetry.semconv.schemas import Schemas

from feishu_mail_async._api.endpoints import ENDPOINTS, Endpoint
from feishu_mail_async.errors import FeishuMailError
from feishu_mail_async.events import AttemptEnded, DraftEvent
from feishu_mail_async.model import Priority

__all__ = [
    "SCHEMA",
    "SCOPE",
    "Attributes",
    "Server",
    "about",
    "answer",
    "code_text",
    "error_type",
    "outcome",
    "priority_name",
    "release",
]

Attributes = dict[str, str | int | float | bool]

SCOPE: Final = "feishu_mail_async"
SCHEMA: Final = Schemas.V1_36_0.value
_URL_TEMPLATE: Final = "url.template"  # not a stable attribute, but the stable span name is built from it
_CLIENT_ERROR: Final = 400
_NONE: Final = "none"
"""The code attribute's value if there is no code: all measurements of an instrument have the same attributes."""


@functools.cache
def release() -> str:
    """Return the version of this package, which is the scope's."""
    return version("feishu-mail-async")


class Server:
    """The attributes common to the spans and measurements of all calls to one host.

    Args:
        base_url: the client's base URL.

    Attributes:
        base_url: the same.
        at: the attributes that name the host.
    """

    def __init__(self, base_url: str) -> None:
        parts = urlsplit(base_url)
        self.base_url = base_url
        self._prefix = parts.path
        self.at: Attributes = {
            SERVER_ADDRESS: parts.hostname or "",
            SERVER_PORT: parts.port or (443 if parts.scheme == "https" else 80),
        }
        self._calls = {name: self._call(endpoint) for name, endpoint in ENDPOINTS.items()}

    def _call(self, endpoint: Endpoint[Any]) -> tuple[str, Attributes]:
        method, template = endpoint.method, self._prefix + _template(endpoint.path)
        return f"{method} {template}", {HTTP_REQUEST_METHOD: method, _URL_TEMPLATE: template, **self.at}

    def name(self, endpoint: str) -> str:
        """Return the name of a call's span."""
        return self._calls[endpoint][0]

    def attributes(self, endpoint: str) -> Attributes:
        """Return a new dict of a call's attributes, which the caller may extend."""
        return dict(self._calls[endpoint][1])


def _template(path: str) -> str:
    """Return the path of an endpoint's row as the API documents spell it."""
    return re.sub(r"\{(\w+)\}", r":\1", path.replace("{mailbox}", "{user_mailbox_id}"))


def outcome(event: AttemptEnded) -> Attributes:
    """Return the attributes of a call's end by the conventions, common to its span and its duration."""
    attributes: Attributes = {}
    if event.http_status is not None:
        attributes[HTTP_RESPONSE_STATUS_CODE] = event.http_status
    if event.error is not None:
        # The error of the event decides, not the HTTP status: "already sent" has an HTTP error status and is a
        # success, and some failures come with HTTP 200.
        failed = event.http_status is not None and event.http_status >= _CLIENT_ERROR
        attributes[ERROR_TYPE] = str(event.http_status) if failed else error_type(event.error)
    return attributes


def error_type(error: FeishuMailError) -> str:
    """Return the name of an error's class."""
    return type(error).__qualname__


def priority_name(priority: Priority) -> str:
    """Return the value of a priority's attribute."""
    return priority.name.lower()


def code_text(code: int | None) -> str:
    """Return the value of a code's attribute."""
    return _NONE if code is None else str(code)


def answer(code: int | None, log_id: str | None) -> Attributes:
    """Return the attributes that identify an answer; empty if there was none."""
    found: Attributes = {} if code is None else {"feishu_mail.code": code_text(code)}
    return found if log_id is None else found | {"feishu_mail.log_id": log_id}


def about(event: DraftEvent) -> Attributes:
    """Return the attributes of a call's user and draft."""
    found: Attributes = {"feishu_mail.user": event.user}
    if event.draft is not None:
        found |= {"feishu_mail.draft_id": event.draft.draft_id, "feishu_mail.mailbox": event.draft.mailbox}
    return found
