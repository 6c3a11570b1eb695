"""The sandbox's control endpoints, which set a sandbox that runs in a process of its own."""

import json
from collections.abc import Callable
from typing import Any, Final

from .faults import Fault, Reply, json_reply
from .stage import Stage

__all__ = ["CONTROL", "control"]

CONTROL: Final = "/_sandbox/"


def control(stage: Stage, method: str, path: str, body: bytes) -> Reply:
    """Answer a call of a control endpoint: GET ledger (the call log), or one of the POSTs that set the stage.

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
        return json_reply(404, {"error": f"GET ledger; POST {', '.join(_POSTS)}"})
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


def _faults(body: dict[str, Any]) -> list[Fault]:
    faults = body.get("faults")
    if not isinstance(faults, list) or not all(isinstance(fault, dict) for fault in faults):
        raise ValueError('faults: give a list of objects such as {"kind": "code", "name": "ConcurrentWrite"}')
    return [Fault.from_json(fault) for fault in faults]


def _script(stage: Stage, body: dict[str, Any]) -> dict[str, Any]:
    stage.script(_text(body, "draft_id"), *_faults(body))
    return {}


def _script_calls(stage: Stage, body: dict[str, Any]) -> dict[str, Any]:
    stage.script_calls(_text(body, "endpoint"), *_faults(body))
    return {}


def _delivery(stage: Stage, body: dict[str, Any]) -> dict[str, Any]:
    status = body.get("status")
    if not isinstance(status, int):
        raise ValueError("status: give a number from 0 to 6")  # noqa: TRY004 - one way out for all that is wrong
    stage.set_delivery(_text(body, "draft_id"), _text(body, "address"), status)
    return {}


def _recall(stage: Stage, body: dict[str, Any]) -> dict[str, Any]:
    stage.set_recall(_text(body, "draft_id"), _text(body, "address"), _text(body, "reason"))
    return {}


_POSTS: Final[dict[str, Callable[[Stage, dict[str, Any]], dict[str, Any]]]] = {
    "users": _users,
    "drafts": _drafts,
    "script": _script,
    "script_calls": _script_calls,
    "delivery": _delivery,
    "recall": _recall,
}
