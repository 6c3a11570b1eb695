"""The sandbox's control endpoints, which set a sandbox that runs in a process of its own."""

import json
from collections.abc import Callable
from typing import Any, Final

from .faults import Fault, Reply, json_reply
from .stage import Stage

__all__ = ["CONTROL", "control"]

CONTROL: Final = "/_sandbox/"


def control(stage: Stage, method: str, path: str, body: bytes) -> Reply:
    """Answer a call of a control endpoint: GET ledger (the call log); POST users, drafts, script.

    Args:
        stage: the stage to read or set.
        method: the request's HTTP method.
        path: the request's path.
        body: the request's body.

    Returns:
        the answer. A call with wrong values gets HTTP 400 and a sentence about the error.
    """
    name = path.removeprefix(CONTROL)
    if (method, name) == ("GET", "ledger"):
        return json_reply(200, stage.ledger.as_json())
    if method != "POST" or name not in _POSTS:
        return json_reply(404, {"error": "GET ledger; POST users, drafts, script"})
    try:
        value = json.loads(body)
        if not isinstance(value, dict):
            raise ValueError("body: give a JSON object")  # noqa: TRY004, TRY301 - one way out for all that is wrong
        return json_reply(200, _POSTS[name](stage, value))
    except ValueError as error:
        return json_reply(400, {"error": str(error)})


def _text(body: dict[str, Any], name: str, default: str | None = None) -> str:
    value = body.get(name, default)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name}: give a text")
    return value


def _users(stage: Stage, body: dict[str, Any]) -> dict[str, Any]:
    name = _text(body, "name")
    return {"token": stage.add_user(name, address=_text(body, "address", f"{name}@example.com"))}


def _drafts(stage: Stage, body: dict[str, Any]) -> dict[str, Any]:
    count = body.get("count", 1)
    if not isinstance(count, int) or count < 0:
        raise ValueError("count: give a whole number, 0 or more")
    return {"ids": stage.add_drafts(_text(body, "user"), count, mailbox=_text(body, "mailbox", "me"))}


def _script(stage: Stage, body: dict[str, Any]) -> dict[str, Any]:
    faults = body.get("faults")
    if not isinstance(faults, list) or not all(isinstance(fault, dict) for fault in faults):
        raise ValueError('faults: give a list of objects such as {"kind": "code", "name": "ConcurrentWrite"}')
    stage.script(_text(body, "draft_id"), *[Fault.from_json(fault) for fault in faults])
    return {}


_POSTS: Final[dict[str, Callable[[Stage, dict[str, Any]], dict[str, Any]]]] = {
    "users": _users,
    "drafts": _drafts,
    "script": _script,
}
